"""Training with `fit` on two devices, in either Keras, does what training on one does."""

import concurrent.futures
import importlib
import multiprocessing

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.slow


def in_new_process(function):
    """Calls a function where TensorFlow has not been started: its devices can still be chosen."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function).result(timeout=300)


@pytest.fixture(scope='module')
def results():
    return in_new_process(results_of_both)


def results_of_both():
    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
    return {name: [trained(name, mirrored) for mirrored in (False, True)] for name in ('keras', 'tf_keras')}


def trained(name, mirrored):
    """What `fit`, `evaluate` and the layer give; in `fit` the posterior is too narrow for its noise to count."""
    kit, flows = (importlib.import_module(module) for module in (name, f'tfp_iaf.{name}'))
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']) if mirrored else tf.distribute.get_strategy()
    kit.utils.set_random_seed(0)
    with strategy.scope():
        inputs = kit.Input([3])
        narrow = kit.initializers.Constant(-40)
        z_log_var = kit.layers.Dense(3, kernel_initializer='zeros', bias_initializer=narrow)
        layer = flows.IAFSampling(1, (8,), kl_weight=0.5, seed=0)
        z, _ = layer([kit.layers.Dense(3)(inputs), z_log_var(inputs), inputs])
        model = kit.Model(inputs, z)
        model.compile(kit.optimizers.SGD(1e-2), 'mse', run_eagerly=not mirrored, jit_compile=False)
    x = np.random.default_rng(0).normal(size=[24, 3]).astype(np.float32)
    before, weights = model.get_weights(), []
    record = kit.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs=None: weights.append(float(layer.kl_weight_in_training))
    )
    model.fit(x, x, batch_size=12, shuffle=False, verbose=0, callbacks=[flows.KLWarmup(4, start=0.3), record])
    weights.append(float(layer.kl_weight_in_training))
    changes = [after - old for old, after in zip(before, model.get_weights(), strict=True)]
    # In the last batch of one row, a replica gets none.
    loss = model.evaluate(x[:5], x[:5], batch_size=4, verbose=0)
    z = strategy.run(lambda: layer([tf.zeros([4, 3])] * 3)[0])
    return {
        'changes': list(zip([weight.name for weight in model.weights], changes, strict=True)),
        'weights': weights,
        'loss': loss,
        'z': np.concatenate([value.numpy() for value in strategy.experimental_local_results(z)]),
    }


@pytest.mark.parametrize('name', ['keras', 'tf_keras'])
def test_mirrored_fit_does_what_one_device_does(results, name):
    """The KL term that the layer adds, and its weight in a warm-up, are scaled like the loss of the model."""
    one, mirrored = results[name]
    assert np.allclose(one['weights'], [0.3, 0.35, 0.5]) and np.allclose(mirrored['weights'], one['weights'])
    for (weight, change), (_, other) in zip(one['changes'], mirrored['changes'], strict=True):
        assert np.any(change) or 'kl_weight' in weight
        np.testing.assert_allclose(other, change, rtol=1e-3, atol=1e-4 * np.max(np.abs(change)) + 1e-9, err_msg=weight)
    np.testing.assert_allclose(mirrored['loss'], one['loss'], rtol=1e-4)
    assert len(np.unique(mirrored['z'][:, 0])) == 2 * len(one['z']), 'each replica has its own noise'
