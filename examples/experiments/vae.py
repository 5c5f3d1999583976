"""VAEs of images that differ in their posterior: the settings, the model, and its training, which can be killed."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import tfp_iaf.keras

from . import architectures, datasets, posteriors, runs
from .likelihoods import LIKELIHOODS

_BATCHES_FOR_STATISTICS = 50
_SECONDS_BETWEEN_BACKUPS = 60.0
_MOST_STEPS_PER_CALL = 50  # of Python, between which nothing is shown
_OPTIMIZERS = {'adam': keras.optimizers.Adam, 'adamax': keras.optimizers.Adamax}
_KNOWN = {
    'posterior': (*posteriors.FAMILIES, 'blog'),
    'network': ('dense', 'conv-mnist', 'conv-cifar10', 'conv-freyfaces'),
    'likelihood': tuple(LIKELIHOODS),
    'binarization': ('dynamic', 'threshold', 'none'),
    'transform': ('gated', 'affine', 'spline'),
    'optimizer': tuple(_OPTIMIZERS),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the training of a VAE depends on.

    data: path of the images, which is no part of what a run depends on, as their fingerprint is
    posterior: 'diagonal', 'full covariance', 'IAF', another family, or 'blog' with some of its mistakes
    epochs, steps_per_epoch: passes over the images, unless the number of steps is given
    network: 'dense' with its hidden_units, 'conv-mnist', 'conv-cifar10' or 'conv-freyfaces'
    binarization: 'dynamic' draws the pixels again in each pass, 'threshold' rounds them, 'none'
    flows, flow_units, transform, context_size: steps of the flow, their networks, and what these see of x
    gate_start: the gates of the transform 'gated' start at its sigmoid
    optimizer: 'adam' or 'adamax'
    learning_rate: of the optimizer, after rate_warm_up_steps; falls along a cosine to its share final_rate
    warm_up_steps: over which the weight of the KL grows from 0 to 1
    clipnorm: of all gradients together; 0 for none
    ema: momentum of an average of the weights, which is evaluated; 0 for none
    sampled_kl: whether the KL is estimated by log q(z) - log p(z), with no part of it in closed form
    """

    dataset: str
    fingerprint: str = ''
    data: str = dataclasses.field(default='', repr=False, compare=False)
    posterior: str = 'IAF'
    mistakes: tuple[str, ...] = ()
    seed: int = 0
    epochs: int = 1
    steps_per_epoch: int = 0
    batch_size: int = 100
    network: str = 'dense'
    hidden_units: tuple[int, ...] = (300, 300)
    likelihood: str = 'bernoulli'
    binarization: str = 'dynamic'
    latent_size: int = 32
    flows: int = 4
    flow_units: tuple[int, ...] = (320, 320)
    transform: str = 'gated'
    gate_start: float = 2.0
    context_size: int = 64
    optimizer: str = 'adam'
    learning_rate: float = 1e-3
    rate_warm_up_steps: int = 0
    final_rate: float = 0.02
    warm_up_steps: int = 5000
    clipnorm: float = 50.0
    ema: float = 0.999
    sampled_kl: bool = False

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f'{name}: got {getattr(self, name)!r}, expected one of {", ".join(known)}.')


# Model ----------------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The parts of a VAE: `sampling.posterior(*encoder(images))` is q(z|x); `decoder(z)` is what a likelihood takes."""

    encoder: Any
    sampling: Any
    decoder: Any


def make(settings: Settings, image_shape: Sequence[int]) -> Any:
    """Makes a VAE: a functional model from images to what the likelihood takes. The layer 'sampling' adds the KL."""
    outputs = image_shape[-1] * LIKELIHOODS[settings.likelihood].outputs_per_channel
    encoder, decoder = architectures.make(
        settings.network, image_shape, outputs, settings.latent_size, settings.hidden_units
    )
    images = keras.Input(image_shape)
    return keras.Model(images, decoder(posteriors.sample(encoder(images), settings)))


def parts(model: Any) -> Parts:
    """Returns the parts of a VAE."""
    sampling = model.get_layer('sampling')
    return Parts(keras.Model(model.input, sampling.input), sampling, model.get_layer('decoder'))


def compile_model(model: Any, settings: Settings, steps_per_epoch: int) -> None:
    """Gives a VAE its loss, -ELBO, and the optimizer and the schedule of the settings."""
    rate: Any = settings.learning_rate
    if 'schedule' not in settings.mistakes:
        warm_up = settings.rate_warm_up_steps
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else settings.learning_rate,
            max(1, settings.epochs * steps_per_epoch - warm_up),
            settings.final_rate,
            warmup_target=settings.learning_rate if warm_up else None,
            warmup_steps=warm_up,
        )
    averaging = {'use_ema': True, 'ema_momentum': settings.ema} if settings.ema else {}
    optimizer = _OPTIMIZERS[settings.optimizer](rate, global_clipnorm=settings.clipnorm or None, **averaging)
    neg_log_prob = LIKELIHOODS[settings.likelihood].neg_log_prob
    model.compile(
        optimizer,
        loss=neg_log_prob,
        metrics=[keras.metrics.MeanMetricWrapper(neg_log_prob, name='reconstruction')],
        # Keras would make more steps in an epoch if this did not divide their number.
        steps_per_execution=max(n for n in range(1, _MOST_STEPS_PER_CALL + 1) if steps_per_epoch % n == 0),
        jit_compile=False,  # XLA would not make these networks faster on a CPU
    )
    optimizer.build(model.trainable_variables)  # so that there is something to load a checkpoint into


# Averages of weights --------------------------------------------------------------------------------------------------


def _normalisations(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def estimate_statistics(model: Any, batches: np.ndarray) -> None:
    """Makes the moving statistics of all batch normalisations the means over batches, `[count, batch, ...]`.

    Those that training leaves belong to the weights of single steps. Averaged weights have narrower activations, and
    would be evaluated with statistics that are far from theirs.
    """
    layers = _normalisations(model)
    variables = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    momenta = [layer.momentum for layer in layers]
    totals = [np.zeros(variable.shape) for variable in variables]
    for layer in layers:
        layer.momentum = 0.0  # so that its statistics become those of the last batch
    for batch in batches if layers else ():
        model(batch, training=True)
        for total, variable in zip(totals, variables, strict=True):
            total += variable.numpy()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for variable, total in zip(variables, totals, strict=True):
        variable.assign(total / len(batches))


class AveragedWeights(keras.callbacks.SwapEMAWeights):
    """Validates with the optimizer's averages in place of the weights, and with statistics that belong to them.

    Args:
        batches: To estimate the statistics with, `[count, batch, ...]`.
    """

    def __init__(self, batches: np.ndarray) -> None:
        super().__init__()
        self._batches = batches
        self._kept: list[np.ndarray] = []

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        self._kept = [variable.numpy() for variable in self._statistics()]
        estimate_statistics(self.model, self._batches)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        for variable, value in zip(self._statistics(), self._kept, strict=True):
            variable.assign(value)
        super().on_test_end(logs)

    def _statistics(self) -> list[Any]:
        return [variable for layer in _normalisations(self.model) for variable in layer.non_trainable_variables]


# Training -------------------------------------------------------------------------------------------------------------


class Watch(keras.callbacks.Callback):
    """Shows progress within epochs, stops at a loss that is not finite, and adds times and -ELBO to the logs."""

    def __init__(self, name: str, steps_per_epoch: int, epochs: int) -> None:
        super().__init__()
        self._name, self._steps, self._epochs = name, steps_per_epoch, epochs
        self._epoch = 0
        self._started = self._ended = (0.0, 0.0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        done = int(self.model.optimizer.iterations)
        self._bar = runs.progress(self._epochs * self._steps, self._name, 'step', done)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._started = epoch, (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done, loss = self._epoch * self._steps + batch + 1, float((logs or {})['loss'])
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss became {loss} within {done} steps. Lower the learning rate.')
        self._ended = (time.perf_counter(), time.process_time())
        self._bar.set_postfix(loss=f'{loss:.2f}', refresh=False)
        self._bar.update(done - self._bar.n)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs['seconds'], logs['cpu_seconds'] = np.subtract(self._ended, self._started)
        logs['val_neg_elbo'] = logs['val_reconstruction'] + logs['val_sampling_kl']

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._bar.close()


class Backup(keras.callbacks.Callback):
    """Keeps the whole state of a training, at the ends of epochs, a minute or more apart.

    Keras's `BackupAndRestore` writes over its only file, and the number of the epoch to another one: killed meanwhile
    it leaves nothing, or the weights of one epoch with the number of another. Here the optimizer's count tells.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path, self._last = path, time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_BACKUPS:
            with runs.atomic(self._path) as temporary:
                self.model.save_weights(temporary)
            self._last = time.monotonic()


class Trained(NamedTuple):
    """The weights of a VAE, averaged if so set, and the curves of its training: columns with a value for each epoch."""

    weights: list[np.ndarray]
    curves: pd.DataFrame


def train(store: runs.Store, settings: Settings) -> Trained:
    """Trains a VAE, or goes on where it was killed, with the same end."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    images = datasets.load(settings.dataset, settings.data)
    if images.fingerprint != settings.fingerprint:
        raise ValueError(f'data: got images {images.fingerprint}, expected {settings.fingerprint}, of the settings.')
    if settings.batch_size > len(images.train):
        raise ValueError(f'batch_size: got {settings.batch_size}, expected at most {len(images.train)}.')
    steps = settings.steps_per_epoch or len(images.train) // settings.batch_size
    model = make(settings, images.train.shape[1:])
    compile_model(model, settings, steps)

    folder = store.checkpoint(settings)
    backup, curves, epochs_done = folder / 'state.weights.h5', folder / 'curves.csv', 0
    if backup.exists():
        model.load_weights(backup)
        epochs_done = int(model.optimizer.iterations) // steps
    folder.mkdir(parents=True, exist_ok=True)
    rows = curves.read_text().splitlines(keepends=True) if epochs_done else []
    with runs.atomic(curves) as temporary:
        temporary.write_text(''.join(rows[: 1 + epochs_done]))  # those of the epochs that come again go

    count = min(_BATCHES_FOR_STATISTICS, steps, len(images.train) // settings.batch_size)
    some = images.train[: count * settings.batch_size].reshape(count, settings.batch_size, *images.train.shape[1:])
    statistics = images.fixed(some, settings.binarization, seed=2)
    validation = images.fixed(images.validation, settings.binarization, seed=1)
    callbacks: list[Any] = [Watch(f'{settings.posterior} {settings.seed}', steps, settings.epochs)]
    if settings.ema:
        callbacks.append(AveragedWeights(statistics))
    if settings.warm_up_steps:
        callbacks.append(tfp_iaf.keras.KLWarmup(settings.warm_up_steps))
    if 'schedule' in settings.mistakes:
        # What it counts would not be in a backup.
        least = 0.001 * settings.learning_rate
        callbacks.append(keras.callbacks.ReduceLROnPlateau('val_neg_elbo', 0.5, patience=15, min_lr=least, mode='min'))
    callbacks.append(keras.callbacks.CSVLogger(curves, append=True))
    if 'schedule' not in settings.mistakes:
        callbacks.append(Backup(backup))
    model.fit(
        images.batches(settings.binarization, settings.batch_size, settings.seed, first=epochs_done * steps),
        epochs=settings.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps,
        validation_data=tf.data.Dataset.from_tensor_slices((validation, validation)).batch(10 * settings.batch_size),
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    if settings.ema:
        estimate_statistics(model, statistics)
    return Trained(model.get_weights(), pd.read_csv(curves))


def trained(store: runs.Store, settings: Settings, image_shape: Sequence[int]) -> tuple[Any, Trained]:
    """Returns a VAE that is trained, now or before, with what its training left."""
    own = Settings(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)})
    result = store.get(train, own)
    model = make(own, image_shape)
    model.set_weights(result.weights)
    return model, result
