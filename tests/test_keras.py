"""The layer in standard models of either Keras: training, samples, dtype policies, devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import masked_kernels, perturb
from tests.keras_models import (
    CONTEXT,
    K2,
    K3,
    LATENT,
    assert_all_changed,
    built,
    data,
    each_compiled_kit,
    each_kit,
    fit,
    flow_of,
    flow_variables,
    log_q_of_a_fixed_point,
    point,
    train,
    values_of,
    variables_of,
)

# Training


@pytest.mark.slow
@each_compiled_kit
def test_fit_changes_every_variable_and_minimizes_the_loss(kit, jit_compile):
    # With a prior at the call in both.
    model = built(kit.vae(kit.layer(1, name='flow'), True) if jit_compile else kit.subclassed_model())
    before = values_of(model.trainable_weights)
    assert len(before) == 12 + (5 if jit_compile else 10) + 2
    losses = train(model, epochs=30, rows=10, kit=kit, jit_compile=jit_compile).history['loss']
    assert_all_changed(model.trainable_weights, before)
    assert np.all(np.isfinite(losses)) and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@each_kit
@pytest.mark.parametrize('built_by', ['call', 'fit'])
def test_model_tracks_every_flow_variable_by_identity(kit, built_by):
    model = kit.functional_model() if built_by == 'call' else kit.subclassed_model()
    if built_by == 'fit':
        train(model, kit=kit)
    variables = variables_of(flow_variables(model))
    assert len(variables) == 10
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


@pytest.mark.parametrize('units', [64, 320])
def test_masks_zero_nearly_half_of_the_kernels(units):
    """The documentation says so."""
    network = tfp_iaf.MaskedAutoregressiveNetwork(32, (units, units), context_shape=32)
    masks = [mask for _, mask in masked_kernels(network)]
    assert 0.4 < sum(np.sum(~mask) for mask in masks) / sum(mask.size for mask in masks) < 0.5


# Samples


@pytest.mark.slow
@each_kit
def test_predict_takes_any_number_of_rows(kit):
    model = kit.functional_model(num_flows=1)
    for rows in (1, 7):
        result = model.predict(data(rows), batch_size=5, verbose=0)
        assert (result['z'].shape, result['log_q'].shape) == ((rows, LATENT), (rows,))
        assert np.all(np.isfinite(result['log_q']))


@pytest.mark.parametrize('conditional', [False, True])
def test_log_q_is_that_of_the_posterior(conditional):
    flow = K3.layer()
    parameters = point()[: 3 if conditional else 2]
    flow(parameters)
    perturb(flow.posterior(*parameters).bijector)
    z, log_q = flow(parameters)
    np.testing.assert_allclose(flow.posterior(*parameters).log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)


@each_kit
def test_every_call_and_every_row_has_its_own_noise(kit):
    flow, zeros = kit.layer(), tf.zeros([5, LATENT])
    samples = np.concatenate([flow([zeros, zeros])[0] for _ in range(2)])
    assert len(np.unique(samples[:, 0])) == 10


@pytest.mark.slow
@each_kit
def test_set_random_seed_fixes_weights_samples_and_training(kit):
    def result():
        kit.keras.utils.set_random_seed(5)
        model = kit.functional_model()
        train(model, kit=kit)
        return [*values_of(model.trainable_weights), *model(data()).values()]

    for first, second in zip(result(), result(), strict=True):
        # Not to the last bit: threads add up in any order.
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_seed_of_the_layer_fixes_its_weights_and_samples():
    def samples(seed, kit=K3):
        flow = kit.layer(seed=seed)
        return [flow(point()[:3])[0].numpy() for _ in range(2)]

    for kit in (K3, K2):
        np.testing.assert_array_equal(samples(1, kit), samples(1, kit))
        assert np.all(np.not_equal(*samples(1, kit)))
        assert np.all(np.not_equal(samples(1, kit), samples(2, kit)))
    np.testing.assert_allclose(samples(1, K2), samples(1, K3), rtol=1e-6)


# Dtype policies


@each_kit
@pytest.mark.parametrize(('policy', 'dtype'), [('mixed_float16', tf.float32), ('float64', tf.float64)])
def test_flow_stays_in_the_dtype_of_its_variables(kit, policy, dtype):
    model = kit.functional_model(num_flows=1, dtype=policy)
    history = train(model, kit=kit).history
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
            density, outputs = log_q_of_a_fixed_point(model), model(data())
            model.compile(keras.optimizers.SGD(0.1), {'x': 'mse'}, jit_compile=jit_compile)
            history = fit(model, rows=12, shuffle=False).history
            assert f'{device}:0' in flow_variables(model)[0].device
        return [density, *outputs.values(), *history.values(), *values_of(model.weights)]

    for cpu, gpu in zip(results('CPU'), results('GPU'), strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-4)
