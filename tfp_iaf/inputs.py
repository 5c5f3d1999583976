"""The inputs of a Keras layer: z_mean, z_log_var, and perhaps a context, of any rank, flattened for the flow."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ['check_call', 'check_inputs', 'checked_shapes', 'flattened']

_INPUTS = 'a list of [z_mean, z_log_var] or [z_mean, z_log_var, context], in this order'


def check_call(inputs: Any, others: tuple[Any, ...], keras_name: str, name: str) -> None:
    """Raises an error if inputs are not in one list, or are symbolic ones of the other Keras."""
    if others:
        raise TypeError(f'inputs: got {1 + len(others)} positional arguments for {name}, expected {_INPUTS}.')
    other = {'keras': 'tf_keras', 'tf_keras': 'keras'}[keras_name]
    for value in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
        if type(value).__module__.startswith(f'{other}.'):
            raise TypeError(
                f'inputs: got {value!r}, of {other}, for {name}, expected tensors of {keras_name}. A layer of one '
                f'Keras does not fit into a model of the other: take tfp_iaf.{other}.IAFSampling.'
            )


def checked_shapes(input_shape: Any) -> list[tuple[int, ...]]:
    """Returns the shapes of the inputs, all but the first axis known."""
    if (
        not isinstance(input_shape, (list, tuple))
        or len(input_shape) not in (2, 3)
        or not all(isinstance(shape, (list, tuple, tf.TensorShape)) for shape in input_shape)
    ):
        raise ValueError(f'inputs: got the shape(s) {input_shape}, expected {_INPUTS}.')
    shapes = [tuple(shape) for shape in input_shape]
    if any(len(shape) < 2 or None in shape[1:] for shape in shapes):
        raise ValueError(
            f'inputs: got the shapes {shapes}, expected [batch, ...] with known last dimensions: all but the batch '
            f'size.'
        )
    if shapes[0][1:] != shapes[1][1:]:
        swapped = len(shapes) == 3 and shapes[0][1:] == shapes[2][1:]
        hint = ' Is the context in second place?' if swapped else ''
        raise ValueError(
            f'inputs: got the shapes {shapes}, expected equal ones for z_mean and z_log_var in {_INPUTS}.{hint}'
        )
    return shapes


def check_inputs(
    inputs: Any, event_shape: tuple[int, ...] | None, context_shape: tuple[int, ...] | None, layer: str
) -> None:
    """Raises an error if the inputs of a call do not fit the shapes with which the layer of this name was built."""
    if not isinstance(inputs, (list, tuple)) or len(inputs) not in (2, 3):
        raise ValueError(f'inputs: got {inputs!r}, expected {_INPUTS}.')
    if event_shape is not None and (len(inputs) == 3) != (context_shape is not None):
        passed, expected = ('one', 'none') if len(inputs) == 3 else ('none', f'one, [batch, {_sizes(context_shape)}]')
        raise ValueError(
            f'context: got {passed}, expected {expected}, as {layer} was built. Pass {_INPUTS}, as at its first call, '
            f'or make another layer.'
        )
    shapes = (event_shape, event_shape, context_shape)
    for argument, value, shape in zip(('z_mean', 'z_log_var', 'context'), inputs, shapes, strict=False):
        if shape is not None:
            _check_input(argument, value, shape, layer)
            rank = tf.TensorShape(value.shape).rank
            if rank is not None and rank != 1 + len(shape):
                raise ValueError(
                    f'{argument}: got shape {value.shape}, expected [batch, {_sizes(shape)}], with one axis for the '
                    f'batch. For several samples of a row, use the method posterior.'
                )
    given = [tf.TensorShape(value.shape) for value in inputs[:2]]
    if len({shape[0] for shape in given if shape.rank} - {None, 1}) > 1:
        raise ValueError(f'z_mean, z_log_var: got the shapes {given[0]} and {given[1]}, expected as many rows in both.')


def _sizes(shape: tuple[int, ...] | None) -> str:
    return ', '.join(map(str, shape or ()))


def _check_input(argument: str, value: Any, shape: tuple[int, ...], layer: str) -> None:
    dtype, given = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
    if not dtype.is_floating:
        raise TypeError(f'{argument}: got dtype {dtype.name}, expected a floating one. Cast it.')
    rank = len(shape)
    if given.rank is not None and (given.rank < rank or not given[given.rank - rank :].is_compatible_with(shape)):
        raise ValueError(
            f'{argument}: got shape {given}, expected [batch, {_sizes(shape)}], with which {layer} was '
            f'built. The inputs are {_INPUTS}.'
        )


def flattened(argument: str, value: Any, shape: tuple[int, ...], dtype: tf.DType, layer: str) -> tf.Tensor:
    """Returns `value`, `[..., *shape]`, with one axis for `shape`, in `dtype`."""
    value = tf.convert_to_tensor(value)
    _check_input(argument, value, shape, layer)
    value = tf.cast(value, dtype)
    if len(shape) == 1:
        return value
    return tf.reshape(value, tf.concat([tf.shape(value)[: -len(shape)], [math.prod(shape)]], axis=0))
