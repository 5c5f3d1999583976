"""Training by `fit` that goes on where it was killed, its curves, and strategies for several devices of a machine."""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import _checkpoints
import _images
import _progress
import _records
import _watch
import keras
import tensorflow as tf
import tqdm
import tqdm.keras

import tfp_iaf.keras


@functools.cache
def mirrored_strategy() -> tf.distribute.Strategy:
    """Returns the strategy for all GPUs, or else for a CPU that is split into two devices."""
    if tf.config.list_physical_devices('GPU'):
        return tf.distribute.MirroredStrategy()
    (cpu,) = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


def fit(
    model: Any,
    name: str,
    directory: pathlib.Path,
    batches: Callable[[range], tf.data.Dataset],
    steps_per_epoch: int,
    epochs: int,
    warm_up_steps: int,
    *,
    validation: tf.data.Dataset | None = None,
    callbacks: Sequence[Any] = (),
) -> _watch.TrainingWatch:
    """Trains a VAE, or goes on from the newest checkpoint; returns what was watched.

    Args:
        model: The VAE, with a `PosteriorSampling` layer, such as `IAFSampling`, and an optimizer that is built.
        name: Of the run, for messages.
        directory: Where checkpoints are kept.
        batches: Gives the images of a range of epochs.
        steps_per_epoch: Number of batches of an epoch.
        epochs: Number of epochs in all.
        warm_up_steps: Steps over which the KL's weight grows. Or else the decoder would learn to do without z, before z
            says anything.
        validation: Images to watch training with.
        callbacks: What else is called, before a checkpoint is written.
    """
    backup = _checkpoints.Backup(model, directory)
    epochs_done = backup.restore()
    if epochs_done:
        tqdm.tqdm.write(f'{name}: goes on after {epochs_done} of {epochs} epochs.')
    watch = _watch.TrainingWatch(name, steps_per_epoch)
    bar = tqdm.keras.TqdmCallback(verbose=0, **_progress.inner_bar())
    model.fit(
        batches(range(epochs_done, epochs)).map(_images.with_itself),
        epochs=epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps_per_epoch,
        validation_data=None if validation is None else validation.map(_images.with_itself),
        # The watch goes before the backup: no state is kept after a loss that is not finite.
        callbacks=[watch, *callbacks, backup, tfp_iaf.keras.KLWarmup(warm_up_steps), bar],
        shuffle=False,
        verbose=0,
    )
    return watch


def curves_logger(path: pathlib.Path) -> keras.callbacks.CSVLogger:
    """Returns a callback that writes the curves of a training, or goes on with them, for `read_curves`.

    A last row that a kill has torn is dropped. Its epoch comes again, since no checkpoint is written before the row.
    """
    if path.exists():
        whole = _whole_rows(path)
        with _records.atomic(path) as temporary:
            temporary.write_text(whole, encoding='utf-8', newline='')
    return keras.callbacks.CSVLogger(path, append=True)


def read_curves(path: pathlib.Path) -> dict[str, list[float]]:
    """Returns the curves, a value for each epoch; of one that was repeated when training went on, the last.

    The KL comes without the name of its layer, `sampling`, as `kl` and `val_kl`.
    """
    lines = _whole_rows(path).splitlines()
    rows = [{key.replace('sampling_', ''): value for key, value in row.items()} for row in csv.DictReader(lines)]
    epochs = {int(row['epoch']): row for row in rows}
    return {key: [float(epochs[epoch][key]) for epoch in sorted(epochs)] for key in next(iter(epochs.values()))}


def _whole_rows(path: pathlib.Path) -> str:
    with path.open(encoding='utf-8', newline='') as file:
        return ''.join(line for line in file if line.endswith('\n'))
