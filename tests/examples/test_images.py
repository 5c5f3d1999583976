"""The images of the example scripts, and the binary ones drawn from them."""

import pathlib

import _images
import numpy as np
import pytest

from tests.flows import raises

MNIST = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mnist.npz'


class TestData:
    def test_mnist_is_looked_for_where_keras_keeps_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv('KERAS_HOME', str(tmp_path))
        assert _images.find_mnist('') == ''
        path = tmp_path / 'datasets' / 'mnist.npz'
        path.parent.mkdir()
        path.touch()
        assert _images.find_mnist('') == str(path)
        assert _images.find_mnist(__file__) == __file__
        with raises(ValueError, "data: got 'nowhere/mnist.npz'", 'expected the path of a file mnist.npz'):
            _images.find_mnist('nowhere/mnist.npz')

    def test_digits_and_images_like_mnist(self, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {name: rng.integers(0, 256, [5, 28, 28], np.uint8) for name in ('x_train', 'x_test')}
        np.savez(tmp_path / 'mnist.npz', **arrays)
        data = _images.load_data(str(tmp_path / 'mnist.npz'))
        np.testing.assert_array_equal(data.train[..., 0], (arrays['x_train'] / 255).astype(np.float32))
        assert set(np.unique(data.test)) == {0, 1} and data.test.shape == (5, 28, 28, 1)
        digits = _images.load_data('')
        assert digits.train.shape == (1397, 8, 8, 1) and digits.test.shape == (400, 8, 8, 1)
        np.testing.assert_array_equal(digits.test, _images.load_data('').test)

    @pytest.mark.skipif(not MNIST.is_file(), reason='there is no copy of MNIST')
    def test_mnist(self):
        data = _images.load_data(str(MNIST))
        assert data.train.shape == (60000, 28, 28, 1) and data.test.shape == (10000, 28, 28, 1)
        assert data.train.mean() == pytest.approx(0.1307, abs=1e-4) and data.train.max() == 1
        assert data.test.mean() == pytest.approx(0.1325, abs=1e-3) and set(np.unique(data.test)) == {0, 1}


class TestTrainingBatches:
    def test_every_image_comes_once_an_epoch_in_another_order(self):
        # Images of pixels 0 or 1, which binarisation does not change: their numbers, in binary.
        images = ((np.arange(12)[:, None] >> np.arange(4)) & 1).reshape(12, 2, 2, 1).astype(np.float32)
        batches = np.array(list(_images.training_batches(images, 4, 0, range(3))))
        numbers = (batches.reshape(3, 12, 4) @ (1 << np.arange(4))).astype(int)
        assert np.all(np.sort(numbers) == np.arange(12))
        assert len({tuple(epoch) for epoch in numbers}) == 3

    def test_pixels_are_drawn_anew_with_their_intensities(self):
        intensities = np.tile(np.linspace(0, 1, 5, dtype=np.float32).reshape(1, 5, 1, 1), [40, 1, 1, 1])
        batches = np.array(list(_images.training_batches(intensities, 20, 0, range(50))))
        assert set(np.unique(batches)) == {0, 1}
        np.testing.assert_allclose(batches.mean(axis=(0, 1)), intensities[0], atol=0.04)
        assert len(np.unique(batches[..., 0, 0], axis=0)) == len(batches)

    def test_they_do_not_depend_on_where_training_starts(self):
        intensities = _images.load_data('').train[:100]
        whole, rest = (list(_images.training_batches(intensities, 50, 0, range(start, 3))) for start in (0, 1))
        assert len(whole) == 6
        np.testing.assert_array_equal(whole[2:], rest)

    def test_another_seed_gives_other_batches(self):
        intensities = _images.load_data('').train[:100]
        first, second = (next(iter(_images.training_batches(intensities, 50, seed, range(1)))) for seed in (0, 1))
        assert np.any(first != second)


def test_more_images_a_batch_than_there_are():
    images = np.zeros([49, 8, 8, 1], np.float32)
    assert _images.steps_per_epoch(images, 24) == 2
    with raises(ValueError, 'batch_size: got 50', 'at most 49'):
        _images.steps_per_epoch(images, 50)
