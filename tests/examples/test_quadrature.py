"""Integrals over a plane of latent dimensions, against those that are known."""

import _datasets
import _digits_vae
import _quadrature
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def test_linear_gaussian_model():
    # z ~ N(0, I), x|z ~ N(A z, s^2 I): x ~ N(0, A A^T + s^2 I).
    rng = np.random.default_rng(0)
    loading, s = rng.normal(size=[5, 2]), 0.7
    x = rng.normal(size=[3, 5])
    grid = _quadrature.Grid()
    z = tf.constant(grid.points, tf.float64)
    log_joint = tfd.MultivariateNormalDiag(tf.matmul(z, loading, transpose_b=True), s * tf.ones([5], tf.float64))
    log_joint = log_joint.log_prob(x[:, np.newaxis]) + tfd.MultivariateNormalDiag(tf.zeros_like(z[0])).log_prob(z)
    exact = tfd.MultivariateNormalFullCovariance(np.zeros(5), loading @ loading.T + s**2 * np.eye(5)).log_prob(x)
    np.testing.assert_allclose(grid.log_integral(log_joint.numpy()), exact, rtol=1e-6)
    # Its posterior is Gaussian.
    np.testing.assert_allclose(grid.non_gaussianity(log_joint.numpy()), np.zeros(3), atol=1e-4)


def test_likelihood_of_a_decoder_that_ignores_z():
    images = np.random.default_rng(0).integers(0, 2, [25, 7]).astype(np.float32)
    bias = np.linspace(-3, 3, 7)
    decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(7, kernel_initializer='zeros')])
    decoder.layers[0].bias.assign(bias)
    exact = tfd.Independent(tfd.Bernoulli(logits=bias), 1).log_prob(images)
    np.testing.assert_allclose(_quadrature.log_likelihoods(decoder, images, _quadrature.Grid()), exact, atol=1e-4)


def test_two_separate_gaussians():
    # Entropy ln 2 above that of one, in a Gaussian of variance 1 + a^2 along one axis.
    a, sigma = 2.0, 0.3
    grid = _quadrature.Grid()
    modes = tfd.MultivariateNormalDiag([[-a, 1.0], [a, 1.0]], scale_diag=[sigma, sigma])
    log_density = tf.reduce_logsumexp(modes.log_prob(grid.points[:, np.newaxis]), axis=-1).numpy()
    exact = 0.5 * np.log(1 + (a / sigma) ** 2) - np.log(2)
    assert grid.non_gaussianity(log_density) == pytest.approx(exact, abs=1e-3)


def test_contours_of_mass():
    grid = _quadrature.Grid()
    density = np.exp(-0.5 * np.square(grid.points).sum(axis=-1)) / (2 * np.pi)
    levels = _quadrature.levels_of_mass(density, [0.99, 0.5])
    np.testing.assert_allclose(levels, np.array([0.01, 0.5]) / (2 * np.pi), rtol=0.02)


def test_least_gaussian_first():
    vae = _digits_vae.make_vae(_digits_vae.Settings('diagonal', 2, 0))
    # Sharper than at its start, so that posteriors differ.
    vae.decoder.layers[-2].kernel.assign(30 * vae.decoder.layers[-2].kernel)
    images = _datasets.load_digits().test[:30]
    ranked = _quadrature.least_gaussian_first({'': vae.parts}, images)
    assert sorted(map(bytes, ranked)) == sorted(map(bytes, images))
    grid = _quadrature.Grid(size=150)
    log_joints = np.concatenate(list(_quadrature.log_joints(vae.decoder, ranked, grid)))
    scores = grid.non_gaussianity(log_joints).tolist()
    assert scores[0] > 2 * scores[-1] and scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
