"""Distributed training gives what one device gives, and goes on where it was killed."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import time

import _checkpoints
import _datasets
import _runs
import _training
import distributed_vae
import keras
import keras_vae
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from _estimates import Parts
from _keras_vae import Settings

from tests.examples import scripts, small_vae
from tfp_iaf.keras import IAFSampling

tfd = tfp.distributions

pytestmark = pytest.mark.slow

SMALL = dataclasses.replace(small_vae.SMALL, epochs=1, batch_size=100, evaluation_images=20)
SCRIPT = {'strategy': 'multiworker', 'flows': 2, 'epochs': 4, 'checkpoint_steps': 5, 'evaluation_images': 20}


def in_new_process(function, *args):
    """Calls a function where TensorFlow has not been started: its devices can still be chosen."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result(timeout=300)


def one_device(settings):
    return distributed_vae.Training(tf.distribute.get_strategy(), settings, _datasets.load_digits())


def two_steps(tf_config):
    """The losses of two steps of gradient descent, `(name, change)` of every weight, and if workers agree on numbers.

    With `None` on one device, with 'mirrored' on two of one process.
    """
    if tf_config is None:
        training, worker = one_device(SMALL), 0
    elif tf_config == 'mirrored':
        training, worker = (
            distributed_vae.Training(_training.mirrored_strategy(), SMALL, _datasets.load_digits()),
            0,
        )
    else:
        os.environ['TF_CONFIG'] = tf_config
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        training = distributed_vae.Training(strategy, SMALL, _datasets.load_digits())
        worker = strategy.cluster_resolver.task_id
    with training.strategy.scope():
        training.model.compile(keras.optimizers.SGD(1e-2))
    before = training.model.get_weights()
    losses = [float(training.step(batch)) for _, batch in zip(range(2), training.batches(0), strict=False)]
    names = [weight.path for weight in training.model.weights]
    changes = [after - old for old, after in zip(before, training.model.get_weights(), strict=True)]
    agree = [training.same_everywhere(number) for number in (3, worker)]
    return losses, list(zip(names, changes, strict=True)), agree


def mirrored(output_dir):
    """What `fit` over two devices leaves, and what the sampling layer draws on each of them."""
    figures = distributed_vae.train_mirrored(SMALL, output_dir)
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
    with strategy.scope():
        model = keras_vae.make_vae(SMALL, [8, 8, 1])
    before = {weight.path: weight.numpy() for weight in model.weights}
    epochs_done = _checkpoints.Backup(model, output_dir / SMALL.name).restore()
    copies = {w.path: [c.numpy() for c in strategy.experimental_local_results(w.value)] for w in model.weights}
    _, sampling, _ = Parts.of(model)
    inputs = [tf.zeros([5, 3]), tf.zeros([5, 3]), tf.zeros([5, 4])]
    draws = tf.function(lambda: strategy.run(lambda: sampling(inputs)[0]))()
    return figures, epochs_done, before, copies, [z.numpy() for z in strategy.experimental_local_results(draws)]


def test_mirrored_devices_through_fit(tmp_path):
    figures, epochs_done, before, copies, draws = in_new_process(mirrored, tmp_path)
    assert figures['nll'] < figures['neg_elbo'] < 64 * np.log(2) + 5
    assert epochs_done == SMALL.epochs
    flow = [name for name in before if 'flow_' in name]
    assert len(flow) == 2 * 5
    for name in flow:
        assert not np.array_equal(before[name], copies[name][0]), name
    for name, (first, second) in copies.items():
        np.testing.assert_array_equal(first, second, err_msg=name)
    assert len(draws) == 2 and not np.any(draws[0] == draws[1])


def fit_without_noise(strategy_name):
    """How an epoch of `fit` changes the weights, if the posterior is too narrow for its noise to count."""
    keras.utils.set_random_seed(0)
    is_mirrored = strategy_name == 'mirrored'
    strategy = _training.mirrored_strategy() if is_mirrored else tf.distribute.get_strategy()
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
    mirrored_changes = in_new_process(fit_without_noise, 'mirrored')
    for (name, change), (_, other) in zip(fit_without_noise('one device'), mirrored_changes, strict=True):
        np.testing.assert_allclose(other, change, rtol=1e-3, atol=1e-4 * np.abs(change).max() + 1e-9, err_msg=name)


def test_mirrored_devices_give_the_gradients_of_one():
    mirrored_losses, of_mirrored, _ = in_new_process(two_steps, 'mirrored')
    losses, changes, _ = two_steps(None)
    np.testing.assert_allclose(mirrored_losses, losses, rtol=1e-5)
    for (name, change), (_, other) in zip(changes, of_mirrored, strict=True):
        np.testing.assert_allclose(other, change, rtol=1e-3, atol=1e-4 * np.abs(change).max() + 1e-12, err_msg=name)


def test_two_workers_give_the_gradients_of_one():
    workers = _runs.run_all(two_steps, distributed_vae.local_cluster(2), jobs=2)
    (first_losses, first, *agree), (second_losses, second, *agree_too) = (result for _, result in workers)
    losses, changes, _ = two_steps(None)
    assert agree == agree_too == [[True, False]]
    assert first_losses == second_losses
    np.testing.assert_allclose(first_losses, losses, rtol=1e-5)
    assert sum('flow_' in name for name, _ in changes) == 2 * 5
    # By place: the names of Keras count the layers of the process.
    for (name, change), (_, of_first), (_, of_second) in zip(changes, first, second, strict=True):
        np.testing.assert_array_equal(of_first, of_second)
        if name == 'sampling/kl_weight':  # not trained
            continue
        assert np.any(change != 0), name
        np.testing.assert_allclose(of_first, change, rtol=1e-3, atol=1e-4 * np.abs(change).max(), err_msg=name)


class TestLoss:
    def test_it_is_that_of_the_posterior(self):
        # The log-density of the same z, found through the inverse.
        training = one_device(SMALL)
        rng = np.random.default_rng(0)
        images = training.data.test[:6]
        noise = rng.normal(size=[6, 3]).astype(np.float32)
        encoder, sampling, decoder = Parts.of(training.model)
        for variable in sampling.trainable_variables:
            variable.assign_add(rng.normal(scale=0.3, size=variable.shape))
        inputs = encoder(images)
        q = sampling.posterior(*inputs)
        z = tf.identity(q.bijector.forward(inputs[0] + tf.exp(0.5 * inputs[1]) * noise))
        log_p = tfd.Independent(tfd.Bernoulli(logits=decoder(z)), 3).log_prob(images)
        log_p += tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(z), axis=-1)
        np.testing.assert_allclose(training.neg_elbo(images, noise), q.log_prob(z) - log_p, rtol=1e-4)

    def test_batches_go_on_where_training_was(self):
        training = one_device(dataclasses.replace(SMALL, epochs=2, batch_size=500))
        whole, rest = (list(training.batches(start)) for start in (0, 3))
        assert len(whole) == training.num_steps == 4 and len(rest) == 1
        for a, b in zip(whole[3], rest[0], strict=True):
            np.testing.assert_array_equal(a, b)
        noise = np.array([batch[1] for batch in whole])
        assert len(np.unique(noise)) == noise.size
        assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)


def test_killed_it_goes_on_with_another_number_of_workers(tmp_path):
    directory = tmp_path / 'out' / 'multiworker'
    (tf_config,) = distributed_vae.local_cluster(1)
    process = scripts.start(distributed_vae, tmp_path, environment={'TF_CONFIG': tf_config}, **SCRIPT)
    while process.poll() is None and not list(directory.glob('*/checkpoint')):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not list(directory.glob('*.json'))

    _, output = scripts.run(distributed_vae, tmp_path, local_workers=2, **SCRIPT)
    assert '2 workers, with the same losses at every step.' in output
    results = scripts.read_record(directory)
    first_step = results['first_step']
    assert first_step > 0 and first_step % SCRIPT['checkpoint_steps'] == 0
    # One device, from the start: the same pixels and the same noise.
    training = one_device(Settings(SCRIPT['flows'], '', SCRIPT['epochs']))
    losses = [float(training.step(batch)) for batch in training.batches(0)]
    assert len(results['losses']) == len(losses) - first_step
    np.testing.assert_allclose(results['losses'], losses[first_step:], rtol=1e-3)
    # Only the chief's files are left, of the last two checkpoints.
    left = sorted(path.name for path in next(directory.glob('2-flows-*/')).iterdir())
    assert [name for name in left if name.endswith('.index')] == ['ckpt-50.index', 'ckpt-52.index']
    assert not [name for name in left if name.startswith('worker')]
    (model,) = directory.glob('*.keras')
    assert keras.saving.load_model(model).get_layer('sampling').num_flows == SCRIPT['flows']


@pytest.mark.parametrize('flags', [['--strategy=multiworker'], ['--strategy=mirrored', '--local_workers=2']])
def test_workers_that_are_not_there(flags, monkeypatch):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    scripts.parse_flags(monkeypatch, distributed_vae.define_flags, *flags)
    with pytest.raises(distributed_vae.app.UsageError, match='needs TF_CONFIG or --local_workers'):
        distributed_vae.main(['distributed_vae.py'])
