"""Objectives beyond the ELBO: the importance-weighted bound, and free bits."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import each_dtype, normal, raises
from tfp_iaf import objectives


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_is_the_logarithm_of_the_mean_weight(axis):
    log_weights = normal([4, 3, 5])
    expected = np.log(np.mean(np.exp(log_weights), axis=axis))
    np.testing.assert_allclose(objectives.importance_weighted_log_likelihood(log_weights, axis), expected, rtol=1e-12)


def test_first_axis_is_that_of_the_samples():
    assert objectives.importance_weighted_log_likelihood(tf.zeros([4, 3, 5])).shape == [3, 5]


def test_one_sample_is_the_elbo():
    log_weights = normal([1, 7])
    np.testing.assert_allclose(objectives.importance_weighted_log_likelihood(log_weights), log_weights[0], rtol=1e-14)


@each_dtype
@pytest.mark.parametrize('offset', [-1e4, 1e4])
def test_does_not_overflow(dtype, offset):
    log_weights = tf.constant([offset, offset + np.log(3.0)], dtype)
    result = objectives.importance_weighted_log_likelihood(log_weights)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, offset + np.log(2.0), rtol=1e-6)


def test_impossible_samples_count_as_zero():
    log_weights = tf.constant([[-np.inf, -np.inf], [0.0, -np.inf]])
    result = objectives.importance_weighted_log_likelihood(log_weights)
    np.testing.assert_allclose(result, [-np.log(2.0), -np.inf], rtol=1e-6)


def test_bound_tightens_with_samples_and_reaches_the_evidence():
    """x | z ~ N(z, 1), z ~ N(0, 1): log p(x) = log N(x; 0, 2), with q narrower than the posterior N(x/2, 1/2)."""
    x, normal_ = 1.3, tfp.distributions.Normal
    q = normal_(tf.constant(0.5 * x, tf.float64), 0.6)
    z = q.sample([1000, 2000], seed=1)
    log_weights = normal_(tf.zeros([], tf.float64), 1.0).log_prob(z) + normal_(z, 1.0).log_prob(x) - q.log_prob(z)
    exact = normal_(tf.zeros([], tf.float64), np.sqrt(2.0)).log_prob(x)
    bounds = [
        tf.reduce_mean(objectives.importance_weighted_log_likelihood(log_weights[:samples]))
        for samples in (1, 5, 50, 1000)
    ]
    assert all(lower < higher for lower, higher in itertools.pairwise(bounds))
    np.testing.assert_allclose(bounds[-1], exact, atol=1e-3)


def test_gradient_weighs_the_samples():
    log_weights = normal([6, 3])
    with tf.GradientTape() as tape:
        tape.watch(log_weights)
        total = tf.reduce_sum(objectives.importance_weighted_log_likelihood(log_weights))
    np.testing.assert_allclose(tape.gradient(total, log_weights), tf.nn.softmax(log_weights, axis=0), rtol=1e-12)


@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_unknown_number_of_samples(jit_compile):
    compiled = tf.function(
        objectives.importance_weighted_log_likelihood,
        input_signature=[tf.TensorSpec([None, 3], tf.float64)],
        jit_compile=jit_compile,
    )
    log_weights = normal([6, 3])
    np.testing.assert_allclose(
        compiled(log_weights), objectives.importance_weighted_log_likelihood(log_weights), rtol=1e-12
    )


@pytest.mark.parametrize('log_weights', [tf.constant([1, 2]), [1, 2], tf.constant([True])], ids=['int', 'list', 'bool'])
def test_log_weights_that_are_not_floating(log_weights):
    with raises(TypeError, 'log_weights', tf.convert_to_tensor(log_weights).dtype.name, 'floating', 'log p(x, z)'):
        objectives.importance_weighted_log_likelihood(log_weights)


# Free bits


def test_free_bits_of_one_group():
    kl = tf.constant([0.1, 0.3, 0.8])
    np.testing.assert_allclose(objectives.free_bits(kl, 0.3), 0.4, rtol=1e-6)
    np.testing.assert_allclose(objectives.free_bits(kl, 0.5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(objectives.free_bits(kl, 0), 0.4, rtol=1e-6)


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_free_bits_of_groups(axis):
    """The mean comes first, then the maximum, then the sum."""
    kl = np.abs(normal([6, 4]).numpy())
    means = kl.mean(axis=axis)
    minimum = float(np.median(means))
    assert np.any(means < minimum) and np.any(means > minimum)
    expected = np.sum(np.maximum(means, minimum))
    np.testing.assert_allclose(objectives.free_bits(tf.constant(kl), minimum, axis), expected, rtol=1e-12)


def test_free_bits_of_groups_along_several_axes():
    kl = np.abs(normal([5, 2, 3]).numpy())
    expected = np.sum(np.maximum(kl.mean(axis=0), 0.7))
    np.testing.assert_allclose(objectives.free_bits(tf.constant(kl), 0.7), expected, rtol=1e-12)


def test_groups_below_the_minimum_get_no_gradient():
    kl = tf.constant([[0.1, 2.0], [0.3, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(kl)
        term = objectives.free_bits(kl, 0.5)
    np.testing.assert_array_equal(tape.gradient(term, kl), [[0.0, 0.5], [0.0, 0.5]])


@each_dtype
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_free_bits_of_an_unknown_batch(dtype, jit_compile):
    compiled = tf.function(
        lambda kl: objectives.free_bits(kl, 0.5),
        input_signature=[tf.TensorSpec([None, 2], dtype)],
        jit_compile=jit_compile,
    )
    result = compiled(tf.constant([[0.1, 3.0], [0.3, 1.0]], dtype))
    assert result.dtype == dtype and result.shape == []
    np.testing.assert_allclose(result, 2.5, rtol=1e-6)


@pytest.mark.parametrize(
    'minimum',
    [tf.constant(0.5), tf.constant(0.5, tf.float64), tf.Variable(0.5)],
    ids=['float32', 'float64', 'variable'],
)
def test_minimum_that_changes(minimum):
    kl = tf.constant([[0.1, 3.0], [0.3, 1.0]])
    assert objectives.free_bits(kl, minimum).numpy() == 2.5


def test_batch_of_two_axes():
    kl = normal([2, 3, 4], tf.float64) ** 2
    expected = objectives.free_bits(tf.reshape(kl, [6, 4]), 0.5)
    np.testing.assert_allclose(objectives.free_bits(kl, 0.5, axis=(0, 1)), expected, rtol=1e-12)


def test_samples_in_two_axes():
    log_weights = normal([2, 3, 4], tf.float64)
    expected = objectives.importance_weighted_log_likelihood(tf.reshape(log_weights, [6, 4]))
    for axis in ((0, 1), [-3, -2]):
        result = objectives.importance_weighted_log_likelihood(log_weights, axis=axis)
        np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize('axis', [2, -3, (), (0, 5)])
def test_axis_that_is_none(axis):
    values = tf.zeros([3, 2])
    with raises(ValueError, 'axis', str(axis), 'log_weights', '(3, 2)'):
        objectives.importance_weighted_log_likelihood(values, axis=axis)
    with raises(ValueError, 'axis', str(axis), 'kl', '(3, 2)'):
        objectives.free_bits(values, 0.5, axis=axis)


def test_nan_is_not_free():
    assert np.isnan(objectives.free_bits(tf.constant([np.nan, 1.0]), 0.5))


@pytest.mark.parametrize(
    ('kl', 'minimum', 'error', 'parts'),
    [
        (tf.constant([1, 2]), 0.5, TypeError, ['kl', 'int32', 'floating']),
        (tf.constant(1.0), 0.5, ValueError, ['kl', 'scalar', 'axis for the batch']),
        (tf.constant([1.0]), -0.5, ValueError, ['minimum', '-0.5', 'at least 0']),
        (tf.constant([1.0]), float('nan'), ValueError, ['minimum', 'nan', 'at least 0']),
        (tf.constant([1.0]), 'few', TypeError, ['minimum', "'few'", 'number']),
    ],
    ids=['int', 'scalar', 'negative', 'nan', 'str'],
)
def test_bad_arguments_of_free_bits(kl, minimum, error, parts):
    with raises(error, *parts):
        objectives.free_bits(kl, minimum)
