"""The VAE of `keras_vae.py` trained on several devices or machines, by the strategies of `tf.distribute`.

`python distributed_vae.py --strategy=mirrored` trains with Keras's `fit` on all GPUs of this machine, or, where there
is none, on the CPU as if it were two devices, which shows that it works and saves no time.

`python distributed_vae.py --strategy=multiworker` is one worker of several. It has a training loop of its own, since
`fit` of Keras 3 fails there. Start it on every machine with the environment variable `TF_CONFIG` set, and with an
`output_dir` that all of them share. `--local_workers=2` tries it on one machine: it starts two workers on the CPU.

Either goes on from its newest checkpoint when the same command is given again. The workers need not be as many as
before: pixels and noise are drawn for the whole batch, alike in every worker, and each takes its share of them.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _checkpoints
import _datasets
import _images
import _keras_vae
import _records
import _runs
import _script
import _training
import keras
import keras_vae
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tqdm
from _estimates import Parts
from _keras_vae import Settings
from _likelihoods import bernoulli
from absl import app, flags, logging

tfd = tfp.distributions


# One machine: fit ----------------------------------------------------------------------------------------------------


def train_mirrored(settings: Settings, output_dir: pathlib.Path) -> dict[str, Any]:
    """Trains with `fit` on several devices, and returns the figures of the model."""
    strategy = _training.mirrored_strategy()
    print(f'{strategy.num_replicas_in_sync} devices.')
    keras.utils.set_random_seed(settings.seed)
    data = _datasets.load_mnist_or_digits(settings.data)
    with strategy.scope():
        # XLA cannot compile a step that is distributed: with jit_compile=True, `fit` raises InvalidArgumentError.
        model = keras_vae.make_vae(settings, data.train.shape[1:], jit_compile=False)
    _keras_vae.fit(model, data, settings, output_dir / settings.name)
    _keras_vae.save(model, data.test[:10], output_dir, settings)
    return _keras_vae.evaluate(model, data.test, settings)


# Several workers: a training loop ------------------------------------------------------------------------------------


class Training:
    """A VAE in training under a strategy: the same steps, whatever the number of replicas.

    Args:
        strategy: The strategy; `tf.distribute.get_strategy()` for one device.
        settings: Of the VAE. Its batch size is that of all replicas together.
        data: The images.
    """

    def __init__(self, strategy: tf.distribute.Strategy, settings: Settings, data: _datasets.Data) -> None:
        self.strategy, self.settings, self.data = strategy, settings, data
        keras.utils.set_random_seed(settings.seed)  # the workers must begin with the same weights
        with strategy.scope():
            self.model = keras_vae.make_vae(settings, data.train.shape[1:], jit_compile=False)
        self._parts = Parts.of(self.model)
        self.steps_per_epoch = _images.steps_per_epoch(data.train, settings.batch_size)
        self.num_steps = settings.epochs * self.steps_per_epoch

    def batches(self, steps_done: int) -> Any:
        """Returns the batches of the steps to come, `(images, noise)`, of which every replica has its share."""
        settings = self.settings
        epochs_done, skipped = divmod(steps_done, self.steps_per_epoch)

        def with_noise(step: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # The second number is below 0, as no epoch is: these seeds are unlike those of the pixels.
            seed = tf.stack([tf.cast(settings.seed, tf.int64), -1 - step])
            return images, tf.random.stateless_normal([settings.batch_size, settings.latent_size], seed)

        def shares(context: tf.distribute.InputContext) -> tf.data.Dataset:
            size = context.get_per_replica_batch_size(settings.batch_size)
            of_worker = settings.batch_size // context.num_input_pipelines
            rows = slice(context.input_pipeline_id * of_worker, (context.input_pipeline_id + 1) * of_worker)
            epochs = range(epochs_done, settings.epochs)
            batches = _images.training_batches(self.data.train, settings.batch_size, settings.seed, epochs)
            batches = batches.skip(skipped).enumerate(steps_done).map(with_noise)
            return batches.map(lambda images, noise: (images[rows], noise[rows])).rebatch(size).prefetch(2)

        return self.strategy.distribute_datasets_from_function(shares)

    @functools.cached_property
    def step(self) -> Any:
        """One training step: a function of a batch that returns the loss, the mean of -ELBO over the whole batch."""

        def replica_step(images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                # Over the images of all replicas, as the optimizer sums the gradients over replicas.
                loss = tf.reduce_sum(self.neg_elbo(images, noise)) / self.settings.batch_size
            variables = self.model.trainable_variables
            self.model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        @tf.function
        def step(batch: Any) -> tf.Tensor:
            losses = self.strategy.run(replica_step, args=batch)
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

        return step

    def neg_elbo(self, images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Returns -ELBO of each image, at the z that its noise makes."""
        encoder, sampling, decoder = self._parts
        inputs = encoder(images)
        z_mean, z_log_var = inputs[:2]
        q = sampling.posterior(*inputs)
        z_0 = z_mean + tf.exp(0.5 * z_log_var) * noise
        z = q.bijector.forward(z_0)
        log_q = q.distribution.log_prob(z_0) - q.bijector.forward_log_det_jacobian(z_0, event_ndims=1)
        log_prior = tfd.Sample(tfd.Normal(0.0, 1.0), self.settings.latent_size).log_prob(z)
        return bernoulli(images, decoder(z)) + log_q - log_prior

    def same_everywhere(self, value: int) -> bool:
        """Whether all workers call this with the same number. It waits for all of them."""
        values = self.strategy.run(lambda: tf.constant(value, tf.float32))
        total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
        return float(total) == value * self.strategy.num_replicas_in_sync


def train_multiworker(settings: Settings, output_dir: pathlib.Path, checkpoint_steps: int) -> dict[str, Any]:
    """Trains as the worker that `TF_CONFIG` says, and returns its losses and the figures of the model."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else that TensorFlow does
    tf.config.experimental.enable_op_determinism()
    worker = f'{strategy.cluster_resolver.task_type}-{strategy.cluster_resolver.task_id}'
    is_chief = strategy.extended.should_checkpoint
    training = Training(strategy, settings, _datasets.load_mnist_or_digits(settings.data))

    steps_done = tf.Variable(0, dtype=tf.int64)
    checkpoint = _checkpoints.of(training.model, steps_done)
    directory = output_dir / settings.name
    _checkpoints.restore_newest(checkpoint, tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep=2))
    first_step = int(steps_done)
    if not training.same_everywhere(first_step):
        raise RuntimeError(
            f'{worker}: found a checkpoint of step {first_step} in {directory}, and other workers did not. '
            f'Expected an output_dir that all workers share.'
        )
    # All workers must take part in saving, but only the chief may write to the shared folder.
    own = directory if is_chief else directory / worker
    manager = tf.train.CheckpointManager(checkpoint, str(own), max_to_keep=2)

    losses: list[float] = []
    steps = range(first_step, training.num_steps)
    bar = tqdm.tqdm(steps, initial=first_step, total=training.num_steps, unit='step', disable=not is_chief)
    for step, batch in zip(bar, training.batches(first_step), strict=True):
        losses.append(float(training.step(batch)))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f'the loss became {losses[-1]} at step {step}. Lower the learning rate.')
        bar.set_postfix(loss=f'{losses[-1]:.2f}', refresh=False)
        if (step + 1) % checkpoint_steps == 0 or step + 1 == training.num_steps:
            steps_done.assign(step + 1)
            manager.save(checkpoint_number=step + 1)
            if not is_chief:
                shutil.rmtree(own)
    figures = {}
    if is_chief:
        _keras_vae.save(training.model, training.data.test[:10], output_dir, settings)
        figures = _keras_vae.evaluate(training.model, training.data.test, settings)
    training.same_everywhere(0)  # no worker leaves before the chief is done
    return {'worker': worker, 'first_step': first_step, 'losses': losses, **figures}


def local_cluster(num_workers: int) -> list[str]:
    """Returns a `TF_CONFIG` for each worker of a cluster on this machine, on ports that are free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(num_workers)]
        addresses = [f'127.0.0.1:{server.getsockname()[1]}' for server in sockets]
    cluster = {'worker': addresses}
    return [json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': i}}) for i in range(num_workers)]


def local_worker(settings: Settings, output_dir: pathlib.Path, checkpoint_steps: int, tf_config: str) -> dict[str, Any]:
    """Is one worker on this machine, on the CPU: two processes would not share a GPU."""
    os.environ['TF_CONFIG'] = tf_config
    tf.config.set_visible_devices([], 'GPU')
    return train_multiworker(settings, output_dir, checkpoint_steps)


def train_local_workers(
    settings: Settings, output_dir: pathlib.Path, checkpoint_steps: int, num_workers: int
) -> dict[str, Any]:
    """Trains in several processes on this machine, and returns what the chief does."""
    work = functools.partial(local_worker, settings, output_dir, checkpoint_steps)
    results = [result for _, result in _runs.run_all(work, local_cluster(num_workers), jobs=num_workers)]
    chief, *others = sorted(results, key=lambda result: result['worker'])
    if any(other['losses'] != chief['losses'] for other in others):
        raise RuntimeError('The workers do not report the same losses.')
    print(f'{num_workers} workers, with the same losses at every step.')
    return chief


# Command line --------------------------------------------------------------------------------------------------------


def define_flags() -> None:
    """Defines the command line; in a function, since worker processes and tests import this module too."""
    flags.DEFINE_enum('strategy', 'mirrored', ['mirrored', 'multiworker'], 'Devices of one machine, or workers.')
    flags.DEFINE_integer('local_workers', 0, 'Start so many workers on this machine, for a try.', lower_bound=0)
    flags.DEFINE_integer('checkpoint_steps', 100, 'Steps between checkpoints of the workers.', lower_bound=1)
    _keras_vae.define_flags('results/distributed_vae', epochs=20)


def main(argv: Sequence[str]) -> None:
    """Trains a VAE as the flags say."""
    _script.check_arguments(argv)
    options = flags.FLAGS
    multiworker, is_worker = options.strategy == 'multiworker', bool(os.environ.get('TF_CONFIG'))
    if bool(options.local_workers) + is_worker != multiworker:
        raise app.UsageError('--strategy=multiworker needs TF_CONFIG or --local_workers, not both; mirrored neither.')
    logging.set_verbosity(logging.WARNING)  # TensorFlow has notes on every checkpoint
    started = time.perf_counter()
    settings = _keras_vae.from_flags()
    output_dir = pathlib.Path(options.output_dir) / options.strategy
    if not multiworker:
        tf.config.experimental.enable_op_determinism()
        results = train_mirrored(settings, output_dir)
    elif options.local_workers:
        results = train_local_workers(settings, output_dir, options.checkpoint_steps, options.local_workers)
    else:
        results = train_multiworker(settings, output_dir, options.checkpoint_steps)
    name = f'results-{results["worker"]}.json' if is_worker else 'results.json'
    _records.write_json(output_dir / name, results)
    if 'neg_elbo' in results:
        figures = '-ELBO {neg_elbo:.3f}, NLL <= {nll:.3f}'.format(**results)
        print(f'{figures}. Wrote {name} and the model to {output_dir} in {time.perf_counter() - started:.0f} s.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
