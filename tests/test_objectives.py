"""What TFP and Keras lack for objectives: free bits, and the path derivative."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import normal, raises
from tfp_iaf import build_iaf_surrogate_posterior, objectives

KL = np.abs(normal([6, 4, 3]).numpy())


@pytest.mark.parametrize(
    ('kl', 'minimum', 'axis', 'means'),
    [
        (KL[:, 0, 0], 0.5, 0, KL[:, 0, 0].mean()),
        (KL[:, 0, 0], 2.0, 0, KL[:, 0, 0].mean()),
        (KL[:, 0, 0], 0, 0, KL[:, 0, 0].mean()),
        (KL[:, 0], 0.7, 0, KL[:, 0].mean(axis=0)),
        (KL[:, 0], tf.constant(0.7), -1, KL[:, 0].mean(axis=-1)),
        (KL, tf.Variable(0.7, dtype=tf.float64), 0, KL.mean(axis=0)),
        (KL, 0.7, (0, 1), KL.mean(axis=(0, 1))),
    ],
    ids=['above', 'below', 'zero', 'groups', 'last_axis', 'groups_of_two_axes', 'batch_of_two_axes'],
)
def test_free_bits(kl, minimum, axis, means):
    """The mean comes first, then the maximum, then the sum."""
    expected = np.sum(np.maximum(means, minimum))
    np.testing.assert_allclose(objectives.free_bits(tf.constant(kl), minimum, axis), expected, rtol=1e-7)


def test_nan_is_not_free_and_groups_below_the_minimum_get_no_gradient():
    assert np.isnan(objectives.free_bits(tf.constant([np.nan, 1.0]), 0.5))
    kl = tf.constant([[0.1, 2.0], [0.3, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(kl)
        term = objectives.free_bits(kl, 0.5)
    np.testing.assert_array_equal(tape.gradient(term, kl), [[0.0, 0.5], [0.0, 0.5]])


@pytest.mark.parametrize(('dtype', 'jit_compile'), [(tf.float32, True), (tf.float64, False)], ids=['xla', 'graph'])
def test_free_bits_of_an_unknown_batch(dtype, jit_compile):
    compiled = tf.function(
        lambda kl: objectives.free_bits(kl, 0.5),
        input_signature=[tf.TensorSpec([None, 2], dtype)],
        jit_compile=jit_compile,
    )
    result = compiled(tf.constant([[0.1, 3.0], [0.3, 1.0]], dtype))
    assert result.dtype == dtype and result.shape == []
    np.testing.assert_allclose(result, 2.5, rtol=1e-6)
    assert compiled(tf.zeros([0, 2], dtype)) == 1.0


@pytest.mark.parametrize(('shape', 'axis', 'expected'), [([0], 0, 0.5), ([0, 3], 0, 1.5), ([0, 2, 3], (0, 1), 1.5)])
def test_free_bits_of_no_rows(shape, axis, expected):
    kl = tf.zeros(shape)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        term = objectives.free_bits(kl, 0.5, axis)
    assert term == expected and tape.gradient(term, kl).shape == shape


TABLE = tf.zeros([3, 2])


@pytest.mark.parametrize(
    ('kl', 'minimum', 'axis', 'error', 'parts'),
    [
        (tf.constant([1, 2]), 0.5, 0, TypeError, ['kl', 'int32', 'floating']),
        (tf.constant(1.0), 0.5, 0, ValueError, ['kl', 'scalar', 'axis for the batch']),
        (tf.constant([1.0]), -0.5, 0, ValueError, ['minimum', '-0.5', 'at least 0']),
        (tf.constant([1.0]), float('nan'), 0, ValueError, ['minimum', 'nan', 'at least 0']),
        (tf.constant([1.0]), 'few', 0, TypeError, ['minimum', "'few'", 'number']),
        *((TABLE, 0.5, axis, ValueError, ['axis', str(axis), 'kl', '(3, 2)']) for axis in (2, -3, (), (0, 5))),
    ],
)
def test_bad_arguments_of_free_bits(kl, minimum, axis, error, parts):
    with raises(error, *parts):
        objectives.free_bits(kl, minimum, axis)


def gradients_of_loss(q, target, seed, sample_size, importance_sample_size=1, stopped=None):
    estimators = tfp.vi.GradientEstimators
    with tf.GradientTape() as tape:
        loss = tfp.vi.monte_carlo_variational_loss(
            target,
            q,
            sample_size,
            importance_sample_size,
            seed=seed,
            gradient_estimator=estimators.DOUBLY_REPARAMETERIZED if stopped else estimators.REPARAMETERIZATION,
            stopped_surrogate_posterior=stopped,
        )
    return loss, tf.concat([tf.reshape(part, [-1]) for part in tape.gradient(loss, q.trainable_variables)], 0)


@pytest.mark.slow
def test_path_derivative_of_an_exact_posterior_has_no_noise():
    q, exact = (
        build_iaf_surrogate_posterior({'a': [], 'b': [2]}, num_flows=1, hidden_units=(8,), seed=0) for _ in range(2)
    )

    def target(**z):
        return exact.log_prob(z)

    _, path = gradients_of_loss(q, target, [0, 0], 50, stopped=objectives.path_derivative(q))
    _, plain = gradients_of_loss(q, target, [0, 0], 50)
    assert np.abs(path).max() < 1e-4 < 1e-2 < np.abs(plain).max()


@pytest.mark.slow
def test_path_derivative_has_the_right_mean():
    q = build_iaf_surrogate_posterior([2], num_flows=1, hidden_units=(8,), seed=0)

    def target(z):
        return -tf.reduce_sum((z - 1.0) ** 2, axis=-1)

    @tf.function(autograph=False)
    def plain_and_path(seed):
        return [gradients_of_loss(q, target, seed, 4000, 4, which) for which in (None, objectives.path_derivative(q))]

    draws = [plain_and_path(tf.constant([0, i])) for i in range(30)]
    for (loss, _), (same, _) in draws:
        np.testing.assert_allclose(loss, same, rtol=1e-5)
    plain, path = (np.stack([draw[which][1] for draw in draws]) for which in (0, 1))
    errors = np.sqrt((plain.var(axis=0) + path.var(axis=0)) / len(draws)) + 1e-5
    z_scores = (plain.mean(axis=0) - path.mean(axis=0)) / errors
    assert np.abs(z_scores).max() < 5 and np.sqrt(np.mean(z_scores**2)) < 1.5
    assert np.linalg.norm(plain.mean(axis=0)) > 1  # there is something to compare


def test_path_derivative_inside_vectorized_map_is_an_error_and_not_another_gradient():
    loc = tf.Variable(0.5)
    q = objectives.path_derivative(tfp.distributions.Normal(loc, 1.0))

    with pytest.raises(LookupError, match='first derivatives only'), tf.GradientTape():
        tf.vectorized_map(q.log_prob, tf.constant([0.0, 1.0]))


def test_path_derivative_wants_a_point_for_each_density():
    q = objectives.path_derivative(tfp.distributions.MultivariateNormalDiag(tf.zeros([5, 3])))
    with raises(ValueError, 'value', '(3,)', '(5,)'):
        q.log_prob(tf.zeros([3]))
