"""The encoders and decoders of VAEs of images.

Those with convolutions for MNIST and CIFAR-10 are of the blog post "Variational Autoencoders with Inverse
Autoregressive Flows": all layers but the encoder's convolutions and the last are normalised, before their activation.
Those for Frey Faces are of the code of van den Berg et al. 2018, "Sylvester Normalizing Flows for Variational
Inference": convolutions with gates, and no other activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers


def make(
    name: str, image_shape: Sequence[int], outputs: int, latent_size: int, hidden_units: Sequence[int]
) -> tuple[keras.Sequential, keras.Sequential]:
    """Makes an encoder, from images to its last hidden layer, and a decoder, from z to what a likelihood takes.

    Args:
        name: 'dense', 'conv-mnist', 'conv-cifar10' or 'conv-freyfaces'.
        image_shape: `[height, width, channels]`.
        outputs: Numbers that the likelihood takes for a pixel.
        latent_size: Size of z.
        hidden_units: Of the dense layers of 'dense', on either side.
    """
    if name == 'dense':
        shape = [*image_shape[:-1], outputs]
        last = [layers.Dense(math.prod(shape)), layers.Reshape(shape)]
        encoder: list[Any] = [layers.Flatten(), *(layers.Dense(units, 'elu') for units in hidden_units)]
        decoder: list[Any] = [*(layers.Dense(units, 'elu') for units in hidden_units), *last]
    elif name == 'conv-mnist':
        encoder = [_conv(32), _conv(32), _conv(32, 2), layers.Flatten(), *_dense(128), *_dense(128)]
        deconvolutions = [*_deconv(32), *_deconv(32), *_deconv(32, 2)]
        decoder = [*_dense(128), *_dense(14 * 14 * 64), layers.Reshape([14, 14, 64]), *deconvolutions]
        decoder.append(layers.Conv2D(outputs, 1))
    elif name == 'conv-freyfaces':
        height, width = (-(-size // 4) for size in image_shape[:2])  # after two steps of stride 2
        encoder = [*_gated_conv(32), *_gated_conv(32, 2), *_gated_conv(64), *_gated_conv(64, 2), *_gated_conv(64)]
        encoder += [layers.Flatten(), *_gated_dense(256)]  # a convolution over all that is left of the images
        decoder = [*_gated_dense(height * width * 64), layers.Reshape([height, width, 64]), *_gated_deconv(64)]
        decoder += [*_gated_deconv(32, 2), *_gated_deconv(32), *_gated_deconv(32, 2), *_gated_deconv(32)]
        decoder += [layers.Conv2D(256, 5, padding='same'), layers.Conv2D(outputs, 1)]
    else:
        encoder = [_conv(128), _conv(64, 2), _conv(32, 2), layers.Flatten(), *_dense(512), *_dense(512)]
        deconvolutions = [*_deconv(128), *_deconv(64, 2), *_deconv(32, 2), *_deconv(32, 2)]
        decoder = [*_dense(512), *_dense(4 * 4 * 32), layers.Reshape([4, 4, 32]), *deconvolutions]
        decoder.append(layers.Conv2D(outputs, 1))
    return (
        keras.Sequential([keras.Input(image_shape), *encoder], name='encoder'),
        keras.Sequential([keras.Input([latent_size]), *decoder], name='decoder'),
    )


def _gated_dense(units: int) -> list[Any]:
    return _gated(layers.Dense(2 * units))


def _gated_conv(filters: int, strides: int = 1) -> list[Any]:
    return _gated(layers.Conv2D(2 * filters, 5, strides, padding='same'))


def _gated_deconv(filters: int, strides: int = 1) -> list[Any]:
    return _gated(layers.Conv2DTranspose(2 * filters, 5, strides, padding='same'))


def _gated(layer: Any) -> list[Any]:
    return [layer, layers.Lambda(_gated_linear_unit)]


def _gated_linear_unit(x: Any) -> Any:
    values, gates = keras.ops.split(x, 2, axis=-1)
    return values * keras.ops.sigmoid(gates)


def _dense(units: int) -> list[Any]:
    return _normalised(layers.Dense(units))


def _conv(filters: int, strides: int = 1) -> Any:
    return layers.Conv2D(filters, 3, strides, padding='same', activation='elu')


def _deconv(filters: int, strides: int = 1) -> list[Any]:
    return _normalised(layers.Conv2DTranspose(filters, 3, strides, padding='same'))


def _normalised(layer: Any) -> list[Any]:
    return [layer, layers.BatchNormalization(), layers.Activation('elu')]
