"""Images: digits of scikit-learn, MNIST, CIFAR-10 and Frey Faces; batches to train with, and images to test with."""

from __future__ import annotations

import hashlib
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf


class Images(NamedTuple):
    """Images `[count, height, width, channels]`: to train with, to watch training with, and to test with."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    brightest: int = 255

    @property
    def fingerprint(self) -> str:
        """Letters that other images do not have."""
        digest = hashlib.sha256(repr((self.brightest, *(images.shape for images in self[:3]))).encode())
        for images in self[:3]:
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()[:10]

    def fixed(self, images: np.ndarray, binarization: str, seed: int) -> np.ndarray:
        """Returns what a likelihood is of, the same each time.

        Args:
            images: Some of these images.
            binarization: 'dynamic' draws each pixel with its intensity, 'threshold' rounds it, 'none' leaves it.
            seed: Of the pixels that are drawn.
        """
        intensities = images.astype(np.float32) / self.brightest
        if binarization == 'dynamic':
            return (np.random.default_rng(seed).uniform(size=intensities.shape) < intensities).astype(np.float32)
        return np.round(intensities) if binarization == 'threshold' else intensities

    def batches(self, binarization: str, batch_size: int, seed: int, first: int = 0) -> tf.data.Dataset:
        """Returns batches to train with, without end; with 'dynamic' binarization the pixels of every pass are new.

        All random numbers are functions of the seed, the pass and the batch, so a training can go on at any batch.
        """
        images, per_pass = tf.constant(self.train), len(self.train) // batch_size

        def of_pass(number: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed=[seed, number])

            def batch(index: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                x = tf.cast(tf.gather(images, rows), tf.float32) / self.brightest
                if binarization == 'dynamic':
                    pixel_seed = tf.random.fold_in([seed, number], index)
                    x = tf.cast(tf.random.stateless_uniform(tf.shape(x), pixel_seed) < x, tf.float32)
                elif binarization == 'threshold':
                    x = tf.round(x)
                return x, x  # the input, and the target

            rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
            return rows.enumerate().map(batch)

        passes = tf.data.Dataset.range(first // per_pass, np.iinfo(np.int32).max)
        return passes.flat_map(of_pass).skip(first % per_pass).prefetch(tf.data.AUTOTUNE)


def load(name: str, data: str = '') -> Images:
    """Returns 'digits', 'mnist', 'cifar10', or 'freyfaces' with the number of a shuffle. Nothing is downloaded.

    Args:
        name: Of the data.
        data: The path of `mnist.npz`, of the folder `cifar-10-batches-py`, or of `freyfaces.npz`, whose array `images`,
            `[1965, 28, 20]` of uint8, has the order of `freyfaces.pkl` in github.com/riannevdberg/sylvester-flows; ''
            for where Keras keeps its data.

    Raises:
        FileNotFoundError: If it is not there; says where it is looked for.
    """
    kind, *shuffle = name.split()
    loaders: dict[str, Callable[..., Images]]
    loaders = {'digits': _digits, 'mnist': _mnist, 'cifar10': _cifar10, 'freyfaces': _freyfaces}
    return loaders[kind](data, *map(int, shuffle))


def _digits(data: str) -> Images:
    """1397 images to train with, and 400 to test with, which training is watched with too."""
    images = sklearn.datasets.load_digits().images.astype(np.uint8)[..., np.newaxis]
    train, test = sklearn.model_selection.train_test_split(images, test_size=400, random_state=0)
    return Images(train, test, test, brightest=16)


def _mnist(data: str) -> Images:
    """50,000, 10,000 and 10,000 images."""
    with np.load(_path(data, 'mnist.npz')) as arrays:
        return _split(arrays['x_train'][..., np.newaxis], arrays['x_test'][..., np.newaxis], share=6)


def _cifar10(data: str) -> Images:
    """45,000, 5,000 and 10,000 images."""
    folder = _path(data, 'cifar-10-batches-py')

    def read(name: str) -> np.ndarray:
        batch = pickle.loads((folder / name).read_bytes(), encoding='bytes')
        return batch[b'data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    return _split(np.concatenate([read(f'data_batch_{i}') for i in range(1, 6)]), read('test_batch'), share=10)


def _freyfaces(data: str, shuffle: int) -> Images:
    """1565, 200 and 200 images of the 1965, shuffled as in the code of van den Berg et al. 2018."""
    with np.load(_path(data, 'freyfaces.npz')) as arrays:
        images = arrays['images'][..., np.newaxis]
    np.random.RandomState(shuffle).shuffle(images)
    return Images(images[:-400], images[-400:-200], images[-200:])


def _split(train: np.ndarray, test: np.ndarray, share: int) -> Images:
    count = len(train) // share  # of the last images
    return Images(train[:-count], train[-count:], test)


def _path(data: Any, name: str) -> pathlib.Path:
    keras_home = pathlib.Path(os.environ.get('KERAS_HOME') or '~/.keras').expanduser()
    path = pathlib.Path(data or keras_home / 'datasets' / name)
    if not path.exists():
        raise FileNotFoundError(f'data: got {data!r}, expected the path of {name}. There is no {path}.')
    return path
