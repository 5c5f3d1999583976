"""Checks of arguments: every error names the argument, what came, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    'checked_context',
    'checked_dtype',
    'checked_hidden_units',
    'checked_number',
    'checked_size',
    'checked_tensor',
]


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


def checked_hidden_units(hidden_units: Any) -> tuple[int, ...]:
    """Returns `hidden_units` as a tuple of at least one positive int."""
    if isinstance(hidden_units, (str, bytes)) or not isinstance(hidden_units, (Sequence, np.ndarray)):
        raise TypeError(f'hidden_units: got {hidden_units!r}, expected a sequence of ints such as (320, 320).')
    if len(hidden_units) == 0:
        raise ValueError('hidden_units: got no layer, expected at least one, such as (320,) or (320, 320).')
    return tuple(checked_size('hidden_units', units) for units in hidden_units)


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


def checked_tensor(argument: str, value: Any, size: int, dtype: tf.DType, owner: object) -> Any:
    """Returns `value`, of shape `[..., size]` and of `dtype`: a variable as it is, all else as a tensor.

    `owner` is the object that the message describes.
    """
    given = getattr(value, 'dtype', None)
    if (tf.is_tensor(value) or isinstance(value, tf.Module)) and given != dtype:
        raise TypeError(
            f'{argument}: got dtype {tf.as_dtype(given).name}, expected {dtype.name}, the dtype of {owner!r}. Cast it, '
            f'or choose another dtype there.'
        )
    # A variable, or TFP's own stand-ins for one, would lose its gradient outside of a tape, and be lost to tracking.
    if not isinstance(value, (tf.Variable, tf.Module)):
        value = tf.convert_to_tensor(value, dtype=dtype, name=argument)
    shape = value.shape
    if shape.rank == 0 or (shape.rank is not None and shape[-1] not in (None, size)):
        raise ValueError(f'{argument}: got shape {shape}, expected [..., {size}] for {owner!r}.')
    return value


def checked_context(context: Any, size: int | None, dtype: tf.DType, owner: object) -> Any:
    """Returns `context`, of shape `[..., size]`, or `None` where `size` is."""
    if size is None:
        if context is not None:
            raise ValueError(
                f'context: got one for {owner!r}, which has none. Leave it out, or make it anew with one: Pass '
                f'context_size, or, to a Keras layer, a third input.'
            )
        return None
    if context is None:
        raise ValueError(
            f'context: got None, expected a tensor of shape [..., {size}], since {owner!r} was made with '
            f'context_size={size}. Pass context= to the step or its constructor; to a tfb.Chain, nested by the '
            f'name of the step; to a distribution, in bijector_kwargs={{...}}.'
        )
    return checked_tensor('context', context, size, dtype, owner)
