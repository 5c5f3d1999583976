"""Training with `fit` on two devices does what training on one does."""

import concurrent.futures
import multiprocessing

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_iaf.keras import IAFSampling

pytestmark = pytest.mark.slow


def in_new_process(function, *args):
    """Calls a function where TensorFlow has not been started: its devices can still be chosen."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result(timeout=300)


def fit_without_noise(mirrored):
    """How an epoch of `fit` changes the weights, if the posterior is too narrow for its noise to count."""
    strategy = tf.distribute.get_strategy()
    if mirrored:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input([3])
        z_log_var = keras.layers.Dense(3, kernel_initializer='zeros', bias_initializer=keras.initializers.Constant(-40))
        layer = IAFSampling(2, (8,), kl_weight=0.5, seed=0)
        z, _ = layer([keras.layers.Dense(3)(inputs), z_log_var(inputs), inputs])
        model = keras.Model(inputs, z)
        model.compile(keras.optimizers.SGD(1e-2), 'mse', jit_compile=False)
    x = np.random.default_rng(0).normal(size=[24, 3]).astype(np.float32)
    before = model.get_weights()
    model.fit(x, x, batch_size=12, shuffle=False, verbose=0)
    changes = [after - old for old, after in zip(before, model.get_weights(), strict=True)]
    return list(zip([weight.path for weight in model.weights], changes, strict=True))


def test_mirrored_fit_gives_the_gradients_of_one_device():
    """The KL term that the layer adds is scaled like the loss of the model."""
    mirrored_changes = in_new_process(fit_without_noise, True)
    for (name, change), (_, other) in zip(fit_without_noise(False), mirrored_changes, strict=True):
        np.testing.assert_allclose(other, change, rtol=1e-3, atol=1e-4 * np.abs(change).max() + 1e-9, err_msg=name)
