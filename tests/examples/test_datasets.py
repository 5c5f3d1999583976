"""MNIST and CIFAR-10 from files, and what is said where there are none."""

import pickle
import socket

import _datasets
import keras
import numpy as np
import pytest

from tests.examples.image_data import digits, write_cifar10, write_mnist
from tests.flows import raises


def no_internet(*args, **kwargs):
    raise Exception('URL fetch failure on https://example.org: None -- Name or service not known')


def test_mnist_from_a_path(tmp_path):
    data = _datasets.load_mnist(str(write_mnist(tmp_path)))
    train, test = digits()
    np.testing.assert_array_equal(np.concatenate([data.train, data.validation])[..., 0], train)
    np.testing.assert_array_equal(data.test[..., 0], test)
    assert len(data.validation) == len(train) // 6 and data.train.dtype == np.uint8


def test_mnist_from_keras(tmp_path, monkeypatch):
    train, test = digits()
    monkeypatch.setattr(keras.datasets.mnist, 'load_data', lambda: ((train, None), (test, None)))
    from_keras, from_path = _datasets.load_mnist(), _datasets.load_mnist(str(write_mnist(tmp_path)))
    for a, b in zip(from_keras, from_path, strict=True):
        np.testing.assert_array_equal(a, b)
    assert from_keras.fingerprint == from_path.fingerprint
    assert from_path._replace(test=from_path.test + 1).fingerprint != from_path.fingerprint


def test_cifar10_from_a_path_and_where_keras_keeps_data(tmp_path, monkeypatch):
    (tmp_path / 'datasets').mkdir()
    path, batches = write_cifar10(tmp_path / 'datasets')
    data = _datasets.load_cifar10(str(path))
    assert data.train.shape == (90, 32, 32, 3) and data.validation.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(data.train[:20], batches['data_batch_1'])
    np.testing.assert_array_equal(data.validation, batches['data_batch_5'][10:])
    np.testing.assert_array_equal(data.test, batches['test_batch'])
    monkeypatch.setenv('KERAS_HOME', str(tmp_path))
    assert _datasets.load_cifar10().fingerprint == data.fingerprint


def test_the_same_images_as_keras_reads(tmp_path):
    path, batches = write_cifar10(tmp_path)
    cifar = pytest.importorskip('keras.src.datasets.cifar')
    images, _ = cifar.load_batch(str(path / 'data_batch_2'))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), batches['data_batch_2'])


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_without_internet_it_says_where_to_put_the_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv('KERAS_HOME', str(tmp_path))
    monkeypatch.setattr(getattr(keras.datasets, name), 'load_data', no_internet)
    place = tmp_path / 'datasets' / {'mnist': 'mnist.npz', 'cifar10': 'cifar-10-batches-py'}[name]
    with raises(FileNotFoundError, 'no download: URL fetch failure', str(place), '--data'):
        getattr(_datasets, f'load_{name}')()
    assert socket.getdefaulttimeout() is None


def test_paths_at_which_there_is_nothing(tmp_path):
    with raises(FileNotFoundError, "data: got 'nowhere.npz'", 'a file mnist.npz'):
        _datasets.load_mnist('nowhere.npz')
    path, _ = write_cifar10(tmp_path)
    (path / 'data_batch_3').unlink()
    with raises(FileNotFoundError, 'data: got ', 'folder cifar-10-batches-py', 'There is no data_batch_3.'):
        _datasets.load_cifar10(str(path))


def test_a_pickle_of_anything_else_is_refused(tmp_path):
    path, _ = write_cifar10(tmp_path)
    (path / 'data_batch_1').write_bytes(pickle.dumps({b'data': print}))
    with pytest.raises(pickle.UnpicklingError, match='expected nothing but arrays'):
        _datasets.load_cifar10(str(path))
