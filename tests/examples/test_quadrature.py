"""A VAE's exact likelihood and posteriors, against what is known."""

import _datasets
import _digits_vae
import _quadrature
import keras
import numpy as np
import pytest
import tensorflow_probability as tfp
from _grid import Grid

tfd = tfp.distributions


def test_likelihood_of_a_decoder_that_ignores_z():
    images = np.random.default_rng(0).integers(0, 2, [25, 7]).astype(np.float32)
    bias = np.linspace(-3, 3, 7)
    decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(7, kernel_initializer='zeros')])
    decoder.layers[0].bias.assign(bias)
    exact = tfd.Independent(tfd.Bernoulli(logits=bias), 1).log_prob(images)
    np.testing.assert_allclose(_quadrature.log_likelihoods(decoder, images, Grid()), exact, atol=1e-4)


def test_least_gaussian_first():
    vae = _digits_vae.make_vae(_digits_vae.Settings('diagonal', 2, 0))
    # Sharper than at its start, so that posteriors differ.
    vae.decoder.layers[-2].kernel.assign(30 * vae.decoder.layers[-2].kernel)
    images = _datasets.load_digits().test[:30]
    ranked = _quadrature.least_gaussian_first({'': vae.parts}, images)
    assert sorted(map(bytes, ranked)) == sorted(map(bytes, images))
    grid = Grid(size=150)
    log_joints = np.concatenate(list(_quadrature.log_joints(vae.decoder, ranked, grid)))
    scores = grid.non_gaussianity(log_joints).tolist()
    assert scores[0] > 2 * scores[-1] and scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
