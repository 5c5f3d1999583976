"""Batches of images to train with, the same after a restart, and the binary images that a likelihood is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf


def steps_per_epoch(intensities: np.ndarray, batch_size: int) -> int:
    """Returns the number of batches in a pass over the training images; what is left over waits for the next pass."""
    if batch_size > len(intensities):
        raise ValueError(f'batch_size: got {batch_size}, expected at most {len(intensities)}, all training images.')
    return len(intensities) // batch_size


def drawn(intensities: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns binary images, every pixel drawn with its intensity."""
    return tf.cast(tf.random.stateless_uniform(tf.shape(intensities), seed) < intensities, tf.float32)


def drawn_once(intensities: np.ndarray, seed: int) -> np.ndarray:
    """Returns binary images to test with: the same each time."""
    return (np.random.default_rng(seed).uniform(size=intensities.shape) < intensities).astype(np.float32)


def training_batches(
    images: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: range,
    prepare: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = drawn,
) -> tf.data.Dataset:
    """Returns the images of some epochs, shuffled, and prepared anew each time: binary ones, if not told otherwise.

    The random numbers are functions of the seed, the epoch and the batch: what comes in an epoch does not depend on
    where training started.
    """
    all_images = tf.constant(images)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(all_images)), seed=[seed, epoch])

        def batch_of(index: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
            return prepare(tf.gather(all_images, rows), tf.random.fold_in([seed, epoch], index))

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
            return drawn_once(intensities, seed)
        return np.round(intensities) if self.kind == 'threshold' else intensities
