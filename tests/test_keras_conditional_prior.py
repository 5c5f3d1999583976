"""A prior at the call of the layer, in either Keras, as in conditional and hierarchical models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import normal, raises, tfd
from tests.keras_models import (
    CONTEXT,
    FEATURES,
    K2,
    K3,
    LATENT,
    assert_equal,
    data,
    each_compiled_kit,
    each_kit,
    flow_of,
    log_laplace,
    point,
)


def prior_at_the_call():
    return [normal([4, LATENT], tf.float32, seed) for seed in (11, 12)]


def conditional_model(kit, **kwargs):
    """A functional model of x given a label, whose prior depends on the label."""
    layers = kit.keras.layers
    x, label = kit.keras.Input([FEATURES], name='image'), kit.keras.Input([3], name='label')
    hidden = layers.Dense(8, activation='relu')(layers.Concatenate()([x, label]))
    inputs = [layers.Dense(size)(hidden) for size in (LATENT, LATENT, CONTEXT)]
    prior = [layers.Dense(LATENT, name=name)(label) for name in ('p_mean', 'p_log_var')]
    z, _ = kit.layer(1, name='flow', **kwargs)(inputs, prior=prior)
    return kit.keras.Model([x, label], layers.Dense(FEATURES)(layers.Concatenate()([z, label])))


def _conditional(kit):
    layers = kit.keras.layers

    @kit.keras.saving.register_keras_serializable(package='tests')
    class ConditionalModel(kit.keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = layers.Dense(8, activation='relu')
            self.heads = [layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
            self.prior_heads = [layers.Dense(LATENT, name=name) for name in ('p_mean', 'p_log_var')]
            self.flow = kit.layer(1, name='flow')
            self.decoder = layers.Dense(FEATURES)

        def call(self, inputs):
            x, label = inputs
            hidden = self.hidden(tf.concat([x, label], axis=-1))
            z, _ = self.flow([head(hidden) for head in self.heads], prior=[head(label) for head in self.prior_heads])
            return self.decoder(tf.concat([z, label], axis=-1))

    return ConditionalModel


CONDITIONAL = {kit: _conditional(kit) for kit in (K2, K3)}


@pytest.fixture(params=['functional', 'subclassed'])
def make(request):
    return lambda kit: conditional_model(kit) if request.param == 'functional' else CONDITIONAL[kit]()


def inputs_of(rows=12):
    return [data(rows), np.eye(3, dtype=np.float32)[np.arange(rows) % 3]]


@each_kit
def test_it_takes_the_place_of_the_standard_normal(kit):
    inputs, prior = point()[:3], prior_at_the_call()
    flow = kit.layer(0)
    flow(inputs[:2], prior=prior)
    q, p = (tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var)) for mean, log_var in (inputs[:2], prior))
    np.testing.assert_allclose(sum(flow.losses), np.mean(q.kl_divergence(p)), rtol=1e-5)
    flow = kit.layer()
    z, log_q = flow(inputs, prior=prior)
    z_0 = flow.posterior(*inputs).bijector.inverse(tf.identity(z))
    expected = q.kl_divergence(p) + log_q - q.log_prob(z_0) - p.log_prob(z) + p.log_prob(z_0)
    np.testing.assert_allclose(sum(flow.losses), np.mean(expected), rtol=1e-4)


@each_kit
def test_the_prior_of_the_posterior_itself_costs_nothing(kit):
    z_mean, z_log_var, *_ = point()
    flow = kit.layer(0)
    flow([z_mean, z_log_var], prior=[z_mean, z_log_var])
    np.testing.assert_allclose(sum(flow.losses), 0.0, atol=1e-6)


@each_kit
def test_mean_and_log_variance_get_gradients(kit):
    inputs, prior = point()[:3], prior_at_the_call()
    flow = kit.layer()
    with tf.GradientTape() as tape:
        tape.watch(prior)
        flow(inputs, prior=prior)
        loss = sum(flow.losses)
    assert all(np.all(gradient != 0) and np.all(np.isfinite(gradient)) for gradient in tape.gradient(loss, prior))


@each_kit
def test_one_row_for_all_and_groups_of_free_bits(kit):
    inputs, prior = point()[:2], [value[:1] for value in prior_at_the_call()]
    flow = kit.layer(0, free_bits=1.5, free_bits_axis=-1)
    flow(inputs, prior=prior)
    q, p = (tfd.Normal(mean, tf.exp(0.5 * log_var)) for mean, log_var in (inputs, prior))
    by_entry = np.mean(q.kl_divergence(p), axis=0)
    np.testing.assert_allclose(sum(flow.losses), np.sum(np.maximum(by_entry, 1.5)), rtol=1e-5)


@pytest.mark.slow
@each_compiled_kit
@pytest.mark.parametrize('make', ['functional'], indirect=True)
def test_fit_trains_the_prior(kit, make, jit_compile):
    model = make(kit)
    model(inputs_of())
    weights = {weight.path if kit is K3 else weight.name: weight for weight in model.trainable_weights}
    before = {name: weight.numpy() for name, weight in weights.items() if 'p_mean' in name or 'p_log_var' in name}
    assert len(before) == 4
    model.compile(kit.keras.optimizers.Adam(0.01), 'mse', jit_compile=jit_compile)
    history = model.fit(inputs_of(), data(), batch_size=6, verbose=0).history
    assert np.all(np.isfinite(history['loss']))
    assert all(np.any(weights[name].numpy() != value) for name, value in before.items())


@each_kit
@pytest.mark.parametrize('policy', ['mixed_float16', 'float64'])
def test_other_dtypes(kit, policy):
    flow = kit.layer(dtype=policy)
    flow(point()[:3], prior=[tf.cast(value, tf.float16) for value in prior_at_the_call()])
    assert np.isfinite(sum(flow.losses))


@each_kit
def test_keras_file(kit, make, tmp_path):
    model = make(kit)
    model(inputs_of())
    model.save(tmp_path / 'model.keras')
    loaded = kit.keras.models.load_model(tmp_path / 'model.keras')
    for first, second in zip(loaded.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    for each in (loaded, model):
        each.compile('sgd', 'mse', run_eagerly=True)
    first, second = (each.evaluate(inputs_of(), data(), verbose=0, return_dict=True) for each in (loaded, model))
    assert first == second


@each_kit
def test_weights_file(kit, make, tmp_path):
    model, other = make(kit), make(kit)
    model(inputs_of()), other(inputs_of())
    model.save_weights(tmp_path / 'model.weights.h5')
    other.load_weights(tmp_path / 'model.weights.h5')
    for first, second in zip(other.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.mark.slow
@pytest.mark.parametrize('path', ['model.h5', 'model'], ids=['h5', 'saved_model'])
def test_formats_of_tf_keras(path, tmp_path):
    model = conditional_model(K2)
    model.save(tmp_path / path)
    loaded = K2.keras.models.load_model(tmp_path / path)
    assert_equal({'x': loaded(inputs_of())}, {'x': model(inputs_of())})


def test_exported_model(tmp_path):
    model = conditional_model(K3)
    model.export(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.serve(inputs_of())
    assert served.shape == (12, FEATURES) and np.all(np.isfinite(served))


@each_kit
def test_clone(kit):
    model = conditional_model(kit)
    clone = kit.keras.models.clone_model(model)
    assert flow_of(clone).get_config() == flow_of(model).get_config()
    clone.compile('sgd', 'mse', run_eagerly=True)
    assert np.isfinite(clone.evaluate(inputs_of(), data(), verbose=0, return_dict=True)['flow_kl'])


@each_kit
def test_hierarchy_of_two_layers(kit):
    """z_1 given x with a prior given z_2, as in a ladder."""
    layers = kit.keras.layers
    x = kit.keras.Input([FEATURES])
    upper, _ = kit.layer(1, name='upper')([layers.Dense(LATENT)(x) for _ in range(2)])
    lower, _ = kit.layer(1, name='lower')(
        [layers.Dense(LATENT)(x) for _ in range(2)], prior=[layers.Dense(LATENT)(upper) for _ in range(2)]
    )
    model = kit.keras.Model(x, layers.Dense(FEATURES)(lower))
    model.compile('adam', 'mse', run_eagerly=True)
    logs = model.fit(data(), data(), verbose=0).history
    assert {'upper_kl', 'lower_kl'} <= set(logs) and np.all(np.isfinite(logs['loss']))


@each_kit
@pytest.mark.parametrize('symbolic', [False, True])
@pytest.mark.parametrize(
    ('shapes', 'parts'),
    [
        ([(4, 3), (4, 2)], ['mean', '(4, 3)', '[batch, 2]']),
        ([(4, 2), (4, 3)], ['log_var', '(4, 3)', '[batch, 2]']),
        ([(4, 2)], ['list of two tensors', '[mean, log_var]', 'constructor']),
        ([(4, 2)] * 3, ['list of two tensors', '[mean, log_var]']),
    ],
    ids=['mean', 'log_var', 'one', 'three'],
)
def test_shapes_that_do_not_fit(kit, symbolic, shapes, parts):
    flow = kit.layer()
    flow(point()[:3])
    make = (lambda shape: kit.keras.Input(shape[1:])) if symbolic else tf.zeros
    with raises(ValueError, 'prior', *(part.replace('(4', '(None') if symbolic else part for part in parts)):
        inputs = [make((4, size)) for size in (LATENT, LATENT, CONTEXT)]
        flow(inputs, prior=[make(shape) for shape in shapes])


@each_kit
def test_rows_that_do_not_fit(kit):
    with raises(ValueError, 'prior: mean', '(3, 2)', '4 rows'):
        kit.layer()(point()[:3], prior=[tf.zeros([3, 2]), tf.zeros([3, 2])])


@each_kit
def test_other_things_than_two_tensors(kit):
    for prior in (tfd.Normal(0.0, 1.0), tf.zeros([4, 2]), [0.0, 1.0], log_laplace):
        with raises(ValueError, 'prior', 'list of two tensors', 'constructor'):
            kit.layer()(point()[:3], prior=prior)


@each_kit
def test_integers(kit):
    with raises(TypeError, 'prior: log_var', 'int32', 'floating'):
        kit.layer()(point()[:3], prior=[tf.zeros([4, 2]), tf.zeros([4, 2], tf.int32)])


@each_kit
def test_a_prior_in_both_places(kit):
    with raises(ValueError, 'prior', 'at the call', 'log_laplace', 'Leave out one'):
        kit.layer(prior=log_laplace)(point()[:3], prior=prior_at_the_call())


@each_kit
def test_a_prior_without_a_kl_term(kit):
    with raises(ValueError, 'prior', 'without a KL term', 'kl_weight'):
        kit.layer(kl_weight=None)(point()[:3], prior=prior_at_the_call())


@each_kit
def test_a_prior_by_position(kit):
    with raises(TypeError, '2 positional', 'prior=[mean, log_var]'):
        kit.layer()(point()[:3], prior_at_the_call())


def test_a_prior_of_the_other_keras():
    with raises(TypeError, 'prior', 'of tf_keras', 'tfp_iaf.tf_keras'):
        K3.layer()([keras.Input([2]), keras.Input([2])], prior=[K2.keras.Input([2]), K2.keras.Input([2])])
