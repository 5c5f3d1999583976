"""Checks of arguments: every error names the argument, what came, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    'Activation',
    'check_batches',
    'checked_activation',
    'checked_axes',
    'checked_context',
    'checked_dtype',
    'checked_event',
    'checked_hidden_units',
    'checked_number',
    'checked_shape',
    'checked_size',
    'checked_tensor',
]

Activation = Callable[[tf.Tensor], tf.Tensor]

_ACTIVATIONS = ('elu', 'gelu', 'leaky_relu', 'relu', 'selu', 'sigmoid', 'silu', 'softplus', 'softsign', 'swish', 'tanh')


def checked_size(argument: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f'{argument}: got {value!r}, expected an int of at least {minimum}.')
    if value < minimum:
        raise ValueError(f'{argument}: got {value}, expected at least {minimum}.')
    return int(value)


def checked_number(argument: str, value: Any, minimum: float | None = None) -> float:
    """Returns `value` as a finite float, of at least `minimum`."""
    expected = 'a number' if minimum is None else f'a number of at least {minimum:g}'
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f'{argument}: got {value!r}, expected {expected}.')
    if not np.isfinite(value) or (minimum is not None and value < minimum):
        raise ValueError(f'{argument}: got {value}, expected {expected}, and finite.')
    return float(value)


def checked_hidden_units(hidden_units: Any, argument: str = 'hidden_units') -> tuple[int, ...]:
    """Returns the sizes of hidden layers as a tuple of at least one positive int."""
    if isinstance(hidden_units, (str, bytes)) or not isinstance(hidden_units, (Sequence, np.ndarray)):
        raise TypeError(f'{argument}: got {hidden_units!r}, expected a sequence of ints such as (320, 320).')
    if len(hidden_units) == 0:
        raise ValueError(f'{argument}: got no layers, expected at least one, such as (320,) or (320, 320).')
    return tuple(checked_size(argument, units) for units in hidden_units)


def checked_activation(activation: Any, dtype: tf.DType) -> Activation:
    """Returns the function of a name in `tf.nn`, or a function itself, which acts on every unit alone, in `dtype`."""
    if isinstance(activation, str) and activation in _ACTIVATIONS:
        return getattr(tf.nn, activation)
    if not callable(activation):
        error = ValueError if isinstance(activation, str) else TypeError
        raise error(f'activation: got {activation!r}, expected a callable or one of {_ACTIVATIONS}.')
    if hasattr(activation, 'trainable_variables'):
        raise TypeError(
            f'activation: got {activation!r}, an object that may hold variables, which the flow would neither '
            f'train nor save. Pass a name, or a function such as tf.nn.elu.'
        )
    with tf.init_scope():
        values = np.asarray(activation(tf.constant([[0.5, -1.0], [0.5, 2.0]], dtype)))
    if values.shape != (2, 2) or not np.isclose(values[0, 0], values[1, 0], equal_nan=True):
        raise ValueError(
            f'activation: got {activation!r}, expected a function that acts on every unit alone, as softmax does '
            f'not: an entry would then depend on those after it.'
        )
    return activation


def checked_axes(axis: Any, argument: str, value: tf.Tensor) -> list[int]:
    """Returns one axis, or several, of the tensor `argument`, as a list."""
    axes = [int(one) for one in ([axis] if isinstance(axis, (int, np.integer)) else axis)]
    rank = value.shape.rank
    if not axes or (rank is not None and not all(-rank <= one < rank for one in axes)):
        raise ValueError(f'axis: got {axis!r}, expected one or more axes of {argument}, of shape {value.shape}.')
    return axes


def checked_dtype(dtype: Any) -> tf.DType:
    """Returns `dtype` as `tf.float32` or `tf.float64`."""
    try:
        checked = tf.as_dtype(dtype)
    except TypeError:
        checked = None
    if checked not in (tf.float32, tf.float64):
        raise TypeError(
            f'dtype: got {dtype!r}, expected tf.float32 or tf.float64. In half precision a log-det, a sum over all '
            f'entries and steps, would be lost to rounding; under mixed precision the flow stays in float32.'
        )
    return checked


def checked_shape(argument: str, value: Any) -> tf.TensorShape:
    """Returns an int, or a sequence of ints, as the shape of an event."""
    sizes = [value] if isinstance(value, (int, np.integer)) else value
    if isinstance(sizes, tf.TensorShape):
        sizes = sizes.as_list() if sizes.rank is not None else [None]
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, (Sequence, np.ndarray)):
        raise TypeError(f'{argument}: got {value!r}, expected an int or a sequence of ints, such as 32 or [8, 8, 3].')
    if None in sizes:
        raise ValueError(f'{argument}: got {value!r}, expected all sizes to be known, such as 32 or [8, 8, 3].')
    return tf.TensorShape([checked_size(argument, size) for size in sizes])


def checked_tensor(argument: str, value: Any, shape: tf.TensorShape, dtype: tf.DType, owner: object) -> Any:
    """Returns `value`, of shape `[..., *shape]` and of `dtype`: a variable as it is, all else as a tensor.

    `owner` is the object that the message describes.
    """
    given = getattr(value, 'dtype', None)
    if (tf.is_tensor(value) or isinstance(value, tf.Module)) and given != dtype:
        given = tf.as_dtype(given)
        way_out = f', or make another with dtype=tf.{given.name}.' if given in (tf.float32, tf.float64) else '.'
        raise TypeError(
            f'{argument}: got dtype {given.name}, expected {dtype.name}, the dtype of {owner!r}. Cast it{way_out}'
        )
    # A variable, or TFP's stand-ins for one, would lose its gradient outside of a tape, and be lost to tracking.
    if not isinstance(value, (tf.Variable, tf.Module)):
        value = tf.convert_to_tensor(value, dtype=dtype, name=argument)
    rank = value.shape.rank
    if rank is not None and (rank < shape.rank or not value.shape[rank - shape.rank :].is_compatible_with(shape)):
        expected = ', '.join(['...', *map(str, shape)])
        raise ValueError(f'{argument}: got shape {value.shape}, expected [{expected}] for {owner!r}.')
    return value


def checked_event(argument: str, value: Any, shape: tf.TensorShape, dtype: tf.DType, owner: object) -> tf.Tensor:
    """Returns `value` as a tensor of shape `[..., *shape]` whose last sizes are known."""
    value = tf.convert_to_tensor(checked_tensor(argument, value, shape, dtype, owner))
    rank = value.shape.rank
    return value if rank is None else tf.ensure_shape(value, value.shape[: rank - shape.rank].concatenate(shape))


def checked_context(context: Any, shape: tf.TensorShape | None, dtype: tf.DType, owner: object) -> Any:
    """Returns `context`, of shape `[..., *shape]`, or `None` where `shape` is."""
    if shape is None:
        if context is not None:
            raise ValueError(
                f'context: got one for {owner!r}, which takes none. Leave it out, or give the network a context: pass '
                f'context_shape to it, or a third input to a Keras layer.'
            )
        return None
    if context is None:
        expected = ', '.join(['...', *map(str, shape)])
        raise ValueError(
            f'context: got None, expected a tensor of shape [{expected}] for {owner!r}. Pass context= to its call.'
        )
    return checked_tensor('context', context, shape, dtype, owner)


def check_batches(context: tf.TensorShape, argument: str, other: tf.TensorShape) -> None:
    """Raises an error if the leading shape of a context does not broadcast against that of another tensor."""
    if None not in (context.rank, other.rank):
        try:
            tf.broadcast_static_shape(context, other)
        except ValueError:
            raise ValueError(
                f'context: got the leading shape {context}, expected one that broadcasts against that of {argument}, '
                f'{other}: one context for each row, or one for all.'
            ) from None
