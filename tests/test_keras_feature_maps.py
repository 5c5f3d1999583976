"""The layer on feature maps: masked convolutions, a prior at the call, free bits by map, saving, in either Keras."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import normal, perturb, raises
from tests.keras_models import each_kit

tfd = tfp.distributions

ROWS, MAPS, CONTEXT = 6, (2, 3, 2), (2, 3, 4)


def images():
    return normal([ROWS, 4, 6, 1], tf.float32, seed=1)


def model(kit, **kwargs):
    """A layer of a ladder: features of the image, and a prior that depends on a vector."""
    layers = kit.keras.layers
    pixels = kit.keras.Input([4, 6, 1])
    mean, log_var, context = (
        layers.Conv2D(size, 3, strides=2, padding='same')(pixels) for size in (MAPS[-1], MAPS[-1], CONTEXT[-1])
    )
    prior = [layers.Conv2D(MAPS[-1], 1)(context) for _ in range(2)]
    sampling = kit.IAFSampling(2, filters=(5, 4), name='flow', seed=0, **kwargs)
    z, _ = sampling([mean, log_var, context], prior=prior)
    return kit.keras.Model(pixels, layers.Conv2DTranspose(1, 3, strides=2, padding='same')(z))


def weights_of_flow(made):
    return [variable.numpy() for variable in made.get_layer('flow').trainable_variables]


@each_kit
def test_networks_are_convolutions_that_alternate_the_order(kit):
    layer = kit.IAFSampling(3, filters=(5, 4), seed=0)
    z, log_q = layer([normal([ROWS, *shape], tf.float32) for shape in (MAPS, MAPS, CONTEXT)])
    assert z.shape == [ROWS, *MAPS] and log_q.shape == [ROWS]
    networks = layer._flow.posterior().networks
    assert [type(network) for network in networks] == [tfp_iaf.MaskedConvolutionalNetwork] * 3
    assert [network.filters for network in networks] == [(5, 4)] * 3
    assert [int(network.order[0]) for network in networks] == [0, 11, 0]
    assert networks[0].context_shape == list(CONTEXT)


@each_kit
def test_free_bits_by_map_with_a_prior_at_the_call(kit):
    """Mean over the batch, minimum for each map, sum over the maps; the KL adds up to that of the row."""
    inputs = [normal([ROWS, *shape], tf.float32, seed=i) for i, shape in enumerate((MAPS, MAPS, CONTEXT))]
    prior = [normal([ROWS, *MAPS], tf.float32, seed=5), normal([ROWS, *MAPS], tf.float32, seed=6)]
    for minimum in (0.0, 50.0):
        layer = kit.IAFSampling(2, filters=(5, 4), free_bits=minimum, free_bits_axis=-1, seed=0)
        layer.build([value.shape for value in inputs])
        for variable in layer.trainable_variables:
            variable.assign(variable + 0.1)
        z, _ = layer(inputs, prior=prior)
        (loss,) = layer.losses
        q = layer.posterior(*inputs)
        z_0 = q.bijector.inverse(z)
        base = tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1]))
        p = tfd.Normal(prior[0], tf.exp(0.5 * prior[1]))
        kl = tfd.kl_divergence(base, p) - q.bijector.forward_log_derivatives(z_0) - p.log_prob(z) + p.log_prob(z_0)
        by_map = np.mean(np.sum(kl, axis=(1, 2)), axis=0)
        np.testing.assert_allclose(loss, np.maximum(by_map, minimum).sum(), rtol=1e-4)
        assert by_map.min() < 50


@each_kit
def test_fit_changes_every_variable_and_files_bring_them_back(kit, tmp_path):
    made = model(kit, free_bits=0.1, free_bits_axis=-1)
    made.compile('adam', loss='mse')
    before = weights_of_flow(made)
    made.fit(images(), images(), batch_size=3, verbose=0)
    after = weights_of_flow(made)
    assert len(after) == 2 * 7 and not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    inputs = [normal([ROWS, *shape], tf.float32, seed=i) for i, shape in enumerate((MAPS, MAPS, CONTEXT))]
    expected = made.get_layer('flow').posterior(*inputs).log_prob(inputs[0])
    for file in ('model.keras', 'model.h5') if kit.keras.__name__ == 'tf_keras' else ('model.keras',):
        made.save(tmp_path / file)
        loaded = kit.keras.models.load_model(tmp_path / file)
        np.testing.assert_allclose(loaded.get_layer('flow').posterior(*inputs).log_prob(inputs[0]), expected, rtol=1e-5)
    made.save_weights(tmp_path / 'made.weights.h5')
    other = model(kit, free_bits=0.1, free_bits_axis=-1)
    other.load_weights(tmp_path / 'made.weights.h5')
    np.testing.assert_allclose(other.get_layer('flow').posterior(*inputs).log_prob(inputs[0]), expected, rtol=1e-5)


@each_kit
def test_config_brings_the_filters_back(kit):
    layer = kit.IAFSampling(2, filters=(5, 4), name='flow')
    copied = kit.IAFSampling.from_config(layer.get_config())
    assert copied.filters == layer.filters == (5, 4) and copied.get_config() == layer.get_config()
    factory = kit.IAFPosterior(MAPS, 2, filters=[5, 4], context_shape=CONTEXT)
    assert kit.IAFPosterior.from_config(factory.get_config()).networks[1].filters == (5, 4)


@each_kit
def test_factory_of_distributions_on_feature_maps(kit):
    factory = kit.IAFPosterior(MAPS, 2, filters=(5, 4), context_shape=CONTEXT, seed=0)
    perturb(factory.flow)
    q = factory(*(tf.ones([ROWS, *shape]) for shape in (MAPS, MAPS, CONTEXT)))
    z, log_q = q.experimental_sample_and_log_prob(3, seed=0)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-3)


def _own_network(*args, **kwargs):
    return tfp_iaf.MaskedConvolutionalNetwork(*args, **kwargs)


@each_kit
@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'hidden_units': (64,), 'filters': (5,)}, ValueError, ['filters', '(5,)', 'hidden_units', 'one of the two']),
        ({'network': _own_network, 'filters': (5,)}, ValueError, ['filters', '(5,)', 'network', 'one of the two']),
        ({'filters': ()}, ValueError, ['filters', 'at least one']),
        ({'filters': 5}, TypeError, ['filters', '5', 'a sequence of ints']),
    ],
    ids=['hidden_units', 'network', 'empty', 'int'],
)
def test_filters_that_do_not_fit(kit, arguments, error, parts):
    for make in (kit.IAFSampling, lambda **kwargs: kit.IAFPosterior(MAPS, **kwargs)):
        with raises(error, *parts):
            make(**arguments)
    with raises(error, *parts):
        tfp_iaf.IAFPosterior(MAPS, **arguments)


@each_kit
def test_vectors_have_no_filters(kit):
    with raises(ValueError, 'event_shape', '(2,)', '[height, width, channels]'):
        kit.IAFSampling(2, filters=(5,))([tf.zeros([ROWS, 2]), tf.zeros([ROWS, 2])])
