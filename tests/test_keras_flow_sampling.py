"""The sampling layers with planar, radial and Sylvester flows, in either Keras."""

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

import tfp_iaf.keras
import tfp_iaf.tf_keras
from tests.flows import normal, raises, tfd
from tests.keras_models import CONTEXT, FEATURES, K2, K3, LATENT, assert_equal, data, each_kit

pytestmark = pytest.mark.slow

MODULES = {K3: tfp_iaf.keras, K2: tfp_iaf.tf_keras}
LAYERS = {
    'planar': ('PlanarSampling', {}),
    'radial': ('RadialSampling', {}),
    'orthogonal': ('SylvesterSampling', {}),
    'householder': ('SylvesterSampling', {'kind': 'householder', 'num_vectors': 2}),
    'triangular': ('SylvesterSampling', {'kind': 'triangular'}),
}
each_layer = pytest.mark.parametrize('name', LAYERS)


def make_layer(kit, kind, num_flows=2, **kwargs):
    cls, own = LAYERS[kind]
    return getattr(MODULES[kit], cls)(num_flows, **own, **kwargs)


def make_model(kit, name, with_context=True, features=FEATURES, latent=LATENT, **kwargs):
    layers = kit.keras.layers
    x = kit.keras.Input([features])
    hidden = layers.Dense(16, activation='relu')(x)
    inputs = [layers.Dense(size)(hidden) for size in (latent, latent, CONTEXT)[: 3 if with_context else 2]]
    z, log_q = make_layer(kit, name, name='flow', **kwargs)(inputs)
    decoded = layers.Dense(features, name='x')(layers.Dense(16, activation='relu')(z))
    return kit.keras.Model(x, {'x': decoded, 'z': z, 'log_q': log_q})


def inputs_of(rows=5, seed=1):
    return [normal([rows, size], tf.float32, seed + i) for i, size in enumerate((LATENT, LATENT, CONTEXT))]


def built(kit, name, **kwargs):
    """A layer away from its start, where it is the identity."""
    layer = make_layer(kit, name, **kwargs)
    layer(inputs_of())
    for weight in layer.trainable_weights:
        weight.assign(weight + 0.3 * normal(weight.shape, tf.float32, seed=7))
    return layer


@each_kit
@each_layer
def test_starts_near_the_gaussian_and_its_kl(kit, name):
    layer, inputs = make_layer(kit, name, num_flows=8), inputs_of(400)
    z, log_q = layer(inputs)
    q = layer.posterior(*inputs)
    z_0 = q.bijector.inverse(tf.identity(z))
    assert np.sqrt(np.mean((z - z_0) ** 2)) < 0.5
    kl = tfd.Independent(tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1])), 1).kl_divergence(
        tfd.Independent(tfd.Normal(tf.zeros([LATENT]), 1.0), 1)
    )
    np.testing.assert_allclose(sum(layer.losses), np.mean(kl), rtol=0.2)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-3, atol=1e-3)


@each_kit
@each_layer
def test_kl_has_the_control_variate(kit, name):
    layer, inputs = built(kit, name), inputs_of(20000)
    z, log_q = layer(inputs)
    plain = log_q - tfd.Independent(tfd.Normal(tf.zeros([LATENT]), 1.0), 1).log_prob(z)
    assert np.std(plain) > 0.1
    np.testing.assert_allclose(sum(layer.losses), np.mean(plain), rtol=0.03)
    np.testing.assert_allclose(layer.posterior(*inputs).log_prob(tf.identity(z)), log_q, rtol=1e-2, atol=1e-2)


@each_kit
@each_layer
def test_parameters_are_those_of_the_row(kit, name):
    layer, inputs, point = built(kit, name), inputs_of(), normal([5, LATENT], tf.float32, seed=9)
    all_rows = layer.posterior(*inputs).log_prob(point)
    of_rows = [layer.posterior(*(value[i : i + 1] for value in inputs)).log_prob(point[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(all_rows, of_rows, rtol=1e-4)
    other = layer.posterior(*inputs[:2], inputs[2] + 1.0).log_prob(point)
    assert np.all(np.abs(other - all_rows) > 1e-6)


@each_kit
@each_layer
@pytest.mark.parametrize(('with_context', 'jit_compile'), [(True, False), (False, True)], ids=['graph', 'xla'])
def test_fit_changes_every_weight(kit, name, with_context, jit_compile):
    model = make_model(kit, name, with_context)
    before = [weight.numpy() for weight in model.trainable_weights]
    model.compile(kit.keras.optimizers.Adam(0.01), {'x': 'mse'}, jit_compile=jit_compile)
    model.fit(data(), {'x': data()}, batch_size=5, epochs=3, verbose=0)
    assert all(np.any(weight != value) for weight, value in zip(model.trainable_weights, before, strict=True))
    assert len(model.get_layer('flow').trainable_weights) == (2 if with_context else 1)


@each_layer
@each_kit
def test_saving(kit, name, tmp_path):
    model = make_model(kit, name)
    model.compile(kit.keras.optimizers.Adam(0.01), {'x': 'mse'})
    model.fit(data(), {'x': data()}, batch_size=5, verbose=0)
    model.save(tmp_path / 'model.keras')
    model.save_weights(tmp_path / 'model.weights.h5')
    loaded = kit.keras.models.load_model(tmp_path / 'model.keras')
    assert loaded.get_layer('flow').get_config() == model.get_layer('flow').get_config()
    other, restored = make_model(kit, name), make_model(kit, name)
    other.load_weights(tmp_path / 'model.weights.h5')
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    tf.train.Checkpoint(model=restored).read(path).expect_partial()
    point = normal([5, LATENT], tf.float32, seed=9)
    expected = model.get_layer('flow').posterior(*inputs_of()).log_prob(point)
    for made in (loaded, other, restored):
        np.testing.assert_array_equal(made.get_layer('flow').posterior(*inputs_of()).log_prob(point), expected)
    # The state of the seed, too.
    assert_equal(loaded(data()), model(data()))


@each_layer
def test_checkpoint_of_a_subclassed_model(name, tmp_path):
    class Encoder(K3.keras.Model):
        def __init__(self):
            super().__init__()
            self.heads = [K3.keras.layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
            self.flow = make_layer(K3, name)

        def call(self, x):
            return self.flow([head(x) for head in self.heads])[0]

    models = [Encoder(), Encoder()]
    for model in models:
        model.compile(K3.keras.optimizers.Adam(0.01), 'mse')
        model.fit(data(), data()[:, :LATENT], batch_size=5, verbose=0)  # which builds it symbolically
    path = tf.train.Checkpoint(model=models[0]).write(str(tmp_path / 'checkpoint'))
    tf.train.Checkpoint(model=models[1]).read(path).expect_partial()
    for a, b in zip(models[0].flow.trainable_weights, models[1].flow.trainable_weights, strict=True):
        np.testing.assert_array_equal(a, b)


@each_kit
@each_layer
def test_feature_maps_and_contexts_of_any_shape(kit, name):
    layer = make_layer(kit, name, seed=1)
    inputs = [normal([5, 2, 3], tf.float32, 1), normal([5, 2, 3], tf.float32, 2), normal([5, 2, 2], tf.float32, 3)]
    z, log_q = layer(inputs)
    assert z.shape == (5, 2, 3) and log_q.shape == (5,)
    q = layer.posterior(*inputs)
    assert q.sample(7).shape == (7, 5, 2, 3)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)


@each_kit
def test_without_steps_it_is_the_gaussian(kit):
    layer, inputs = make_layer(kit, 'planar', num_flows=0), inputs_of()
    z, log_q = layer(inputs)
    expected = tfd.Independent(tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1])), 1).log_prob(z)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)


@each_kit
def test_mixed_precision(kit):
    layer = make_layer(kit, 'orthogonal', dtype='mixed_float16')
    z, log_q = layer([tf.cast(value, tf.float16) for value in inputs_of()])
    assert z.dtype == log_q.dtype == tf.float32


@each_kit
def test_wrong_arguments(kit):
    with raises(ValueError, 'kind', "'qr'"):
        MODULES[kit].SylvesterSampling(kind='qr')
    with raises(ValueError, 'num_vectors', '3', 'triangular'):
        MODULES[kit].SylvesterSampling(kind='triangular', num_vectors=3)
    with raises(ValueError, 'num_vectors', '3', 'at most 2'):
        MODULES[kit].SylvesterSampling(num_vectors=3)(inputs_of())
    with raises(ValueError, 'num_flows', '-1'):
        MODULES[kit].PlanarSampling(-1)
    with raises(ValueError, 'free_bits_axis', 'not known by'):
        make_layer(kit, 'planar', free_bits=0.1, free_bits_axis=-1)(inputs_of())
    with raises(ValueError, 'not built yet'):
        make_layer(kit, 'planar').posterior(*inputs_of())
    layer = make_layer(kit, 'planar')
    layer(inputs_of())
    with raises(ValueError, 'context', 'none', 'expected one'):
        layer.posterior(*inputs_of()[:2])


@each_kit
@each_layer
def test_vae_of_digits(kit, name):
    digits = (sklearn.datasets.load_digits().data > 7).astype(np.float32)
    kit.keras.utils.set_random_seed(0)
    model = make_model(kit, name, features=64, latent=4)

    def negative_log_likelihood(x, logits):
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits), axis=-1)

    model.compile(kit.keras.optimizers.Adam(3e-3), {'x': negative_log_likelihood})
    losses = model.fit(digits, {'x': digits}, batch_size=100, epochs=4, verbose=0).history['loss']
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0] - 3
    q = model.get_layer('flow').posterior(*inputs_like(model, digits[:50]))
    z = q.sample(seed=(1, 2))
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), q.log_prob(z), rtol=1e-3, atol=1e-3)


def inputs_like(model, x):
    dense = [layer for layer in model.layers if type(layer).__name__ == 'Dense']
    hidden = dense[0](x)
    return [head(hidden) for head in dense[1:4]]
