"""The likelihoods against TFP's distributions, and in float64."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from experiments import likelihoods
from experiments.likelihoods import LIKELIHOODS
from scipy import special

tfd = tfp.distributions
MEANS = (-1e4, -30.0, -1.2, -1.0, -0.3, 0.0, 0.999, 1.2, 30.0, 1e4)
LOG_SCALES = (-1e3, -20.0, -7.0, -3.0, 0.0, 5.0, 12.0, 17.0, 40.0, 90.0, 1e3)
INTENSITIES = (0, 1, 7, 128, 254, 255)


def test_bernoulli():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, [5, 4, 3, 1]).astype(np.float32)
    logits = rng.normal(size=[7, 5, 4, 3, 1]).astype(np.float32)
    exact = -tfd.Independent(tfd.Bernoulli(logits=logits), 3).log_prob(images)
    np.testing.assert_allclose(likelihoods.bernoulli(np.broadcast_to(images, logits.shape), logits), exact, rtol=1e-5)


def test_categorical():
    rng = np.random.default_rng(0)
    k = rng.integers(0, 256, [2, 3, 4, 3])
    logits = rng.normal(size=[2, 3, 4, 3, 256]).astype(np.float32)
    exact = tfd.Categorical(logits)
    outputs = logits.reshape(2, 3, 4, 768)
    neg_log_p = likelihoods.categorical((k / 255).astype(np.float32), outputs)
    np.testing.assert_allclose(neg_log_p, -np.sum(exact.log_prob(k), axis=(1, 2, 3)), rtol=1e-5)
    means = np.sum(exact.probs_parameter() * np.arange(256) / 255, axis=-1)
    np.testing.assert_allclose(LIKELIHOODS['categorical'].mean(outputs), means, rtol=1e-5)


def reference(k, mean, log_scale):
    """log P(k), and its derivatives by the mean and the log-scale, in float64: by tails, and by no difference."""
    log_scale, is_free = max(log_scale, -7.0), float(log_scale >= -7.0)
    log_w = -log_scale - np.log(127.5)
    w = np.exp(log_w)
    center = (k - 127.5 * (1 + mean)) * w
    a, b = center - w / 2, center + w / 2
    log_p = by_center = by_log_w = 0.0
    if k < 255:
        log_p += special.log_expit(b)
        by_center += special.expit(-b)
        by_log_w += special.expit(-b) * w / 2
    if k > 0:
        log_p += special.log_expit(-a)
        by_center -= special.expit(a)
        by_log_w += special.expit(a) * w / 2
    if 0 < k < 255:
        log_p += np.log(-np.expm1(-w)) if w > 1e-12 else log_w
        by_log_w += w / np.expm1(w) if w > 1e-12 else 1.0
    return log_p, -127.5 * w * by_center, -is_free * (by_log_w + center * by_center)


def log_probs(mean, log_scale):
    """Log-probabilities of all 256 intensities of one pixel."""
    images = (np.arange(256) / 255).astype(np.float32).reshape(256, 1, 1, 1)
    outputs = np.broadcast_to(np.array([mean, log_scale + 2], np.float32), [256, 1, 1, 2])
    return -likelihoods.discretized_logistic(images, outputs).numpy()


class TestDiscretizedLogistic:
    @pytest.mark.parametrize('k', INTENSITIES)
    def test_value_and_gradient_over_the_whole_range(self, k):
        points = np.array([(mean, log_scale) for mean in MEANS for log_scale in LOG_SCALES])
        outputs = tf.constant((points + np.array([0, 2])).reshape(-1, 1, 1, 2), tf.float32)
        images = tf.fill([len(points), 1, 1, 1], np.float32(k / 255))
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            neg_log_p = likelihoods.discretized_logistic(images, outputs)
        gradient = -tape.gradient(neg_log_p, outputs).numpy().reshape(-1, 2)
        exact = np.array([reference(k, *point) for point in points])
        np.testing.assert_allclose(-neg_log_p, exact[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient[:, 0], exact[:, 1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(gradient[:, 1], exact[:, 2], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(('mean', 'log_scale'), [(-0.3, -3.0), (0.0, -1.0), (0.9, -2.0), (0.2, 1.0)])
    def test_reference_and_result_are_the_quantized_distribution_of_tfp(self, mean, log_scale):
        logistic = tfd.Logistic(np.float64(127.5 * (1 + mean)), 127.5 * np.exp(log_scale))
        # It has the mass of (k - 1, k] at k.
        shifted = tfd.TransformedDistribution(logistic, tfp.bijectors.Shift(np.float64(-0.5)))
        exact = tfd.QuantizedDistribution(shifted, low=np.float64(0), high=np.float64(255)).prob(np.arange(256.0))
        np.testing.assert_allclose([np.exp(reference(k, mean, log_scale)[0]) for k in range(256)], exact, rtol=1e-8)
        np.testing.assert_allclose(np.exp(log_probs(mean, log_scale)), exact, rtol=1e-3, atol=1e-9)

    def test_reference_has_the_derivatives_of_its_value(self):
        for k, mean, log_scale in [(0, -0.5, -2.0), (7, 0.3, 1.0), (255, 0.2, -3.0), (100, -0.2, -7.5)]:
            by_mean = reference(k, mean + 1e-6, log_scale)[0] - reference(k, mean - 1e-6, log_scale)[0]
            by_scale = reference(k, mean, log_scale + 1e-6)[0] - reference(k, mean, log_scale - 1e-6)[0]
            expected = pytest.approx([by_mean / 2e-6, by_scale / 2e-6], rel=1e-4, abs=1e-6)
            assert list(reference(k, mean, log_scale)[1:]) == expected

    @pytest.mark.parametrize('mean', [-1.5, -0.3, 0.999, 3.0])
    @pytest.mark.parametrize('log_scale', [-9.0, -5.0, 0.0, 3.0, 12.0, 40.0])
    def test_probabilities_sum_to_one(self, mean, log_scale):
        assert np.exp(log_probs(mean, log_scale).astype(np.float64)).sum() == pytest.approx(1, abs=2e-5)

    def test_it_sums_over_pixels_and_channels(self):
        rng = np.random.default_rng(0)
        images = (rng.integers(0, 256, [2, 3, 4, 3]) / 255).astype(np.float32)
        outputs = rng.normal(size=[2, 3, 4, 6]).astype(np.float32)
        single = [
            log_probs(outputs[i, y, x, c], outputs[i, y, x, 3 + c] - 2)[int(np.rint(255 * images[i, y, x, c]))]
            for i, y, x, c in np.ndindex(images.shape)
        ]
        expected = -np.sum(np.reshape(single, [2, -1]), axis=1)
        np.testing.assert_allclose(likelihoods.discretized_logistic(images, outputs), expected, rtol=1e-4)

    def test_mean(self):
        outputs = tf.reshape(tf.constant([-1.0, 0.0, 1.0, 9.0, 9.0, 9.0]), [1, 1, 1, 6])
        np.testing.assert_allclose(LIKELIHOODS['discretized logistic'].mean(outputs)[0, 0, 0], [0.0, 0.5, 1.0])
