"""Orders, degrees and masks of masked autoregressive networks (NumPy only).

Everything is expressed in *ranks*: the entry of rank 0 comes first in the autoregressive order. A hidden unit of
degree d sees the first d entries and nothing else. The entry of rank r has degree r + 1, and the output for it has
degree r, so that one rule, `degree[out] >= degree[in]`, serves every layer (Germain et al. 2015, "MADE: Masked
Autoencoder for Distribution Estimation", https://arxiv.org/abs/1502.03509, Eq. 12 and 13). See Eq. `degrees` and
`masks` of the mathematics page.

Degrees are sorted within each layer. Every mask is then block triangular: the units that depend on a prefix of the
entries are a prefix of their layer.

In a convolution the ranks are those of the channels within a pixel: a unit of degree d sees all channels of the pixels
before its own, and the first d channels of its own. See Eq. `convolution-masks` of the mathematics
page.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

__all__ = ['convolution_mask', 'degrees', 'hidden_degrees', 'mask', 'permutation', 'runs']

_NAMED_ORDERS = ('left-to-right', 'right-to-left', 'random')


def permutation(order: str | Sequence[int] | np.ndarray, event_size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the entries of an event in their autoregressive order; see Eq. `order` of the mathematics page.

    Args:
        order: `'left-to-right'`, `'right-to-left'`, `'random'`, or the indices of the entries in the order wanted:
            `[2, 0, 1]` puts entry 2 first, entry 0 second and entry 1 last.
        event_size: Number of entries, D.
        rng: Source of the `'random'` order.

    Returns:
        An integer array of shape `[D]`; its k-th element is the index of the entry of rank k.

    Raises:
        ValueError: If `order` is not a permutation of `range(event_size)` or not a known name.

    >>> permutation('right-to-left', 3, np.random.default_rng(0)).tolist()
    [2, 1, 0]
    """
    if isinstance(order, str):
        if order not in _NAMED_ORDERS:
            raise ValueError(
                f'order: got {order!r}, expected one of {_NAMED_ORDERS} or a permutation of range({event_size}).'
            )
        if order == 'random':
            return rng.permutation(event_size)
        entries = np.arange(event_size)
        return entries if order == 'left-to-right' else entries[::-1]
    entries = np.asarray(order)
    if (
        entries.shape != (event_size,)
        or not np.issubdtype(entries.dtype, np.integer)
        or not np.array_equal(np.sort(entries), np.arange(event_size))
    ):
        raise ValueError(
            f'order: got {order!r}, expected a permutation of range({event_size}): each of the integers 0 to '
            f'{event_size - 1} once, the entry that comes first in front.'
        )
    return entries


def hidden_degrees(units: int, event_size: int, conditional: bool) -> np.ndarray:
    """Returns the degrees of one hidden layer: sorted, and spread evenly over the degrees that a path can use.

    With a context, degrees run from 0 (units that see the context alone, through which it reaches the first output)
    to D - 1. Without one, units of degree 0 would be constants, so degrees run from 1. The lowest degree always
    occurs, so that every unit has an input. With fewer than D - 1 units (D with a context), some degrees have no unit,
    and the outputs can only react to some of the entries before them.

    >>> hidden_degrees(7, event_size=4, conditional=True).tolist()
    [0, 0, 1, 1, 2, 2, 3]
    >>> hidden_degrees(7, event_size=4, conditional=False).tolist()
    [1, 1, 1, 2, 2, 3, 3]
    """
    lowest = 0 if conditional or event_size == 1 else 1
    return lowest + np.arange(units) * (event_size - lowest) // units


def degrees(event_size: int, hidden_units: Sequence[int], params: int, conditional: bool) -> list[np.ndarray]:
    """Returns the degrees of every layer of a network: its entries, its hidden units, its outputs.

    >>> [d.tolist() for d in degrees(3, hidden_units=[4], params=1, conditional=False)]
    [[1, 2, 3], [1, 1, 2, 2], [0, 1, 2]]
    """
    hidden = [hidden_degrees(units, event_size, conditional) for units in hidden_units]
    return [np.arange(1, event_size + 1), *hidden, np.repeat(np.arange(event_size), params)]


def mask(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns the boolean mask `[len(inputs), len(outputs)]` of the connections that the degrees of two layers permit.

    >>> mask(np.array([1, 2]), np.array([0, 1, 2])).astype(int).tolist()
    [[0, 1, 1], [0, 0, 1]]
    """
    return outputs[np.newaxis, :] >= inputs[:, np.newaxis]


def convolution_mask(inputs: np.ndarray, outputs: np.ndarray, kernel_size: int, reverse: bool = False) -> np.ndarray:
    """Returns the boolean mask of a convolution over pixels in raster order, from the degrees of two layers' channels.

    The pixels before are all of `kernel_size // 2` rows, and those to the left in the pixel's own row, which is the
    last. With `reverse`, pixels come in the reverse of raster order, and the pixel's own row is the first.

    Returns:
        `[1 + kernel_size // 2, kernel_size, len(inputs), len(outputs)]`.

    >>> convolution_mask(np.array([1]), np.array([0]), kernel_size=3)[..., 0, 0].astype(int).tolist()
    [[1, 1, 1], [1, 0, 0]]
    """
    radius = kernel_size // 2
    permitted = np.zeros([1 + radius, kernel_size, inputs.size, outputs.size], bool)
    permitted[:radius] = True
    permitted[radius, :radius] = True
    permitted[radius, radius] = mask(inputs, outputs)
    return permitted[::-1, ::-1] if reverse else permitted


def runs(layers: Sequence[np.ndarray], num_blocks: int) -> list[list[slice]]:
    """Cuts the entries into blocks of nearly equal size, and returns for each layer the run of units of each block.

    A unit belongs to the first block of which it does not see every entry; an entry, to its own block. So units of a
    block depend on the units of the same and of earlier blocks, and on nothing else.

    >>> for layer in runs(degrees(4, [6], params=1, conditional=False), num_blocks=2):
    ...     print([(run.start, run.stop) for run in layer])
    [(0, 2), (2, 4)]
    [(0, 2), (2, 6)]
    [(0, 2), (2, 4)]
    """
    entries, *others = layers
    cuts = np.linspace(0, entries.size, num_blocks + 1).round().astype(int)
    ends = [np.searchsorted(layer, cuts).tolist() for layer in (entries - 1, *others)]
    return [[slice(start, stop) for start, stop in itertools.pairwise(layer)] for layer in ends]
