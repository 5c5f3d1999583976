"""The likelihoods p(x|z) of images, given what a decoder puts out for every pixel; pixels are independent given z."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

_FIRST_LOG_SCALE = -2.0  # where the decoder puts out 0, in units of half the range of intensities
_LEAST_LOG_SCALE = -7.0


def bernoulli(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, with binary pixels."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, logits), axis=[-3, -2, -1])


def discretized_logistic(images: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    r"""Returns -log P(x|z) of each image, with 256 intensities: what a logistic distribution has around each of them.

    $$P(k) = \sigma(b) - \sigma(a), \quad b, a = \frac{k \pm ½ - \mu}{s}, \quad 0 < k < 255$$

    with $\mu = 127.5\,(1 + \mathrm{mean})$ and $s = 127.5\, e^\ell$. The first and the last intensity have the tails:
    $\sigma(b)$ and $\sigma(-a)$.

    It is computed as $\sigma(b)\, \sigma(-a)\, (1 - e^{-w})$ with $w = b - a = 1 / s$, of which no factor is a
    difference of numbers that are nearly equal, and $\log(1 - e^{-w})$ as $\log w + \log((1 - e^{-w}) / w)$, since a
    wide scale leaves w no digits: $\log w$ is known without it, and the rest is close to 0. So value and gradient are
    right for every mean and log-scale.

    Args:
        images: Intensities k / 255, `[..., height, width, channels]`.
        outputs: The mean and $\ell + 2$ of each channel, in units in which the intensities go from -1 to 1, `[...,
            height, width, 2 * channels]`. $\ell$ is at least -7.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Section 6.
    """
    k = tf.round(255 * images)
    mean, log_scale = tf.split(outputs, 2, axis=-1)
    log_width = -tf.maximum(log_scale + _FIRST_LOG_SCALE, _LEAST_LOG_SCALE) - math.log(127.5)
    width = tf.exp(log_width)
    center = (k - 127.5 * (1 + mean)) * width
    below = tf.where(k < 255, tf.math.log_sigmoid(center + width / 2), 0.0)
    above = tf.where(k > 0, tf.math.log_sigmoid(width / 2 - center), 0.0)
    some_width = tf.maximum(width, 1e-7)  # log((1 - exp(-w)) / w) is -w / 2, no more
    inside = log_width + tf.math.log(-tf.math.expm1(-some_width) / some_width)
    return -tf.reduce_sum(below + above + tf.where((k > 0) & (k < 255), inside, 0.0), axis=[-3, -2, -1])


def categorical(images: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns -log P(x|z) of each image, with a probability for each of 256 intensities, by a softmax.

    Args:
        images: Intensities k / 255, `[..., height, width, channels]`.
        outputs: Logits, `[..., height, width, 256 * channels]`, those of a channel side by side.
    """
    k = tf.cast(tf.round(255 * images), tf.int32)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(k, _logits_by_channel(outputs))
    return tf.reduce_sum(cross_entropy, axis=[-3, -2, -1])


def _logits_by_channel(outputs: tf.Tensor) -> tf.Tensor:
    return tf.reshape(outputs, tf.concat([tf.shape(outputs)[:-1], [outputs.shape[-1] // 256, 256]], axis=0))


def _mean_of_categorical(outputs: tf.Tensor) -> tf.Tensor:
    return tf.linalg.matvec(tf.nn.softmax(_logits_by_channel(outputs)), tf.range(256.0) / 255)


def _mean_of_logistic(outputs: tf.Tensor) -> tf.Tensor:
    mean, _ = tf.split(outputs, 2, axis=-1)
    return tf.clip_by_value((1 + mean) / 2, 0, 1)


class Likelihood(NamedTuple):
    """A likelihood: how many numbers it takes for each channel, -log p(x|z) of an image, and the means of pixels.

    `in_bits` says whether bits per pixel and channel are its usual unit; `note` stands below tables.
    """

    outputs_per_channel: int
    neg_log_prob: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    mean: Callable[[tf.Tensor], tf.Tensor]
    in_bits: bool = False
    note: str = ''


LIKELIHOODS = {
    'bernoulli': Likelihood(1, bernoulli, tf.sigmoid),
    'discretized logistic': Likelihood(2, discretized_logistic, _mean_of_logistic, in_bits=True),
    'categorical': Likelihood(256, categorical, _mean_of_categorical, in_bits=True),
    'cross entropy': Likelihood(1, bernoulli, tf.sigmoid, note='The cross entropy of real pixels is no likelihood.'),
}
