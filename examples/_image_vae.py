"""VAEs of images that differ in their posterior: the models, and their training."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import _architectures
import _averaging
import _images
import _posteriors
import _records
import _training
import _watch
import keras
import tensorflow as tf
from _datasets import Split
from _image_settings import Settings
from _likelihoods import LIKELIHOODS

_BATCHES_FOR_STATISTICS = 50


def make_vae(settings: Settings, image_shape: Sequence[int], steps_per_epoch: int = 1) -> Any:
    """Makes a VAE: a functional model from images to what the likelihood takes, compiled. Its loss is -ELBO.

    Args:
        settings: Of the training.
        image_shape: Of an image, `[height, width, channels]`.
        steps_per_epoch: Training steps in an epoch.
    """
    likelihood = LIKELIHOODS[settings.likelihood]
    outputs = image_shape[-1] * likelihood.outputs_per_channel
    networks = _architectures.make(settings.network, image_shape, outputs, settings.latent_size, settings.hidden_units)
    images = keras.Input(image_shape)
    hidden = networks.encode(images)
    inputs = _posteriors.posterior_inputs(hidden, settings.posterior, settings.latent_size, settings.flow)
    sampling = _posteriors.make_sampling(settings.posterior, settings.flow, seed=settings.seed)
    z, _ = sampling(inputs)
    model = keras.Model(images, networks.decoder(z))
    steps = settings.epochs * steps_per_epoch
    # Keras would make more steps in an epoch, if this did not divide their number; under a strategy it makes one.
    most = settings.max_steps_per_execution if settings.strategy == 'none' else 1
    rate = learning_rate(settings, steps)
    optimizer = keras.optimizers.Adam(
        rate, global_clipnorm=settings.global_clipnorm, use_ema=True, ema_momentum=settings.ema_momentum
    )
    model.compile(
        optimizer,
        loss=likelihood.neg_log_prob,
        metrics=[keras.metrics.MeanMetricWrapper(likelihood.neg_log_prob, name='reconstruction')],
        steps_per_execution=max(n for n in range(1, most + 1) if steps_per_epoch % n == 0),
        # XLA would not make these networks faster on a CPU, Keras does not use it where operations must be
        # deterministic, and it cannot compile a step that is distributed.
        jit_compile=False,
    )
    optimizer.build(model.trainable_variables)  # so that checkpoints have its variables from the start
    return model


def learning_rate(settings: Settings, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the rate of every step: a line up from 0, if wanted, and then a cosine down to a share of the largest."""
    warm_up = settings.rate_warm_up_steps
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warm_up else settings.learning_rate,
        max(1, steps - warm_up),
        settings.final_rate,
        warmup_target=settings.learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )


def train(load: Callable[[], Split], tensorboard: bool, directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains one VAE; writes its averaged weights to `directory`, and returns its figures.

    Args:
        load: Gives the images.
        tensorboard: Whether to write logs for TensorBoard.
        directory: Where weights, checkpoints, curves and logs are kept, by the name of the run.
        settings: Of the training.
    """
    # Or else sums are taken in whatever order threads end, and no two runs are the same to the bit.
    tf.config.experimental.enable_op_determinism()
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    data, binarization = load(), _images.Binarization(settings.binarization)
    steps = _images.steps_per_epoch(data.train, settings.batch_size)
    strategy = _strategy(settings)
    with strategy.scope():
        model = make_vae(settings, data.train.shape[1:], steps)
    own = directory / settings.name
    own.mkdir(parents=True, exist_ok=True)
    # Devices have equal shares of these, too.
    shared = len(data.validation) // strategy.num_replicas_in_sync * strategy.num_replicas_in_sync
    validation = binarization.fixed(data.validation, seed=1)[:shared]
    count = min(_BATCHES_FOR_STATISTICS, steps)
    some = data.train[: count * settings.batch_size]
    statistics = binarization.fixed(some, seed=2).reshape([count, settings.batch_size, *some.shape[1:]])
    callbacks = [_averaging.AveragedWeights(statistics), _training.curves_logger(own / 'curves.csv')]
    if tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(own / 'tensorboard', write_graph=False))
    _training.fit(
        model,
        settings.name,
        own,
        functools.partial(
            _images.training_batches, data.train, settings.batch_size, settings.seed, prepare=binarization.prepare
        ),
        steps,
        settings.epochs,
        settings.warm_up_steps,
        validation=tf.data.Dataset.from_tensor_slices(validation).batch(10 * settings.batch_size),
        callbacks=callbacks,
    )
    _averaging.estimate_statistics(model, statistics)
    with _records.atomic(weights_path(directory, settings)) as path:
        model.save_weights(path)
    curves = _training.read_curves(own / 'curves.csv')
    return {
        'parameters': model.count_params(),
        'ms_per_step': _watch.ms_per_step(curves['seconds'], steps),
        'gpus': len(tf.config.list_physical_devices('GPU')),
        'cpu_seconds': math.fsum(curves['cpu_seconds']),
        'seconds': math.fsum(curves['seconds']),
        'curves': curves,
    }


def _strategy(settings: Settings) -> tf.distribute.Strategy:
    strategy = _training.mirrored_strategy() if settings.strategy == 'mirrored' else tf.distribute.get_strategy()
    count = strategy.num_replicas_in_sync
    if settings.batch_size % count:
        # Keras adds up what the devices get, to learn the shapes of a model.
        raise ValueError(f'batch_size: got {settings.batch_size}, expected a multiple of {count}, one share a device.')
    return strategy


def weights_path(directory: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Returns where `train` writes the weights."""
    return directory / f'{settings.name}.weights.h5'


def trained_vae(directory: pathlib.Path, settings: Settings, image_shape: Sequence[int]) -> Any:
    """Returns a VAE that `train` has trained, with its averaged weights."""
    model = make_vae(settings, image_shape)
    model.load_weights(weights_path(directory, settings))
    return model
