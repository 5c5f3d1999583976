"""Integrals over a plane, and contours, against those that are known."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from _grid import Grid, levels_of_mass

tfd = tfp.distributions


def test_linear_gaussian_model():
    # z ~ N(0, I), x|z ~ N(A z, s^2 I): x ~ N(0, A A^T + s^2 I).
    rng = np.random.default_rng(0)
    loading, s = rng.normal(size=[5, 2]), 0.7
    x = rng.normal(size=[3, 5])
    grid = Grid()
    z = tf.constant(grid.points, tf.float64)
    log_joint = tfd.MultivariateNormalDiag(tf.matmul(z, loading, transpose_b=True), s * tf.ones([5], tf.float64))
    log_joint = log_joint.log_prob(x[:, np.newaxis]) + tfd.MultivariateNormalDiag(tf.zeros_like(z[0])).log_prob(z)
    exact = tfd.MultivariateNormalFullCovariance(np.zeros(5), loading @ loading.T + s**2 * np.eye(5)).log_prob(x)
    np.testing.assert_allclose(grid.log_integral(log_joint.numpy()), exact, rtol=1e-6)
    # Its posterior is Gaussian.
    np.testing.assert_allclose(grid.non_gaussianity(log_joint.numpy()), np.zeros(3), atol=1e-4)


def test_two_separate_gaussians():
    # Entropy ln 2 above that of one, in a Gaussian of variance 1 + a^2 along one axis.
    a, sigma = 2.0, 0.3
    grid = Grid()
    modes = tfd.MultivariateNormalDiag([[-a, 1.0], [a, 1.0]], scale_diag=[sigma, sigma])
    log_density = tf.reduce_logsumexp(modes.log_prob(grid.points[:, np.newaxis]), axis=-1).numpy()
    exact = 0.5 * np.log(1 + (a / sigma) ** 2) - np.log(2)
    assert grid.non_gaussianity(log_density) == pytest.approx(exact, abs=1e-3)


def test_contours_of_mass():
    grid = Grid()
    density = np.exp(-0.5 * np.square(grid.points).sum(axis=-1)) / (2 * np.pi)
    levels = levels_of_mass(density, [0.99, 0.5])
    np.testing.assert_allclose(levels, np.array([0.01, 0.5]) / (2 * np.pi), rtol=0.02)
