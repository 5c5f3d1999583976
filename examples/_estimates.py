"""What is estimated of a VAE by samples of z, in a memory that grows with neither images nor samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import _progress
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tqdm
from _posteriors import log_standard_normal

_ROWS = 1000  # samples of z that networks take at once


class Parts(NamedTuple):
    """The parts of a VAE: `sampling.posterior(*encoder(images))` is q(z|x); `decoder(z)` is what a likelihood takes."""

    encoder: Any
    sampling: Any
    decoder: Any

    @classmethod
    def of(cls, model: Any) -> Parts:
        """Returns those of a functional model from images to what a likelihood takes.

        It has a layer 'sampling', as of `_posteriors`, and one 'decoder'.
        """
        sampling = model.get_layer('sampling')
        return cls(keras.Model(model.input, sampling.input), sampling, model.get_layer('decoder'))


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Of every image: -ELBO's two parts, the NLL's importance-weighted upper bound, and twice the mean of z."""

    reconstruction: np.ndarray  # [images]
    kl: np.ndarray  # [images]
    nll: np.ndarray  # [images]
    means: np.ndarray  # [2, images, D], of every second sample and of the others

    @property
    def neg_elbo(self) -> np.ndarray:
        """-ELBO of every image."""
        return self.reconstruction + self.kl

    @property
    def activity(self) -> np.ndarray:
        """The variance over images of the posterior mean, Var_x(E[z|x]), for each of D units.

        As the covariance of two means of independent samples, it has no bias: with one mean for both, the variance of
        its own error would come on top, and make a unit look active that says nothing of x.
        """
        first, second = self.means - self.means.mean(axis=1, keepdims=True)
        return np.mean(first * second, axis=0)


def estimate(
    parts: Parts,
    neg_log_prob: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    images: np.ndarray,
    count: int,
    *,
    seed: int = 0,
    label: str | None = None,
) -> Estimates:
    """Returns the estimates by `count` samples of z for each image.

    Args:
        parts: Of the VAE.
        neg_log_prob: -log p(x|z) of an image, given what the decoder puts out.
        images: What the likelihood is of, `[images, height, width, channels]`.
        count: Number of samples.
        seed: Of the samples.
        label: Of a progress bar; `None` for none.
    """

    def sampled_terms(images: tf.Tensor, count: int, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        q = parts.sampling.posterior(*parts.encoder(images))
        z, log_q = q.experimental_sample_and_log_prob(count, seed=seed)
        outputs = parts.decoder(tf.reshape(z, [-1, z.shape[-1]]))
        outputs = tf.reshape(outputs, tf.concat([tf.shape(log_q), tf.shape(outputs)[1:]], axis=0))
        targets = tf.broadcast_to(images, tf.concat([[count], tf.shape(images)], axis=0))
        reconstruction, kl = neg_log_prob(targets, outputs), log_q - log_standard_normal(z)
        log_likelihood = tfp.math.reduce_logmeanexp(-reconstruction - kl, axis=0)
        sums = [tf.reduce_sum(values, axis=0) for values in (reconstruction, kl, z[::2], z[1::2])]
        return *sums, log_likelihood

    terms = tf.function(sampled_terms, reduce_retracing=True)
    size = parts.decoder.input_shape[-1]
    reconstruction, kl = np.zeros([2, len(images)])
    log_sum = np.full(len(images), -np.inf)
    means = np.zeros([2, len(images), size])
    at_once = min(count, _ROWS)
    step = max(1, _ROWS // at_once)
    bar = tqdm.tqdm(total=len(images), desc=label, unit='image', disable=label is None, **_progress.inner_bar())
    with bar:
        for i in range(0, len(images), step):
            piece = slice(i, i + step)
            for k in range(0, count, at_once):
                now = min(at_once, count - k)
                of_piece = tf.random.fold_in(tf.random.fold_in(tf.constant([seed, 0]), i), k)
                *sums, log_likelihood = (value.numpy() for value in terms(tf.constant(images[piece]), now, of_piece))
                for total, part in zip((reconstruction, kl, *means), sums, strict=True):
                    total[piece] += part
                log_sum[piece] = np.logaddexp(log_sum[piece], log_likelihood + np.log(now))
            bar.update(len(images[piece]))
    halves = np.reshape([-(-count // 2), max(1, count // 2)], [2, 1, 1])
    return Estimates(reconstruction / count, kl / count, np.log(count) - log_sum, means / halves)
