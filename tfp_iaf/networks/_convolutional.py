"""The masked convolutional network for events that are images or feature maps, with a feature map as context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_iaf._checks import Activation, checked_hidden_units, checked_size
from tfp_iaf._random import random_generator
from tfp_iaf._shapes import lead_of, reshaped
from tfp_iaf.networks import _masks
from tfp_iaf.networks._common import MaskedNetwork, VariableFactory, plus_offset

__all__ = ['MaskedConvolutionalNetwork']

_ORDERS = ('left-to-right', 'right-to-left')


class MaskedConvolutionalNetwork(MaskedNetwork):
    r"""Masked convolutions whose parameters for an entry depend on the entries before it and on a context.

    $$v^1 = a(x * (W^1 \odot M^1) + h U + b^1), \quad v^{l+1} = a(v^l * (W^{l+1} \odot M^{l+1}) + b^{l+1}), \quad
      \mathrm{params} = v^L * (W^{L+1} \odot M^{L+1}) + b^{L+1}$$

    with convolutions $*$ that keep the height and the width, and masks M such that the parameters of an entry are a
    function of the entries before it and of the context h. Pixels come in raster order, row by row from left to right,
    and within a pixel the channels in their order; `order='right-to-left'` is the reverse of all that.

    The context is a feature map of the height and width of the event. The parameters of a pixel see its vector at that
    pixel and, through the convolutions, those at the pixels before. Units of degree 0, which do not see the pixel that
    they are at, carry it to every output, the first one included.

    A pixel sees what its receptive field contains: with L hidden layers and the radius `r = kernel_size // 2`, pixels
    of its own row and of the `(L + 1) * r` rows before, at most as many columns away, and to the right at most r
    columns for every row. Steps in both orders, one after the other, connect what is within reach.

    Masks are applied at every call, so nothing that is stored in the kernels can break the autoregressive property, and
    forbidden weights get a gradient of zero. They are right for any number of filters: with fewer than C, some outputs
    do not react to some of the channels before them in their own pixel. Checkpoints depend on the architecture alone:
    each kernel is `[1 + r, kernel_size, units in, units out]`, the rows that the order permits, channels of hidden
    layers sorted by degree.

    Args:
        event_shape: `[H, W, C]`, height, width and channels of an event.
        filters: Channels of each hidden layer.
        kernel_size: Height and width of every kernel, an odd int.
        context_shape: `[H, W, K]`, or `None` for a network without a context.
        params: Parameters per entry, P: 2 for the transforms `'gated'` and `'affine'`, 23 for `'spline'`.
        activation: Name of a function of `tf.nn`, or a callable that acts on each unit by itself and has no variables.
        order: `'left-to-right'` or `'right-to-left'`.
        seed: Seed of the initial weights. `None` follows TensorFlow's global seed.
        dtype: `tf.float32` or `tf.float64`: dtype of the variables and of all that is computed.
        variable_factory: Makes the variables, from a name and an initial value. A Keras layer passes its own.
        name: Name of the module.

    Call arguments:
        x: `[..., H, W, C]`.
        context: `[..., H, W, K]`. Its leading shape broadcasts against that of `x`; its share of the first hidden layer
            is computed once, before it is broadcast.

    Call returns:
        `[..., H, W, C, P]`, of the network's dtype.

    Cost: one pass is `H * W * (R * (C * F + F * F + F * C * P) + K * F)` multiplications per event, for two hidden
    layers of F filters, with `R = (1 + r) * kernel_size`, 6 for kernels of 3 by 3. To invert a step at a new point
    takes at most `depth + 1` passes, and far fewer near the identity.

    Raises:
        ValueError: If a shape is not one of an image, the context has another height or width than the event, a size is
            below 1, `kernel_size` is even, `filters` is empty, `order` or `activation` is unknown, or, at a call, `x`
            or `context` has the wrong shape, or a context is missing or unexpected.
        TypeError: If `dtype` or a tensor does not have the floating type expected, a size is not an int, or
            `activation` is an object that may hold variables, such as a layer.

    References:
        van den Oord, Kalchbrenner and Kavukcuoglu 2016, "Pixel Recurrent Neural Networks",
        https://arxiv.org/abs/1601.06759, Section 3.4.
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Section 6.2 and Appendix C.
        Eq. `convolutional-network`, `convolution-masks`, `initial-weights` and `wavefront` of the mathematics page.

    >>> net = MaskedConvolutionalNetwork([8, 8, 3], filters=(16,), context_shape=[8, 8, 4], seed=0)
    >>> net(tf.zeros([5, 8, 8, 3]), context=tf.zeros([5, 8, 8, 4])).shape
    TensorShape([5, 8, 8, 3, 2])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        filters: Sequence[int] = (160, 160),
        *,
        kernel_size: int = 3,
        context_shape: Sequence[int] | None = None,
        params: int = 2,
        activation: str | Activation = 'elu',
        order: str = 'left-to-right',
        seed: int | None = None,
        dtype: tf.DType = tf.float32,
        variable_factory: VariableFactory | None = None,
        name: str = 'masked_convolutional_network',
    ) -> None:
        super().__init__(event_shape, context_shape, params, activation, dtype, name)
        self._check_maps()
        self._filters = checked_hidden_units(filters, 'filters')
        self._kernel_size = checked_size('kernel_size', kernel_size)
        if self._kernel_size % 2 == 0:
            raise ValueError(f'kernel_size: got {kernel_size}, expected an odd number, such as 3.')
        if order not in _ORDERS:
            raise ValueError(f'order: got {order!r}, expected one of {_ORDERS}, which convolutions can have.')
        self._is_reversed = order == 'right-to-left'
        # With or without a context: units of degree 0 see the pixels before.
        first, *hidden, last = _masks.degrees(self._event_shape[-1], self._filters, self._params, conditional=True)
        if self._is_reversed:
            first, last = first[::-1], last[::-1]
        self._masks = tuple(
            _masks.convolution_mask(inputs, outputs, self._kernel_size, self._is_reversed)
            for inputs, outputs in itertools.pairwise([first, *hidden, last])
        )
        context_size = None if self._context_shape is None else self._context_shape[-1]
        self._make_variables(self._masks, context_size, random_generator(seed), variable_factory)

    def _check_maps(self) -> None:
        if self._event_shape.rank != 3:
            raise ValueError(
                f'event_shape: got {self._event_shape}, expected [height, width, channels]. For other events take a '
                f'MaskedAutoregressiveNetwork.'
            )
        if self._context_shape is not None and (
            self._context_shape.rank != 3 or self._context_shape[:2] != self._event_shape[:2]
        ):
            height, width, _ = self._event_shape
            raise ValueError(
                f'context_shape: got {self._context_shape}, expected [{height}, {width}, channels], a feature map of '
                f'the height and width of event_shape. A vector takes a layer that makes a feature map of it.'
            )

    @property
    def filters(self) -> tuple[int, ...]:
        """Channels of each hidden layer."""
        return self._filters

    @property
    def kernel_size(self) -> int:
        """Height and width of every kernel."""
        return self._kernel_size

    @property
    def order(self) -> np.ndarray:
        """The indices of the entries, those of `tf.reshape(x, [-1])`, in the order in which they come."""
        entries = np.arange(self._event_shape.num_elements())
        return entries[::-1] if self._is_reversed else entries

    @property
    def depth(self) -> int:
        """The most entries in a chain in which each depends on the one before: `C * (W + (1 + r) * (H - 1))`.

        A pixel depends on none for which column + (1 + r) row is not less than its own; see Eq. `wavefront`.
        """
        height, width, channels = self._event_shape
        return min(height * width, width + (1 + self._kernel_size // 2) * (height - 1)) * channels

    def _repr_of_layers(self) -> str:
        return f'filters={self._filters}, kernel_size={self._kernel_size}'

    def unchecked_call(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """Does what calling the network does, for arguments that were checked before."""
        height, width, _ = self._event_shape
        (first, *biases), share = self._biases, self._share(context)
        values = self._convolved(0, tf.reshape(x, [-1, *self._event_shape]))
        offset = tf.convert_to_tensor(first) if share is None else share + first
        values, lead = plus_offset(values, lead_of(x, 3), offset, [height, width, self._filters[0]])
        for layer, bias in enumerate(biases, start=1):
            values = self._convolved(layer, self._activation(values)) + bias
        return reshaped(values, lead, [*self._event_shape, self._params])

    def _share(self, context: tf.Tensor | None) -> tf.Tensor | None:
        """Returns what the first layer gets of the context, `[..., H, W, units]`."""
        if context is None:
            return None
        context = tf.convert_to_tensor(context)
        rows = tf.matmul(tf.reshape(context, [-1, self._context_shape[-1]]), self._context_kernel)
        return reshaped(rows, lead_of(context, 3), [*self._event_shape[:2], self._filters[0]])

    def _convolved(self, layer: int, values: tf.Tensor) -> tf.Tensor:
        """Convolves `[N, H, W, in]` with a masked kernel."""
        kernel = tf.convert_to_tensor(self._kernels[layer])
        # Not a product with the mask, which would turn an infinite forbidden weight into NaN.
        kernel = tf.where(self._masks[layer], kernel, tf.zeros([], kernel.dtype))
        radius = self._kernel_size // 2
        rows = [0, radius] if self._is_reversed else [radius, 0]
        return tf.nn.conv2d(
            tf.pad(values, [[0, 0], rows, [radius, radius], [0, 0]]), kernel, strides=1, padding='VALID'
        )
