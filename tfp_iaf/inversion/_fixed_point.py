"""The inverse of any autoregressive step, by fixed-point iterations over all entries at once."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._numerics import are_in_range
from tfp_iaf.inversion._implicit import first_order_only, guarded
from tfp_iaf.inversion._iteration import iterated, largest, sizes
from tfp_iaf.transforms import Transform

__all__ = ['fixed_point']

Parameters = Callable[[tf.Tensor], tf.Tensor]
Gradient = Callable[..., tuple[tf.Tensor, ...]]


def fixed_point(
    parameters: Parameters, transform: Transform, y: tf.Tensor, depth: int | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    r"""Inverts a step whose parameters are autoregressive, in any order, by iterations over all entries at once.

    $$x \leftarrow t^{-1}(y;\ \mathrm{params}(x))$$

    Iteration k makes the first k entries of the order exact, whatever the step, so D iterations suffice, and no
    contraction is needed. Contracting steps end much earlier: when no entry moves by more than four units of round-off
    of its size; see `sizes`.

    Args:
        parameters: The network, with its context: `[..., D]` to `[..., D, P]`.
        transform: The elementwise transform.
        y: `[..., D]`.
        depth: How many iterations suffice, if that is known to be less than D: the number of entries in the longest
            chain in which each depends on the one before.

    Returns:
        x: `[..., D]`, the leading shape of `y` broadcast against that of the parameters.
        log_derivatives: `[..., D]`, those of the step at x.
        image: `[..., D]`, the step's value at x, which is `y` if the iteration has converged. It has no gradient.

    Gradients are those of the implicit function theorem. With $J = \partial f / \partial x$ and $w$ the solution of
    $J^T w = g$, the point gets $w$, and context and variables get $-w^T \partial f / \partial\theta$. Memory does not
    grow with the number of iterations. A second derivative raises an error. While `tf.vectorized_map` traces, which
    drops custom gradients, all iterations that may be needed are made, and autodiff goes through them.

    Cost: at most `depth` + 1 network passes, by default D + 1, and on a GPU one more; for a gradient, as many backward
    passes more.

    References:
        Song, Meng and Ermon 2021, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving",
        https://arxiv.org/abs/2002.03629.
        Eq. `fixed-point` and `implicit-gradient` of the mathematics page.

    >>> from tfp_iaf import transforms
    >>> def previous_entry(x):  # y_i = x_i + x_{i-1}
    ...     return tf.stack([tf.pad(x, [[1, 0]])[:-1], tf.zeros_like(x)], axis=-1)
    >>> x, log_derivatives, _ = fixed_point(previous_entry, transforms.Affine(), tf.constant([1., 3., 5.]))
    >>> x.numpy().tolist(), log_derivatives.numpy().tolist()
    ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    """
    if depth is None:
        depth = tf.shape(y)[-1] if y.shape[-1] is None else y.shape[-1]
    differentiable = _compat.is_vectorizing()

    def update(x: tf.Tensor) -> tuple[tf.Tensor, tuple[()]]:
        return transform.inverse(y, parameters(x))[0], ()

    solution, _ = iterated(update, y, depth, largest(y), sizes(y), differentiable)
    # What overflowed will be NaN; evaluated at zero, it leaves no NaN in the gradients of other events.
    in_range = are_in_range(solution)
    solution = tf.where(in_range, solution, tf.zeros([], y.dtype))
    if differentiable:
        image, log_derivatives = transform.forward(solution, parameters(solution))
    else:
        solution, log_derivatives, image = _implicit(parameters, transform, solution, y, depth)
    # Not the image of what overflowed, which was not evaluated.
    return solution, log_derivatives, tf.where(in_range, tf.stop_gradient(image), y.dtype.max)


def _implicit(
    parameters: Parameters, transform: Transform, solution: tf.Tensor, y: tf.Tensor, depth: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Evaluates the step at a solution of f(x) = y; x and log-derivatives returned carry the implicit gradient."""
    solution = tf.stop_gradient(solution)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(solution)
        image, log_derivatives = transform.forward(solution, parameters(solution))

    # A function of what the recorded evaluation made, not of the variables behind it: the cotangents returned for
    # `image` and `log_derivatives` reach the variables and the context through that evaluation.
    @tf.custom_gradient
    def attached(*sources: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Gradient]:
        def gradient(dx: tf.Tensor, dlog_derivatives: tf.Tensor) -> tuple[tf.Tensor, ...]:
            of_log_derivatives = tape.gradient(
                log_derivatives, solution, dlog_derivatives, unconnected_gradients='zero'
            )
            total, slope = dx + of_log_derivatives, tf.exp(log_derivatives)

            def update(w: tf.Tensor) -> tuple[tf.Tensor, tuple[()]]:
                return w + (total - tape.gradient(image, solution, w)) / slope, ()

            start = total / slope
            w, _ = iterated(update, start, depth, largest(start), sizes(start))
            w = first_order_only(w, dx, dlog_derivatives, *sources)
            return -w, dlog_derivatives, w

        return (guarded(tf.identity(solution)), guarded(tf.identity(log_derivatives))), gradient

    x, attached_log_derivatives = attached(image, log_derivatives, tf.broadcast_to(y, tf.shape(image)))
    return x, attached_log_derivatives, image
