"""The protocol of a network, and what a step reads from any callable that stands in for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfp_iaf._checks import Activation, checked_shape, checked_size

__all__ = ['ANY_CONTEXT', 'MaskedLayers', 'Network', 'Signature', 'depth_of', 'signature_of']


class Network(Protocol):
    r"""What a step needs of an autoregressive network.

    $$\mathrm{params}_i = \mathrm{network}(x_{<i}, h)$$

    `MaskedAutoregressiveNetwork` is one. A network of your own has these attributes and is callable. A step also takes
    any other callable, such as a function or a `tfb.AutoregressiveNetwork`; it then checks less.

    Shapes: x `[..., *event_shape]`, context `[..., *context_shape]`, result `[..., *event_shape, P]`; leading shapes
    broadcast. Dtype: `dtype`, for the arguments and the result. Cost: a step makes one call per sample.

    A network may have more, which a step then uses:

    - `invert_step(transform, y, context)` returns x and the log-derivatives of the transform at x, both of the shape of
      y: an inverse that beats the fixed-point iteration. One more pass checks it.
    - `masked_layers(context)` returns its `MaskedLayers`, for which a step is inverted block by block.
    - `depth`, an int, bounds the iterations of the inverse: the number of entries in the longest chain in which each
      depends on the one before. By default that is the number of entries.
    - `unchecked_call(x, context)` does what calling it does, without checking arguments that the step has checked.

    Attributes:
        event_shape: Shape of an event.
        context_shape: Shape of a context, or `None` for a network without one.
        params: Parameters per entry, P.
        dtype: Dtype of the variables and the outputs.
        variables: All variables.
    """

    event_shape: tf.TensorShape
    context_shape: tf.TensorShape | None
    params: int
    dtype: tf.DType
    variables: Sequence[tf.Variable]

    def __call__(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters `[..., *event_shape, P]` for x `[..., *event_shape]`."""
        ...


class _AnyContext:
    def __repr__(self) -> str:
        return 'a context of any shape, or none'


# The context shape of a callable that does not tell.
ANY_CONTEXT = _AnyContext()


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a callable tells about its arguments and results: what it does not tell is `None`, or `ANY_CONTEXT`."""

    event_shape: tf.TensorShape | None
    context_shape: tf.TensorShape | _AnyContext | None
    params: int | None
    dtype: tf.DType | None


def signature_of(network: Callable[..., tf.Tensor]) -> Signature:
    """Reads the attributes of the `Network` protocol, as far as a callable has them."""
    event_shape = getattr(network, 'event_shape', None)
    context_shape = getattr(network, 'context_shape', ANY_CONTEXT)
    params, dtype = getattr(network, 'params', None), getattr(network, 'dtype', None)
    return Signature(
        event_shape=None if event_shape is None else tf.TensorShape(event_shape),
        context_shape=context_shape
        if context_shape in (None, ANY_CONTEXT)
        else checked_shape('context_shape', context_shape),
        params=int(params) if isinstance(params, (int, np.integer)) else None,
        dtype=dtype if isinstance(dtype, tf.DType) else None,
    )


def depth_of(network: Callable[..., tf.Tensor]) -> int | None:
    """Returns the `depth` of a `Network`, if it has one; other callables may mean something else by it."""
    depth = getattr(network, 'depth', None)
    return None if depth is None or not hasattr(network, 'event_shape') else checked_size('network.depth', depth)


@dataclasses.dataclass(frozen=True)
class MaskedLayers:
    """The layers of a masked dense network for one context, as the blockwise inverse takes them.

    Entries and units are sorted by degree; see `_masks`.

    Attributes:
        order: The indices of the entries, in the order in which they come.
        kernels: How the kernel of each layer is masked and multiplied: `MaskedKernel` objects.
        weights: The kernel of each layer, `[units in, units out]`.
        scales: What each layer multiplies the product by, `[units]`, or `None`.
        offsets: What each layer adds to the product, `[units]`; for the first one, `[..., units]`, the context's share
            included.
        activation: The activation of the hidden layers.
        params: Parameters per entry.
    """

    order: np.ndarray
    kernels: Sequence[Any]
    weights: Sequence[tf.Tensor]
    scales: Sequence[np.ndarray | None]
    offsets: Sequence[tf.Tensor]
    activation: Activation
    params: int
