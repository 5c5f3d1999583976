"""Masked products: how the kernel of a masked layer is stored, and how it is multiplied.

A kernel is stored as one plain matrix `[units in, units out]`, rows and columns sorted by degree, so that its mask is
block triangular. What is stored depends on the architecture alone. How it is multiplied is decided at the call: as one
masked matrix or, where that was measured to be faster, in blocks that skip what the mask forbids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfp_iaf._devices import runs_on_cpu
from tfp_iaf.networks import _masks

__all__ = ['MaskedKernel', 'gather', 'num_blocks_for', 'product', 'scaled']

# Measured on two cores: with fewer rows, or in smaller kernels, the copies that blocks take cost more than they skip.
_FEWEST_ROWS = 16
_LARGEST_WHOLE_KERNEL = 2**17
_NUM_BLOCKS = 4


def num_blocks_for(event_size: int, largest_kernel: int, values: tf.Tensor) -> int:
    """Returns in how many blocks to multiply: one on a GPU, where launches cost more than arithmetic.

    >>> num_blocks_for(32, 320 * 320, tf.zeros([100, 32]))
    1
    """
    rows = values.shape[0]
    is_small = largest_kernel <= _LARGEST_WHOLE_KERNEL or (rows is not None and rows < _FEWEST_ROWS)
    return 1 if is_small or event_size < _NUM_BLOCKS or not runs_on_cpu(values) else _NUM_BLOCKS


class MaskedKernel:
    r"""The mask of one layer, and the products with its kernel.

    $$y = v\, (K \odot M)$$

    In blocks, $y_b = v_{\le b}\, (K_{\le b, b} \odot M_{\le b, b})$: the units after block
    b, which it may not see, are not multiplied. See Eq. `strips` of the mathematics page.

    Args:
        layers: The sorted degrees of every layer of the network.
        layer: The layer from whose units the kernel leads to those of the next.
    """

    def __init__(self, layers: Sequence[np.ndarray], layer: int) -> None:
        self._layers, self._layer = layers, layer
        self.mask = _masks.mask(layers[layer], layers[layer + 1])
        self._eager_masks: dict[tuple[int, int, int, int], tf.Tensor] = {}

    def runs(self, num_blocks: int) -> tuple[list[slice], list[slice]]:
        """Returns the units that go in and those that come out, for each block of entries."""
        of_layers = _masks.runs(self._layers, num_blocks)
        return of_layers[self._layer], of_layers[self._layer + 1]

    def permitted(self, weights: tf.Tensor, rows: slice, columns: slice) -> tf.Tensor:
        """Returns a part of the kernel, or of a gradient of it, with zeros for what the mask forbids."""
        # Not a product with the mask, which would turn an infinite forbidden weight into NaN.
        return tf.where(self._mask_of(rows, columns), weights, tf.zeros([], weights.dtype))

    def whole(self, weights: tf.Tensor) -> tf.Tensor:
        """Returns the kernel, or a gradient of it, with zeros for what the mask forbids."""
        rows, columns = (slice(0, size) for size in self.mask.shape)
        return self.permitted(weights, rows, columns)

    def _mask_of(self, rows: slice, columns: slice) -> tf.Tensor:
        part = self.mask[rows, columns]
        if not tf.executing_eagerly():
            # A constant of this graph: an eager tensor would be captured, which gradients of loops do not survive.
            return tf.constant(part)
        key = (rows.start, rows.stop, columns.start, columns.stop)
        if key not in self._eager_masks:
            self._eager_masks[key] = tf.constant(part)
        return self._eager_masks[key]

    def __deepcopy__(self, memo: dict[int, object]) -> MaskedKernel:
        return MaskedKernel(self._layers, self._layer)

    def __call__(self, values: tf.Tensor, weights: tf.Tensor, num_blocks: int) -> tf.Tensor:
        """Multiplies values `[N, in]` by the kernel; the result is `[N, out]`."""
        if num_blocks == 1:
            return product(values, self.whole(weights))
        return self._in_blocks(values, weights, *self.runs(num_blocks))

    def _in_blocks(
        self, values: tf.Tensor, weights: tf.Tensor, inputs: Sequence[slice], outputs: Sequence[slice]
    ) -> tf.Tensor:
        # The units up to each block lead to its outputs. The units after it are forbidden as a whole.
        strips_at = [(slice(0, run.stop), columns) for run, columns in zip(inputs, outputs, strict=True)]
        size = self.mask.shape[0]

        # What autodiff would give. Autodiff would pad the gradient of each strip to the whole kernel, and add them up.
        @tf.custom_gradient
        def multiplied(
            values: tf.Tensor, weights: tf.Tensor
        ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
            known = [values[:, rows] if rows.stop < size else values for rows, _ in strips_at]
            strips = [self.permitted(weights[rows, columns], rows, columns) for rows, columns in strips_at]

            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                of_values, of_strips = [], []
                for value, strip, (rows, columns) in zip(known, strips, strips_at, strict=True):
                    part = upstream[:, columns]
                    after = size - rows.stop
                    of_values.append(_padded(product(part, strip, transposed=True), [0, after]))
                    of_strip = self.permitted(tf.matmul(value, part, transpose_a=True), rows, columns)
                    of_strips.append(_padded(of_strip, [after, 0]))
                return tf.add_n(of_values), tf.concat(of_strips, axis=1)

            return tf.concat([product(*factors) for factors in zip(known, strips, strict=True)], axis=1), gradient

        return multiplied(values, weights)


def _padded(value: tf.Tensor, after: Sequence[int]) -> tf.Tensor:
    return tf.pad(value, [[0, size] for size in after]) if any(after) else value


def product(values: tf.Tensor, kernel: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """Multiplies values by a kernel `[in, out]`, or by its transpose."""
    # A layer with fewer units than entries leaves blocks without units; XLA on a CPU cannot multiply by nothing.
    if 0 in kernel.shape:
        return tf.zeros([tf.shape(values)[0], kernel.shape[0 if transposed else 1]], values.dtype)
    return tf.matmul(values, kernel, transpose_b=transposed)


def scaled(value: tf.Tensor, scale: np.ndarray | None, columns: slice = slice(None)) -> tf.Tensor:
    """Multiplies some columns by what their sums are scaled by, if they are."""
    return value if scale is None else value * scale[columns]


def gather(value: tf.Tensor, order: np.ndarray, axis: int) -> tf.Tensor:
    """Permutes the entries along an axis; the gradient is a gather too, where that of `tf.gather` is a scatter."""
    entries = np.arange(order.size)
    if np.array_equal(order, entries):
        return value
    if np.array_equal(order, entries[::-1]):
        return tf.reverse(value, axis=[axis])
    return _gather(value, tuple(order.tolist()), axis)


def _gather(value: tf.Tensor, order: tuple[int, ...], axis: int) -> tf.Tensor:
    @tf.custom_gradient
    def permuted(value: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return _gather(upstream, tuple(np.argsort(order).tolist()), axis)

        return tf.gather(value, np.asarray(order), axis=axis), gradient

    return permuted(value)
