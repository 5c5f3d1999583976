"""Guards of implicit gradients: what autodiff would get wrong is an error, never a wrong value."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

__all__ = ['first_order_only', 'guarded', 'refuse_forward_mode']

Gradient = Callable[..., tuple[tf.Tensor, ...]]

_MESSAGE = (
    'The inverse of an InverseAutoregressiveFlow has first derivatives only, in reverse mode. For others differentiate '
    'its forward direction, which has derivatives of every order and in both modes. Inside tf.vectorized_map the '
    'inverse has derivatives of every order, but a tf.function that was traced outside has none there: call the '
    'function that it wraps.'
)


def guarded(value: tf.Tensor) -> tf.Tensor:
    """Returns a value that a custom gradient covers, so that losing the custom gradient is an error.

    `tf.vectorized_map` rewrites the operations of a graph, and drops custom gradients as it does. Autodiff would then
    go through the operations underneath, with a result that is wrong without a word.
    """
    return value if tf.executing_eagerly() else tf.raw_ops.PreventGradient(input=value, message=_MESSAGE)


@tf.custom_gradient
def first_order_only(value: tf.Tensor, *sources: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Returns a gradient whose own gradient, for itself and for the sources that it was computed from, is an error."""

    def gradient(_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        raise NotImplementedError(_MESSAGE)

    return guarded(tf.identity(value)), gradient


def refuse_forward_mode(value: tf.Tensor) -> None:
    """Raises an error where TensorFlow, for a derivative in forward mode, calls a gradient in which no tape records."""
    with tf.GradientTape() as tape:
        tape.watch(value)
        same = tf.identity(value)
    if tape.gradient(same, value) is None:
        raise NotImplementedError(_MESSAGE)
