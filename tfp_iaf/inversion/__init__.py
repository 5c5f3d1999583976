"""Solving y = f(x) for x, where f is one autoregressive step, and the gradient through the solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_iaf._numerics import nan_unless
from tfp_iaf.inversion._blockwise import blockwise
from tfp_iaf.inversion._fixed_point import fixed_point
from tfp_iaf.inversion._iteration import are_in_range, largest, round_off
from tfp_iaf.transforms import Transform

__all__ = ['blockwise', 'fixed_point', 'inverted']

Parameters = Callable[[tf.Tensor, Any], tf.Tensor]


def inverted(
    network: Callable[..., tf.Tensor],
    parameters: Parameters,
    transform: Transform,
    y: tf.Tensor,
    context: Any,
    *,
    event_ndims: int,
    context_ndims: int | None,
    method: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Inverts a step: returns x and the log-derivatives of the step at x, by entry.

    An event comes out as NaN as a whole if it or its context is not finite, if an entry of x or y is beyond 2.6e15 in
    float32, where a network can overflow, or if the step does not take the result back to `y` within 4000 units of
    round-off. Such an event leaves no NaN in the gradients of others.

    Args:
        network: The network of the step, for the method that it may have of its own.
        parameters: Evaluates the network at x and a context.
        transform: What each entry goes through.
        y: `[..., *event_shape]`.
        context: The context, or `None`.
        event_ndims: Number of axes of an event.
        context_ndims: Number of axes of a context, or `None` if that is not known. A row of such a context that is not
            finite is then left to the network.
        method: `'auto'` or `'fixed_point'`.
    """
    events = _flattened(y, event_ndims)
    is_valid = are_in_range(events)
    events = tf.where(is_valid, events, tf.zeros([], y.dtype))
    if context is not None:
        context = tf.convert_to_tensor(context)
    if context is not None and context_ndims is not None and context.dtype.is_floating:
        axes = list(range(-context_ndims, 0))
        of_context = tf.reduce_all(tf.math.is_finite(context), axis=axes, keepdims=True)
        context = tf.where(of_context, context, tf.zeros([], context.dtype))
        is_valid &= tf.squeeze(of_context, axes)[..., tf.newaxis] if axes else of_context[..., tf.newaxis]
    x, log_derivatives, image = _solved(network, parameters, transform, events, context, y, event_ndims, method)
    tolerance = 4000 * round_off(y.dtype)
    is_close = tf.abs(image - events) <= tolerance * (largest(events) + tf.exp(log_derivatives) * tf.abs(x))
    is_solved = is_valid & are_in_range(x) & tf.reduce_all(is_close, axis=-1, keepdims=True)
    x, log_derivatives = (nan_unless(is_solved, value) for value in (x, log_derivatives))
    return _restored(x, y, event_ndims), _restored(log_derivatives, y, event_ndims)


def _solved(
    network: Callable[..., tf.Tensor],
    parameters: Parameters,
    transform: Transform,
    events: tf.Tensor,
    context: tf.Tensor | None,
    y: tf.Tensor,
    event_ndims: int,
    method: str,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns x, the log-derivatives, and the image of x under the step, for events `[..., D]`."""

    def by_entry(x: tf.Tensor) -> tf.Tensor:
        params = parameters(_restored(x, y, event_ndims), context)
        return params if event_ndims == 1 else _flattened(params, event_ndims, last=transform.params)

    if method == 'auto' and hasattr(network, 'invert_step'):
        x, log_derivatives = network.invert_step(transform, _restored(events, y, event_ndims), context)
        x, log_derivatives = (_flattened(value, event_ndims) for value in (x, log_derivatives))
        image, _ = transform.forward(x, by_entry(x))
        return x, log_derivatives, tf.stop_gradient(image)
    if method == 'auto' and hasattr(network, 'masked_layers'):
        return blockwise(network.masked_layers(context), transform, events)
    return fixed_point(by_entry, transform, events)


def _flattened(value: tf.Tensor, event_ndims: int, last: int | None = None) -> tf.Tensor:
    """Folds the axes of an event into one; `last` is the size of an axis after them."""
    if event_ndims == 1 and last is None:
        return value
    others = 0 if last is None else 1
    shape, rank = tf.shape(value), value.shape.rank
    lead = shape[: rank - event_ndims - others] if rank is not None else shape[: tf.size(shape) - event_ndims - others]
    tail = [-1] if last is None else [-1, last]
    # An empty batch has no size from which the number of entries could be inferred.
    if rank is not None:
        event = value.shape[rank - event_ndims - others : rank - others]
        tail[0] = event.num_elements() if event.is_fully_defined() else tail[0]
    flat = tf.reshape(value, tf.concat([lead, tail], axis=0))
    if rank is not None:
        static = value.shape[: rank - event_ndims - others]
        flat = tf.ensure_shape(flat, static.concatenate([None if size == -1 else size for size in tail]))
    return flat


def _restored(value: tf.Tensor, y: tf.Tensor, event_ndims: int) -> tf.Tensor:
    """Gives `[..., D]` the event shape of y."""
    if event_ndims == 1:
        return value
    shape = tf.shape(y)
    event = shape[tf.size(shape) - event_ndims :]
    restored = tf.reshape(value, tf.concat([tf.shape(value)[:-1], event], axis=0))
    if None in (value.shape.rank, y.shape.rank):
        return restored
    return tf.ensure_shape(restored, value.shape[:-1].concatenate(y.shape[y.shape.rank - event_ndims :]))
