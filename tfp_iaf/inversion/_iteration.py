"""Fixed-point iterations that end when nothing moves, and what they count as nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._devices import runs_on_cpu
from tfp_iaf._numerics import bound

__all__ = ['confined', 'iterated', 'largest', 'round_off', 'sizes']


def round_off(dtype: tf.DType) -> float:
    """Returns the distance from 1 to the next number."""
    return float(np.finfo(dtype.as_numpy_dtype).eps)


def confined(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Keeps transients finite: in a masked product, infinity times a forbidden zero is NaN for earlier entries.

    `scale` is the size of what `x` solves for, if that is above 1.
    """
    limit = bound(x.dtype) * tf.maximum(scale, 1)
    return tf.clip_by_value(tf.where(tf.math.is_nan(x), tf.zeros([], x.dtype), x), -limit, limit)


def largest(x: tf.Tensor) -> tf.Tensor:
    """Returns the size of the largest entry of each event."""
    return tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)


def sizes(x: tf.Tensor) -> tf.Tensor:
    """Returns for each entry the largest size in its event, or in its place in all events if that is smaller.

    Neither events nor places need to have one scale. The size of the entry itself would not do: an entry that is zero
    by chance would have to stand still to the last bit.
    """
    of_place = tf.reduce_max(tf.reshape(tf.abs(x), [-1, tf.shape(x)[-1]]), axis=0)
    return tf.minimum(largest(x), of_place)


def iterated(
    update: Callable[[tf.Tensor], tuple[tf.Tensor, Any]],
    start: tf.Tensor,
    max_iterations: int | tf.Tensor,
    scale: tf.Tensor,
    size: tf.Tensor,
    differentiable: bool = False,
    rest: Any = None,
) -> tuple[tf.Tensor, Any]:
    """Applies `update` until no entry moves, at most `max_iterations` times; on a GPU, perhaps once more.

    Args:
        update: Returns a new value, and anything else that is wanted of the last evaluation.
        start: The first value, `[..., D]`.
        max_iterations: The number of iterations after which the value is exact.
        scale: Confines transients; see `confined`.
        size: The size below which each entry counts as zero; see `sizes`.
        differentiable: Whether to make all iterations, so that autodiff through them is exact, instead of ending early
            without being recorded.
        rest: Tensors of the shapes of what `update` returns besides the value, if they and that of the value are known
            before. On a CPU, all iterations are then made in the loop, and the graph has one of them instead of two.
    """
    if differentiable:
        return _all_iterations(lambda x: update(confined(x, scale)), start, max_iterations)
    tolerance = 4 * round_off(start.dtype)

    def is_moving(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        still = (
            (tf.abs(new - old) <= tolerance * (size + tf.abs(new)))
            | tf.equal(new, old)  # infinite both times
            | (tf.math.is_nan(new) & tf.math.is_nan(old))
        )
        return ~tf.reduce_all(still)

    def iterations(count: int, x: tf.Tensor, rest: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
        old = x
        for _ in range(count):
            old, (x, rest) = x, update(confined(x, scale))
        return x, rest, is_moving(x, old)

    # A tape that might differentiate the loop would keep the values of every iteration.
    with _compat.stop_recording():
        # An iteration before the loop gives everything the shape that it keeps, and a single one needs no loop. A GPU
        # makes the host wait for every look at what it computed.
        before, between = (int(rest is None or max_iterations == 1), 1) if runs_on_cpu(start) else (4, 2)
        if isinstance(max_iterations, int):
            before = min(before, max_iterations)
        x, rest, moving = iterations(before, start, rest) if before else (start, rest, tf.constant(True))
        if isinstance(max_iterations, int) and before == max_iterations:
            return x, rest
        x, rest, _ = tf.while_loop(
            lambda x, rest, moving: moving,
            lambda x, rest, moving: iterations(between, x, rest),
            (x, rest, moving),
            maximum_iterations=-(-(max_iterations - before) // between),
        )
        return x, rest


def _all_iterations(
    update: Callable[[tf.Tensor], tuple[tf.Tensor, Any]], start: tf.Tensor, count: int | tf.Tensor
) -> tuple[tf.Tensor, Any]:
    x, rest = update(start)
    if isinstance(count, int):
        # Unrolled: gradients of the loops that tf.vectorized_map makes fail in graphs.
        for _ in range(count - 1):
            x, rest = update(x)
        return x, rest
    _, x, rest = tf.while_loop(
        lambda i, x, rest: i < count,
        lambda i, x, rest: (i + 1, *update(x)),
        (1, x, rest),
        maximum_iterations=count - 1,
    )
    return x, rest
