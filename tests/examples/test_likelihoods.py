"""The likelihoods against TFP's distributions."""

import math

import _likelihoods
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from _likelihoods import LIKELIHOODS

tfd = tfp.distributions


def test_bernoulli():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, [5, 4, 3, 1]).astype(np.float32)
    logits = rng.normal(size=[7, 5, 4, 3, 1]).astype(np.float32)
    exact = -tfd.Independent(tfd.Bernoulli(logits=logits), 3).log_prob(images)
    targets = np.broadcast_to(images, logits.shape)
    np.testing.assert_allclose(_likelihoods.bernoulli(targets, logits), exact, rtol=1e-5)


def log_probs(mean, log_scale):
    """Log-probabilities of all 256 intensities of one pixel."""
    images = (np.arange(256) / 255).astype(np.float32).reshape(256, 1, 1, 1)
    outputs = np.broadcast_to(np.array([mean, log_scale], np.float32), [256, 1, 1, 2])
    return -_likelihoods.discretized_logistic(images, outputs).numpy()


class TestDiscretizedLogistic:
    @pytest.mark.parametrize('mean', [-1.5, -1.0, -0.3, 0.0, 0.999, 3.0])
    @pytest.mark.parametrize('log_scale', [-9.0, -5.0, -1.0, 0.0, 3.0])
    def test_probabilities_sum_to_one(self, mean, log_scale):
        log_p = log_probs(mean, log_scale)
        assert np.all(np.isfinite(log_p)) and np.all(log_p <= 0)
        assert np.exp(log_p.astype(np.float64)).sum() == pytest.approx(1, abs=2e-5)

    @pytest.mark.parametrize(('mean', 'log_scale'), [(-0.3, -3.0), (0.0, -1.0), (0.9, -2.0), (0.2, 1.0)])
    def test_it_is_the_quantized_distribution_of_tfp(self, mean, log_scale):
        logistic = tfd.Logistic(np.float64(127.5 * (1 + mean)), 127.5 * math.exp(log_scale))
        # It has the mass of (k - 1, k] at k.
        shifted = tfd.TransformedDistribution(logistic, tfp.bijectors.Shift(np.float64(-0.5)))
        exact = tfd.QuantizedDistribution(shifted, low=np.float64(0), high=np.float64(255)).prob(np.arange(256.0))
        np.testing.assert_allclose(np.exp(log_probs(mean, log_scale)), exact, rtol=1e-3, atol=1e-9)

    def test_it_sums_over_pixels_and_channels(self):
        rng = np.random.default_rng(0)
        images = (rng.integers(0, 256, [2, 3, 4, 3]) / 255).astype(np.float32)
        outputs = rng.normal(size=[2, 3, 4, 6]).astype(np.float32)
        single = [
            log_probs(outputs[i, y, x, c], outputs[i, y, x, 3 + c])[int(np.rint(255 * images[i, y, x, c]))]
            for i, y, x, c in np.ndindex(images.shape)
        ]
        expected = -np.sum(np.reshape(single, [2, -1]), axis=1)
        np.testing.assert_allclose(_likelihoods.discretized_logistic(images, outputs), expected, rtol=1e-4)

    @pytest.mark.parametrize('k', [0, 7, 255])
    def test_gradients_are_finite_and_point_to_the_intensity(self, k):
        image = tf.fill([1, 1, 1, 1], k / 255)
        for mean in (-30.0, -1.2, 0.0, 1.2, 30.0):
            for log_scale in (-20.0, -7.0, 0.0, 5.0):
                outputs = tf.constant([mean, log_scale], shape=[1, 1, 1, 2])
                with tf.GradientTape() as tape:
                    tape.watch(outputs)
                    loss = _likelihoods.discretized_logistic(image, outputs)
                slope = tape.gradient(loss, outputs).numpy().ravel()
                assert np.all(np.isfinite(slope)) and np.isfinite(loss)
                # The first intensity has all that lies below it, and the last one all above.
                if mean > 1.5 and k < 255:
                    assert slope[0] > 0
                if mean < -1.5 and k > 0:
                    assert slope[0] < 0

    def test_mean(self):
        outputs = tf.reshape(tf.constant([-1.0, 0.0, 1.0, 9.0, 9.0, 9.0]), [1, 1, 1, 6])
        np.testing.assert_allclose(LIKELIHOODS['discretized logistic'].mean(outputs)[0, 0, 0], [0.0, 0.5, 1.0])
