"""Images: MNIST and CIFAR-10, from a path, the cache of Keras or a download, and the digits of scikit-learn."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import pickle
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import sklearn.datasets
import sklearn.model_selection
from _images import drawn_once

_SECONDS_WITHOUT_ANSWER = 20


class Split(NamedTuple):
    """Images `[count, height, width, channels]`, uint8: to train with, to watch training with, and to test with."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Letters that other images do not have."""
        digest = hashlib.sha256()
        for images in self:
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()[:10]


class Data(NamedTuple):
    """Images `[count, height, width, 1]`: intensities in [0, 1] to train with, and binary ones to test with."""

    train: np.ndarray
    test: np.ndarray


def split(train: np.ndarray, test: np.ndarray, share: int) -> Split:
    """Keeps the last images to train with for validation, one of every `share`."""
    count = len(train) // share
    return Split(train[:-count], train[-count:], test)


def load_mnist(path: str = '') -> Split:
    """Returns MNIST, `[count, 28, 28, 1]`: 50,000, 10,000 and 10,000 images.

    Args:
        path: Of a file `mnist.npz`, as `keras.datasets.mnist` has it; '' for that of Keras.

    Raises:
        FileNotFoundError: If it is not there, or cannot be downloaded; says where to put it.
    """
    if path:
        train, test = _read_mnist(path)
    else:
        with _download(f'Put the file mnist.npz to {_mnist_of_keras()}, or pass its path with --data.'):
            (train, _), (test, _) = keras.datasets.mnist.load_data()
    return split(train[..., np.newaxis], test[..., np.newaxis], share=6)


def load_digits() -> Data:
    """Returns the 8x8 digits of scikit-learn: 1397 images to train with and 400 to test with."""
    images = (sklearn.datasets.load_digits().images / 16).astype(np.float32)[..., np.newaxis]
    train, test = sklearn.model_selection.train_test_split(images, test_size=400, random_state=0)
    return Data(train, drawn_once(test, seed=0))


def find_mnist(path: str = '') -> str:
    """Returns the path as given, or else where Keras keeps MNIST once it has been downloaded, or '' if it is not there.

    Raises:
        FileNotFoundError: If a path is given at which there is no file.
    """
    if path and not pathlib.Path(path).is_file():
        raise FileNotFoundError(f'data: got {path!r}, expected the path of a file mnist.npz. There is none.')
    return path or (str(_mnist_of_keras()) if _mnist_of_keras().is_file() else '')


def load_mnist_or_digits(path: str) -> Data:
    """Returns MNIST from `path`, 60,000 images to train with and 10,000 to test with; with '' the digits."""
    if not path:
        return load_digits()
    train, test = (images.astype(np.float32)[..., np.newaxis] / 255 for images in _read_mnist(path))
    return Data(train, drawn_once(test, seed=0))


def load_cifar10(path: str = '') -> Split:
    """Returns CIFAR-10, `[count, 32, 32, 3]`: 45,000, 5,000 and 10,000 images.

    Args:
        path: Of the folder `cifar-10-batches-py`, the python version that `keras.datasets.cifar10` reads; '' for that
            of Keras.

    Raises:
        FileNotFoundError: If a file is not there, or the data cannot be downloaded; says where to put them.
    """
    place = _keras_folder() / 'cifar-10-batches-py'
    if path or place.is_dir():
        folder = pathlib.Path(path or place)
        train = np.concatenate([_load_batch(folder / f'data_batch_{i}') for i in range(1, 6)])
        test = _load_batch(folder / 'test_batch')
    else:
        archive = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
        with _download(f'Unpack {archive} to {place}, or pass the path of the folder with --data.'):
            (train, _), (test, _) = keras.datasets.cifar10.load_data()
    return split(train, test, share=10)


def _keras_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get('KERAS_HOME') or '~/.keras').expanduser() / 'datasets'


def _mnist_of_keras() -> pathlib.Path:
    return _keras_folder() / 'mnist.npz'


def _read_mnist(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(find_mnist(path)) as arrays:
        return arrays['x_train'], arrays['x_test']


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, and refuses all else, since a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split('.')[0], name) in {
            ('numpy', '_reconstruct'),
            ('numpy', 'ndarray'),
            ('numpy', 'dtype'),
            ('_codecs', 'encode'),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'got {module}.{name}, expected nothing but arrays')


def _load_batch(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f'data: got {str(path.parent)!r}, expected the folder cifar-10-batches-py of the python version, with '
            f'data_batch_1 to data_batch_5 and test_batch. There is no {path.name}.'
        )
    with path.open('rb') as file:
        data = _ArraysOnly(file, encoding='bytes').load()[b'data']
    return np.reshape(data, [-1, 3, 32, 32]).transpose(0, 2, 3, 1)


@contextlib.contextmanager
def _download(advice: str) -> Iterator[None]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_WITHOUT_ANSWER)  # Keras would wait for as long as the system does
    try:
        yield
    except Exception as error:  # Keras makes a bare Exception of what urllib raises
        raise FileNotFoundError(f'data: not in the cache of Keras, and no download: {error}. {advice}') from None
    finally:
        socket.setdefaulttimeout(timeout)
