"""Solving y = f(x) for x, where f is one autoregressive step, and the gradient through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from tfp_iaf.transforms import Transform

__all__ = ['fixed_point']

Parameters = Callable[[tf.Tensor], tf.Tensor]
Gradient = Callable[..., tuple[tf.Tensor, ...] | tf.Tensor]


def fixed_point(
    parameters: Parameters, transform: Transform, y: tf.Tensor, max_sweeps: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Inverts a step whose parameters are autoregressive, in any order, by sweeps over all entries at once.

    $$x \leftarrow f^{-1}(y;\ \mathrm{params}(x))$$

    Sweep k makes the first k entries of the order exact, whatever the step, so that D sweeps suffice and no contraction
    is needed; contracting steps end much earlier: when no entry moves by more than four units of round-off, of its own
    size or of what is the largest in its event or, if that is smaller, in its place in all events. The result is
    checked by one evaluation of the step: an event in which an entry does not come back to `y`, within 4000 units of
    round-off of its terms and of the event's largest entry, is NaN, never a wrong value.

    Args:
        parameters: The network, with its context: `[..., D]` to `[..., D, P]`.
        transform: What each entry goes through.
        y: `[..., D]`.
        max_sweeps: D, or fewer.

    Returns:
        x: `[..., D]`, the leading shape of `y` broadcast against that of the parameters.
        log_det: `[..., D]`, the log-derivatives of the step at x.

    Gradients are those of the implicit function theorem. With $J = \partial f / \partial x$ and $w$ the solution of
    $J^T w = g$, the point gets $w$, and context and variables get $-w^T \partial f / \partial\theta$. Memory does not
    grow with the number of sweeps. A second derivative raises an error.

    Cost: at most D + 1 network passes; for a gradient, at most D + 1 backward passes more.

    References:
        Song, Meng and Ermon 2021, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving".
        Eq. (17), (19) of the mathematics page.

    >>> from tfp_iaf import transforms
    >>> def previous_entry(x):  # y_i = x_i + x_{i-1}
    ...     return tf.stack([tf.pad(x, [[1, 0]])[:-1], tf.zeros_like(x)], axis=-1)
    >>> x, log_det = fixed_point(previous_entry, transforms.Affine(), tf.constant([1., 3., 5.]), 3)
    >>> x.numpy().tolist(), log_det.numpy().tolist()
    ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    """
    solution, _ = sweeps(lambda x: (transform.inverse(y, parameters(x))[0], ()), y, max_sweeps, largest(y), sizes(y))
    x, image, log_det = _implicit(parameters, transform, solution, y)
    return nan_unless_solved(x, log_det, image, y)


def _epsilon(dtype: tf.DType) -> float:
    return float(np.finfo(dtype.as_numpy_dtype).eps)


def _bound(dtype: tf.DType) -> float:
    return float(dtype.max) ** 0.4


def nan_unless_solved(x: tf.Tensor, log_det: tf.Tensor, image: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `x` and `log_det`, as NaN for each event that the step does not take to `y`, its image.

    Round-off in the terms that the step adds up is allowed for. An entry must be finite, and not so large that a
    network cannot be evaluated at it.
    """
    close = tf.abs(image - y) <= 4000 * _epsilon(y.dtype) * (largest(y) + tf.exp(log_det) * tf.abs(x))
    in_range = tf.abs(x) < _bound(x.dtype)
    solved = tf.reduce_all(close & in_range, axis=-1, keepdims=True)
    nan = tf.constant(float('nan'), y.dtype)
    return tf.where(solved, x, nan), tf.where(solved, log_det, nan)


def confined(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Keeps transients finite: in a masked product, infinity times a forbidden zero is NaN for earlier entries.

    `scale` is the size of what `x` solves for, if that is above 1.
    """
    bound = _bound(x.dtype) * tf.maximum(scale, 1)
    return tf.clip_by_value(tf.where(tf.math.is_nan(x), tf.zeros([], x.dtype), x), -bound, bound)


def sweeps(
    update: Callable[[tf.Tensor], tuple[tf.Tensor, Any]],
    start: tf.Tensor,
    max_sweeps: int | tf.Tensor,
    scale: tf.Tensor,
    size: tf.Tensor,
) -> tuple[tf.Tensor, Any]:
    """Applies `update` until nothing moves, `max_sweeps` times at most; no tape records it.

    `update` gives a new value, and whatever else is wanted of the last evaluation. Transients are confined by `scale`,
    as of `confined`; `size` is that below which each entry counts as zero, as of `sizes`.
    """
    tolerance = 4 * _epsilon(start.dtype)

    def is_moving(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        still = (
            (tf.abs(new - old) <= tolerance * (size + tf.abs(new)))
            | tf.equal(new, old)  # infinite both times
            | (tf.math.is_nan(new) & tf.math.is_nan(old))
        )
        return ~tf.reduce_all(still)

    def sweep(x: tf.Tensor, _: Any, __: tf.Tensor) -> tuple[tf.Tensor, Any, tf.Tensor]:
        new, rest = update(confined(x, scale))
        return new, rest, is_moving(new, x)

    # A tape that might differentiate the loop would keep the values of every sweep.
    with record.stop_recording():
        # The first sweep stands outside of the loop: it gives everything the shape that it keeps.
        first, rest = update(confined(start, scale))
        if isinstance(max_sweeps, int) and max_sweeps == 1:
            return first, rest
        x, rest, _ = tf.while_loop(
            lambda x, rest, moving: moving, sweep, (first, rest, tf.constant(True)), maximum_iterations=max_sweeps - 1
        )
        return x, rest


def largest(x: tf.Tensor) -> tf.Tensor:
    """Returns the size of each event's largest entry."""
    return tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)


def sizes(x: tf.Tensor) -> tf.Tensor:
    """Returns of each entry what is the largest in its event, or in its place in all events if that is smaller.

    Neither events nor places need be of one scale. The entry's own size would not do: one that is zero by chance would
    have to stand still to the bit.
    """
    known = tf.where(tf.math.is_nan(x), tf.zeros([], x.dtype), tf.abs(x))
    of_place = tf.reduce_max(tf.reshape(known, [-1, tf.shape(x)[-1]]), axis=0)
    return tf.minimum(largest(x), of_place)


def _implicit(
    parameters: Parameters, transform: Transform, solution: tf.Tensor, y: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Evaluates the step at a solution of f(x) = y; the x and log-det returned carry the implicit gradient."""
    solution = tf.stop_gradient(solution)
    size = tf.shape(solution)[-1]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(solution)
        image, log_det = transform.forward(solution, parameters(solution))

    # A function of what the recorded evaluation made, not of the variables behind it: the cotangents returned for
    # `image` and `log_det` reach the variables and the context through that evaluation.
    @tf.custom_gradient
    def attach(*sources: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Gradient]:
        def grad(dx: tf.Tensor, dlog_det: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            total = dx + tape.gradient(log_det, solution, dlog_det, unconnected_gradients='zero')
            slope = tf.exp(log_det)

            def update(w: tf.Tensor) -> tuple[tf.Tensor, tuple[()]]:
                return w + (total - tape.gradient(image, solution, w)) / slope, ()

            start = total / slope
            w, _ = sweeps(update, start, size, largest(start), sizes(start))
            w = first_order_only(w, dx, dlog_det, *sources)
            return -w, dlog_det, w

        return (tf.identity(solution), tf.identity(log_det)), grad

    x, attached_log_det = attach(image, log_det, tf.broadcast_to(y, tf.shape(image)))
    return x, image, attached_log_det


@tf.custom_gradient
def first_order_only(w: tf.Tensor, *sources: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Returns `w`, whose gradient, for itself and for the sources that it was computed from, is an error."""

    def grad(_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        raise _not_implemented()

    return tf.identity(w), grad


def refuse_forward_mode(value: tf.Tensor) -> None:
    """Raises an error where TensorFlow, for a derivative in forward mode, calls a gradient in which no tape records."""
    with tf.GradientTape() as tape:
        tape.watch(value)
        same = tf.identity(value)
    if tape.gradient(same, value) is None:
        raise _not_implemented()


def _not_implemented() -> NotImplementedError:
    return NotImplementedError(
        'The inverse of an InverseAutoregressiveFlow has first derivatives only, in reverse mode. For others '
        'differentiate its forward direction, which has derivatives of every order and in both modes.'
    )
