"""Images from files and from libraries, and what is said where there are none."""

import pickle
import socket

import _datasets
import keras
import numpy as np
import pytest

from tests.examples.image_data import digits, write_cifar10, write_mnist
from tests.flows import raises

MNIST = _datasets.find_mnist()


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


class TestMnistOrDigits:
    def test_mnist_is_looked_for_where_keras_keeps_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv('KERAS_HOME', str(tmp_path))
        assert _datasets.find_mnist() == ''
        path = tmp_path / 'datasets' / 'mnist.npz'
        path.parent.mkdir()
        path.touch()
        assert _datasets.find_mnist() == str(path)
        assert _datasets.find_mnist(__file__) == __file__

    def test_mnist(self, tmp_path):
        path = write_mnist(tmp_path)
        data, (train, test) = _datasets.load_mnist_or_digits(str(path)), digits()
        np.testing.assert_array_equal(data.train[..., 0], (train / 255).astype(np.float32))
        assert set(np.unique(data.test)) == {0, 1} and data.test.shape == (*test.shape, 1)
        assert np.abs(data.test.mean(axis=0)[..., 0] - test.mean(axis=0) / 255).max() < 0.3

    def test_digits_are_split_and_binarised_alike_each_time(self):
        (train, test), (train_again, test_again) = _datasets.load_digits(), _datasets.load_mnist_or_digits('')
        assert train.shape == (1397, 8, 8, 1) and test.shape == (400, 8, 8, 1)
        assert train.min() == 0 and train.max() == 1 and len(np.unique(train)) == 17
        assert set(np.unique(test)) == {0, 1}
        np.testing.assert_array_equal(train, train_again)
        np.testing.assert_array_equal(test, test_again)

    @pytest.mark.skipif(not MNIST, reason='Keras has not downloaded MNIST')
    def test_all_of_mnist(self):
        data = _datasets.load_mnist_or_digits(MNIST)
        assert data.train.shape == (60000, 28, 28, 1) and data.test.shape == (10000, 28, 28, 1)
        assert data.train.mean() == pytest.approx(0.1307, abs=1e-4) and data.train.max() == 1
        assert data.test.mean() == pytest.approx(0.1325, abs=1e-3) and set(np.unique(data.test)) == {0, 1}


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
    for load in (_datasets.load_mnist, _datasets.find_mnist, _datasets.load_mnist_or_digits):
        with raises(FileNotFoundError, "data: got 'nowhere.npz'", 'a file mnist.npz'):
            load('nowhere.npz')
    path, _ = write_cifar10(tmp_path)
    (path / 'data_batch_3').unlink()
    with raises(FileNotFoundError, 'data: got ', 'folder cifar-10-batches-py', 'There is no data_batch_3.'):
        _datasets.load_cifar10(str(path))


def test_a_pickle_of_anything_else_is_refused(tmp_path):
    path, _ = write_cifar10(tmp_path)
    (path / 'data_batch_1').write_bytes(pickle.dumps({b'data': print}))
    with pytest.raises(pickle.UnpicklingError, match='expected nothing but arrays'):
        _datasets.load_cifar10(str(path))
