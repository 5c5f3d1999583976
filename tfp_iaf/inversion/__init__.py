"""Solving y = f(x) for x, where f is one autoregressive step, and the gradient through the solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_iaf._numerics import are_in_range, nan_unless
from tfp_iaf._shapes import event_sizes, lead_of, reshaped
from tfp_iaf.inversion._blockwise import blockwise
from tfp_iaf.inversion._fixed_point import fixed_point
from tfp_iaf.inversion._iteration import largest, round_off
from tfp_iaf.networks._base import depth_of
from tfp_iaf.transforms import Transform

__all__ = ['blockwise', 'fixed_point', 'inverted']

Parameters = Callable[[tf.Tensor, Any], tf.Tensor]


def inverted(
    network: Callable[..., tf.Tensor],
    parameters: Parameters,
    transform: Transform,
    y: tf.Tensor,
    context: Any,
    is_known: tf.Tensor | bool,
    *,
    event_ndims: int,
    method: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Inverts a step: returns x and the log-derivatives of the step at x, by entry.

    An event comes out as NaN as a whole if it is not finite, if an entry of x or y is beyond 2.6e15 in float32, where
    a network can overflow, or if the step does not take the result back to `y` within 4000 units of round-off. Such an
    event leaves no NaN in the gradients of others.

    Args:
        network: The network of the step, for the method that it may have of its own.
        parameters: Evaluates the network at x and a context.
        transform: The elementwise transform.
        y: `[..., *event_shape]`.
        context: The context, or `None`.
        is_known: Which events have a context that is in range, `[..., 1]`; the others come out as NaN.
        event_ndims: Number of axes of an event.
        method: `'auto'` or `'fixed_point'`.
    """
    sizes = event_sizes(y, event_ndims)
    event_size = tf.reduce_prod(tf.stack(sizes)) if any(map(tf.is_tensor, sizes)) else math.prod(sizes)

    def flattened(value: tf.Tensor, *last: int) -> tf.Tensor:
        if event_ndims == 1:
            return value
        return reshaped(value, lead_of(value, event_ndims + len(last)), [event_size, *last])

    def restored(value: tf.Tensor) -> tf.Tensor:
        return value if event_ndims == 1 else reshaped(value, lead_of(value, 1), sizes)

    def parameters_by_entry(x: tf.Tensor) -> tf.Tensor:
        return flattened(parameters(restored(x), context), transform.params)

    events = flattened(y)
    is_valid = are_in_range(events)
    events = tf.where(is_valid, events, tf.zeros([], y.dtype))
    if method == 'auto' and hasattr(network, 'invert_step'):
        x, log_derivatives = map(flattened, network.invert_step(transform, restored(events), context))
        image = tf.stop_gradient(transform.forward(x, parameters_by_entry(x))[0])
    elif method == 'auto' and hasattr(network, 'masked_layers'):
        x, log_derivatives, image = blockwise(network.masked_layers(context), transform, events)
    else:
        x, log_derivatives, image = fixed_point(parameters_by_entry, transform, events, depth_of(network))
    tolerance = 4000 * round_off(y.dtype)
    is_close = tf.abs(image - events) <= tolerance * (largest(events) + tf.exp(log_derivatives) * tf.abs(x))
    is_solved = is_known & is_valid & are_in_range(x) & tf.reduce_all(is_close, axis=-1, keepdims=True)
    return restored(nan_unless(is_solved, x)), restored(nan_unless(is_solved, log_derivatives))
