"""The encoders and decoders of VAEs of images.

Those with convolutions are of the blog post "Variational Autoencoders with Inverse Autoregressive Flows": all layers
but the encoder's convolutions and the last are normalised, before their activation.
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
        name: 'dense', 'conv-mnist' or 'conv-cifar10'.
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
    else:
        encoder = [_conv(128), _conv(64, 2), _conv(32, 2), layers.Flatten(), *_dense(512), *_dense(512)]
        deconvolutions = [*_deconv(128), *_deconv(64, 2), *_deconv(32, 2), *_deconv(32, 2)]
        decoder = [*_dense(512), *_dense(4 * 4 * 32), layers.Reshape([4, 4, 32]), *deconvolutions]
        decoder.append(layers.Conv2D(outputs, 1))
    return (
        keras.Sequential([keras.Input(image_shape), *encoder], name='encoder'),
        keras.Sequential([keras.Input([latent_size]), *decoder], name='decoder'),
    )


def _dense(units: int) -> list[Any]:
    return _normalised(layers.Dense(units))


def _conv(filters: int, strides: int = 1) -> Any:
    return layers.Conv2D(filters, 3, strides, padding='same', activation='elu')


def _deconv(filters: int, strides: int = 1) -> list[Any]:
    return _normalised(layers.Conv2DTranspose(filters, 3, strides, padding='same'))


def _normalised(layer: Any) -> list[Any]:
    return [layer, layers.BatchNormalization(), layers.Activation('elu')]
