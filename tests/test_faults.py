"""What NaN and infinity must not do, whose variables a surrogate takes, and what densities on a simplex must be."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import GENTLE_SPLINE, normal, perturb, tfb, tfd


@pytest.mark.slow
@pytest.mark.parametrize(('inverse', 'jit_compile'), [('auto', True), ('fixed_point', False)])
def test_rows_masked_out_of_a_posterior_in_float32(inverse, jit_compile):
    """They leave every gradient finite, that of the base's mean and scale, too."""
    made = tfp_iaf.IAFPosterior(2, 2, (16,), transform='affine', inverse=inverse, seed=0)
    loc, scale = tf.Variable([0.0, 0.0]), tfp.util.TransformedVariable([1.0, 1.0], tfb.Softplus())
    y = tf.constant([[0.0, 1.0], [np.inf, 0.0], [1e30, 0.0]])

    @tf.function(jit_compile=jit_compile, autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y)
            values = made(loc, scale).log_prob(y)
            total = tf.reduce_sum(tf.where(tf.math.is_finite(values), values, 0.0))
        return values, tape.gradient(total, [y, loc, scale.pretransformed_input, *made.trainable_variables])

    values, gradients = compute()
    assert np.isnan(values).tolist() == [False, True, True] and np.isfinite(values[0])
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('inverse', 'transform', 'in_function'),
    [('auto', 'gated', True), ('auto', GENTLE_SPLINE, False), ('fixed_point', 'affine', True)],
    ids=['gated', 'spline', 'fixed_point'],
)
def test_check_numerics_gives_no_false_alarm(inverse, transform, in_function, check_numerics):
    made = tfp_iaf.IAFPosterior(4, 1, (12,), transform=transform, inverse=inverse, seed=0)
    q = made(tf.zeros([4]), tf.ones([4]))

    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = tf.reduce_sum(q.log_prob(y)) + tf.reduce_sum(q.log_prob(q.sample(5, seed=(1, 2))))
        return tape.gradient(total, [y, *made.trainable_variables])

    (tf.function(gradient, autograph=False) if in_function else gradient)(normal([3, 4], tf.float32))


@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
def test_check_numerics_finds_a_point_that_is_not_finite(in_function, check_numerics):
    made = tfp_iaf.IAFPosterior(3, 1, (8,), seed=0)
    q = made(tf.zeros([3]), tf.ones([3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match='NaN'):
        (tf.function(q.log_prob) if in_function else q.log_prob)(tf.constant([np.inf, 0.0, 0.0]))


# Variables of others


def test_a_surrogate_has_its_own_variables_alone():
    prior = tfp_iaf.IAFPosterior(2, 1, (8,), seed=0)
    model = tfd.JointDistributionNamed(
        {'z': prior(tf.zeros([2]), tf.ones([2])), 'x': lambda z: tfd.MultivariateNormalDiag(z)}
    ).experimental_pin(x=[1.0, 1.0])
    bijector = model.experimental_default_event_space_bijector()
    q = tfp_iaf.build_iaf_surrogate_posterior(model.event_shape_tensor(), bijector, seed=0)
    assert not {id(v) for v in q.variables} & {id(v) for v in prior.variables}
    assert len(q.trainable_variables) == len(q.variables) == 2 + 2 * 6


# Base measures


DIRICHLET = tfd.Dirichlet([2.0, 3.0, 4.0])
# Its own density comes from the bijector, so there is nothing to mend.
LOGISTIC_NORMAL = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([2])), tfb.SoftmaxCentered())
MODELS = {
    'dirichlet': DIRICHLET,
    'reshaped': tfd.BatchReshape(DIRICHLET, []),
    'joint': tfd.JointDistributionNamed({'b': tfd.Gamma(2.0, 1.0), 'w': tfd.Sample(DIRICHLET, 2)}),
    'sequential': tfd.JointDistributionSequential([tfd.Dirichlet([1.0, 1.0]), lambda w: tfd.Normal(w[..., 0], 1.0)]),
    'joint_logistic_normal': tfd.JointDistributionNamed({'w': LOGISTIC_NORMAL}),
    'logistic_normal': LOGISTIC_NORMAL,
    'lkj': tfd.CholeskyLKJ(3, 2.0),
    'wishart': tfd.WishartTriL(4.0, tf.eye(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_evidence_of_a_model_that_is_normalised_is_one(model):
    q = tfp_iaf.build_iaf_surrogate_posterior(
        model.event_shape_tensor(), model.experimental_default_event_space_bijector(), num_flows=1, seed=0
    )
    z, log_q = q.experimental_sample_and_log_prob(50_000, seed=(1, 2))
    log_weights = model.log_prob(z) - log_q
    weights = np.exp(log_weights)
    evidence, error = weights.mean(), weights.std() / np.sqrt(weights.size)
    assert abs(evidence - 1) < 5 * error and error < 0.1
    np.testing.assert_allclose(q.log_prob(tf.nest.map_structure(tf.identity, z)), log_q, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('other', [tfb.SoftmaxCentered(), tfb.IteratedSigmoidCentered()], ids=lambda value: value.name)
def test_every_simplex_is_measured_by_itself(other):
    """`tfb.IteratedSigmoidCentered` measures coordinates, as densities do, so there is nothing to mend."""
    bijectors = {'a': tfb.SoftmaxCentered(), 'b': other}
    q = tfp_iaf.build_iaf_surrogate_posterior({'a': [3], 'b': [3]}, bijectors, num_flows=0, seed=0)
    z, log_q = q.experimental_sample_and_log_prob(100_000, seed=(1, 2))
    weights = np.exp(DIRICHLET.log_prob(z['a']) + DIRICHLET.log_prob(z['b']) - log_q)
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(weights.size) < 0.2


def test_perturbed_flows_keep_a_point_and_its_neighbours_apart():
    """One row that is far away does not decide when the iterations of the others end."""
    made = tfp_iaf.IAFPosterior(6, 2, (12,), transform='affine', seed=0)
    perturb(made, 0.2)
    q = made(tf.zeros([6]), tf.ones([6]))
    y = normal([4, 6], tf.float32)
    far = tf.concat([y, 1e12 * tf.ones([1, 6])], axis=0)
    np.testing.assert_allclose(q.log_prob(far)[:4], q.log_prob(y), rtol=1e-5, atol=1e-4)
