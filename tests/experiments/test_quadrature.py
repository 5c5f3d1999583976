"""Integrals over the plane, contours, and a VAE's exact likelihood, against what is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from experiments import datasets, quadrature, vae
from experiments.quadrature import Grid, levels_of_mass

from tests.experiments import small

tfd = tfp.distributions


def test_linear_gaussian_model():
    # z ~ N(0, I), x|z ~ N(A z, s^2 I): x ~ N(0, A A^T + s^2 I).
    rng = np.random.default_rng(0)
    loading, s, x, grid = rng.normal(size=[5, 2]), 0.7, rng.normal(size=[3, 5]), Grid()
    z = tf.constant(grid.points, tf.float64)
    log_joint = tfd.MultivariateNormalDiag(tf.matmul(z, loading, transpose_b=True), s * tf.ones([5], tf.float64))
    log_joint = log_joint.log_prob(x[:, np.newaxis]) + tfd.MultivariateNormalDiag(tf.zeros_like(z[0])).log_prob(z)
    exact = tfd.MultivariateNormalFullCovariance(np.zeros(5), loading @ loading.T + s**2 * np.eye(5)).log_prob(x)
    np.testing.assert_allclose(grid.log_integral(log_joint.numpy()), exact, rtol=1e-6)
    # Its posterior is Gaussian.
    np.testing.assert_allclose(grid.non_gaussianity(log_joint.numpy()), np.zeros(3), atol=1e-4)


def test_two_separate_gaussians():
    # Entropy ln 2 above that of one, in a Gaussian of variance 1 + a^2 along one axis.
    a, sigma, grid = 2.0, 0.3, Grid()
    modes = tfd.MultivariateNormalDiag([[-a, 1.0], [a, 1.0]], scale_diag=[sigma, sigma])
    log_density = tf.reduce_logsumexp(modes.log_prob(grid.points[:, np.newaxis]), axis=-1).numpy()
    assert grid.non_gaussianity(log_density) == pytest.approx(0.5 * np.log(1 + (a / sigma) ** 2) - np.log(2), abs=1e-3)


def test_contours_of_mass():
    density = np.exp(-0.5 * np.square(Grid().points).sum(axis=-1)) / (2 * np.pi)
    np.testing.assert_allclose(levels_of_mass(density, [0.99, 0.5]), np.array([0.01, 0.5]) / (2 * np.pi), rtol=0.02)


def test_likelihood_of_a_decoder_that_ignores_z():
    images = np.random.default_rng(0).integers(0, 2, [25, 7]).astype(np.float32)
    bias = np.linspace(-3, 3, 7)
    decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(7, kernel_initializer='zeros')])
    decoder.layers[0].bias.assign(bias)
    exact = tfd.Independent(tfd.Bernoulli(logits=bias), 1).log_prob(images)
    np.testing.assert_allclose(quadrature.log_likelihoods(decoder, images, Grid()), exact, atol=1e-4)


def test_posteriors_of_a_vae():
    parts = vae.parts(vae.make(small.settings('IAF', latent_size=2), [8, 8, 1]))
    # Sharper than at its start, so that posteriors differ.
    parts.decoder.layers[-2].kernel.assign(30 * parts.decoder.layers[-2].kernel)
    digits = datasets.load('digits')
    images = digits.fixed(digits.test[:30], 'dynamic', 0)
    ranked = quadrature.least_gaussian_first({'': parts}, images)
    assert sorted(map(bytes, ranked)) == sorted(map(bytes, images))
    grid = Grid(size=150)
    scores = grid.non_gaussianity(np.concatenate(list(quadrature.log_joints(parts.decoder, ranked, grid)))).tolist()
    assert scores[0] > 2 * scores[-1] and scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    density = quadrature.posterior_densities({'IAF': parts}, images[0])['IAF']
    for values in (density.p, density.q):
        assert values.sum() * np.exp(density.grid.log_cell) == pytest.approx(1, abs=0.05)
    assert density.kl > 0
