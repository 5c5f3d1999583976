"""Pictures of what VAEs have learnt."""

import _datasets
import _pictures
import _plots
import numpy as np
import pytest
import tensorflow as tf
from _estimates import Parts

from tests.examples.small_vae import SMALL, small_model


def test_rows_are_the_images_their_reconstructions_and_samples():
    model = small_model()
    encoder, sampling, decoder = vae = Parts.of(model)
    z_mean, z_log_var = model.get_layer('z_mean'), model.get_layer('z_log_var')
    z_mean.kernel.assign(20 * z_mean.kernel)
    z_log_var.kernel.assign(tf.zeros_like(z_log_var.kernel))
    z_log_var.bias.assign([-40.0] * SMALL.latent_size)  # so that z is a function of the image
    images = _datasets.load_digits().test[:5]
    rows = _pictures.reconstructions_and_samples({'one': vae, 'two': vae}, images, lambda outputs: outputs + 7)
    assert list(rows) == [
        'test images',
        *(f'{kind}, {name}' for kind in ('reconstructed', 'sampled') for name in ('one', 'two')),
    ]
    np.testing.assert_array_equal(rows['test images'], images)
    z = sampling.posterior(*encoder(images)).sample()
    np.testing.assert_allclose(rows['reconstructed, one'], decoder(z) + 7, rtol=1e-4)
    # All VAEs decode the same z.
    np.testing.assert_array_equal(rows['sampled, one'], rows['sampled, two'])
    assert rows['sampled, one'].shape == images.shape and len(np.unique(rows['sampled, one'], axis=0)) == len(images)


@pytest.mark.parametrize(('count', 'ranks'), [(10, [1, 4]), (70, [1, 4, 16, 64])])
def test_posteriors_are_those_of_ranked_images(count, ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(_pictures._quadrature, 'least_gaussian_first', lambda vaes, images: images[::-1])
    monkeypatch.setattr(_pictures._quadrature, 'posterior_densities', lambda vaes, image: (vaes, image))
    drawn = []
    monkeypatch.setattr(_plots, 'plot_densities', lambda *args: drawn.append(args))
    _pictures.plot_posteriors({}, np.arange(1, count + 1), tmp_path)
    ((labels, chosen, rows, path),) = drawn
    assert labels == [f'no. {rank} of {count}' for rank in ranks] and path == tmp_path
    assert chosen == [count + 1 - rank for rank in ranks] and rows == [({}, image) for image in chosen]
