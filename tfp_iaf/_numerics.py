"""Marking what failed with NaN, without contaminating what did not."""

from __future__ import annotations

import tensorflow as tf

__all__ = ['are_in_range', 'bound', 'is_in_range', 'nan_unless']


def nan_unless(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Returns `value` where a condition holds, and NaN elsewhere.

    Where the condition holds everywhere, no NaN is ever made, not even as a constant, so
    `tf.debugging.enable_check_numerics` finds nothing to complain about.

    >>> nan_unless(tf.constant([True, False]), tf.constant([1., 2.])).numpy().tolist()
    [1.0, nan]
    """
    one = tf.ones([], value.dtype)
    return tf.where(condition, value, tf.sqrt(tf.where(condition, one, -one)))


def bound(dtype: tf.DType) -> float:
    """Returns the size beyond which a network cannot be evaluated without overflow: 2.6e15 in float32.

    >>> f'{bound(tf.float32):.1e}'
    '2.6e+15'
    """
    return float(dtype.max) ** 0.4


def is_in_range(value: tf.Tensor) -> tf.Tensor:
    """Tells which entries are finite and small enough for a network to be evaluated at them."""
    return tf.abs(value) < bound(value.dtype)


def are_in_range(value: tf.Tensor, event_ndims: int = 1) -> tf.Tensor:
    """Tells which events are in range as a whole, with axes of size 1 in the place of their own.

    >>> are_in_range(tf.constant([[1., 2.], [1., 1e30]])).numpy().tolist()
    [[True], [False]]
    """
    in_range = is_in_range(value)
    return tf.reduce_all(in_range, axis=list(range(-event_ndims, 0)), keepdims=True) if event_ndims else in_range
