"""Estimates by samples, where the answer is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from experiments import evaluation, vae
from experiments.likelihoods import bernoulli

from tests.experiments import small
from tfp_iaf.keras import IAFSampling


def linear_vae():
    """A VAE of images of two pixels: q(z|x) = N((x_1, 0), diag(1, 4)), and p(x|z) = 1/4 for every x."""
    images = keras.Input([1, 2, 1])
    pixels = keras.layers.Flatten()(images)
    mean = keras.layers.Dense(2, name='z_mean')(pixels)
    log_var = keras.layers.Dense(2, kernel_initializer='zeros', name='z_log_var')(pixels)
    z, _ = IAFSampling(0, seed=0, name='sampling')([mean, log_var])
    layers = [keras.layers.Dense(2, kernel_initializer='zeros'), keras.layers.Reshape([1, 2, 1])]
    decoder = keras.Sequential([keras.Input([2]), *layers], name='decoder')
    model = keras.Model(images, decoder(z))
    model.get_layer('z_mean').set_weights([np.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2)])
    model.get_layer('z_log_var').set_weights([np.zeros([2, 2]), np.log([1.0, 4.0])])
    return vae.parts(model)


@pytest.mark.parametrize('rows', [21, 1000])
def test_a_posterior_that_is_known(rows, monkeypatch):
    monkeypatch.setattr(evaluation, '_ROWS', rows)
    images = np.random.default_rng(0).integers(0, 2, [60, 1, 2, 1]).astype(np.float32)
    estimates = evaluation.estimate(linear_vae(), bernoulli, images, 50)
    kl = 0.5 * (images[:, 0, 0, 0] ** 2 + 1 + 4 - 2 - np.log(4))
    np.testing.assert_allclose(estimates.reconstruction, 2 * np.log(2) * np.ones(60), rtol=1e-5)
    np.testing.assert_allclose(estimates.kl, kl, atol=1.5)
    assert estimates.kl.mean() == pytest.approx(kl.mean(), abs=0.15)
    # The weights average to p(x), in whatever pieces.
    assert np.exp(-estimates.nll).mean() == pytest.approx(1 / 4, rel=0.1)


def test_activity_has_no_bias():
    images = np.random.default_rng(0).integers(0, 2, [2000, 1, 2, 1]).astype(np.float32)
    estimates = evaluation.estimate(linear_vae(), bernoulli, images, 10)
    # The first unit's mean is a pixel, the second one's is the same for all images.
    assert estimates.activity == pytest.approx([images[:, 0, 0, 0].var(), 0], abs=0.1)
    # The variance of one mean of all ten samples has that of its error on top, a tenth of the posterior's.
    assert estimates.means.mean(axis=0).var(axis=0)[1] == pytest.approx(0.4, abs=0.1)


def test_no_more_rows_at_once_than_it_says(monkeypatch):
    monkeypatch.setattr(evaluation, '_ROWS', 12)
    seen = []

    def neg_log_prob(images, outputs):
        seen.append(int(tf.shape(outputs)[0] * tf.shape(outputs)[1]))
        return bernoulli(images, outputs)

    tf.config.run_functions_eagerly(True)
    try:
        evaluation.estimate(linear_vae(), neg_log_prob, np.zeros([5, 1, 2, 1], np.float32), 30)
    finally:
        tf.config.run_functions_eagerly(False)
    assert max(seen) == 12 and sum(seen) == 5 * 30


@pytest.mark.parametrize('posterior', ['full covariance', 'IAF'])
def test_every_image_and_every_sample_has_noise_of_its_own(posterior, monkeypatch):
    parts = vae.parts(vae.make(small.settings(posterior), [8, 8, 1]))
    images = np.zeros([6, 8, 8, 1], np.float32)

    def means(count, seed=0):
        return evaluation.estimate(parts, bernoulli, images, count, seed).means

    monkeypatch.setattr(evaluation, '_ROWS', 8)  # two images at once
    first, again, other = (means(4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique([first, other])) == first.size * 2
    monkeypatch.setattr(evaluation, '_ROWS', 2)  # two samples of one image at once
    assert not np.any(np.isclose(means(4), means(2), rtol=1e-3))
