"""One direction through the layers of a network, solved block by block for unknowns that its own results determine."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import tensorflow as tf

from tfp_iaf.inversion import confined, sweeps

__all__ = ['Block', 'Pass']

# For each layer, from the entries to the outputs, the run of its units that goes with the block.
Block = tuple[slice, ...]


class Pass(abc.ABC):
    """One direction through the layers of a network, with unknowns that its results determine.

    Layers are numbered in the pass's direction: 0 has the values of the unknowns, the last one the results.
    """

    blocks: Sequence[Block]
    num_layers: int
    # Of the unknowns, below which they count as zero.
    scale: tf.Tensor

    @abc.abstractmethod
    def start(self, block: Block) -> tf.Tensor:
        """Returns a first guess of the block's unknowns."""

    @abc.abstractmethod
    def features(self, block: Block, unknowns: tf.Tensor) -> tf.Tensor:
        """Returns the values of layer 0 for the block's unknowns."""

    @abc.abstractmethod
    def kernel(self, layer: int, block: Block, diagonal: bool) -> tf.Tensor:
        """Returns the weights from `layer` to the block's units of the next, from its own units or from known ones."""

    @abc.abstractmethod
    def offset(self, layer: int, block: Block) -> tf.Tensor:
        """Returns what the block's units of the layer after `layer` get beside that."""

    @abc.abstractmethod
    def activation(self, layer: int, block: Block, sums: tf.Tensor) -> tf.Tensor:
        """Returns the values of the block's units of `layer`."""

    @abc.abstractmethod
    def update(self, block: Block, results: tf.Tensor) -> tf.Tensor:
        """Returns the block's unknowns."""

    @abc.abstractmethod
    def joined(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the parts of the blocks, given in the order in which they are solved, as one tensor."""

    def solve(self) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """Returns the unknowns, the sums that reach layers 1 to L, and the values of layers 0 to L - 1."""
        parts: list[tuple[tf.Tensor, ...]] = []
        known: list[tf.Tensor] = []
        for block in self.blocks:
            unknowns, sums, values = self._solve_block(block, known)
            known = [self.joined(pair) for pair in zip(known, values, strict=True)] if known else values
            parts.append((unknowns, *sums))
        unknowns, *sums = (self.joined(part) for part in zip(*parts, strict=True))
        return unknowns, sums, known

    def _solve_block(
        self, block: Block, known: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor], list[tf.Tensor]]:
        offsets = [self.offset(layer, block) for layer in range(self.num_layers)]
        if known:
            offsets = [
                offset + _product(values, self.kernel(layer, block, diagonal=False))
                for layer, (offset, values) in enumerate(zip(offsets, known, strict=True))
            ]
        kernels = [self.kernel(layer, block, diagonal=True) for layer in range(self.num_layers)]

        def sweep(unknowns: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
            values = self.features(block, unknowns)
            sums: list[tf.Tensor] = []
            for layer in range(self.num_layers):
                if layer:
                    values = self.activation(layer, block, sums[-1])
                sums.append(offsets[layer] + _product(values, kernels[layer]))
            return self.update(block, sums[-1]), tuple(sums)

        start = self.start(block)
        # A block without entries, of units alone, is evaluated once.
        unknowns, sums = sweeps(sweep, start, max_sweeps=max(start.shape[-1], 1), scale=self.scale)
        values = [self.activation(layer, block, sums[layer - 1]) for layer in range(1, self.num_layers)]
        return unknowns, sums, [self.features(block, confined(unknowns, self.scale)), *values]


def _product(values: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    # Hidden layers with fewer units than entries leave blocks without units; XLA on a CPU cannot multiply by nothing.
    if 0 in kernel.shape:
        return tf.zeros([tf.shape(values)[0], kernel.shape[1]], values.dtype)
    return tf.matmul(values, kernel)
