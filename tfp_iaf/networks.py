"""The masked autoregressive network (MADE) with a context input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf import masks
from tfp_iaf.checks import (
    Activation,
    check_batches,
    checked_activation,
    checked_context,
    checked_dtype,
    checked_hidden_units,
    checked_num_blocks,
    checked_size,
    checked_tensor,
)
from tfp_iaf.kernels import Block, Layout, Triangle, default_num_blocks, joined, products, split

__all__ = ['MaskedAutoregressiveNetwork', 'VariableFactory']

VariableFactory = Callable[[str, np.ndarray], tf.Variable]

# The outputs start small, so that a step whose parameters they are starts close to the identity.
_OUTPUT_SCALE = 0.1


def random_generator(seed: int | None) -> np.random.Generator:
    """Returns a NumPy generator; without a seed it follows `tf.random.set_seed` and `keras.utils.set_random_seed`."""
    if seed is None:
        with tf.init_scope():
            seed = int(tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32))
    elif isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(
            f'seed: got {seed!r}, expected a non-negative int or None. A stateless seed, as of tf.random, goes to '
            f'sample(seed=...).'
        )
    elif seed < 0:
        raise ValueError(f'seed: got {seed!r}, expected a non-negative int or None.')
    return np.random.default_rng(int(seed))


def _make_variable(name: str, value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, name=name)


def _leading_shape(x: tf.Tensor) -> tf.TensorShape | tf.Tensor:
    lead = x.shape[:-1] if x.shape.rank is not None else tf.TensorShape(None)
    return lead if lead.is_fully_defined() else tf.shape(x)[:-1]


def _flat(x: tf.Tensor) -> tf.Tensor:
    """Folds all axes but the last into one: a product with one matrix, where a batched one would repeat it."""
    if x.shape.rank == 2:
        return x
    size = x.shape[-1] if x.shape.rank is not None and x.shape[-1] is not None else tf.shape(x)[-1]
    return tf.reshape(x, [-1, size])


def _unflat(flat: tf.Tensor, lead: tf.TensorShape | tf.Tensor, event: Sequence[int]) -> tf.Tensor:
    return tf.reshape(flat, tf.concat([lead, event], axis=0))


class MaskedAutoregressiveNetwork(tf.Module):
    r"""A masked network whose output for an entry depends on the entries before it and on all of a context.

    $$v^1 = a(x (W^1 \odot M^1) + h U + b^1), \quad v^{l+1} = a(v^l (W^{l+1} \odot M^{l+1}) + b^{l+1}), \quad
      \mathrm{params} = v^L (W^{L+1} \odot M^{L+1}) + b^{L+1}$$

    with masks M such that $\mathrm{params}_i$ is a function of $x_{<i}$ and of the context h. "Before" is meant in the
    network's `order`. The masks are applied at every call, so that nothing that is stored in the kernels, by an
    optimizer, an assignment or a checkpoint, can break the autoregressive property, and forbidden weights get a
    gradient of zero. Units of degree 0, which see the context alone, carry it to every output, the first one included.
    Kernels are kept with their rows and columns sorted by degree; see `tfp_iaf.masks`.

    Every output reacts to every entry before it if each hidden layer has at least `event_size - 1` units
    (`event_size` with a context).

    Args:
        event_size: Number of entries D of an event.
        hidden_units: Units of each hidden layer.
        context_size: Size C of the context, or `None` for a network without one.
        params: Parameters per entry, P: 2 for the transforms `'gated'` and `'affine'`, 23 for `'spline'`.
        activation: Name of a function of `tf.nn`, or a callable that acts on every unit alone and has no variables.
        order: `'left-to-right'`, `'right-to-left'`, `'random'`, or a permutation of `range(event_size)` that lists the
            entries as they come. Reversing belongs here, not into a `tfb.Permute` between steps.
        seed: Seed of the initial weights and of a random order. `None` follows TensorFlow's global seed.
        dtype: `tf.float32` or `tf.float64`, of the variables and of everything that is computed.
        num_blocks: In how many blocks of entries to cut the kernels, a power of two: what is forbidden between blocks
            is neither stored nor computed. `None` takes two where the largest kernel has more than 2^16 weights, and
            four above 2^18, if there are as many entries: where it was measured to be faster. What is saved fits a
            network cut alike; give the number where a checkpoint shall outlive a change of that rule.
        variable_factory: Makes the variables, from a name and an initial value; a Keras layer passes its own.
        name: Name of the module.

    Call arguments:
        x: `[..., D]`.
        context: `[..., C]`; its leading shape broadcasts against that of `x`, and its share of the first hidden layer
            is computed once, before it is broadcast.

    Call returns:
        `[..., D, P]`, of the network's dtype.

    Raises:
        ValueError: If a size is below 1, `hidden_units` is empty, `order` is no permutation, `activation` is unknown
            or mixes units, or, at a call, `x` or `context` has the wrong last dimension, or a context is missing or
            unexpected.
        TypeError: If `dtype` or a tensor is not of the floating type expected, a size is no int, or `activation` is an
            object that may hold variables, such as a layer.

    Cost: one pass is `D * H + C * H + H * H + H * D * P` multiplications per event for two hidden layers of H units; in
    two blocks three quarters of that, in four five eighths (the context's share aside).

    References:
        Germain, Gregor, Murray and Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation", Eq. 12, 13.
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Algorithm 1.
        Eq. (10), (13), (14), (16) of the mathematics page.

    >>> net = MaskedAutoregressiveNetwork(3, hidden_units=(16,), context_size=2, seed=0)
    >>> net(tf.zeros([5, 3]), context=tf.zeros([5, 2])).shape
    TensorShape([5, 3, 2])
    """

    def __init__(
        self,
        event_size: int,
        hidden_units: Sequence[int] = (320, 320),
        *,
        context_size: int | None = None,
        params: int = 2,
        activation: str | Activation = 'elu',
        order: str | Sequence[int] | np.ndarray = 'left-to-right',
        seed: int | None = None,
        dtype: tf.DType = tf.float32,
        num_blocks: int | None = None,
        variable_factory: VariableFactory | None = None,
        name: str = 'masked_autoregressive_network',
    ) -> None:
        super().__init__(name=name)
        self._event_size = checked_size('event_size', event_size)
        self._hidden_units = checked_hidden_units(hidden_units)
        self._context_size = None if context_size is None else checked_size('context_size', context_size)
        self._params = checked_size('params', params)
        self._dtype = checked_dtype(dtype)
        self._activation = checked_activation(activation, self._dtype)
        rng = random_generator(seed)
        self._order = masks.permutation(order, self._event_size, rng)
        layers = masks.degrees(self._event_size, self._hidden_units, self._context_size is not None)
        layers[-1] = np.repeat(layers[-1], self._params)
        if num_blocks is None:
            num_blocks = default_num_blocks(
                self._event_size, max(before.size * after.size for before, after in itertools.pairwise(layers))
            )
        num_blocks = checked_num_blocks(num_blocks, self._event_size)
        self._blocks = tuple(Block(layers, 0, self._event_size).cut(num_blocks))
        self._layouts = tuple(Layout(layers, layer, num_blocks) for layer in range(len(layers) - 1))
        self._build(layers, rng, variable_factory or _make_variable)

    def _build(self, layers: Sequence[np.ndarray], rng: np.random.Generator, make_variable: VariableFactory) -> None:
        layer_masks = [masks.mask(before, after) for before, after in itertools.pairwise(layers)]
        dtype = self._dtype.as_numpy_dtype

        def normal(rows: int, fan_in: np.ndarray, scale: float = 1.0) -> np.ndarray:
            # The fan-in is that of the mask: a unit of low degree has few inputs, and needs larger weights for a
            # pre-activation of the same variance.
            return (scale * rng.standard_normal([rows, fan_in.size]) / np.sqrt(np.maximum(fan_in, 1))).astype(dtype)

        kernels, biases = [], []
        self._context_kernel = None
        for i, layer_mask in enumerate(layer_masks):
            fan_in = layer_mask.sum(axis=0)
            if i == 0 and self._context_size is not None:
                fan_in = fan_in + self._context_size
                kernel = normal(self._context_size, fan_in)
                self._context_kernel = make_variable('context_kernel', kernel)
            scale = _OUTPUT_SCALE if i == len(layer_masks) - 1 else 1.0
            kernel = normal(layer_mask.shape[0], fan_in, scale) * layer_mask
            kernels.append(make_variable(f'kernel_{i}', self._layouts[i].stored(kernel)))
            biases.append(make_variable(f'bias_{i}', np.zeros(layer_mask.shape[1], dtype)))
        self._kernels, self._biases = tuple(kernels), tuple(biases)

    @property
    def event_size(self) -> int:
        """Number of entries of an event."""
        return self._event_size

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self._hidden_units

    @property
    def context_size(self) -> int | None:
        """Size of the context, or `None`."""
        return self._context_size

    @property
    def params(self) -> int:
        """Parameters per entry."""
        return self._params

    @property
    def order(self) -> np.ndarray:
        """The entries' indices, in the order in which they come."""
        return self._order.copy()

    @property
    def dtype(self) -> tf.DType:
        """Dtype of the variables and of the outputs."""
        return self._dtype

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """All variables; as `tf.Module` finds them, but without its search through all attributes."""
        context = () if self._context_kernel is None else (self._context_kernel,)
        return (*context, *self._kernels, *self._biases)

    @property
    def activation(self) -> Activation:
        """Activation of the hidden layers."""
        return self._activation

    @property
    def num_blocks(self) -> int:
        """In how many blocks of entries the kernels are cut."""
        return len(self._blocks)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """How the kernel of each layer is stored."""
        return self._layouts

    @property
    def kernels(self) -> tuple[tf.Variable, ...]:
        """The kernel of each layer, as it is stored: without its mask, rows and columns sorted by degree."""
        return self._kernels

    @property
    def biases(self) -> tuple[tf.Variable, ...]:
        """The bias of each layer."""
        return self._biases

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} {self.name!r}: event_size={self._event_size}, hidden_units={self._hidden_units}, '
            f'context_size={self._context_size}, params={self._params}, dtype={self._dtype.name}>'
        )

    def __call__(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters `[..., D, P]` of every entry of `x`; see the class."""
        x = self.checked_event('x', x)
        lead = _leading_shape(x)
        offset = self.offset(context)
        if context is not None:
            check_batches(offset.shape, 'x', x.shape)
        values = self._split(_flat(self.ranked(x, axis=-1)), layer=0)
        sums = products(self.triangle(0), values)
        if x.shape.rank != 2 or offset.shape.rank not in (1, 2):
            sums = [_unflat(value, lead, [value.shape[-1]]) for value in sums]
        sums = [value + part for value, part in zip(sums, self._split(offset, layer=1), strict=True)]
        lead = _leading_shape(sums[0])
        sums = [_flat(value) for value in sums]
        for layer in range(1, len(self._kernels)):
            values = products(self.triangle(layer), [self._activation(value) for value in sums])
            biases = self._split(tf.convert_to_tensor(self._biases[layer]), layer + 1)
            sums = [value + bias for value, bias in zip(values, biases, strict=True)]
        outputs = _unflat(joined(sums), lead, [self._event_size, self._params])
        return self.unranked(outputs, axis=-2)

    def _split(self, value: tf.Tensor, layer: int) -> list[tf.Tensor]:
        return split(value, [block.sizes[layer] for block in self._blocks])

    def triangle(self, layer: int) -> Triangle:
        """Returns the kernel that leads from the units of `layer` to those of the next."""
        return self._layouts[layer].triangle(tf.convert_to_tensor(self._kernels[layer]))

    def offset(self, context: tf.Tensor | None) -> tf.Tensor:
        """Returns what the first hidden layer gets beside its share from the entries: `[..., H]`, or `[H]`."""
        bias = tf.convert_to_tensor(self._biases[0])
        context = checked_context(context, self._context_size, self._dtype, self)
        if context is None:
            return bias
        context = tf.convert_to_tensor(context)
        share = tf.matmul(_flat(context), self._context_kernel) + bias
        return _unflat(share, _leading_shape(context), [self._hidden_units[0]])

    def checked_event(self, argument: str, x: Any) -> tf.Tensor:
        """Returns `x` as a tensor of shape `[..., D]`, or raises the error that names `argument`."""
        x = tf.convert_to_tensor(checked_tensor(argument, x, self._event_size, self._dtype, self))
        return x if x.shape.rank is None else tf.ensure_shape(x, [*x.shape[:-1], self._event_size])

    def ranked(self, x: tf.Tensor, axis: int) -> tf.Tensor:
        """Sorts the entries along `axis` by rank."""
        return _permuted(x, self._order, axis)

    def unranked(self, x: tf.Tensor, axis: int) -> tf.Tensor:
        """Undoes `ranked`."""
        return _permuted(x, np.argsort(self._order), axis)


def _permuted(x: tf.Tensor, order: np.ndarray, axis: int) -> tf.Tensor:
    entries = np.arange(order.size)
    if np.array_equal(order, entries):
        return x
    if np.array_equal(order, entries[::-1]):
        return tf.reverse(x, axis=[axis])
    return tf.gather(x, order, axis=axis)
