"""The images, their batches, and the binary images drawn from them."""

import numpy as np
import pytest
from experiments import datasets
from experiments.datasets import Images

from tests.experiments import small
from tests.flows import raises


def test_digits():
    images = datasets.load('digits')
    assert [part.shape for part in images[:3]] == [(1397, 8, 8, 1), (400, 8, 8, 1), (400, 8, 8, 1)]
    assert images.train.max() == images.brightest == 16


def test_mnist_and_cifar10(tmp_path):
    path, fingerprint = small.write_mnist(tmp_path)
    images = datasets.load('mnist', path)
    assert [part.shape for part in images[:3]] == [(205, 8, 8, 1), (41, 8, 8, 1), (40, 8, 8, 1)]
    assert images.fingerprint == fingerprint
    path, first = small.write_cifar10(tmp_path)
    images = datasets.load('cifar10', path)
    assert [len(part) for part in images[:3]] == [90, 10, 20] and images.train.dtype == np.uint8
    np.testing.assert_array_equal(images.train[:20], first)


def test_frey_faces_are_split_after_a_shuffle(tmp_path):
    path, intensities = small.write_freyfaces(tmp_path), np.arange(420, dtype=np.uint8)
    np.random.seed(321)  # as the paper's code does
    np.random.shuffle(intensities)
    images = datasets.load('freyfaces 321', path)
    for part, expected in zip(images[:3], np.split(intensities, [20, 220]), strict=True):
        assert part.shape[1:] == (4, 4, 1)
        np.testing.assert_array_equal(part[:, 0, 0, 0], expected)
    assert images.fingerprint != datasets.load('freyfaces 231', path).fingerprint


def test_other_images_have_another_fingerprint():
    one = Images(*np.zeros([3, 2, 4, 4, 1], np.uint8))
    others = [one._replace(test=one.test + np.uint8(1)), one._replace(brightest=16), one._replace(train=one.train[:1])]
    assert len({images.fingerprint for images in [one, *others]}) == 4


@pytest.mark.parametrize(
    ('name', 'file'),
    [('mnist', 'mnist.npz'), ('cifar10', 'cifar-10-batches-py'), ('freyfaces 123', 'freyfaces.npz')],
)
def test_data_that_are_not_there(name, file, tmp_path, monkeypatch):
    monkeypatch.setenv('KERAS_HOME', str(tmp_path))
    with raises(FileNotFoundError, "data: got ''", f'expected the path of {file}', str(tmp_path / 'datasets' / file)):
        datasets.load(name)
    with raises(FileNotFoundError, "data: got 'nowhere'", 'There is no nowhere'):
        datasets.load(name, 'nowhere')


def batches(images, batch_size, count, seed=0, first=0, kind='dynamic'):
    one = Images(images, images, images, brightest=1)
    pairs = list(one.batches(kind, batch_size, seed, first).take(count))
    for inputs, targets in pairs:
        np.testing.assert_array_equal(inputs, targets)
    return np.array([inputs for inputs, _ in pairs])


class TestBatches:
    def test_every_image_comes_once_a_pass_in_another_order(self):
        # Images of pixels 0 or 1, which binarisation does not change: their numbers, in binary.
        images = ((np.arange(12)[:, None] >> np.arange(4)) & 1).reshape(12, 2, 2, 1).astype(np.float32)
        numbers = (batches(images, 4, 9).reshape(3, 12, 4) @ (1 << np.arange(4))).astype(int)
        assert np.all(np.sort(numbers) == np.arange(12))
        assert len({tuple(each) for each in numbers}) == 3

    def test_pixels_are_drawn_again_with_their_intensities(self):
        intensities = np.tile(np.linspace(0, 1, 5, dtype=np.float32).reshape(1, 5, 1, 1), [40, 1, 1, 1])
        drawn = batches(intensities, 20, 100)
        assert set(np.unique(drawn)) == {0, 1}
        np.testing.assert_allclose(drawn.mean(axis=(0, 1)), intensities[0], atol=0.04)

    @pytest.mark.parametrize('first', [1, 2, 5])
    def test_they_do_not_depend_on_where_training_starts(self, first):
        intensities = datasets.load('digits').train[:100] / 16
        whole, rest = batches(intensities, 50, 7), batches(intensities, 50, 7 - first, first=first)
        np.testing.assert_array_equal(whole[first:], rest)
        assert np.any(whole != batches(intensities, 50, 7, seed=1))

    @pytest.mark.parametrize(('kind', 'expected'), [('threshold', [0, 0, 1]), ('none', [0, 0.4, 0.6])])
    def test_other_binarizations(self, kind, expected):
        images = np.tile(np.array([0, 0.4, 0.6], np.float32).reshape(1, 3, 1, 1), [4, 1, 1, 1])
        np.testing.assert_allclose(batches(images, 2, 1, kind=kind)[0, 0].ravel(), expected, rtol=1e-6)
        one = Images(images, images, images, brightest=1)
        np.testing.assert_allclose(one.fixed(images, kind, 0)[0].ravel(), expected, rtol=1e-6)


def test_fixed_images_are_the_same_each_time():
    images = datasets.load('digits')
    first, again, other = (images.fixed(images.test, 'dynamic', seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) and first.mean() == pytest.approx(images.test.mean() / 16, abs=0.01)
