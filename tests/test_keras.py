"""The layer in standard models of either Keras: training, samples, dtype policies, devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import masked_kernels
from tests.keras_models import (
    CONTEXT,
    FEATURES,
    K2,
    K3,
    LATENT,
    assert_all_changed,
    data,
    each_kit,
    fit,
    flow_of,
    flow_variables,
    point,
    values_of,
    variables_of,
)

# Compiled training


def everything(kit, traces):
    """A VAE with layers of several kinds; each trace of it adds to the list."""
    layers = kit.keras.layers

    class Everything(kit.keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = layers.Dense(2 * LATENT + CONTEXT), layers.Dense(FEATURES)
            self.prior = layers.Dense(2 * LATENT)
            self.flow = kit.layer(1, name='flow', kl_weight=0.5)
            self.planar = kit.PlanarSampling(1, name='planar', kl_weight=0.5)
            self.noise = kit.IAFPosterior(LATENT, 1, (8,), context_shape=CONTEXT)

        def call(self, x):
            traces.append(x)
            parameters = tf.split(self.encoder(x), [LATENT, LATENT, CONTEXT], axis=-1)
            samples = [
                self.flow(parameters, prior=tf.split(self.prior(x), 2, axis=-1))[0],
                self.planar(parameters)[0],
                self.noise(parameters[0], tf.exp(parameters[1]), parameters[2]).sample(seed=[0, 1]),
            ]
            return self.decoder(tf.concat(samples, axis=-1))

    return Everything()


@pytest.fixture(scope='module', params=[(K3, True), (K2, False)], ids=['keras_xla', 'tf_keras_graph'])
def trained(request):
    """What becomes of a model: while the KL term is warmed up, with its full weight, and with another weight."""
    kit, jit_compile = request.param
    keras.utils.set_random_seed(0)
    traces = []
    model, inputs = everything(kit, traces), data(5)
    model(inputs)
    before, histories, traced = values_of(model.trainable_weights), [], []
    model.compile(kit.keras.optimizers.Adam(0.01), loss='mse', metrics=['mse'], jit_compile=jit_compile)
    for epochs, callbacks in ((5, [kit.KLWarmup(4, start=0.1)]), (40, []), (1, [])):
        if epochs == 1:
            model.flow.kl_weight.assign(2.0)
            model.planar.kl_weight.assign(2.0)
        logs = model.fit(inputs, inputs, batch_size=5, epochs=epochs, verbose=0, callbacks=callbacks).history
        histories.append({name: np.array(values) for name, values in logs.items()})
        traced.append(len(traces))
    return model, before, histories, traced


@pytest.mark.slow
def test_fit_changes_every_variable_and_minimizes_the_loss(trained):
    model, before, (_, logs, _), _ = trained
    # Three layers of Keras, a flow with a context, one linear in it, and one of distributions.
    assert len(before) == 3 * 2 + 5 + 2 + 5
    assert_all_changed(model.trainable_weights, before)
    assert np.all(np.isfinite(logs['loss'])) and np.mean(logs['loss'][-5:]) < 0.9 * np.mean(logs['loss'][:5])


@pytest.mark.slow
def test_compiled_steps_take_the_weight_and_trace_nothing_again(trained):
    _, _, histories, traced = trained
    assert len(set(traced)) == 1
    for logs, expected in zip(histories, ([0.1, 0.2, 0.3, 0.4, 0.5], [0.5] * 40, [2.0]), strict=True):
        weights = (logs['loss'] - logs['mse']) / (logs['flow_kl'] + logs['planar_kl'])
        np.testing.assert_allclose(weights, expected, rtol=1e-3)


# Weights


@each_kit
@pytest.mark.parametrize('built_by', ['call', 'fit'])
def test_model_tracks_every_flow_variable_by_identity(kit, built_by):
    model = kit.functional_model(num_flows=1) if built_by == 'call' else everything(kit, [])
    if built_by == 'fit':
        model.compile('adam', 'mse', run_eagerly=True)
        model.fit(data(), data(), verbose=0)
    variables = variables_of(flow_variables(model))
    assert len(variables) == 5
    assert variables == variables_of(flow_of(model).trainable_weights)
    assert variables <= variables_of(model.trainable_weights)
    names = [weight.path if kit is K3 else weight.name for weight in model.weights]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('free_bits', [None, 0.1])
def test_nan_in_a_row_makes_the_loss_nan(free_bits):
    """On which Keras can stop the training."""
    flow, (z_mean, z_log_var, *_) = K3.layer(free_bits=free_bits), point()
    z, log_q = flow([tf.tensor_scatter_nd_update(z_mean, [[1, 0]], [np.nan]), z_log_var])
    assert np.isnan(log_q).tolist() == [False, True, False, False]
    assert np.isfinite(np.delete(z, 1, axis=0)).all()
    assert np.isnan(sum(flow.losses))


@each_kit
def test_weights_are_counted(kit):
    """Those of the networks, one for the weight of the KL term, and in tf_keras the state of the seed."""
    model, lines = kit.functional_model(kl_weight=None), []
    networks = sum(int(tf.size(variable)) for variable in flow_variables(model)) + (0 if kit is K3 else 2)
    assert flow_of(model).count_params() == networks
    assert flow_of(kit.functional_model()).count_params() == networks + 1
    model.summary(print_fn=lines.append)
    assert any('flow (IAFSampling)' in line and str(networks) in line for line in '\n'.join(lines).splitlines())


def test_masks_zero_nearly_half_of_the_kernels():
    """The documentation says so."""
    network = tfp_iaf.MaskedAutoregressiveNetwork(32, (64, 64), context_shape=32)
    masks = [mask for _, mask in masked_kernels(network)]
    assert 0.4 < sum(np.sum(~mask) for mask in masks) / sum(mask.size for mask in masks) < 0.5


# Samples


@each_kit
def test_predict_takes_any_number_of_rows(kit):
    result = kit.functional_model(num_flows=1).predict(data(7), batch_size=5, verbose=0)
    assert (result['z'].shape, result['log_q'].shape) == ((7, LATENT), (7,))
    assert np.all(np.isfinite(result['log_q']))


@each_kit
def test_every_call_and_every_row_has_its_own_noise(kit):
    flow, zeros = kit.layer(), tf.zeros([5, LATENT])
    samples = np.concatenate([flow([zeros, zeros])[0] for _ in range(2)])
    assert len(np.unique(samples[:, 0])) == 10


@each_kit
def test_set_random_seed_fixes_weights_and_samples(kit):
    def result():
        kit.keras.utils.set_random_seed(5)
        model = kit.functional_model(num_flows=1)
        return [*values_of(model.trainable_weights), *(model(data())['z'] for _ in range(2))]

    first, second = result(), result()
    for one, other in zip(first, second, strict=True):
        # Not to the last bit: threads add up in any order.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_seed_of_the_layer_fixes_its_weights_and_samples():
    def samples(kit, seed):
        flow = kit.layer(1, seed=seed)
        return np.array([flow(point()[:3])[0] for _ in range(2)])

    first, other = samples(K3, 1), samples(K3, 2)
    assert np.all(first[0] != first[1]) and np.all(first != other)
    np.testing.assert_array_equal(samples(K3, 1), first)
    np.testing.assert_allclose(samples(K2, 1), first, rtol=1e-6)
    np.testing.assert_array_equal(samples(K2, 1), samples(K2, 1))


# Dtype policies


@each_kit
@pytest.mark.parametrize(('policy', 'dtype'), [('mixed_float16', tf.float32), ('float64', tf.float64)])
def test_flow_stays_in_the_dtype_of_its_variables(kit, policy, dtype):
    model = kit.functional_model(num_flows=1, dtype=policy)
    history = kit.train(model).history
    z, log_q = flow_of(model)(point(dtype)[:3])
    assert z.dtype == log_q.dtype == dtype
    assert {variable.dtype for variable in flow_variables(model)} == {dtype}
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['flow_kl']))


@each_kit
def test_under_mixed_precision_all_is_computed_in_single(kit):
    flow, gaussian = (kit.layer(num_flows, dtype='mixed_float16') for num_flows in (2, 0))
    half = [tf.cast(value, tf.float16) for value in point()[:3]]
    z, log_q = flow(half)
    expected = flow.posterior(*(tf.cast(value, tf.float32) for value in half)).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    symbolic = flow([kit.keras.Input([size]) for size in (LATENT, LATENT, CONTEXT)])
    assert all(value.dtype == 'float32' for value in symbolic)
    # Keras casts the inputs of a layer to its compute dtype, unless told not to.
    z_mean = tf.constant([[1.0001, 2.0003]])
    gaussian([z_mean, tf.zeros([1, LATENT])])
    np.testing.assert_allclose(sum(gaussian.losses), 0.5 * np.sum(np.square(z_mean)), rtol=1e-6)


# Devices


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices('GPU'), reason='there is no GPU')
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_gpu_agrees_with_the_cpu(jit_compile):
    def results(device):
        keras.utils.set_random_seed(1)
        with tf.device(device):
            model = K3.functional_model(seed=2)
            *parameters, z = point()
            density, outputs = flow_of(model).posterior(*parameters).log_prob(z), model(data())
            model.compile(keras.optimizers.SGD(0.1), {'x': 'mse'}, jit_compile=jit_compile)
            history = fit(model, rows=12, shuffle=False).history
            assert f'{device}:0' in flow_variables(model)[0].device
        return [density, *outputs.values(), *history.values(), *values_of(model.weights)]

    for cpu, gpu in zip(results('CPU'), results('GPU'), strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-4)
