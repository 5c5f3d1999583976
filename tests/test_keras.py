"""The layer in standard Keras 3 models: training, samples, dtype policies, devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import masked_kernels, perturb, tfd
from tests.keras_models import (
    CONTEXT,
    FEATURES,
    K3,
    LATENT,
    SubclassedModel,
    built,
    data,
    fit,
    flow_of,
    flow_variables,
    log_q_of_a_fixed_point,
    point,
    train,
)
from tfp_iaf.keras import IAFSampling

functional_model = K3.functional_model
each_model = pytest.mark.parametrize('make', [functional_model, SubclassedModel], ids=['functional', 'subclassed'])


# Training


@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'jit_compile'),
    [(lambda: functional_model(num_flows=1), True), (SubclassedModel, 'auto')],
    ids=['functional_xla', 'subclassed_auto'],
)
def test_fit_changes_every_flow_variable_and_minimizes_the_loss(make, jit_compile):
    model = built(make())
    before = [variable.numpy() for variable in flow_variables(model)]
    assert len(before) in (5, 10)
    losses = train(model, epochs=30, jit_compile=jit_compile).history['loss']
    for variable, value in zip(flow_variables(model), before, strict=True):
        assert np.all(np.isfinite(variable)) and np.any(variable != value), variable.name
    assert np.all(np.isfinite(losses)) and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_fit_builds_a_model_that_was_never_called():
    model = SubclassedModel()
    train(model, epochs=1, rows=5)
    assert {id(v) for v in flow_variables(model)} <= {id(w.value) for w in model.trainable_weights}


@each_model
def test_model_tracks_every_flow_variable_by_identity(make):
    model = built(make())
    tracked = {id(weight.value) for weight in model.variables}
    variables = flow_variables(model)
    assert variables
    assert {id(variable) for variable in variables} <= tracked
    assert {id(variable) for variable in variables} == {id(weight.value) for weight in flow_of(model).trainable_weights}


def test_names_of_the_weights_are_unique():
    names = [weight.path for weight in built(functional_model()).weights]
    assert len(set(names)) == len(names)


def test_frozen_layer_does_not_train():
    model = functional_model(trainable=False)
    before = log_q_of_a_fixed_point(model)
    train(model, epochs=1, rows=5)
    assert not flow_of(model).trainable_weights
    np.testing.assert_array_equal(log_q_of_a_fixed_point(model), before)


def test_one_layer_serves_two_models():
    shared = K3.layer()
    models = []
    for _ in range(2):
        inputs = keras.Input([FEATURES])
        heads = [keras.layers.Dense(size)(inputs) for size in (LATENT, LATENT, CONTEXT)]
        models.append(keras.Model(inputs, shared(heads)[0]))
    shared_weights = {id(w) for w in models[0].weights} & {id(w) for w in models[1].weights}
    assert {id(w) for w in shared.trainable_weights} <= shared_weights


class WithTrainStep(keras.Model):
    """A model with a training step of its own, as in the standard Keras VAE."""

    def __init__(self):
        super().__init__()
        self.encoder = [keras.layers.Dense(LATENT) for _ in range(2)]
        self.flow = K3.layer(kl_weight=0.5)
        self.decoder = keras.layers.Dense(FEATURES)

    def train_step(self, inputs):
        with tf.GradientTape() as tape:
            z, _ = self.flow([dense(inputs) for dense in self.encoder])
            reconstruction = tf.reduce_mean((self.decoder(z) - inputs) ** 2)
            loss = reconstruction + sum(self.flow.losses)
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        return {'loss': loss, 'reconstruction': reconstruction, 'kl': self.flow.metrics[0].result()}


def test_own_train_step():
    model = WithTrainStep()
    model.compile('adam', run_eagerly=True)
    for _ in range(2):
        logs = {key: value[0] for key, value in model.fit(data(), batch_size=len(data()), verbose=0).history.items()}
        np.testing.assert_allclose(logs['loss'], logs['reconstruction'] + 0.5 * logs['kl'], rtol=1e-5)
    assert len(model.flow.losses) == 1


def test_evaluate():
    model = functional_model()
    model.compile(loss={'x': 'mse'}, run_eagerly=True)
    logs = model.evaluate(data(7), {'x': data(7)}, batch_size=5, verbose=0, return_dict=True)
    assert set(logs) >= {'loss', 'flow_kl'} and np.all(np.isfinite(list(logs.values())))


def test_a_loss_that_is_nan_stops_the_training(capsys):
    """With what Keras has for it; the flow turns NaN into NaN."""
    rows = np.concatenate([data(), np.full([1, FEATURES], np.nan, np.float32), data()])
    model = K3.one_output_model()
    model.compile('adam', 'mse', run_eagerly=True)
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(rows, rows, batch_size=5, epochs=3, shuffle=False, verbose=0, callbacks=[stop])
    assert 'Batch 2: Invalid loss' in capsys.readouterr().out
    assert len(history.epoch) == 1


def test_number_of_weights_is_that_of_the_networks():
    model = functional_model(kl_weight=None)
    networks = sum(int(tf.size(variable)) for variable in flow_variables(model))
    assert flow_of(model).count_params() == networks
    assert flow_of(functional_model()).count_params() == networks + 1


@pytest.mark.parametrize('units', [64, 320])
def test_masks_zero_nearly_half_of_the_kernels(units):
    """The documentation says so."""
    flow = IAFSampling(1, (units, units))
    flow([tf.zeros([1, 32])] * 3)
    network = tfp_iaf.MaskedAutoregressiveNetwork(32, (units, units), context_shape=32)
    masks = {kernel.name.split(':')[0]: mask for kernel, mask in masked_kernels(network)}
    assert 0.4 < sum(np.sum(~mask) for mask in masks.values()) / sum(mask.size for mask in masks.values()) < 0.5
    for name, mask in masks.items():
        (kernel,) = (weight for weight in flow.weights if weight.name == f'flow_0_{name}')
        assert np.all(kernel.numpy()[~mask] == 0) and np.all(kernel.numpy()[mask] != 0)


def test_summary_shows_the_layer():
    lines = []
    functional_model(kl_weight=None).summary(print_fn=lines.append)
    assert any('flow (IAFSampling)' in line and '168' in line for line in '\n'.join(lines).splitlines())


# Samples


def test_symbolic_shapes():
    z, log_q = K3.layer()([keras.Input([size]) for size in (LATENT, LATENT, CONTEXT)])
    assert (z.shape, log_q.shape) == ((None, LATENT), (None,))


def test_predict_takes_any_number_of_rows():
    model = functional_model()
    for rows in (1, 7):
        result = model.predict(data(rows), batch_size=5, verbose=0)
        assert result['z'].shape == (rows, LATENT)
        assert result['log_q'].shape == (rows,)
        assert np.all(np.isfinite(result['log_q']))


@pytest.mark.parametrize('conditional', [False, True])
def test_log_q_is_that_of_the_posterior(conditional):
    flow = K3.layer()
    parameters = point()[: 3 if conditional else 2]
    z, log_q = flow(parameters)
    perturb(flow.posterior(*parameters).bijector)
    z, log_q = flow(parameters)
    np.testing.assert_allclose(flow.posterior(*parameters).log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)


def test_posterior_has_the_mean_and_variance_given():
    flow = K3.layer(num_flows=0)
    z_mean, z_log_var, *_ = point()
    flow([z_mean, z_log_var])
    expected = tfd.MultivariateNormalDiag(z_mean, tf.exp(z_log_var / 2)).log_prob(point()[3])
    np.testing.assert_allclose(flow.posterior(z_mean, z_log_var).log_prob(point()[3]), expected, rtol=1e-5)


def test_every_call_and_every_row_has_its_own_noise():
    flow, zeros = K3.layer(), tf.zeros([5, LATENT])
    samples = np.concatenate([flow([zeros, zeros])[0] for _ in range(2)])
    assert len(np.unique(samples[:, 0])) == 10


def test_set_random_seed_fixes_weights_samples_and_training():
    def result():
        keras.utils.set_random_seed(5)
        model = functional_model()
        train(model, epochs=1)
        return [*(w.numpy() for w in model.trainable_weights), *model(data()).values()]

    for first, second in zip(result(), result(), strict=True):
        # Not to the last bit: threads add up in any order.
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_seed_of_the_layer_fixes_its_weights_and_samples():
    def sample(seed):
        return K3.layer(seed=seed)(point()[:3])[0].numpy()

    np.testing.assert_array_equal(sample(1), sample(1))
    assert np.all(sample(1) != sample(2))


def test_one_evaluation_of_each_network_in_a_call(network_calls):
    flow = K3.layer(num_flows=3)
    flow(point()[:3])
    network_calls.clear()
    flow(point()[:3])
    assert len(network_calls) == len(set(network_calls)) == 3


# Dtype policies


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    floatx = keras.config.floatx()
    keras.config.set_dtype_policy(request.param)
    if request.param == 'float64':  # or Keras computes its own losses in float32, and cannot add them up
        keras.config.set_floatx('float64')
    yield request.param
    keras.config.set_dtype_policy(before)
    keras.config.set_floatx(floatx)


@pytest.mark.parametrize(
    ('policy', 'dtype'),
    [('mixed_float16', tf.float32), ('mixed_bfloat16', tf.float32), ('float64', tf.float64)],
    indirect=['policy'],
)
def test_flow_stays_in_the_dtype_of_its_variables(policy, dtype):
    model = functional_model(num_flows=1)
    history = train(model, epochs=1, rows=5).history
    z, log_q = flow_of(model)(point(dtype)[:3])
    assert z.dtype == log_q.dtype == dtype
    assert {variable.dtype for variable in flow_variables(model)} == {dtype}
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['flow_kl']))


@pytest.mark.parametrize('policy', ['mixed_float16'], indirect=True)
def test_inputs_in_half_precision_are_computed_in_single(policy):
    flow = K3.layer(seed=1)
    half = [tf.cast(value, tf.float16) for value in point()[:3]]
    z, log_q = flow(half)
    expected = flow.posterior(*(tf.cast(value, tf.float32) for value in half)).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)


def test_log_variance_in_single_precision_is_not_rounded_to_half():
    """Keras casts the inputs of a layer to its compute dtype, unless told not to."""
    flow = K3.layer(num_flows=0, dtype='mixed_float16', kl_weight=1.0)
    z_mean = tf.constant([[1.0001, 2.0003]])
    flow([z_mean, tf.zeros([1, LATENT])])
    np.testing.assert_allclose(sum(flow.losses), 0.5 * np.sum(np.square(z_mean)), rtol=1e-6)


@pytest.mark.parametrize('policy', ['mixed_float16'], indirect=True)
def test_symbolic_dtype_is_that_of_the_samples(policy):
    z, log_q = K3.layer()([keras.Input([size]) for size in (LATENT, LATENT, CONTEXT)])
    assert z.dtype == log_q.dtype == 'float32'


# Devices


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices('GPU'), reason='there is no GPU')
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_gpu_agrees_with_the_cpu(jit_compile):
    def results(device):
        keras.utils.set_random_seed(1)
        with tf.device(device):
            model = functional_model(seed=2)
            density, outputs = log_q_of_a_fixed_point(model), model(data())
            model.compile(keras.optimizers.SGD(0.1), {'x': 'mse'}, jit_compile=jit_compile)
            history = fit(model, epochs=1, shuffle=False).history
            assert f'{device}:0' in flow_variables(model)[0].device
        return [density, *outputs.values(), *history.values(), *(weight.numpy() for weight in model.weights)]

    for cpu, gpu in zip(results('CPU'), results('GPU'), strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-4)
