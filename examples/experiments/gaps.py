"""What a VAE loses where: the best q(z|x) of a family for each image, without the encoder.

The gap between -ELBO and -log p(x) has two parts. The approximation gap is what the best q of the family leaves. The
amortization gap is what the encoder adds, since it gives all images their q by one function. See Cremer, Li and
Duvenaud 2018, "Inference Suboptimality in Variational Autoencoders", https://arxiv.org/abs/1801.03558, Eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from . import runs, vae
from .posteriors import log_standard_normal

_SAMPLES = 4  # of each image, in a step
_LEARNING_RATE = 2e-2
_STEPS_PER_CALL = 50
_IMAGES = 400  # that are optimized at once


def local_neg_elbo(
    parts: vae.Parts,
    neg_log_prob: Callable[..., tf.Tensor],
    images: np.ndarray,
    steps: int,
    samples: int,
    seed: int = 3,
) -> np.ndarray:
    """Returns -ELBO of each image once q(z|x) has been optimized for it.

    What the encoder puts out becomes a variable of each image: mean and log-variance, and the context of a flow. The
    weights of the flow and the decoder stay as they are.

    Args:
        parts: Of the VAE.
        neg_log_prob: -log p(x|z) of an image, given what the decoder puts out.
        images: What the likelihood is of, `[images, height, width, channels]`.
        steps: Of Adam.
        samples: Of z for each image, to estimate -ELBO with at the end.
        seed: Of the samples.
    """
    pieces = range(0, len(images), _IMAGES)
    return np.concatenate([_local(parts, neg_log_prob, images[i : i + _IMAGES], steps, samples, seed) for i in pieces])


def _local(
    parts: vae.Parts, neg_log_prob: Callable[..., tf.Tensor], images: np.ndarray, steps: int, samples: int, seed: int
) -> np.ndarray:
    variables = [keras.Variable(value) for value in parts.encoder(images)]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps))
    optimizer.build(variables)

    def neg_elbo(step: tf.Tensor) -> tf.Tensor:
        q = parts.sampling.posterior(*(tf.convert_to_tensor(variable) for variable in variables))
        z, log_q = q.experimental_sample_and_log_prob(_SAMPLES, seed=tf.stack([seed, step]))
        outputs = parts.decoder(tf.reshape(z, [-1, z.shape[-1]]))
        outputs = tf.reshape(outputs, [_SAMPLES, len(images), *outputs.shape[1:]])
        targets = tf.broadcast_to(images, [_SAMPLES, *images.shape])
        return tf.reduce_mean(neg_log_prob(targets, outputs) + log_q - log_standard_normal(z), axis=0)

    @tf.function
    def optimize(first: tf.Tensor, count: tf.Tensor) -> None:
        for step in tf.range(first, first + count):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(neg_elbo(step))
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def estimate(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        total = tf.zeros([len(images)])
        for step in tf.range(first, first + count):
            total += neg_elbo(step)
        return total

    with runs.progress(steps, 'q of each image', 'step') as bar:
        for first in range(0, steps, _STEPS_PER_CALL):
            count = min(_STEPS_PER_CALL, steps - first)
            optimize(tf.constant(first), tf.constant(count))
            bar.update(count)
    batches = -(-samples // _SAMPLES)
    total = sum(
        estimate(tf.constant(steps + first), tf.constant(min(_STEPS_PER_CALL, batches - first))).numpy()
        for first in range(0, batches, _STEPS_PER_CALL)
    )
    return np.asarray(total) / batches
