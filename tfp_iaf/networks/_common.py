"""What the masked networks, dense and convolutional, have in common: arguments, variables, the place of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf._checks import (
    Activation,
    check_batches,
    checked_activation,
    checked_context,
    checked_dtype,
    checked_event,
    checked_shape,
    checked_size,
)
from tfp_iaf._shapes import Lead, lead_of, reshaped
from tfp_iaf._tracking import check_keras_tracks

__all__ = ['MaskedNetwork', 'VariableFactory', 'plus_offset']

VariableFactory = Callable[[str, np.ndarray], tf.Variable]

# The outputs start small, so that a step starts close to the identity.
_OUTPUT_SCALE = 0.1


class MaskedNetwork(tf.Module):
    """A network of masked layers, the first of which gets a context too: its arguments, and its variables.

    A subclass makes its masks, passes them to `_make_variables`, and defines `unchecked_call`.
    """

    _context_kernel: tf.Variable | None
    _kernels: tuple[tf.Variable, ...]
    _biases: tuple[tf.Variable, ...]
    _scales: tuple[np.ndarray | None, ...]

    def __init__(
        self,
        event_shape: int | Sequence[int],
        context_shape: int | Sequence[int] | None,
        params: int,
        activation: str | Activation,
        dtype: tf.DType,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self._event_shape = checked_shape('event_shape', event_shape)
        self._context_shape: Any = None
        if context_shape is not None:
            self._context_shape = checked_shape('context_shape', context_shape)
        self._params = checked_size('params', params)
        self._dtype = checked_dtype(dtype)
        self._activation = checked_activation(activation, self._dtype)

    def _make_variables(
        self,
        masks: Sequence[np.ndarray],
        context_size: int | None,
        rng: np.random.Generator,
        variable_factory: VariableFactory | None,
        base_width: float = np.inf,
    ) -> None:
        """Makes a kernel for each mask, `[..., in, out]`, the biases, and the kernel of the context.

        Sums of more than `base_width` terms are to be scaled by `_scales`, `[out]`, which is `None` where none is.
        """
        make_variable, dtype = variable_factory or _make_variable, self._dtype.as_numpy_dtype

        def normal(shape: Sequence[int], spread: np.ndarray) -> np.ndarray:
            return (spread * rng.standard_normal(shape)).astype(dtype)

        kernels, biases, scales = [], [], []
        self._context_kernel = None
        for i, mask in enumerate(masks):
            more = (context_size or 0) if i == 0 else 0
            # The fan-in is that of the mask: a unit of low degree has few inputs, and needs larger weights for a
            # pre-activation of the same variance.
            fan_in = np.maximum(mask.reshape([-1, mask.shape[-1]]).sum(axis=0) + more, 1)
            scale = np.minimum(base_width / fan_in, 1.0)
            # A hidden unit keeps its variance in a wide network; the outputs shrink, like the steps of the optimizer.
            spread = 1.0 / (np.sqrt(fan_in) * scale)
            if i == len(masks) - 1:
                spread = _OUTPUT_SCALE / np.sqrt(fan_in * scale)
            if more:
                self._context_kernel = make_variable('context_kernel', normal([more, fan_in.size], spread))
            kernels.append(make_variable(f'kernel_{i}', normal(mask.shape, spread) * mask))
            biases.append(make_variable(f'bias_{i}', np.zeros(fan_in.size, dtype)))
            scales.append(scale.astype(dtype) if np.any(scale < 1) else None)
        self._kernels, self._biases, self._scales = tuple(kernels), tuple(biases), tuple(scales)

    @property
    def event_shape(self) -> tf.TensorShape:
        """Shape of an event."""
        return self._event_shape

    @property
    def context_shape(self) -> tf.TensorShape | None:
        """Shape of the context, or `None`."""
        return self._context_shape

    @property
    def params(self) -> int:
        """Parameters per entry."""
        return self._params

    @property
    def dtype(self) -> tf.DType:
        """Dtype of the variables and of the outputs."""
        return self._dtype

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """All variables; as `tf.Module` finds them, but without its search through all attributes."""
        context = () if self._context_kernel is None else (self._context_kernel,)
        return (*context, *self._kernels, *self._biases)

    def __repr__(self) -> str:
        context = None if self._context_shape is None else self._context_shape.as_list()
        return (
            f'<{type(self).__name__} {self.name!r}: event_shape={self._event_shape.as_list()}, '
            f'{self._repr_of_layers()}, context_shape={context}, params={self._params}, dtype={self._dtype.name}>'
        )

    def _repr_of_layers(self) -> str:
        raise NotImplementedError

    def __call__(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters `[..., *event_shape, P]` of every entry of `x`; see the class."""
        x = checked_event('x', x, self._event_shape, self._dtype, self)
        context = checked_context(context, self._context_shape, self._dtype, self)
        check_keras_tracks(self.variables)
        if context is not None:
            check_batches(
                lead_of(context, self._context_shape.rank).static, 'x', lead_of(x, self._event_shape.rank).static
            )
        return self.unchecked_call(x, context)

    def unchecked_call(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Does what calling the network does, for arguments that were checked before."""
        raise NotImplementedError


def plus_offset(rows: tf.Tensor, lead: Lead, offset: tf.Tensor, unit_shape: Sequence[int]) -> tuple[tf.Tensor, Lead]:
    """Adds a bias, or the context's share, to the sums of the first layer.

    Args:
        rows: The sums, `[N, *unit_shape]`.
        lead: The leading shape that was folded into N.
        offset: A bias `[units]`, or the context's share `[..., *unit_shape]`, which broadcasts against `lead`.
        unit_shape: The shape of the units.

    Returns:
        The total, `[N, *unit_shape]`, and the leading shape that is folded into its N.

    >>> rows, lead = plus_offset(tf.zeros([6, 4]), lead_of(tf.zeros([2, 3, 4]), 1), tf.ones([3, 4]), [4])
    >>> rows.shape, lead.static
    (TensorShape([6, 4]), TensorShape([2, 3]))
    """
    rank, of_offset = len(unit_shape), offset.shape.rank
    if of_offset is not None and of_offset <= rank:
        return rows + offset, lead
    if of_offset == rank + 1 and lead.static.rank in (0, 1):
        # One for each event of a flat batch: it broadcasts as it is.
        total = rows + offset
        return total, lead_of(total, rank)
    total = reshaped(rows, lead, unit_shape) + offset
    return tf.reshape(total, [-1, *unit_shape]), lead_of(total, rank)


def _make_variable(name: str, value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, name=name)
