"""The images of the example scripts: MNIST or 8x8 digits, and binary ones drawn from them, the same after a restart."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf


class Data(NamedTuple):
    """Images `[count, height, width, 1]`: intensities in [0, 1] to train with, and binary ones to test with."""

    train: np.ndarray
    test: np.ndarray


def keras_folder() -> pathlib.Path:
    """Returns where Keras keeps what it downloads."""
    return pathlib.Path(os.environ.get('KERAS_HOME') or '~/.keras').expanduser()


def find_mnist(path: str) -> str:
    """Returns the path as given, or else where Keras keeps MNIST once it has been downloaded, or '' if it is not there.

    Raises:
        ValueError: If a path is given at which there is no file.
    """
    cached = keras_folder() / 'datasets' / 'mnist.npz'
    if path and not pathlib.Path(path).is_file():
        raise ValueError(f'data: got {path!r}, expected the path of a file mnist.npz, as of keras.datasets.mnist.')
    return path or (str(cached) if cached.is_file() else '')


def load_data(path: str) -> Data:
    """Returns MNIST from `path`, or the digits: 1397 images to train with and 400 to test with."""
    if path:
        with np.load(path) as arrays:
            train, test = (arrays[name].astype(np.float32)[..., np.newaxis] / 255 for name in ('x_train', 'x_test'))
    else:
        images = (sklearn.datasets.load_digits().images / 16).astype(np.float32)[..., np.newaxis]
        train, test = sklearn.model_selection.train_test_split(images, test_size=400, random_state=0)
    return Data(train, (np.random.default_rng(0).uniform(size=test.shape) < test).astype(np.float32))


def steps_per_epoch(intensities: np.ndarray, batch_size: int) -> int:
    """Returns the number of batches in a pass over the training images; what is left over waits for the next pass."""
    if batch_size > len(intensities):
        raise ValueError(f'batch_size: got {batch_size}, expected at most {len(intensities)}, all training images.')
    return len(intensities) // batch_size


def drawn(intensities: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns binary images, every pixel drawn with its intensity."""
    return tf.cast(tf.random.stateless_uniform(tf.shape(intensities), seed) < intensities, tf.float32)


def training_batches(
    rows_of: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: range,
    prepare: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = drawn,
) -> tf.data.Dataset:
    """Returns the images of some epochs, shuffled, and prepared anew each time: binary ones, if not told otherwise.

    The random numbers are functions of the seed, the epoch and the batch: what comes in an epoch does not depend on
    where training started.
    """
    images = tf.constant(rows_of)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed=[seed, epoch])

        def batch_of(index: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
            return prepare(tf.gather(images, rows), tf.random.fold_in([seed, epoch], index))

        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return rows.enumerate().map(batch_of)

    batches = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(batches_of)
    return batches.prefetch(tf.data.AUTOTUNE)


def with_itself(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the images as input and as target."""
    return images, images


class Binarization(NamedTuple):
    """How images of intensities become what a likelihood is of: `None` leaves them, as numbers in [0, 1]."""

    kind: str | None  # 'dynamic' or 'threshold'

    def prepare(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns images to train with, drawn anew for every seed if dynamic."""
        intensities = tf.cast(images, tf.float32) / 255
        if self.kind == 'dynamic':
            return drawn(intensities, seed)
        return tf.round(intensities) if self.kind == 'threshold' else intensities

    def fixed(self, images: np.ndarray, seed: int) -> np.ndarray:
        """Returns images to test with, drawn once and for all if dynamic."""
        intensities = images.astype(np.float32) / 255
        if self.kind == 'dynamic':
            return (np.random.default_rng(seed).uniform(size=images.shape) < intensities).astype(np.float32)
        return np.round(intensities) if self.kind == 'threshold' else intensities
