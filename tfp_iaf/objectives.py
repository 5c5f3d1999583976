"""Objectives of variational inference beyond the ELBO."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfp_iaf._checks import checked_axes, checked_number

__all__ = ['free_bits']


def free_bits(kl: tf.Tensor, minimum: float | tf.Tensor, axis: int | Sequence[int] = 0) -> tf.Tensor:
    r"""Returns the KL term that leaves each group of latent variables some nats for free, against posterior collapse.

    $$\sum_{j=1}^K \max\left(\lambda,\ \mathbb{E}_{x \sim \mathcal{M}}
      \left[\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))\right]\right)$$

    where $\mathcal{M}$ is the minibatch and $\lambda$ is the `minimum`. It replaces the mean KL in the
    negative ELBO. A group whose mean lies below the minimum gets no gradient. Without rows the mean is 0.

    Args:
        kl: The KL of each row and group, or a one-sample estimate of it, in nats: a floating tensor of rank 1 or more.
            With rank 1, all of z is one group.
        minimum: $\lambda$, in nats for each group: a number, or a scalar tensor or variable if it changes.
        axis: The axis of the batch, or several; all others are groups.

    Returns:
        A scalar in the dtype of `kl`.

    Raises:
        TypeError: If `kl` is not floating, or `minimum` is not a number.
        ValueError: If `minimum` is a negative number, or `kl` does not have the axis.

    Cost: no network pass.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Appendix C.8.
        Eq. `free-bits` of the mathematics page.

    >>> free_bits(tf.constant([[0.1, 3.0], [0.3, 1.0]]), minimum=0.5).numpy().item()  # max(0.5, 0.2) + max(0.5, 2.0)
    2.5
    """
    kl = tf.convert_to_tensor(kl, name='kl')
    if not kl.dtype.is_floating:
        raise TypeError(f'kl: got dtype {kl.dtype.name}, expected a floating one: nats for each row and group.')
    if kl.shape.rank == 0:
        raise ValueError('kl: got a scalar, expected a tensor with an axis for the batch. Pass it before averaging.')
    axes = checked_axes(axis, 'kl', kl)
    if tf.is_tensor(minimum):
        minimum = tf.cast(minimum, kl.dtype)
    else:
        minimum = tf.constant(checked_number('minimum', minimum, minimum=0), kl.dtype)
    # Not reduce_mean, which gives NaN where there are no rows.
    mean = tf.math.divide_no_nan(tf.reduce_sum(kl, axis=axes), tf.reduce_sum(tf.ones_like(kl), axis=axes))
    return tf.reduce_sum(tf.maximum(mean, minimum))
