"""Not-a-number where something failed, and nowhere else."""

from __future__ import annotations

import tensorflow as tf

__all__ = ['nan_unless', 'split_off_nan']


def nan_unless(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Returns `value` where a condition holds, and NaN elsewhere.

    Where the condition holds everywhere, no NaN is ever made, not even as a constant, so
    `tf.debugging.enable_check_numerics` finds nothing to complain about.

    >>> nan_unless(tf.constant([True, False]), tf.constant([1., 2.])).numpy().tolist()
    [1.0, nan]
    """
    one = tf.ones([], value.dtype)
    return tf.where(condition, value, tf.sqrt(tf.where(condition, one, -one)))


def split_off_nan(value: tf.Tensor, event_ndims: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a value with zeros for what is not finite, and NaN, to be added to the results, for events that have it.

    A NaN or an infinity would reach the gradients of weights even if a mask keeps its event out of the loss, since zero
    times NaN is NaN.

    Args:
        value: `[..., *event_shape]`.
        event_ndims: Number of axes of an event.

    Returns:
        The value, and `[..., *ones]`: zero for events that are finite, and NaN for others.

    >>> value, nan = split_off_nan(tf.constant([[1., 2.], [3., float('inf')]]), event_ndims=1)
    >>> value.numpy().tolist(), nan.numpy().tolist()
    ([[1.0, 2.0], [3.0, 0.0]], [[0.0], [nan]])
    """
    finite = tf.where(tf.abs(value) <= value.dtype.max, value, tf.zeros([], value.dtype))
    # Nothing for what is finite. The sine of infinity is NaN.
    rest = tf.stop_gradient(value - finite)
    axes = list(range(-event_ndims, 0))
    return finite, tf.sin(tf.reduce_sum(rest, axis=axes, keepdims=True) if axes else rest)
