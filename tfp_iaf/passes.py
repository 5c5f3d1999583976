"""One direction through the layers of a network, solved block by block for unknowns that its own results determine.

Forwards, this is Eq. (18) of the mathematics page; backwards, its gradient.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import tensorflow as tf

from tfp_iaf.inversion import confined, sweeps
from tfp_iaf.kernels import Block, Triangle, joined, product, split

__all__ = ['Pass']

# The unknowns, the sums that reach layers 1 to L, and the values of layers 0 to L - 1.
Solution = tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]


class Pass(abc.ABC):
    """One direction through the layers of a network, with unknowns that its results determine.

    Layers are numbered in the pass's direction: 0 has the values of the unknowns, the last one the results. Backwards,
    through transposed kernels, a later block determines the earlier ones.
    """

    backwards: bool
    # Of each layer.
    kernels: Sequence[Triangle]
    # What each layer after the first one gets beside the values of the layer before, `[..., units]`.
    offsets: Sequence[tf.Tensor]
    # Of the unknowns: how large the events are, and below which size an entry counts as zero.
    scale: tf.Tensor
    sizes: tf.Tensor

    @abc.abstractmethod
    def start(self, block: Block) -> tf.Tensor:
        """Returns a first guess of the block's unknowns."""

    @abc.abstractmethod
    def features(self, block: Block, unknowns: tf.Tensor) -> tf.Tensor:
        """Returns the values of layer 0 for the block's unknowns."""

    @abc.abstractmethod
    def activation(self, layer: int, block: Block, sums: tf.Tensor) -> tf.Tensor:
        """Returns the values of the block's units of `layer`."""

    @abc.abstractmethod
    def update(self, block: Block, results: tf.Tensor) -> tf.Tensor:
        """Returns the block's unknowns."""

    def solve(self, num_blocks: int) -> Solution:
        """Returns the solution, found in `num_blocks` blocks, a power of two."""
        return self._solve(self.kernels, self.offsets, num_blocks)

    def _solve(self, kernels: Sequence[Triangle], offsets: Sequence[tf.Tensor], num_blocks: int) -> Solution:
        if num_blocks == 1:
            return self._solve_block(kernels, offsets)
        halved = [kernel.halved() for kernel in kernels]
        halves = halved[0].block.halves
        first, second = (1, 0) if self.backwards else (0, 1)
        # Of each layer, for both halves.
        parts = [
            split(offset, [half.sizes[kernel.layer + (not self.backwards)] for half in halves])
            for kernel, offset in zip(halved, offsets, strict=True)
        ]
        known = self._solve(
            [kernel.halves[first] for kernel in halved], [part[first] for part in parts], num_blocks // 2
        )
        across = [
            part[second] + product(values, kernel.corner, transposed=self.backwards)
            for part, values, kernel in zip(parts, known[-1], halved, strict=True)
        ]
        solved = self._solve([kernel.halves[second] for kernel in halved], across, num_blocks // 2)
        (unknowns, sums, values), others = (solved, known) if self.backwards else (known, solved)
        return (
            joined([unknowns, others[0]]),
            [joined(pair) for pair in zip(sums, others[1], strict=True)],
            [joined(pair) for pair in zip(values, others[2], strict=True)],
        )

    def _solve_block(self, kernels: Sequence[Triangle], offsets: Sequence[tf.Tensor]) -> Solution:
        block = kernels[0].block
        squares = [kernel.masked() for kernel in kernels]

        def sweep(unknowns: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
            values = self.features(block, unknowns)
            sums: list[tf.Tensor] = []
            for layer, (offset, square) in enumerate(zip(offsets, squares, strict=True)):
                if layer:
                    values = self.activation(layer, block, sums[-1])
                sums.append(offset + product(values, square, transposed=self.backwards))
            return self.update(block, sums[-1]), tuple(sums)

        # Backwards, the units of the lowest degree hang on the unknown that comes out last: one more, for their sums.
        max_sweeps = block.event_size + self.backwards
        size = self.sizes[:, block.runs[0]]
        unknowns, sums = sweeps(sweep, self.start(block), max_sweeps, self.scale, size)
        values = [self.activation(layer, block, sums[layer - 1]) for layer in range(1, len(kernels))]
        return unknowns, list(sums), [self.features(block, confined(unknowns, self.scale)), *values]
