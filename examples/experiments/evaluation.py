"""The figures of a trained VAE on test images, by samples of z, in a memory that grows with neither."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

from . import datasets, gaps, quadrature, runs, vae
from .likelihoods import LIKELIHOODS
from .posteriors import log_standard_normal

_ROWS = 1000  # samples of z that networks take at once, at most
_OUTPUTS = 2**25  # and numbers that they put out
_ACTIVE = 0.01  # the variance of a unit's posterior mean from which it counts as active; Burda et al. 2016, Section 5


@dataclasses.dataclass(frozen=True)
class Settings(vae.Settings):
    """All that the evaluation of a VAE depends on.

    elbo_samples, nll_samples: samples of z for each test image
    nll_images: the NLL is that of the first test images
    grid_size: points per axis of the grid that gives the exact NLL with two latent dimensions
    local_steps: for which q(z|x) is optimized for each test image of the NLL, to tell gaps apart; 0: it is not
    The others are those of its training:
    """

    elbo_samples: int = 10
    nll_samples: int = 1000
    nll_images: int = 10000
    grid_size: int = 300
    local_steps: int = 0


class Evaluated(NamedTuple):
    """The figures of a VAE: means, those of every image, `[images]`, and the curves of its training."""

    figures: dict[str, float]
    by_image: dict[str, np.ndarray]
    curves: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Of every image: -ELBO's two parts, the NLL's importance-weighted upper bound, and twice the mean of z."""

    reconstruction: np.ndarray  # [images]
    kl: np.ndarray  # [images]
    nll: np.ndarray  # [images]
    means: np.ndarray  # [2, images, D], of every second sample and of the others

    @property
    def activity(self) -> np.ndarray:
        """The variance over images of the posterior mean, Var_x(E[z|x]), for each of D units.

        As the covariance of two means of independent samples, it has no bias: with one mean for both, the variance of
        its own error would come on top, and make a unit look active that says nothing of x.
        """
        first, second = self.means - self.means.mean(axis=1, keepdims=True)
        return np.mean(first * second, axis=0)


def estimate(
    parts: vae.Parts, neg_log_prob: Callable[..., tf.Tensor], images: np.ndarray, count: int, seed: int = 0
) -> Estimates:
    """Returns the estimates by `count` samples of z for each image.

    Args:
        parts: Of the VAE.
        neg_log_prob: -log p(x|z) of an image, given what the decoder puts out.
        images: What the likelihood is of, `[images, height, width, channels]`.
        count: Number of samples.
        seed: Of the samples.
    """

    def sampled_terms(images: tf.Tensor, count: int, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        q = parts.sampling.posterior(*parts.encoder(images))
        z, log_q = q.experimental_sample_and_log_prob(count, seed=seed)
        outputs = parts.decoder(tf.reshape(z, [-1, z.shape[-1]]))
        outputs = tf.reshape(outputs, tf.concat([tf.shape(log_q), tf.shape(outputs)[1:]], axis=0))
        targets = tf.broadcast_to(images, tf.concat([[count], tf.shape(images)], axis=0))
        reconstruction, kl = neg_log_prob(targets, outputs), log_q - log_standard_normal(z)
        sums = [tf.reduce_sum(values, axis=0) for values in (reconstruction, kl, z[::2], z[1::2])]
        return *sums, tfp.math.reduce_logmeanexp(-reconstruction - kl, axis=0)

    terms = tf.function(sampled_terms, reduce_retracing=True)
    reconstruction, kl = np.zeros([2, len(images)])
    log_sum = np.full(len(images), -np.inf)
    means = np.zeros([2, len(images), parts.decoder.input_shape[-1]])
    rows = max(1, min(_ROWS, _OUTPUTS // math.prod(parts.decoder.output_shape[1:])))
    at_once = min(count, rows)
    step = max(1, rows // at_once)
    with runs.progress(len(images), f'{count} samples', 'image') as bar:
        for i in range(0, len(images), step):
            piece = slice(i, i + step)
            for k in range(0, count, at_once):
                now = min(at_once, count - k)
                piece_seed = tf.random.fold_in(tf.random.fold_in(tf.constant([seed, 0]), i), k)
                *sums, log_mean = (value.numpy() for value in terms(tf.constant(images[piece]), now, piece_seed))
                for total, part in zip((reconstruction, kl, *means), sums, strict=True):
                    total[piece] += part
                log_sum[piece] = np.logaddexp(log_sum[piece], log_mean + np.log(now))
            bar.update(len(images[piece]))
    halves = np.reshape([-(-count // 2), max(1, count // 2)], [2, 1, 1])
    return Estimates(reconstruction / count, kl / count, np.log(count) - log_sum, means / halves)


def evaluate(store: runs.Store, settings: Settings) -> Evaluated:
    """Trains a VAE unless that has been done, and evaluates it.

    With two latent dimensions and binary pixels the NLL is exact. Else it is an upper bound, by importance weighting,
    and KL(q || true posterior) = -ELBO - NLL a lower one.
    """
    images = test_images(settings)
    of_nll = images[: settings.nll_images]
    model, training = vae.trained(store, settings, images.shape[1:])
    parts, neg_log_prob = vae.parts(model), LIKELIHOODS[settings.likelihood].neg_log_prob
    bound = estimate(parts, neg_log_prob, images, settings.elbo_samples, seed=1)
    weighted = estimate(parts, neg_log_prob, of_nll, settings.nll_samples, seed=2)
    by_image = {'neg_elbo': bound.reconstruction + bound.kl, 'nll': weighted.nll, 'weighted_nll': weighted.nll}
    if is_exact(settings):
        by_image['nll'] = -quadrature.log_likelihoods(parts.decoder, of_nll, quadrature.Grid(size=settings.grid_size))
    by_image['gap'] = by_image['neg_elbo'][: len(of_nll)] - by_image['nll']
    if settings.local_steps:
        local = gaps.local_neg_elbo(parts, neg_log_prob, of_nll, settings.local_steps, settings.elbo_samples)
        by_image['approximation_gap'] = local - by_image['nll']
        by_image['amortization_gap'] = by_image['neg_elbo'][: len(of_nll)] - local
    by_image |= {'reconstruction': bound.reconstruction, 'kl': bound.kl}
    figures = {key: float(values.mean()) for key, values in by_image.items()}
    figures |= {'active': int(np.sum(bound.activity > _ACTIVE)), 'parameters': model.count_params()}
    figures |= {key: float(training.curves[key].sum()) for key in ('seconds', 'cpu_seconds')}
    return Evaluated(figures, by_image, training.curves)


def test_images(settings: vae.Settings) -> np.ndarray:
    """Returns all test images, as the likelihood is of them."""
    images = datasets.load(settings.dataset, settings.data)
    return images.fixed(images.test, settings.binarization, seed=0)


def is_exact(settings: vae.Settings) -> bool:
    """Returns whether the NLL is known by quadrature."""
    return settings.latent_size == 2 and settings.likelihood == 'bernoulli'
