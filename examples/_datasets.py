"""MNIST and CIFAR-10: from a path, or from `keras.datasets`, which means its cache or a download."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import pickle
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from _images import keras_folder

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
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f'data: got {path!r}, expected the path of a file mnist.npz. There is none.')
        with np.load(path) as arrays:
            train, test = arrays['x_train'], arrays['x_test']
    else:
        place = keras_folder() / 'datasets' / 'mnist.npz'
        with _download(f'Put the file mnist.npz to {place}, or pass its path with --data.'):
            (train, _), (test, _) = keras.datasets.mnist.load_data()
    return split(train[..., np.newaxis], test[..., np.newaxis], share=6)


def load_cifar10(path: str = '') -> Split:
    """Returns CIFAR-10, `[count, 32, 32, 3]`: 45,000, 5,000 and 10,000 images.

    Args:
        path: Of the folder `cifar-10-batches-py`, the python version that `keras.datasets.cifar10` reads; '' for that
            of Keras.

    Raises:
        FileNotFoundError: If a file is not there, or the data cannot be downloaded; says where to put them.
    """
    place = keras_folder() / 'datasets' / 'cifar-10-batches-py'
    if path or place.is_dir():
        folder = pathlib.Path(path or place)
        train = np.concatenate([_load_batch(folder / f'data_batch_{i}') for i in range(1, 6)])
        test = _load_batch(folder / 'test_batch')
    else:
        archive = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
        with _download(f'Unpack {archive} to {place}, or pass the path of the folder with --data.'):
            (train, _), (test, _) = keras.datasets.cifar10.load_data()
    return split(train, test, share=10)


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
