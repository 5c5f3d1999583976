"""The layer for a posterior of one's own, in either Keras."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import normal, raises, tfb, tfd
from tests.keras_models import FEATURES, K2, K3, LATENT, assert_equal, data, each_compiled_kit, each_kit, flow_of
from tfp_iaf._layers import _kl

STANDARD_NORMAL = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))
SIZE = LATENT * LATENT
# Not tf.linalg.set_diag: XLA cannot compile its gradient for a batch of unknown size.
BELOW_DIAGONAL = np.tril(np.ones([LATENT, LATENT], np.float32), -1)


def _full_covariance(kit):
    @kit.keras.saving.register_keras_serializable(package='tests')
    class FullCovariance(kit.PosteriorSampling):
        """A Gaussian with a covariance that the context gives."""

        def posterior(self, z_mean, z_log_var, context=None):
            below = BELOW_DIAGONAL * tf.reshape(context, [-1, LATENT, LATENT])
            return tfd.MultivariateNormalTriL(z_mean, tf.linalg.diag(tf.exp(0.5 * z_log_var)) + below)

    return FullCovariance


def _with_layer(kit):
    @kit.keras.saving.register_keras_serializable(package='tests')
    class WithLayer(kit.PosteriorSampling):
        """The same, with a layer of its own between the context and the covariance."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.lower = kit.keras.layers.Dense(SIZE, dtype='float32')

        def posterior(self, z_mean, z_log_var, context=None):
            below = BELOW_DIAGONAL * tf.reshape(self.lower(context), [-1, LATENT, LATENT])
            return tfd.MultivariateNormalTriL(z_mean, tf.linalg.diag(tf.exp(0.5 * z_log_var)) + below)

    return WithLayer


def _flow_of_another_make(kit):
    class Shifted(kit.PosteriorSampling):
        """A Gaussian through a step whose log-derivatives are not known by entry."""

        def posterior(self, z_mean, z_log_var, context=None):
            base = tfd.MultivariateNormalDiag(z_mean, tf.exp(0.5 * z_log_var))
            return tfd.TransformedDistribution(base, tfb.Chain([tfb.Tanh(), tfb.Scale(0.3)]))

    return Shifted


FULL = {kit: _full_covariance(kit) for kit in (K2, K3)}
WITH_LAYER = {kit: _with_layer(kit) for kit in (K2, K3)}
SHIFTED = {kit: _flow_of_another_make(kit) for kit in (K2, K3)}


def inputs_of(rows=5, context=SIZE):
    return [normal([rows, size], tf.float32, seed) for seed, size in enumerate((LATENT, LATENT, context), 1)]


def make_model(kit, classes, **kwargs):
    layers = kit.keras.layers
    x = kit.keras.Input([FEATURES])
    z, log_q = classes[kit](name='flow', **kwargs)([layers.Dense(size)(x) for size in (LATENT, LATENT, SIZE)])
    model = kit.keras.Model(x, {'x': layers.Dense(FEATURES, name='x')(z), 'z': z, 'log_q': log_q})
    model.compile(kit.keras.optimizers.Adam(0.01), {'x': 'mse'})
    return model


@each_kit
def test_sample_density_and_exact_kl(kit):
    inputs = inputs_of(20000)
    layer = FULL[kit]()
    z, log_q = layer(inputs)
    q = layer.posterior(*inputs)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sum(layer.losses), np.mean(q.kl_divergence(STANDARD_NORMAL)), rtol=1e-5)
    np.testing.assert_allclose(sum(layer.losses), np.mean(log_q - STANDARD_NORMAL.log_prob(z)), rtol=0.02)


@each_kit
def test_exact_kl_from_a_prior_at_the_call(kit):
    inputs, prior = inputs_of(), [normal([5, LATENT], tf.float32, seed) for seed in (8, 9)]
    layer = FULL[kit]()
    layer(inputs, prior=prior)
    p = tfd.MultivariateNormalDiag(prior[0], tf.exp(0.5 * prior[1]))
    np.testing.assert_allclose(sum(layer.losses), np.mean(layer.posterior(*inputs).kl_divergence(p)), rtol=1e-5)


@each_kit
@pytest.mark.parametrize(
    'prior', [None, tfd.MultivariateNormalTriL([0.1, 0.2], [[1.0, 0.0], [0.3, 2.0]])], ids=['normal', 'full']
)
def test_control_variate_for_any_bijector(kit, prior):
    inputs = inputs_of()[:2]
    layer = SHIFTED[kit](prior=prior)
    z, log_q = layer(inputs)
    p = prior or STANDARD_NORMAL
    q = layer.posterior(*inputs)
    z_0 = q.bijector.inverse(tf.identity(z))
    log_det = q.bijector.forward_log_det_jacobian(z_0, event_ndims=1)
    np.testing.assert_allclose(log_q, q.distribution.log_prob(z_0) - log_det, rtol=1e-3, atol=1e-3)
    expected = q.distribution.kl_divergence(p) - log_det - p.log_prob(z) + p.log_prob(z_0)
    np.testing.assert_allclose(sum(layer.losses), np.mean(expected), rtol=1e-3)


@each_kit
def test_log_ratio_where_tfp_knows_no_kl(kit):
    class Students(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            return tfd.Independent(tfd.StudentT(5.0, z_mean, tf.exp(0.5 * z_log_var)), 1)

    layer = Students()
    z, log_q = layer(inputs_of()[:2])
    np.testing.assert_allclose(sum(layer.losses), np.mean(log_q - STANDARD_NORMAL.log_prob(z)), rtol=1e-5)
    layer = Students(free_bits=0.5, free_bits_axis=-1)
    z, log_q = layer(inputs_of()[:2])
    by_entry = layer.posterior(*inputs_of()[:2]).distribution.log_prob(z) - tfd.Normal(0.0, 1.0).log_prob(z)
    np.testing.assert_allclose(sum(layer.losses), np.sum(np.maximum(np.mean(by_entry, axis=0), 0.5)), rtol=1e-5)


DIAGONAL = {
    'diag': lambda mean, scale: tfd.MultivariateNormalDiag(mean, scale),
    'independent': lambda mean, scale: tfd.Independent(tfd.Normal(mean, scale), 1),
    'sample': lambda mean, scale: tfd.Sample(tfd.Normal(mean[:, 0], scale[:, 0]), [LATENT]),
    'sample_of_events': lambda mean, scale: tfd.Sample(tfd.Independent(tfd.Normal(mean, scale), 1), []),
}


@each_kit
@pytest.mark.parametrize('make', DIAGONAL.values(), ids=DIAGONAL)
@pytest.mark.parametrize(
    'prior', [None, tfd.Normal(0.5, 2.0), tfd.Sample(tfd.Normal(0.5, 2.0), LATENT)], ids=['none', 'scalar', 'sample']
)
def test_exact_kl_by_entry_of_independent_gaussians(kit, make, prior):
    class Diagonal(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            return make(z_mean, tf.exp(0.5 * z_log_var))

    inputs = inputs_of()[:2]
    q = make(inputs[0], tf.exp(0.5 * inputs[1]))
    p = tfd.Normal(0.0, 1.0) if prior is None else tfd.Normal(0.5, 2.0)
    kl = np.mean(tfd.Normal(q.mean(), q.stddev()).kl_divergence(p), axis=0)
    minimum = float(np.mean(kl))  # between the groups, or equal to them
    for arguments, expected in (
        ({}, np.sum(kl)),
        ({'free_bits': minimum, 'free_bits_axis': -1}, np.sum(np.maximum(kl, minimum))),
    ):
        layer = Diagonal(prior=prior, **arguments)
        layer(inputs)
        np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


def test_entries_of_nested_samples():
    inner = tfd.Sample(tfd.Normal(tf.constant([[0.0], [1.0], [2.0], [3.0]]), 1.0), 2)  # [4, 1] of events [2]
    entries = _kl.entries_of(tfd.Sample(tfd.Independent(inner, 1), 5))  # [4] of events [5, 1, 2]
    assert entries.batch_shape == [4, 1, 1, 1]
    np.testing.assert_array_equal(entries.mean()[:, 0, 0, 0], [0.0, 1.0, 2.0, 3.0])


@each_kit
def test_iaf_sampling_is_one(kit):
    assert isinstance(kit.layer(), kit.PosteriorSampling)


@each_kit
def test_every_row_has_its_noise_where_the_base_has_no_batch(kit):
    class Moved(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            base = tfd.Independent(tfd.Normal(tf.zeros([LATENT]), 1.0), 1)
            return tfd.TransformedDistribution(base, tfb.Chain([tfb.Shift(z_mean), tfb.Scale(tf.exp(0.5 * z_log_var))]))

    layer = Moved()
    layer.build([(None, LATENT)] * 2)
    call = tf.function(layer, input_signature=[[tf.TensorSpec([None, LATENT])] * 2])
    for rows in (6, 0):
        z, log_q = call([tf.zeros([rows, LATENT])] * 2)
        assert (z.shape, log_q.shape) == ((rows, LATENT), (rows,)) and len(np.unique(z[:, 0])) == rows


@each_compiled_kit
def test_fit(kit, jit_compile):
    model = make_model(kit, WITH_LAYER)
    model.compile(kit.keras.optimizers.Adam(0.01), {'x': 'mse'}, jit_compile=jit_compile)
    own = {id(weight) for weight in flow_of(model).trainable_weights}
    assert len(own) == 2
    assert own <= {id(weight) for weight in model.trainable_weights}
    before = [weight.numpy() for weight in model.trainable_weights]
    history = model.fit(data(), {'x': data()}, batch_size=6, verbose=0, callbacks=[kit.KLWarmup(4)]).history
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['flow_kl']))
    assert all(np.any(w.numpy() != b) for w, b in zip(model.trainable_weights, before, strict=True))


@pytest.mark.slow
@each_kit
@pytest.mark.parametrize('path', ['model.keras', 'model.h5', 'model'])
def test_model_comes_back(kit, path, tmp_path):
    model = make_model(kit, WITH_LAYER, free_bits=0.25, kl_weight=0.5, seed=3)
    if kit is K2 or path == 'model.keras':
        model.save(tmp_path / path)
        loaded = kit.keras.models.load_model(tmp_path / path)
    else:  # the formats of Keras 3 for weights alone
        loaded = make_model(kit, WITH_LAYER, free_bits=0.25, kl_weight=0.5, seed=3)
        if path == 'model':
            written = tf.train.Checkpoint(model=model).write(str(tmp_path / path))
            tf.train.Checkpoint(model=loaded).read(written)
        else:
            model.save_weights(tmp_path / 'model.weights.h5')
            loaded.load_weights(tmp_path / 'model.weights.h5')
    assert type(flow_of(loaded)) is WITH_LAYER[kit]
    assert flow_of(loaded).get_config() == flow_of(model).get_config()
    assert_equal(loaded(data()), model(data()))


@each_kit
def test_subclassed_model_makes_the_weights_before_it_trains(kit):
    class Model(kit.keras.Model):
        def __init__(self):
            super().__init__()
            self.heads = [kit.keras.layers.Dense(size) for size in (LATENT, LATENT, SIZE)]
            self.flow = WITH_LAYER[kit]()

        def call(self, x):
            return self.flow([head(x) for head in self.heads])[0]

    model = Model()
    model.compile('adam', 'mse', run_eagerly=True)
    model.fit(data(), data()[:, :LATENT], verbose=0)
    assert len(model.flow.trainable_weights) == 2 and len(model.trainable_weights) == 8


@each_kit
def test_weights_made_in_build(kit):
    class Scaled(kit.PosteriorSampling):
        def build(self, input_shape):
            self.log_scale = self.add_weight(name='log_scale', shape=[LATENT], initializer='zeros')
            super().build(input_shape)

        def posterior(self, z_mean, z_log_var, context=None):
            return tfd.MultivariateNormalDiag(z_mean, tf.exp(tf.convert_to_tensor(self.log_scale) + 0.5 * z_log_var))

    layer = Scaled()
    with tf.GradientTape() as tape:
        layer(inputs_of()[:2])
        loss = sum(layer.losses)
    assert np.all(tape.gradient(loss, layer.trainable_weights)[0] != 0)


@each_kit
@pytest.mark.parametrize(
    ('posterior', 'error', 'parts'),
    [
        (lambda m, s: m, TypeError, ['posterior: returned', 'expected a tfd.Distribution']),
        (lambda m, s: tfd.Normal(m, tf.exp(s)), ValueError, ['posterior', 'batch_shape=[1, 2]', 'event shape [2]']),
        (lambda m, s: tfd.MultivariateNormalDiag(tf.zeros([2])), ValueError, ['posterior', 'batch_shape=[]', 'rows']),
        (
            lambda m, s: tfd.MultivariateNormalDiag(tf.cast(m, tf.float64)),
            TypeError,
            ['posterior', 'float64', 'float32', 'Cast'],
        ),
        (
            lambda m, s: tfd.Independent(tfd.Poisson(log_rate=m), 1),
            ValueError,
            ['posterior', 'Poisson', 'reparameterized'],
        ),
    ],
    ids=['tensor', 'entries', 'no_batch', 'dtype', 'discrete'],
)
def test_posterior_that_does_not_fit(kit, posterior, error, parts):
    class Wrong(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            return posterior(z_mean, z_log_var)

    with raises(error, *parts):
        Wrong()(inputs_of()[:2])


@each_kit
def test_without_a_posterior(kit):
    with raises(NotImplementedError, 'PosteriorSampling', 'define posterior(self, z_mean, z_log_var, context=None)'):
        kit.PosteriorSampling()(inputs_of()[:2])


@each_kit
def test_groups_of_free_bits_of_a_posterior_that_has_no_kl_by_entry(kit):
    for classes in (FULL, SHIFTED):
        with raises(ValueError, 'free_bits_axis', '-1', 'not known by entry', 'Leave it out'):
            classes[kit](free_bits=0.1, free_bits_axis=-1)(inputs_of())


@each_kit
def test_a_flow_of_feature_maps_with_an_event_of_two_axes(kit):
    class Maps(kit.PosteriorSampling):
        """A planar map of every channel on its own, without log-derivatives by entry."""

        def posterior(self, z_mean, z_log_var, context=None):
            base = tfd.Independent(tfd.Normal(z_mean, tf.exp(0.5 * z_log_var)), 2)
            return tfd.TransformedDistribution(base, tfb.Scale(2.0))

    layer = Maps()
    z_mean = normal([5, 3, 2], tf.float32)
    z, _ = layer([z_mean, tf.zeros([5, 3, 2])])
    z_0 = z / 2
    p = tfd.Independent(tfd.Normal(tf.zeros([3, 2]), 1.0), 2)
    expected = 0.5 * tf.reduce_sum(z_mean**2, axis=[1, 2]) - 6 * np.log(2) - p.log_prob(z) + p.log_prob(z_0)
    np.testing.assert_allclose(sum(layer.losses), np.mean(expected), rtol=1e-4)


@each_kit
def test_one_evaluation_of_each_network(kit, network_calls):
    networks = [tfp_iaf.MaskedAutoregressiveNetwork(LATENT, (8,), seed=seed) for seed in range(2)]

    class Steps(kit.PosteriorSampling):
        def posterior(self, z_mean, z_log_var, context=None):
            base = tfd.MultivariateNormalDiag(z_mean, tf.exp(0.5 * z_log_var))
            steps = [tfp_iaf.InverseAutoregressiveFlow(network) for network in networks]
            return tfd.TransformedDistribution(base, tfb.Chain(steps))

    layer = Steps()
    layer(inputs_of()[:2])
    network_calls.clear()
    layer(inputs_of()[:2])
    assert len(network_calls) == len(set(network_calls)) == 2
