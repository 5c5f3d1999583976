"""The layer for a posterior of one's own, and those with planar, radial and Sylvester flows."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import normal, raises, tfb, tfd
from tests.keras_models import (
    K2,
    K3,
    LATENT,
    STANDARD_NORMAL,
    assert_all_changed,
    assert_equal,
    data,
    each_kit,
    kl_with_control_variate,
    values_of,
)
from tfp_iaf._layers import _kl

SIZE = LATENT * LATENT
TRIL_PRIOR = tfd.MultivariateNormalTriL([0.1, 0.2], [[1.0, 0.0], [0.3, 2.0]])


def inputs_of(rows):
    return [normal([rows, size], tf.float32, seed) for seed, size in enumerate((LATENT, LATENT, SIZE), 1)]


INPUTS = inputs_of(5)


def layer_of(posterior, kit=K3, **kwargs):
    """A layer whose posterior is a function of z_mean, the scale, and the context."""

    class Own(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            return posterior(z_mean, tf.exp(0.5 * z_log_var), context)

    return Own(**kwargs)


def full_covariance(mean, scale, context):
    # Not tf.linalg.set_diag: XLA cannot compile its gradient for a batch of unknown size.
    below = np.tril(np.ones([LATENT, LATENT], np.float32), -1) * tf.reshape(context, [-1, LATENT, LATENT])
    return tfd.MultivariateNormalTriL(mean, tf.linalg.diag(scale) + below)


def flow_of_another_make(mean, scale, context):
    """A Gaussian through a step whose log-derivatives are not known by entry."""
    base = tfd.MultivariateNormalDiag(mean, scale)
    return tfd.TransformedDistribution(base, tfb.Chain([tfb.Tanh(), tfb.Scale(0.3)]))


def students(mean, scale, context):
    return tfd.Independent(tfd.StudentT(5.0, mean, scale), 1)


# The KL term


@each_kit
def test_sample_density_and_exact_kl(kit):
    """From the standard normal, and from a prior at the call."""
    inputs, layer = inputs_of(20000), layer_of(full_covariance, kit)
    assert isinstance(kit.layer(), kit.PosteriorSampling)
    log_var, mean = inputs[:2]
    at_the_call = tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var))
    for arguments, p in (({}, STANDARD_NORMAL), ({'prior': [mean, log_var]}, at_the_call)):
        z, log_q = layer(inputs, **arguments)
        q = layer.posterior(*inputs)
        np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(sum(layer.losses), np.mean(q.kl_divergence(p)), rtol=1e-5)
        np.testing.assert_allclose(sum(layer.losses), np.mean(log_q - p.log_prob(z)), rtol=0.02)


@pytest.mark.parametrize('prior', [None, TRIL_PRIOR], ids=['normal', 'full'])
def test_control_variate_for_any_bijector(prior):
    layer = layer_of(flow_of_another_make, prior=prior)
    z, log_q = layer(INPUTS)
    p, q = prior or STANDARD_NORMAL, layer.posterior(*INPUTS)
    z_0 = q.bijector.inverse(tf.identity(z))
    log_det = q.bijector.forward_log_det_jacobian(z_0, event_ndims=1)
    np.testing.assert_allclose(log_q, q.distribution.log_prob(z_0) - log_det, rtol=1e-3, atol=1e-3)
    expected = kl_with_control_variate(q.distribution, p, z_0, z, log_det, LATENT)
    np.testing.assert_allclose(sum(layer.losses), np.mean(expected), rtol=1e-3)


@pytest.mark.parametrize('scale', [2.0, 0.5])
def test_control_variate_for_feature_maps(scale):
    """A log-det that is one number for all rows."""

    def scaled(mean, stddev, context):
        return tfd.TransformedDistribution(tfd.Independent(tfd.Normal(mean, stddev), 2), tfb.Scale(scale))

    layer, z_mean = layer_of(scaled), normal([5, 3, 2], tf.float32)
    z, _ = layer([z_mean, tf.zeros([5, 3, 2])])
    p, entropy = tfd.Independent(tfd.Normal(tf.zeros([3, 2]), 1.0), 2), 3 * np.log(2 * np.pi * np.e)
    exact = 0.5 * tf.reduce_sum(z_mean**2, axis=[1, 2])
    expected = -entropy - 6 * np.log(scale) - p.log_prob(z)
    expected += min(scale, 1) ** 2 * (p.log_prob(z / scale) + entropy + exact)
    np.testing.assert_allclose(sum(layer.losses), np.mean(expected), rtol=1e-4)


def test_log_ratio_where_tfp_knows_no_kl():
    layer = layer_of(students)
    z, log_q = layer(INPUTS)
    np.testing.assert_allclose(sum(layer.losses), np.mean(log_q - STANDARD_NORMAL.log_prob(z)), rtol=1e-5)
    layer = layer_of(students, free_bits=0.5, free_bits_axis=-1)
    z, log_q = layer(INPUTS)
    by_entry = layer.posterior(*INPUTS).distribution.log_prob(z) - tfd.Normal(0.0, 1.0).log_prob(z)
    np.testing.assert_allclose(sum(layer.losses), np.sum(np.maximum(np.mean(by_entry, axis=0), 0.5)), rtol=1e-5)


DIAGONAL = {
    'diag': lambda mean, scale, _: tfd.MultivariateNormalDiag(mean, scale),
    'independent': lambda mean, scale, _: tfd.Independent(tfd.Normal(mean, scale), 1),
    'sample': lambda mean, scale, _: tfd.Sample(tfd.Normal(mean[:, 0], scale[:, 0]), [LATENT]),
    'sample_of_events': lambda mean, scale, _: tfd.Sample(tfd.Independent(tfd.Normal(mean, scale), 1), []),
}


@pytest.mark.parametrize('make', DIAGONAL.values(), ids=DIAGONAL)
@pytest.mark.parametrize(
    'prior', [None, tfd.Normal(0.5, 2.0), tfd.Sample(tfd.Normal(0.5, 2.0), LATENT)], ids=['none', 'scalar', 'sample']
)
def test_exact_kl_by_entry_of_independent_gaussians(make, prior):
    q = make(INPUTS[0], tf.exp(0.5 * INPUTS[1]), None)
    p = tfd.Normal(0.0, 1.0) if prior is None else tfd.Normal(0.5, 2.0)
    kl = np.mean(tfd.Normal(q.mean(), q.stddev()).kl_divergence(p), axis=0)
    minimum = float(np.mean(kl))  # between the groups, or equal to them
    for arguments, expected in (
        ({}, np.sum(kl)),
        ({'free_bits': minimum, 'free_bits_axis': -1}, np.sum(np.maximum(kl, minimum))),
    ):
        layer = layer_of(make, prior=prior, **arguments)
        layer(INPUTS[:2])
        np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


def test_entries_of_nested_samples():
    inner = tfd.Sample(tfd.Normal(tf.constant([[0.0], [1.0], [2.0], [3.0]]), 1.0), 2)  # [4, 1] of events [2]
    entries = _kl.entries_of(tfd.Sample(tfd.Independent(inner, 1), 5))  # [4] of events [5, 1, 2]
    assert entries.batch_shape == [4, 1, 1, 1]
    np.testing.assert_array_equal(entries.mean()[:, 0, 0, 0], [0.0, 1.0, 2.0, 3.0])


# Samples and weights


@pytest.mark.parametrize('batch', [[], [1]], ids=str)
def test_every_row_has_its_noise_where_the_base_has_no_rows(batch):
    def moved(mean, scale, context):
        base = tfd.Independent(tfd.Normal(tf.zeros([*batch, LATENT]), 1.0), 1)
        return tfd.TransformedDistribution(base, tfb.Chain([tfb.Shift(mean), tfb.Scale(scale)]))

    layer = layer_of(moved)
    layer.build([(None, LATENT)] * 2)
    call = tf.function(layer, input_signature=[[tf.TensorSpec([None, LATENT])] * 2])
    for rows in (6, 0):
        z, log_q = call([tf.zeros([rows, LATENT])] * 2)
        assert (z.shape, log_q.shape) == ((rows, LATENT), (rows,)) and len(np.unique(z[:, 0])) == rows


def test_one_evaluation_of_each_network(network_calls):
    networks = [tfp_iaf.MaskedAutoregressiveNetwork(LATENT, (8,), seed=seed) for seed in range(2)]

    def steps(mean, scale, context):
        chain = tfb.Chain([tfp_iaf.InverseAutoregressiveFlow(network) for network in networks])
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(mean, scale), chain)

    layer = layer_of(steps)
    layer(INPUTS)
    network_calls.clear()
    layer(INPUTS)
    assert len(network_calls) == len(set(network_calls)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kit', 'built_by'), [(K3, 'fit'), (K3, 'call'), (K2, 'fit')], ids=['keras_fit', 'keras_call', 'tf_keras_fit']
)
def test_weights_are_made_before_training(kit, built_by, tmp_path):
    """Those of the layer itself, of layers in it, and of flows; a checkpoint has them too."""

    class Scaled(kit.PosteriorSampling):
        def __init__(self):
            super().__init__(name='flow')
            self.scale = kit.keras.layers.Dense(LATENT)

        def build(self, input_shape):
            self.log_scale = self.add_weight(name='log_scale', shape=[LATENT], initializer='zeros')
            super().build(input_shape)

        def posterior(self, z_mean, z_log_var, context=None):
            log_scale = tf.convert_to_tensor(self.log_scale) + self.scale(context) + 0.5 * z_log_var
            return tfd.MultivariateNormalDiag(z_mean, tf.exp(log_scale))

    class Model(kit.keras.Model):
        def __init__(self):
            super().__init__()
            self.flow, self.planar, self.iaf = Scaled(), kit.PlanarSampling(1), kit.layer(1)

        def call(self, x):
            parameters = [x[:, :LATENT], x[:, -LATENT:], x]
            return tf.concat([flow(parameters)[0] for flow in (self.flow, self.planar, self.iaf)], axis=-1)

    model, other = Model(), Model()
    for made in (model, other) if built_by == 'call' else (other,):
        made(data())
    model.compile('adam', 'mse', run_eagerly=True)
    model.fit(data(), data(), verbose=0)
    assert [len(flow.trainable_weights) for flow in (model.flow, model.planar, model.iaf)] == [3, 2, 5]
    before = values_of(model.trainable_weights)
    history = model.fit(data(), data(), verbose=0, callbacks=[kit.KLWarmup(4)]).history
    assert_all_changed(model.trainable_weights, before)
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['flow_kl']))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    tf.train.Checkpoint(model=other).read(path).expect_partial()
    assert_equal(values_of(other.trainable_weights), values_of(model.trainable_weights))


# Planar, radial and Sylvester flows

LAYERS = {
    'planar': K3.PlanarSampling,
    'radial': K3.RadialSampling,
    'orthogonal': K3.SylvesterSampling,
    'householder': lambda *args, **kwargs: K3.SylvesterSampling(*args, kind='householder', num_vectors=2, **kwargs),
    'triangular': lambda *args, **kwargs: K3.SylvesterSampling(*args, kind='triangular', **kwargs),
}
each_layer = pytest.mark.parametrize('make', LAYERS.values(), ids=LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize('make', [*LAYERS.values(), K3.IAFSampling], ids=[*LAYERS, 'iaf'])
def test_starts_near_the_gaussian_and_its_kl(make):
    """On feature maps, with a context of any shape."""
    inputs = [normal([400, 2, size], tf.float32, seed) for seed, size in enumerate((3, 3, 2), 1)]
    layer = make(4, seed=1)
    z, log_q = layer(inputs)
    assert z.shape == (400, 2, 3) and log_q.shape == (400,)
    q = layer.posterior(*inputs)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)
    z_0 = q.distribution.sample(seed=0)
    assert np.sqrt(np.mean((q.bijector.forward(z_0) - z_0) ** 2)) < 0.5
    exact = tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1])).kl_divergence(tfd.Normal(0.0, 1.0))
    np.testing.assert_allclose(sum(layer.losses), np.sum(np.mean(exact, axis=0)), rtol=0.2)
    assert q.sample(7).shape == (7, 400, 2, 3)


@pytest.mark.slow
@each_layer
def test_away_from_its_start(make):
    """The KL has the control variate, and every weight a gradient; each row has its parameters, and all are saved."""
    layer = make(2, seed=1)
    layer(INPUTS)
    for weight in layer.trainable_weights:
        weight.assign(weight + 0.3 * normal(weight.shape, tf.float32, seed=7))
    with tf.GradientTape() as tape:
        z, log_q = layer(INPUTS)
        kl, other_loss = sum(layer.losses), tf.reduce_sum(z * normal(z.shape, tf.float32, seed=4))
    gradients = tape.gradient([kl, other_loss], layer.trainable_weights)
    for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), weight.path
    base, bijector = tfd.MultivariateNormalDiag(INPUTS[0], tf.exp(0.5 * INPUTS[1])), layer.posterior(*INPUTS).bijector
    z_0 = bijector.inverse(tf.identity(z))
    log_det = bijector.forward_log_det_jacobian(z_0)
    np.testing.assert_allclose(base.log_prob(z_0) - log_det, log_q, rtol=1e-2, atol=1e-2)
    expected = kl_with_control_variate(base, STANDARD_NORMAL, z_0, z, base.log_prob(z_0) - log_q, LATENT)
    np.testing.assert_allclose(kl, np.mean(expected), rtol=1e-3)

    def forward(layer, inputs, z_0=z_0):
        return layer.posterior(*inputs).bijector.forward(z_0)

    np.testing.assert_allclose(forward(layer, [value[2:4] for value in INPUTS], z_0[2:4]), z[2:4], rtol=1e-3, atol=1e-3)
    assert np.all(np.abs(forward(layer, [*INPUTS[:2], INPUTS[2] + 1.0]) - z) > 1e-6)
    restored = type(layer).from_config(layer.get_config())
    restored(INPUTS)
    restored.set_weights(layer.get_weights())
    np.testing.assert_array_equal(forward(restored, INPUTS), forward(layer, INPUTS))


def test_every_second_triangular_step_takes_the_entries_in_reverse_order():
    layer = K3.SylvesterSampling(3, 'triangular')
    layer(INPUTS)
    chain = layer.posterior(*INPUTS).bijector
    assert [step.parameters['reverse'] for step in reversed(chain.bijectors)] == [False, True, False]


def test_without_steps_or_context():
    inputs = INPUTS[:2]
    z, log_q = K3.PlanarSampling(0)(inputs)
    expected = tfd.MultivariateNormalDiag(inputs[0], tf.exp(0.5 * inputs[1])).log_prob(z)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)
    layer = K3.PlanarSampling(2, dtype='mixed_float16')
    z, log_q = layer([tf.cast(value, tf.float16) for value in inputs])
    assert z.dtype == log_q.dtype == tf.float32
    assert len(layer.trainable_weights) == 1


# Errors


GROUPS = {'free_bits': 0.1, 'free_bits_axis': -1}
NO_GROUPS = ['free_bits_axis', '-1', 'not known by entry', 'Leave it out']


@pytest.mark.parametrize(
    ('posterior', 'arguments', 'error', 'parts'),
    [
        (lambda m, s, _: m, {}, TypeError, ['posterior: returned', 'expected a tfd.Distribution']),
        (lambda m, s, _: tfd.Normal(m, s), {}, ValueError, ['posterior', 'batch_shape=[1, 2]', 'event shape [2]']),
        (lambda m, s, _: tfd.MultivariateNormalDiag(tf.zeros([2])), {}, ValueError, ['batch_shape=[]', 'rows']),
        (
            lambda m, s, _: tfd.MultivariateNormalDiag(tf.cast(m, tf.float64)),
            {},
            TypeError,
            ['posterior', 'float64', 'float32', 'Cast'],
        ),
        (lambda m, s, _: tfd.Independent(tfd.Poisson(log_rate=m), 1), {}, ValueError, ['Poisson', 'reparameterized']),
        (full_covariance, GROUPS, ValueError, NO_GROUPS),
        (flow_of_another_make, GROUPS, ValueError, NO_GROUPS),
    ],
    ids=['tensor', 'entries', 'no_batch', 'dtype', 'discrete', 'groups_of_no_entries', 'groups_of_a_flow'],
)
def test_posterior_that_does_not_fit(posterior, arguments, error, parts):
    with raises(error, *parts):
        layer_of(posterior, **arguments)(INPUTS)


def test_posterior_that_is_not_defined():
    with raises(NotImplementedError, 'PosteriorSampling', 'define posterior(self, z_mean, z_log_var, context=None)'):
        K3.PosteriorSampling()(INPUTS)


def test_wrong_arguments_of_flows():
    with raises(ValueError, 'kind', "'qr'"):
        K3.SylvesterSampling(kind='qr')
    with raises(ValueError, 'num_vectors', '3', 'triangular'):
        K3.SylvesterSampling(kind='triangular', num_vectors=3)
    with raises(ValueError, 'num_vectors', '3', 'at most 2'):
        K3.SylvesterSampling(num_vectors=3)(INPUTS)
    with raises(ValueError, 'num_flows', '-1'):
        K3.PlanarSampling(-1)
    with raises(ValueError, 'free_bits_axis', 'not known by'):
        K3.PlanarSampling(free_bits=0.1, free_bits_axis=-1)(INPUTS)
