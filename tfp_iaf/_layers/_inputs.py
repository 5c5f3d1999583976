"""The inputs of a sampling layer: z_mean, z_log_var, perhaps a context, and perhaps the parameters of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = [
    'Shape',
    'aligned',
    'check_call',
    'check_inputs',
    'check_not_time_distributed',
    'check_prior_inputs',
    'checked_input',
    'checked_shapes',
    'common_rows',
]

Shape = tuple[int, ...]

_ARGUMENTS = ('z_mean', 'z_log_var', 'context')
_INPUTS = 'a list of [z_mean, z_log_var] or [z_mean, z_log_var, context], in this order'
_FOLD = (
    'A known number of steps is part of one event: keras.Input([10, 2]). For latents of their own at each step, '
    'however many there are, fold time into the batch: reshape the inputs to [batch * time, ...], and reshape z back.'
)


def check_call(inputs: Any, others: tuple[Any, ...], prior: Any, keras_name: str, name: str) -> None:
    """Raises an error if inputs are not in one list, or if any is a symbolic one of the other Keras."""
    if others:
        raise TypeError(
            f'inputs: got {1 + len(others)} positional arguments for {name}, expected {_INPUTS}. A prior is passed by '
            f'keyword: prior=[mean, log_var].'
        )
    other = {'keras': 'tf_keras', 'tf_keras': 'keras'}[keras_name]
    for argument, values in (('inputs', inputs), ('prior', prior)):
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if type(value).__module__.startswith(f'{other}.'):
                raise TypeError(
                    f'{argument}: got {value!r}, of {other}, for {name}, expected tensors of {keras_name}. A layer of '
                    f'one Keras does not fit into a model of the other: use its counterpart, such as '
                    f'tfp_iaf.{other}.IAFSampling.'
                )


def check_not_time_distributed(layer: Any, wrapper: Any, reason: str) -> None:
    """Raises an error if the wrapper `TimeDistributed`, under which the layer would not work, is building it."""
    if any(isinstance(caller, wrapper) and caller.layer is layer for caller in _compat.running_objects()):
        raise ValueError(f'inputs: got {layer.name!r} within TimeDistributed, which {reason}. {_FOLD}')


def checked_shapes(input_shape: Any) -> list[Shape]:
    """Returns the shapes of the inputs; the sizes of all axes but the first are known."""
    if (
        not isinstance(input_shape, (list, tuple))
        or len(input_shape) not in (2, 3)
        or not all(isinstance(shape, (list, tuple, tf.TensorShape)) for shape in input_shape)
    ):
        raise ValueError(f'inputs: got the shape(s) {input_shape}, expected {_INPUTS}.')
    shapes = [tuple(shape) for shape in input_shape]
    for argument, shape in zip(_ARGUMENTS, shapes, strict=False):
        if len(shape) < 2:
            raise ValueError(f'{argument}: got shape {shape}, expected [batch, ...]. The inputs are {_INPUTS}.')
        if None in shape[1:]:
            raise ValueError(
                f'{argument}: got shape {shape}, expected all sizes but that of the batch to be known. {_FOLD}'
            )
    if shapes[0][1:] != shapes[1][1:]:
        swapped = len(shapes) == 3 and shapes[0][1:] == shapes[2][1:]
        hint = ' Is the context in second place?' if swapped else ''
        raise ValueError(
            f'inputs: got the shapes {shapes}, expected equal ones for z_mean and z_log_var in {_INPUTS}.{hint}'
        )
    return shapes


def check_inputs(inputs: Any, event_shape: Shape | None, context_shape: Shape | None, layer: str) -> None:
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
    for argument, value, shape in zip(_ARGUMENTS, inputs, shapes, strict=False):
        if shape is not None:
            _check_rows(argument, value, shape, layer)
    given = [tf.TensorShape(value.shape) for value in inputs[:2]]
    if len({shape[0] for shape in given if shape.rank} - {None, 1}) > 1:
        raise ValueError(f'z_mean, z_log_var: got the shapes {given[0]} and {given[1]}, expected as many rows in both.')


def check_prior_inputs(prior: Any, rows: Any, event_shape: Shape | None, layer: str) -> None:
    """Raises an error if a prior at the call is not a mean and a log-variance for each row."""
    if not isinstance(prior, (list, tuple)) or len(prior) != 2 or not all(hasattr(value, 'shape') for value in prior):
        raise ValueError(
            f'prior: got {prior!r} at the call of {layer}, expected a list of two tensors, [mean, log_var]. Any other '
            f'prior goes to the constructor.'
        )
    for part, value in zip(('mean', 'log_var'), prior, strict=True):
        if event_shape is not None:
            _check_rows(f'prior: {part}', value, event_shape, layer)
        given = tf.TensorShape(value.shape)
        if given.rank and given[0] not in (None, 1, rows) and rows is not None:
            raise ValueError(
                f'prior: {part}: got shape {given}, expected {rows} rows, as many as z has, or one for all.'
            )


def _check_rows(argument: str, value: Any, shape: Shape, layer: str) -> None:
    _check_input(argument, value, shape, layer)
    rank = tf.TensorShape(value.shape).rank
    if rank is not None and rank != 1 + len(shape):
        raise ValueError(
            f'{argument}: got shape {value.shape}, expected [batch, {_sizes(shape)}], with one axis for the batch. For '
            f'several samples of a row, use the method posterior.'
        )


def _sizes(shape: Shape | None) -> str:
    return ', '.join(map(str, shape or ()))


def _check_input(argument: str, value: Any, shape: Shape, layer: str) -> None:
    dtype, given = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
    if not dtype.is_floating:
        raise TypeError(f'{argument}: got dtype {dtype.name}, expected a floating one. Cast it.')
    rank = len(shape)
    if given.rank is not None and (given.rank < rank or not given[given.rank - rank :].is_compatible_with(shape)):
        raise ValueError(
            f'{argument}: got shape {given}, expected [batch, {_sizes(shape)}], with which {layer} was built. The '
            f'inputs are {_INPUTS}, and prior=[mean, log_var] has the shape of z_mean.'
        )


def checked_input(argument: str, value: Any, shape: Shape, dtype: tf.DType, layer: str) -> tf.Tensor:
    """Returns `value`, `[..., *shape]`, in `dtype`."""
    value = tf.convert_to_tensor(value)
    _check_input(argument, value, shape, layer)
    return tf.cast(value, dtype)


def aligned(inputs: Sequence[tf.Tensor], dtype: tf.DType) -> list[tf.Tensor]:
    """Returns the inputs in `dtype`, all with as many rows: an input with one row has it for all."""
    values = [tf.cast(value, dtype) for value in inputs]
    rows = [value.shape[0] for value in values]
    if None not in rows and len(set(rows)) == 1:
        return values
    shape = tf.shape(values[0])[:1]
    for value in values[1:]:
        shape = tf.broadcast_dynamic_shape(shape, tf.shape(value)[:1])
    return [
        tf.ensure_shape(
            tf.broadcast_to(value, tf.concat([shape, tf.shape(value)[1:]], axis=0)),
            [common_rows([each.shape for each in values]), *value.shape[1:]],
        )
        for value in values
    ]


def common_rows(shapes: Sequence[Any]) -> int | None:
    """Returns how many rows inputs of these shapes have together, as far as it is known.

    >>> common_rows([(1, 2), (None, 2)]), common_rows([(1, 2), (5, 2)])
    (None, 5)
    """
    rows = {shape[0] for shape in shapes} - {1}
    known = rows - {None}
    return known.pop() if known else None if rows else 1
