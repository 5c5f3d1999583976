"""What TFP and Keras lack for the objectives of variational inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfp_iaf._checks import checked_axes, checked_number
from tfp_iaf.inversion._implicit import guarded

__all__ = ['free_bits', 'path_derivative']


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


def path_derivative(distribution: Any) -> Any:
    r"""Returns a distribution whose log-density has gradients for the point alone, not for its variables.

    $$\nabla_\phi \log q_{\bar\phi}(z_\phi) = \frac{\partial z}{\partial \phi}^\top \nabla_z \log q(z)$$

    It is the `stopped_surrogate_posterior` of `tfp.vi.monte_carlo_variational_loss`, for
    `tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED`. With `importance_sample_size=1` that is the path derivative, or
    "sticking the landing": its noise vanishes as q comes close to the target.

    Args:
        distribution: q, of reparameterised samples, such as `build_iaf_surrogate_posterior` makes.

    Returns:
        An object with one method, `log_prob(value)`, whose shapes and dtype are those of `distribution.log_prob`.

    Raises:
        ValueError: From `log_prob`, if the leading shape of `value` is not that of its result.
        LookupError: From gradients inside `tf.vectorized_map`, which would be those of the variables too.

    Cost: `log_prob` inverts q once, with a gradient; see `InverseAutoregressiveFlow`.

    References:
        Roeder, Wu and Duvenaud 2017, "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
        Inference", https://arxiv.org/abs/1703.09194.
        Tucker, Lawson, Gu and Maddison 2018, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives",
        https://arxiv.org/abs/1810.04152.

    >>> import tensorflow_probability as tfp
    >>> import tfp_iaf
    >>> q = tfp_iaf.build_iaf_surrogate_posterior([2], seed=0)
    >>> with tf.GradientTape() as tape:
    ...     loss = tfp.vi.monte_carlo_variational_loss(
    ...         lambda z: -0.5 * tf.reduce_sum(z**2, axis=-1), q, sample_size=8, seed=[0, 0],
    ...         gradient_estimator=tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
    ...         stopped_surrogate_posterior=path_derivative(q))
    >>> all(gradient is not None for gradient in tape.gradient(loss, q.trainable_variables))
    True
    """
    return _OfThePoint(distribution)


@dataclasses.dataclass(frozen=True)
class _OfThePoint:
    """What `path_derivative` returns."""

    distribution: Any

    def log_prob(self, value: Any) -> tf.Tensor:
        """Returns the log-density of a point, `[...]`, with gradients for the point alone."""

        @tf.custom_gradient
        def log_prob(*parts: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
            with tf.GradientTape() as tape:
                tape.watch(parts)
                log_q = self.distribution.log_prob(tf.nest.pack_sequence_as(value, parts))
            slopes = tape.gradient(log_q, parts, unconnected_gradients='zero')
            for part in parts:
                if not part.shape[: log_q.shape.rank].is_compatible_with(log_q.shape):
                    raise ValueError(
                        f'value: got a part of shape {part.shape} for densities of shape {log_q.shape}, expected a '
                        f'point for each density. Broadcast it.'
                    )

            def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
                of_parts = [
                    upstream[(..., *[tf.newaxis] * (slope.shape.rank - upstream.shape.rank))] * slope
                    for slope in slopes
                ]
                return (of_parts, [None] * len(variables)) if variables else of_parts

            return guarded(log_q), gradient

        # As new tensors: of samples, TFP's cache would know by which variables they were made.
        return log_prob(*(tf.identity(part) for part in tf.nest.flatten(value)))
