"""The likelihoods p(x|z) of images, given what a decoder puts out for every pixel; pixels are independent given z."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

_MIN_LOG_SCALE = -7.0  # in units of half the range of intensities


@keras.saving.register_keras_serializable(package='examples')
def bernoulli(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, with binary pixels."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, logits), axis=[-3, -2, -1])


@keras.saving.register_keras_serializable(package='examples')
def discretized_logistic(images: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    r"""Returns -log P(x|z) of each image, with 256 intensities: what a logistic distribution has around each of them.

    $$P(k) = \sigma\left(\frac{k + ½ - \mu}{s}\right) - \sigma\left(\frac{k - ½ - \mu}{s}\right), \quad
      0 < k < 255$$

    with $\mu = 127.5\,(1 + \mathrm{mean})$ and $s = 127.5\, e^{\mathrm{log\ scale}}$. The first and the last intensity
    have the tails. With b and a the two arguments, it is
    $\sigma(b)\, \sigma(-a)\, (1 - e^{a - b})$, of which no factor is a difference of numbers that are nearly equal.

    Args:
        images: Intensities k / 255, `[..., height, width, channels]`.
        outputs: Mean and log-scale of each channel, in units in which the intensities go from -1 to 1, `[..., height,
            width, 2 * channels]`.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Section 6.
    """
    k = tf.round(255 * images)
    mean, log_scale = tf.split(outputs, 2, axis=-1)
    width = tf.exp(-tf.maximum(log_scale, _MIN_LOG_SCALE)) / 127.5  # of an intensity, in scales
    center = (k - 127.5 * (1 + mean)) * width
    below = tf.where(k < 255, tf.math.log_sigmoid(center + width / 2), 0.0)
    above = tf.where(k > 0, tf.math.log_sigmoid(width / 2 - center), 0.0)
    inside = tf.where((k > 0) & (k < 255), tfp.math.log1mexp(width), 0.0)
    return -tf.reduce_sum(below + above + inside, axis=[-3, -2, -1])


def mean_of_logistic(outputs: tf.Tensor) -> tf.Tensor:
    """Returns the means of the logistic distributions as intensities in [0, 1]."""
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
    'discretized logistic': Likelihood(2, discretized_logistic, mean_of_logistic, in_bits=True),
    'cross entropy': Likelihood(
        1, bernoulli, tf.sigmoid, note='The cross entropy of pixels that are not binary is no likelihood: no density.'
    ),
}
