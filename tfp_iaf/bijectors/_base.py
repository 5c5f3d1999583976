"""What bijectors of vectors whose parameters are tensors have in common: shapes, dtypes, caching, and NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._caching import CachedBijector, Dependencies
from tfp_iaf._checks import checked_dtype, checked_event, checked_tensor
from tfp_iaf._numerics import are_in_range, nan_unless

__all__ = ['VectorFlow', 'common_dtype', 'last_size', 'positive']

Values = Mapping[str, tf.Tensor]


class VectorFlow(CachedBijector):
    """A bijector of vectors whose parameters are tensors with a batch shape, variables, or what gives either.

    A subclass says how many event axes each parameter has in `_PARAMETERS`, and defines `_forward_and_log_det` and
    `_inverse_and_log_det`, which get a point and the values of the parameters. Neither sees a number that is out of
    range: an event with such an entry, in the point or in a parameter, comes out as NaN, and leaves no NaN in the
    gradients of others.
    """

    _PARAMETERS: ClassVar[Mapping[str, int]]

    def __init__(
        self,
        tensors: Mapping[str, Any],
        event_size: int | None,
        dtype: tf.DType,
        *,
        parameters: dict[str, Any],
        validate_args: bool,
        name: str,
    ) -> None:
        self._tensors = dict(tensors)
        self._event = tf.TensorShape([event_size])
        self._batch = tf.TensorShape([])
        for argument, value in self._tensors.items():
            rank = value.shape.rank
            lead = tf.TensorShape(None) if rank is None else value.shape[: rank - self._PARAMETERS[argument]]
            self._batch = _broadcast(argument, lead, self._batch)
        super().__init__(
            forward_min_event_ndims=1,
            dtype=dtype,
            validate_args=validate_args,
            parameters={**parameters, **self._tensors},
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType | None) -> dict[str, Any]:
        return {name: _compat.parameter_properties(event_ndims=ndims) for name, ndims in cls._PARAMETERS.items()}

    def _forward_and_log_det(self, x: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor]:
        raise NotImplementedError

    def _inverse_and_log_det(self, y: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns x, the log-det of the forward direction at x, and which events are solved."""
        raise NotImplementedError

    def _augmented_forward(self, x: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
        x, values, is_known = self._finite('x', x)
        y, log_det = self._forward_and_log_det(x, values)
        return nan_unless(is_known[..., tf.newaxis], y), self._attributes(nan_unless(is_known, log_det))

    def _augmented_inverse(self, y: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
        y, values, is_known = self._finite('y', y)
        x, log_det, is_solved = self._inverse_and_log_det(y, values)
        is_known &= is_solved
        return nan_unless(is_known[..., tf.newaxis], x), self._attributes(nan_unless(is_known, log_det))

    def _finite(self, argument: str, point: tf.Tensor) -> tuple[tf.Tensor, Values, tf.Tensor]:
        """Returns the point and the parameters, with zeros for events that are out of range, and which are not."""
        point = checked_event(argument, point, self._event, self.dtype, self.name)
        if point.shape.rank is not None:
            _broadcast(argument, point.shape[:-1], self._batch)
        values = {name: tf.convert_to_tensor(value) for name, value in self._tensors.items()}
        finite, is_known = _zero_unless_in_range(point, 1)
        for name, value in values.items():
            values[name], of_value = _zero_unless_in_range(value, self._PARAMETERS[name])
            is_known &= of_value
        return finite, values, is_known

    def _attributes(self, log_det: tf.Tensor) -> dict[str, Any]:
        return {'ildj': -log_det, 'dependencies': Dependencies(self._tensors.values())}


def positive(x: tf.Tensor) -> tf.Tensor:
    """Returns 1 + x for x above 0, and 1 / (1 - x) below: positive, smooth, 1 at 0, without over- or underflow.

    >>> positive(tf.constant([-3., 0., 3.])).numpy().tolist()
    [0.25, 1.0, 4.0]
    """
    return tf.where(x < 0, 1 / (1 - tf.minimum(x, 0)), 1 + x)


def common_dtype(tensors: Mapping[str, Any]) -> tf.DType:
    """Returns the dtype of the first value that has one, or float32."""
    given = [value.dtype for value in tensors.values() if hasattr(value, 'dtype')]
    return checked_dtype(given[0] if given else tf.float32)


def last_size(argument: str, value: Any, dtype: tf.DType, name: str) -> int | None:
    """Returns the size of the last axis of a parameter, as far as it is known."""
    shape = checked_tensor(argument, value, tf.TensorShape([None]), dtype, name).shape
    return None if shape.rank is None else shape[-1]


def _broadcast(argument: str, lead: tf.TensorShape, batch: tf.TensorShape) -> tf.TensorShape:
    try:
        return tf.broadcast_static_shape(lead, batch)
    except ValueError:
        raise ValueError(
            f'{argument}: got the leading shape {lead}, expected one that broadcasts against that of the (other) '
            f'parameters, {batch}: one set of parameters for each row, or one for all.'
        ) from None


def _zero_unless_in_range(value: tf.Tensor, event_ndims: int) -> tuple[tf.Tensor, tf.Tensor]:
    in_range = are_in_range(value, event_ndims)
    finite = tf.where(in_range, value, tf.zeros([], value.dtype))
    return finite, tf.squeeze(in_range, list(range(-event_ndims, 0))) if event_ndims else in_range
