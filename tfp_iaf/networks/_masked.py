"""The masked autoregressive network (MADE) with a context input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_iaf._checks import Activation, checked_hidden_units, checked_size
from tfp_iaf._random import random_generator
from tfp_iaf._shapes import lead_of, reshaped, rows_of
from tfp_iaf.networks import _masks
from tfp_iaf.networks._base import MaskedLayers
from tfp_iaf.networks._common import MaskedNetwork, VariableFactory, plus_offset
from tfp_iaf.networks._kernels import MaskedKernel, gather, num_blocks_for, scaled

__all__ = ['MaskedAutoregressiveNetwork']


class MaskedAutoregressiveNetwork(MaskedNetwork):
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

    The constants c keep the step of an optimizer independent of the width. Adam moves each weight by the learning
    rate, however small its share, and so a sum of n terms by n times that. A sum of n terms, n above the `base_width`,
    is scaled by c = base_width / n, and its weights start larger in turn. A network as wide as that or narrower is an
    ordinary one.

    Checkpoints depend on the architecture alone: each kernel is one matrix W, `[units in, units out]`, with rows and
    columns sorted by degree, as it is before the scaling by c, which belongs to the architecture.

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
        super().__init__(event_shape, context_shape, params, activation, dtype, name)
        self._hidden_units = checked_hidden_units(hidden_units)
        self._base_width = checked_size('base_width', base_width)
        rng = random_generator(seed)
        self._event_size = self._event_shape.num_elements()
        self._order = _masks.permutation(order, self._event_size, rng)
        layers = _masks.degrees(self._event_size, self._hidden_units, self._params, self._context_shape is not None)
        self._masked_kernels = tuple(MaskedKernel(layers, layer) for layer in range(len(layers) - 1))
        self._largest_kernel = max(kernel.mask.size for kernel in self._masked_kernels)
        context_size = None if self._context_shape is None else self._context_shape.num_elements()
        masks = [kernel.mask for kernel in self._masked_kernels]
        self._make_variables(masks, context_size, rng, variable_factory, self._base_width)

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return self._hidden_units

    @property
    def base_width(self) -> int:
        """How many terms a sum may have before it is scaled down."""
        return self._base_width

    @property
    def order(self) -> np.ndarray:
        """The indices of the entries, in the order in which they come."""
        return self._order.copy()

    def _repr_of_layers(self) -> str:
        return f'hidden_units={self._hidden_units}, base_width={self._base_width}'

    def unchecked_call(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Does what calling the network does, for arguments that were checked before."""
        layers = self.masked_layers(context)
        values = gather(rows_of(x, self._event_size), self._order, axis=1)
        num_blocks = self._num_blocks(values)
        sums = scaled(layers.kernels[0](values, layers.weights[0], num_blocks), layers.scales[0])
        sums, lead = plus_offset(sums, lead_of(x, self._event_shape.rank), layers.offsets[0], [self._hidden_units[0]])
        for kernel, weights, scale, offset in zip(
            layers.kernels[1:], layers.weights[1:], layers.scales[1:], layers.offsets[1:], strict=True
        ):
            sums = scaled(kernel(layers.activation(sums), weights, num_blocks), scale) + offset
        outputs = gather(tf.reshape(sums, [-1, self._event_size, self._params]), np.argsort(self._order), axis=1)
        return reshaped(outputs, lead, [*self._event_shape, self._params])

    def _num_blocks(self, values: tf.Tensor) -> int:
        """Returns in how many blocks to multiply; all of them give the same."""
        return num_blocks_for(self._event_size, self._largest_kernel, values)

    def masked_layers(self, context: tf.Tensor | None = None) -> MaskedLayers:
        """Returns the layers for a context that was checked before, as the blockwise inverse takes them."""
        first, *offsets = (tf.convert_to_tensor(bias) for bias in self._biases)
        if context is not None:
            context = tf.convert_to_tensor(context)
            rows = rows_of(context, self._context_shape.num_elements())
            share = scaled(tf.matmul(rows, self._context_kernel), self._scales[0]) + first
            first = reshaped(share, lead_of(context, self._context_shape.rank), [self._hidden_units[0]])
        return MaskedLayers(
            order=self._order,
            kernels=self._masked_kernels,
            weights=[tf.convert_to_tensor(kernel) for kernel in self._kernels],
            scales=self._scales,
            offsets=[first, *offsets],
            activation=self._activation,
            params=self._params,
        )
