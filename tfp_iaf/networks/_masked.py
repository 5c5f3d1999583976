"""The masked autoregressive network (MADE) with a context input."""

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
    checked_hidden_units,
    checked_shape,
    checked_size,
)
from tfp_iaf._random import random_generator
from tfp_iaf._shapes import lead_of, reshaped, rows_of
from tfp_iaf._tracking import check_keras_tracks
from tfp_iaf.networks import _masks
from tfp_iaf.networks._base import MaskedLayers
from tfp_iaf.networks._kernels import MaskedKernel, gather, num_blocks_for

__all__ = ['MaskedAutoregressiveNetwork', 'VariableFactory']

VariableFactory = Callable[[str, np.ndarray], tf.Variable]

# The outputs start small, so that a step starts close to the identity.
_OUTPUT_SCALE = 0.1


class MaskedAutoregressiveNetwork(tf.Module):
    r"""A masked network whose parameters for an entry depend on the entries before it and on all of a context.

    $$v^1 = a(c^1 \odot (x (W^1 \odot M^1) + h U) + b^1), \quad
      v^{l+1} = a(c^{l+1} \odot v^l (W^{l+1} \odot M^{l+1}) + b^{l+1}), \quad
      \mathrm{params} = c^{L+1} \odot v^L (W^{L+1} \odot M^{L+1}) + b^{L+1}$$

    with masks M such that $\mathrm{params}_i$ is a function of $x_{<i}$ and of the context h. "Before" refers to the
    network's `order`. Masks are applied at every call, so nothing that is stored in the kernels, by an optimizer, an
    assignment or a checkpoint, can break the autoregressive property, and forbidden weights get a gradient of zero.
    Units of degree 0, which see the context alone, carry it to every output, the first one included.

    Every output reacts to every entry before it if each hidden layer has at least D - 1 units (D with a context),
    where D is the number of entries of an event.

    The constants c make training independent of the width. An optimizer such as Adam moves each weight by the learning
    rate, however small its share, and so a sum of n terms by n times that. A sum of n terms, n above the `base_width`,
    is scaled by c = base_width / n, and its weights start larger in turn. A network as wide as that or narrower is an
    ordinary one.

    Checkpoints depend on the architecture alone: each kernel is one matrix W, `[units in, units out]`, with rows and
    columns sorted by degree, as it is before the scaling by c.

    Args:
        event_shape: Shape of an event, an int or a sequence of ints. `[8, 8, 3]` is one event of 192 entries.
        hidden_units: Units of each hidden layer.
        context_shape: Shape of the context, an int or a sequence of ints, or `None` for a network without one.
        params: Parameters per entry, P: 2 for the transforms `'gated'` and `'affine'`, 23 for `'spline'`.
        activation: Name of a function of `tf.nn`, or a callable that acts on each unit by itself and has no variables.
        order: `'left-to-right'`, `'right-to-left'`, `'random'`, or a permutation of `range(D)` that lists the entries
            as they come (those of `tf.reshape(x, [-1])`). A step that needs another order needs no `tfb.Permute`.
        base_width: Of how many terms a sum may have before it is scaled down; see above. Lower it where a high learning
            rate makes a fit unstable.
        seed: Seed of the initial weights and of a random order. `None` follows TensorFlow's global seed.
        dtype: `tf.float32` or `tf.float64`: dtype of the variables and of all that is computed.
        variable_factory: Makes the variables, from a name and an initial value. A Keras layer passes its own.
        name: Name of the module.

    Call arguments:
        x: `[..., *event_shape]`.
        context: `[..., *context_shape]`. Its leading shape broadcasts against that of `x`; its share of the first
            hidden layer is computed once, before it is broadcast.

    Call returns:
        `[..., *event_shape, P]`, of the network's dtype.

    Cost: one pass is `D * H + C * H + H * H + H * D * P` multiplications per event, for two hidden layers of H units
    and a context of C entries. On a CPU, large kernels are multiplied in four blocks, which skip three eighths of
    that (the context's share aside). On a GPU, where launches cost more than arithmetic, kernels stay whole.

    Raises:
        ValueError: If a size is below 1, `hidden_units` is empty, `order` is not a permutation, `activation` is
            unknown or mixes units, or, at a call, `x` or `context` has the wrong shape, or a context is missing or
            unexpected.
        TypeError: If `dtype` or a tensor does not have the floating type expected, a size is not an int, or
            `activation` is an object that may hold variables, such as a layer.

    References:
        Germain, Gregor, Murray and Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation",
        https://arxiv.org/abs/1502.03509, Eq. 12, 13.
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Algorithm 1.
        Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
        https://arxiv.org/abs/2203.03466, Table 8.
        Eq. `network`, `degrees`, `masks`, `initial-weights`, `width` and `order` of the mathematics page.

    >>> net = MaskedAutoregressiveNetwork(3, hidden_units=(16,), context_shape=2, seed=0)
    >>> net(tf.zeros([5, 3]), context=tf.zeros([5, 2])).shape
    TensorShape([5, 3, 2])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_units: Sequence[int] = (320, 320),
        *,
        context_shape: int | Sequence[int] | None = None,
        params: int = 2,
        activation: str | Activation = 'elu',
        order: str | Sequence[int] | np.ndarray = 'left-to-right',
        base_width: int = 320,
        seed: int | None = None,
        dtype: tf.DType = tf.float32,
        variable_factory: VariableFactory | None = None,
        name: str = 'masked_autoregressive_network',
    ) -> None:
        super().__init__(name=name)
        self._event_shape = checked_shape('event_shape', event_shape)
        self._hidden_units = checked_hidden_units(hidden_units)
        self._context_shape: Any = None
        if context_shape is not None:
            self._context_shape = checked_shape('context_shape', context_shape)
        self._params = checked_size('params', params)
        self._base_width = checked_size('base_width', base_width)
        self._dtype = checked_dtype(dtype)
        self._activation = checked_activation(activation, self._dtype)
        rng = random_generator(seed)
        self._event_size = self._event_shape.num_elements()
        self._order = _masks.permutation(order, self._event_size, rng)
        layers = _masks.degrees(self._event_size, self._hidden_units, self._params, self._context_shape is not None)
        self._masked_kernels = tuple(MaskedKernel(layers, layer) for layer in range(len(layers) - 1))
        self._largest_kernel = max(kernel.mask.size for kernel in self._masked_kernels)
        self._build(rng, variable_factory or _make_variable)

    def _build(self, rng: np.random.Generator, make_variable: VariableFactory) -> None:
        dtype = self._dtype.as_numpy_dtype

        def normal(rows: int, spread: np.ndarray) -> np.ndarray:
            return (spread * rng.standard_normal([rows, spread.size])).astype(dtype)

        kernels, biases, scales = [], [], []
        self._context_kernel = None
        for i, kernel in enumerate(self._masked_kernels):
            mask = kernel.mask
            is_last = i == len(self._masked_kernels) - 1
            context_size = 0 if i or self._context_shape is None else self._context_shape.num_elements()
            # The fan-in is that of the mask: a unit of low degree has few inputs, and needs larger weights for a
            # pre-activation of the same variance.
            fan_in = np.maximum(mask.sum(axis=0) + context_size, 1)
            scale = np.minimum(self._base_width / fan_in, 1.0)
            # A hidden unit keeps its variance in a wide network; the outputs shrink, like the steps of the optimizer.
            spread = 1.0 / (np.sqrt(fan_in) * scale)
            if is_last:
                spread = _OUTPUT_SCALE / np.sqrt(fan_in * scale)
            if context_size:
                self._context_kernel = make_variable('context_kernel', normal(context_size, spread))
            kernels.append(make_variable(f'kernel_{i}', normal(mask.shape[0], spread) * mask))
            biases.append(make_variable(f'bias_{i}', np.zeros(mask.shape[1], dtype)))
            scales.append(scale.astype(dtype))
        self._kernels, self._biases, self._scales = tuple(kernels), tuple(biases), tuple(scales)

    @property
    def event_shape(self) -> tf.TensorShape:
        """Shape of an event."""
        return self._event_shape

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self._hidden_units

    @property
    def context_shape(self) -> tf.TensorShape | None:
        """Shape of the context, or `None`."""
        return self._context_shape

    @property
    def params(self) -> int:
        """Parameters per entry."""
        return self._params

    @property
    def order(self) -> np.ndarray:
        """The indices of the entries, in the order in which they come."""
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

    def __repr__(self) -> str:
        context = None if self._context_shape is None else self._context_shape.as_list()
        return (
            f'<{type(self).__name__} {self.name!r}: event_shape={self._event_shape.as_list()}, '
            f'hidden_units={self._hidden_units}, context_shape={context}, params={self._params}, '
            f'dtype={self._dtype.name}>'
        )

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
        layers = self.masked_layers(context)
        values = gather(rows_of(x, self._event_size), self._order, axis=1)
        num_blocks = self._num_blocks(values)
        sums = layers.kernels[0](values, layers.weights[0], num_blocks) * layers.scales[0]
        lead, first = lead_of(x, self._event_shape.rank), layers.offsets[0]
        if first.shape.rank == 1 or (first.shape.rank == 2 and lead.static.rank in (0, 1)):
            # No context, or one for each event of a flat batch: it broadcasts as it is.
            sums += first
            if first.shape.rank == 2:
                lead = lead_of(sums, 1)
        else:
            sums = reshaped(sums, lead, [self._hidden_units[0]]) + first
            lead = lead_of(sums, 1)
            sums = rows_of(sums, self._hidden_units[0])
        for kernel, weights, scale, offset in zip(
            layers.kernels[1:], layers.weights[1:], layers.scales[1:], layers.offsets[1:], strict=True
        ):
            sums = kernel(layers.activation(sums), weights, num_blocks) * scale + offset
        outputs = gather(tf.reshape(sums, [-1, self._event_size, self._params]), np.argsort(self._order), axis=1)
        return reshaped(outputs, lead, [*self._event_shape, self._params])

    def _num_blocks(self, values: tf.Tensor) -> int:
        """Returns in how many blocks to multiply; all of them give the same."""
        return num_blocks_for(self._event_size, self._largest_kernel, values)

    def masked_layers(self, context: tf.Tensor | None = None) -> MaskedLayers:
        """Returns the layers for a context that was checked before, as the blockwise inverse takes them."""
        biases = [tf.convert_to_tensor(bias) for bias in self._biases]
        if context is not None:
            context = tf.convert_to_tensor(context)
            rows = rows_of(context, self._context_shape.num_elements())
            share = tf.matmul(rows, self._context_kernel) * self._scales[0] + biases[0]
            biases[0] = reshaped(share, lead_of(context, self._context_shape.rank), [self._hidden_units[0]])
        return MaskedLayers(
            order=self._order,
            kernels=self._masked_kernels,
            weights=[tf.convert_to_tensor(kernel) for kernel in self._kernels],
            scales=self._scales,
            offsets=biases,
            activation=self._activation,
            params=self._params,
        )


def _make_variable(name: str, value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, name=name)
