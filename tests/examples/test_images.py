"""Batches of images, and the binary ones drawn from them."""

import _datasets
import _images
import numpy as np

from tests.flows import raises


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
        intensities = _datasets.load_digits().train[:100]
        whole, rest = (list(_images.training_batches(intensities, 50, 0, range(start, 3))) for start in (0, 1))
        assert len(whole) == 6
        np.testing.assert_array_equal(whole[2:], rest)

    def test_another_seed_gives_other_batches(self):
        intensities = _datasets.load_digits().train[:100]
        first, second = (next(iter(_images.training_batches(intensities, 50, seed, range(1)))) for seed in (0, 1))
        assert np.any(first != second)


def test_more_images_a_batch_than_there_are():
    images = np.zeros([49, 8, 8, 1], np.float32)
    assert _images.steps_per_epoch(images, 24) == 2
    with raises(ValueError, 'batch_size: got 50', 'at most 49'):
        _images.steps_per_epoch(images, 50)
