"""Kernels of masked layers, stored and multiplied without a part of what their masks forbid.

Degrees are sorted within every layer, so that a kernel is block triangular: with rows and columns cut where the entries
are cut in half, one quarter of it, the corner, is permitted as a whole, the opposite one is forbidden as a whole, and
the two on the diagonal are triangles like the kernel itself. Only the squares at which the cutting stops need a mask.
This is Eq. (15), (16) of the mathematics page.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfp_iaf import masks

__all__ = [
    'Block',
    'Halved',
    'Layout',
    'Square',
    'Triangle',
    'default_num_blocks',
    'joined',
    'product',
    'products',
    'split',
]

# Measured: smaller squares save less than their operations cost; more blocks save little, and take long to compile.
_LARGEST_SQUARE = 2**16
_MOST_BLOCKS = 4


def default_num_blocks(event_size: int, largest_kernel: int) -> int:
    """Returns in how many blocks to cut a network: 1, 2 or 4, the fewest whose squares have 2^16 weights at most.

    >>> [default_num_blocks(32, units**2) for units in (256, 320, 1024)]
    [1, 2, 4]
    """
    count = 1
    while count < _MOST_BLOCKS and 2 * count <= event_size and largest_kernel > count**2 * _LARGEST_SQUARE:
        count *= 2
    return count


class Block:
    """Consecutive ranks, and the run of units in each layer that goes with them.

    Args:
        degrees: The sorted degrees of every layer, from the entries to the outputs; see `masks.degrees`.
        start, stop: The ranks.
    """

    def __init__(self, degrees: Sequence[np.ndarray], start: int, stop: int) -> None:
        self._degrees, self._start, self._stop = degrees, start, stop
        # An entry goes with the units that it comes just too late for: those whose degree is its rank.
        entries, *others = degrees
        cuts = [np.searchsorted(layer, [start, stop]) for layer in (entries - 1, *others)]
        self.runs = tuple(slice(int(first), int(last)) for first, last in cuts)

    @property
    def event_size(self) -> int:
        """Number of entries."""
        return self._stop - self._start

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units in each layer."""
        return tuple(run.stop - run.start for run in self.runs)

    @functools.cached_property
    def halves(self) -> tuple[Block, Block]:
        """The block in two, the first of which has the odd entry."""
        middle = (self._start + self._stop + 1) // 2
        return Block(self._degrees, self._start, middle), Block(self._degrees, middle, self._stop)

    def cut(self, count: int) -> list[Block]:
        """Returns the block in `count` parts, a power of two."""
        return [self] if count == 1 else [part for half in self.halves for part in half.cut(count // 2)]


@dataclasses.dataclass(frozen=True)
class Square:
    """What a layer's kernel has for a block, as a matrix with a mask.

    Args:
        block: The block.
        layer: The layer from whose units the weights lead to those of the next.
        weights: All weights between the two runs of units, with those that are forbidden.
        permitted: The mask.
    """

    block: Block
    layer: int
    weights: tf.Tensor
    permitted: tf.Tensor

    def masked(self) -> tf.Tensor:
        """Returns the weights, with zeros for the forbidden ones."""
        # Not a product with the mask: that would let an infinite forbidden weight through as NaN.
        return tf.where(self.permitted, self.weights, tf.zeros([], self.weights.dtype))

    def halved(self) -> Halved:
        """Returns the same, cut in halves."""
        row, column = self.block.halves[0].sizes[self.layer : self.layer + 2]
        parts = (slice(None, row), slice(None, column)), (slice(row, None), slice(column, None))
        first, second = (
            Square(half, self.layer, self.weights[part], self.permitted[part])
            for half, part in zip(self.block.halves, parts, strict=True)
        )
        return Halved(self.block, self.layer, self.weights[:row, column:], (first, second))


@dataclasses.dataclass(frozen=True)
class Halved:
    """What a layer's kernel has for a block, by the block's halves.

    Args:
        block: The block.
        layer: The layer from whose units the weights lead to those of the next.
        corner: The weights from the units of the first half to those of the second, all of them permitted.
        halves: What the kernel has for each half.
    """

    block: Block
    layer: int
    corner: tf.Tensor
    halves: tuple[Triangle, Triangle]

    def masked(self) -> tf.Tensor:
        """Returns the weights as one matrix, with zeros for the forbidden ones."""
        first, second = (half.masked() for half in self.halves)
        forbidden = tf.zeros([second.shape[0], first.shape[1]], first.dtype)
        return tf.concat([tf.concat([first, self.corner], axis=1), tf.concat([forbidden, second], axis=1)], axis=0)

    def halved(self) -> Halved:
        """Returns itself."""
        return self


# A kernel's share of a block, block triangular in either form.
Triangle = Square | Halved


class Layout:
    """How a layer's kernel is stored: as a matrix or, if it is cut into blocks, as a vector of its permitted parts.

    Args:
        degrees: The sorted degrees of every layer.
        layer: The layer from whose units the weights lead to those of the next.
        num_blocks: In how many blocks it is cut, a power of two.
    """

    def __init__(self, degrees: Sequence[np.ndarray], layer: int, num_blocks: int) -> None:
        self._block, self._layer, self._num_blocks = Block(degrees, 0, degrees[0].size), layer, num_blocks
        self._parts = list(_parts(self._block, layer, num_blocks))
        mask = masks.mask(degrees[layer], degrees[layer + 1])
        # Tensors made once: a NumPy mask would be copied at every eager call and be embedded in every graph.
        with tf.init_scope():
            self._masks = [tf.constant(mask[rows, columns]) for rows, columns, square in self._parts if square]

    def stored(self, kernel: np.ndarray) -> np.ndarray:
        """Returns what is stored of a matrix."""
        if self._num_blocks == 1:
            return kernel
        return np.concatenate([kernel[rows, columns].ravel() for rows, columns, _ in self._parts])

    def triangle(self, weights: tf.Tensor) -> Triangle:
        """Returns the kernel, from what is stored of it."""
        if self._num_blocks == 1:
            return Square(self._block, self._layer, weights, self._masks[0])
        shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns, _ in self._parts]
        parts = tf.split(weights, [rows * columns for rows, columns in shapes])
        matrices = iter([tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)])
        return self._assembled(self._block, self._num_blocks, matrices, iter(self._masks))

    def _assembled(
        self, block: Block, count: int, matrices: Iterator[tf.Tensor], permitted: Iterator[tf.Tensor]
    ) -> Triangle:
        if count == 1:
            return Square(block, self._layer, next(matrices), next(permitted))
        corner = next(matrices)
        first, second = (self._assembled(half, count // 2, matrices, permitted) for half in block.halves)
        return Halved(block, self._layer, corner, (first, second))

    def gradient(self, values: tf.Tensor, cotangents: tf.Tensor) -> tf.Tensor:
        """Returns the gradient of the stored weights: forbidden ones get zero.

        Args:
            values: What the kernel was multiplied to, `[N, in]`.
            cotangents: The gradient of the product, `[N, out]`.
        """
        permitted = iter(self._masks)
        parts = []
        for rows, columns, square in self._parts:
            part = tf.matmul(values[:, rows], cotangents[:, columns], transpose_a=True)
            parts.append(tf.where(next(permitted), part, tf.zeros([], part.dtype)) if square else part)
        return parts[0] if self._num_blocks == 1 else tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def _parts(block: Block, layer: int, count: int) -> Iterator[tuple[slice, slice, bool]]:
    """Yields rows and columns of each part, corners before what they lie between, and whether it is a square."""
    if count == 1:
        yield block.runs[layer], block.runs[layer + 1], True
        return
    first, second = block.halves
    yield first.runs[layer], second.runs[layer + 1], False
    yield from _parts(first, layer, count // 2)
    yield from _parts(second, layer, count // 2)


def products(kernel: Triangle, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Multiplies values by a kernel, both by the blocks in which it is stored; so is the result."""
    if isinstance(kernel, Square):
        return [product(values[0], kernel.masked())]
    middle = len(values) // 2
    first, second = (
        products(half, part) for half, part in zip(kernel.halves, (values[:middle], values[middle:]), strict=True)
    )
    across = product(joined(values[:middle]), kernel.corner)
    sizes = [block.sizes[kernel.layer + 1] for block in kernel.halves[1].block.cut(len(second))]
    return [*first, *(a + b for a, b in zip(second, split(across, sizes), strict=True))]


def product(values: tf.Tensor, kernel: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """Multiplies a matrix by a kernel, or by its transpose."""
    # A layer with fewer units than entries leaves blocks without units; XLA on a CPU cannot multiply by nothing.
    if 0 in kernel.shape:
        return tf.zeros([tf.shape(values)[0], kernel.shape[0 if transposed else 1]], values.dtype)
    return tf.matmul(values, kernel, transpose_b=transposed)


def joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Joins parts along the last axis."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def split(value: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
    """Splits a value along its last axis."""
    return [value] if len(sizes) == 1 else tf.split(value, sizes, axis=-1)
