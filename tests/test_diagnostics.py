"""What is said of a fitted posterior, for targets with a known answer."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import raises
from tfp_iaf import _pareto, build_iaf_surrogate_posterior
from tfp_iaf.diagnostics import diagnose

tfd = tfp.distributions


@pytest.mark.slow
def test_an_exact_posterior():
    """Then every weight is Z."""
    q = build_iaf_surrogate_posterior([3], num_flows=1, seed=0)
    # Of the point that came out of q: by the inverse, and not from the cache.
    diagnosis = diagnose(lambda z: q.log_prob(tf.identity(z)) + 1.5, q, seed=[0, 0])
    np.testing.assert_allclose([diagnosis.elbo, diagnosis.log_evidence], 1.5, atol=1e-5)
    np.testing.assert_allclose(diagnosis.weights, 1e-4, rtol=1e-3)
    assert diagnosis.k_hat < 0.5 and diagnosis.effective_samples > 9999
    assert 'good' in str(diagnosis)


def test_a_wide_posterior():
    """q is wider than p: weights are bounded, and everything is known in closed form."""
    q, p = tfd.Normal(0.0, 1.5), tfd.Normal(0.0, 1.0)
    diagnosis = diagnose(lambda z: p.log_prob(z) - 3.0, q, 20000, seed=[0, 0])
    kl = float(tfd.kl_divergence(q, p))
    assert abs(diagnosis.elbo - (-3.0 - kl)) < 4 * diagnosis.elbo_error
    assert diagnosis.elbo_error < 0.02
    assert abs(diagnosis.log_evidence + 3.0) < 0.02
    # E[w^2] / E[w]^2 of two normal densities with standard deviations 1.5 and 1.
    second_moment = 1.5**2 / np.sqrt(2 * 1.5**2 - 1)
    np.testing.assert_allclose(diagnosis.effective_samples, 20000 / second_moment, rtol=0.02)
    assert diagnosis.k_hat < 0.5
    # Drawn again by their weights, samples of q have the moments of p.
    sample = diagnosis.resample(5000, seed=0)
    assert sample.shape == [5000]
    np.testing.assert_allclose(np.std(sample), 1.0, atol=0.05)
    np.testing.assert_array_equal(sample, diagnosis.resample(5000, seed=0))


def test_error_of_k_hat():
    """Of weights of a known shape, the estimates scatter as it says; near the limit there is no verdict."""
    q, p = tfd.Normal(0.0, 0.55), tfd.Normal(0.0, 1.0)
    diagnoses = [diagnose(p.log_prob, q, seed=[0, seed]) for seed in range(12)]
    scatter = np.std([diagnosis.k_hat for diagnosis in diagnoses])
    assert 0.5 * scatter < diagnoses[0].k_hat_error < 2 * scatter
    for diagnosis in diagnoses:
        is_near = abs(diagnosis.k_hat - diagnosis.k_limit) < diagnosis.k_hat_error
        assert is_near == ('on the limit' in str(diagnosis))


@pytest.mark.parametrize(
    ('scale', 'size', 'count', 'words'),
    [
        # The limit is 0.7. In the first two rows k is about 0.6 and 0.7, and its error 0.04 and 0.1.
        (0.65, 1, 400000, 'usable. '),
        (0.6, 4, 10000, 'on the limit'),
        (0.45, 4, 10000, 'not reliable'),
        (0.1, 4, 10000, 'not to be trusted'),
    ],
)
def test_verdict_on_a_narrow_posterior(scale, size, count, words):
    """The weights of a normal p under a narrower q have the tail index k = 1 - scale^2, and more in practice."""
    q, p = tfd.MultivariateNormalDiag(scale_diag=[scale] * size), tfd.MultivariateNormalDiag(tf.zeros([size]))
    diagnosis = diagnose(p.log_prob, q, count, seed=[0, 0])
    assert words in str(diagnosis)
    assert 'on the limit' in str(dataclasses.replace(diagnosis, k_hat=0.45, k_hat_error=0.3, k_limit=0.5))
    assert 'k-hat inf,' in str(dataclasses.replace(diagnosis, k_hat=np.inf, k_hat_error=0.0))
    if scale < 0.5:
        assert diagnosis.k_hat > diagnosis.k_limit and diagnosis.effective_samples < 5000


def test_a_structure_and_a_target_that_is_lost_somewhere():
    q = build_iaf_surrogate_posterior({'a': [], 'b': [2]}, num_flows=1, seed=0)

    def target(a, b):
        log_prob = -0.5 * (a**2 + tf.reduce_sum(b**2, axis=-1))
        return tf.where(a > 1.0, np.nan, log_prob)

    diagnosis = diagnose(target, q, 2000, seed=[0, 0])
    is_lost = diagnosis.samples['a'].numpy() > 1
    assert 0 < diagnosis.num_lost == np.sum(is_lost)
    assert np.all(diagnosis.weights[is_lost] == 0) and np.isclose(diagnosis.weights.sum(), 1)
    assert f'infinite at {diagnosis.num_lost} of 2000' in str(diagnosis)
    assert np.isfinite(diagnosis.elbo)
    chosen = diagnosis.resample(100)
    assert chosen['b'].shape == [100, 2] and np.all(chosen['a'] <= 1)


@pytest.mark.parametrize('k', [0.2, 0.7, 1.5])
def test_shape_of_a_tail(k):
    """w = u^-k has a Pareto tail of shape k."""
    log_weights = -k * np.log(np.random.default_rng(0).uniform(size=100000))
    smoothed, k_hat = _pareto.smoothed(log_weights.copy())
    assert abs(k_hat - k) < 0.1
    np.testing.assert_allclose(np.exp(smoothed).sum(), 1)
    # Smoothing keeps the order and does not touch the bulk.
    assert np.all(np.diff(smoothed[np.argsort(log_weights)]) >= 0)
    bulk = np.argsort(log_weights)[:90000]
    np.testing.assert_allclose(np.ptp(smoothed[bulk] - log_weights[bulk]), 0, atol=1e-9)


@pytest.mark.parametrize(
    ('log_weights', 'k', 'expected'),
    [
        (np.zeros(1000), -np.inf, np.full(1000, 1e-3)),
        (np.arange(1000.0) ** 2, np.inf, np.eye(1000)[-1]),
        (np.log([1.0, 2.0, 3.0]), np.inf, [1 / 6, 1 / 3, 1 / 2]),
    ],
    ids=['no_tail', 'a_single_weight', 'too_few'],
)
def test_weights_without_a_tail(log_weights, k, expected):
    smoothed, k_hat = _pareto.smoothed(log_weights)
    assert k_hat == k
    np.testing.assert_allclose(np.exp(smoothed), expected, atol=1e-9)


def test_smoothing_agrees_with_arviz():
    psis = pytest.importorskip('arviz_stats.base').array_stats
    log_weights = np.random.default_rng(0).normal(scale=1.5, size=5000)
    smoothed, k_hat = _pareto.smoothed(log_weights.copy())
    expected, expected_k_hat = psis.psislw(-log_weights)  # it takes the likelihoods of leaving one out
    np.testing.assert_allclose(k_hat, expected_k_hat, rtol=1e-6)
    np.testing.assert_allclose(smoothed, expected, atol=1e-6)


@pytest.mark.parametrize('cut', [1.0, 3.3, 3.7])
def test_lost_samples_are_not_called_good(cut):
    q = tfd.Normal(0.0, 1.0)
    diagnosis = diagnose(lambda z: tf.where(z > cut, 5 * z, -np.inf), q, seed=[0, 0])
    assert diagnosis.num_lost > 5000
    assert 'not to be trusted' in str(diagnosis) and 'is not finite' in str(diagnosis)


def test_samples_without_a_gradient_are_counted():
    """Of a log-density that is finite, with the usual trap of `tf.where`."""
    q = tfd.Normal(0.0, 1.0)

    def target(z):
        return -0.5 * z**2 + tf.where(z < 0, 0.0, 1e-12 * tf.exp(-1000 * z))

    diagnosis = diagnose(target, q, seed=[0, 0])
    assert diagnosis.num_lost == 0
    assert 0.4 < diagnosis.num_without_gradient / 10000 < 0.5
    assert 'learns nothing' in str(diagnosis)


def test_wrong_arguments():
    q = tfd.Normal(0.0, 1.0)
    with raises(ValueError, 'num_samples', '10', '100'):
        diagnose(q.log_prob, q, 10)
    with raises(ValueError, 'surrogate_posterior', '[10000, 2]', '[]'):
        diagnose(q.log_prob, tfd.Normal([0.0, 0.0], 1.0))
    for target, shape in (
        (lambda z: tf.reduce_sum(z), '[]'),
        (lambda z: 0.0, '[]'),
        (lambda z: tf.stack([z, z], axis=-1), '[10000, 2]'),
    ):
        with raises(ValueError, 'target_log_prob_fn', shape, '[10000]', 'each sample'):
            diagnose(target, q)
    with raises(TypeError, 'target_log_prob_fn', 'float64', 'expected float32'):
        diagnose(lambda z: tf.cast(z, tf.float64), q)
    with raises(ValueError, 'target_log_prob_fn', 'finite'):
        diagnose(lambda z: z * np.nan, q)
