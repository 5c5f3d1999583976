"""Objectives of variational inference beyond the ELBO."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfp_iaf.checks import checked_axes, checked_number

__all__ = ['free_bits', 'importance_weighted_log_likelihood']


def free_bits(kl: tf.Tensor, minimum: float | tf.Tensor, axis: int | Sequence[int] = 0) -> tf.Tensor:
    r"""Returns the KL term that leaves each group of latent variables some nats for free, against posterior collapse.

    $$\sum_{j=1}^K \max\left(\lambda,\ \mathbb{E}_{x \sim \mathcal{M}}
      \left[\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))\right]\right)$$

    with $\mathcal{M}$ the minibatch and $\lambda$ the `minimum`. It takes the place of the mean KL in the negative
    ELBO. A group whose mean lies below the minimum gets no gradient.

    Args:
        kl: The KL of each row and group, or a one-sample estimate of it, in nats: a floating tensor of rank 1 or more.
            With rank 1, all of z is one group.
        minimum: $\lambda$, in nats for each group: a number, or a scalar tensor or variable for one that changes.
        axis: The axis of the batch, or several; all others are groups.

    Returns:
        A scalar in the dtype of `kl`.

    Raises:
        TypeError: If `kl` is not floating, or `minimum` no number.
        ValueError: If `minimum` is a negative number, or `kl` does not have the axis.

    Cost: no network pass.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Appendix C.8.
        Eq. (28) of the mathematics page.

    >>> free_bits(tf.constant([[0.1, 3.0], [0.3, 1.0]]), minimum=0.5).numpy().item()  # max(0.5, 0.2) + max(0.5, 2.0)
    2.5
    """
    kl = tf.convert_to_tensor(kl, name='kl')
    if not kl.dtype.is_floating:
        raise TypeError(f'kl: got dtype {kl.dtype.name}, expected a floating one: nats for each row and group.')
    if kl.shape.rank == 0:
        raise ValueError('kl: got a scalar, expected a tensor with an axis for the batch. Do not average it before.')
    axes = checked_axes(axis, 'kl', kl)
    if tf.is_tensor(minimum):
        minimum = tf.cast(minimum, kl.dtype)
    else:
        minimum = tf.constant(checked_number('minimum', minimum, minimum=0), kl.dtype)
    return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=axes), minimum))


def importance_weighted_log_likelihood(log_weights: tf.Tensor, axis: int | Sequence[int] = 0) -> tf.Tensor:
    r"""Returns the importance-weighted estimate of log p(x), a lower bound that tightens with the number of samples K.

    $$\log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)$$

    With K = 1 this is the ELBO's one-sample estimate.

    Args:
        log_weights: $\log p(x, z_k) - \log q(z_k \mid x)$, a floating tensor of any shape.
        axis: The axis of the samples, or several.

    Returns:
        `log_weights.shape` without `axis`, in the dtype of `log_weights`.

    Raises:
        TypeError: If `log_weights` is not floating.
        ValueError: If it does not have the axis.

    Cost: no network pass; the K samples and their log-densities are the caller's.

    References:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", Eq. 8.
        Eq. (24), (29) of the mathematics page.

    >>> log_likelihood = importance_weighted_log_likelihood(tf.math.log([[1., 2.], [3., 2.]]))
    >>> tf.exp(log_likelihood).numpy().round().tolist()
    [2.0, 2.0]
    """
    log_weights = tf.convert_to_tensor(log_weights, name='log_weights')
    if not log_weights.dtype.is_floating:
        raise TypeError(
            f'log_weights: got dtype {log_weights.dtype.name}, expected a floating one: log p(x, z) - log q(z|x).'
        )
    axes = checked_axes(axis, 'log_weights', log_weights)
    count = math.prod(tf.shape(log_weights)[one] for one in axes)
    return tf.reduce_logsumexp(log_weights, axis=axes) - tf.math.log(tf.cast(count, log_weights.dtype))
