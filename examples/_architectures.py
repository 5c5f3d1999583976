"""The encoders and decoders of VAEs of images.

Those with convolutions are of the blog post "Variational Autoencoders with Inverse Autoregressive Flows": all layers
but the encoder's convolutions and the last are normalised, before their activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras


class Networks(NamedTuple):
    """An encoder, from images to its last hidden layer, and a decoder, from z to what a likelihood takes."""

    encode: Callable[[Any], Any]
    decoder: Any


def mlp(image_shape: Sequence[int], outputs: int, latent_size: int, hidden_units: Sequence[int]) -> Networks:
    """Makes dense layers, the same on both sides."""

    def dense() -> list[Any]:
        return [keras.layers.Dense(units, activation='elu') for units in hidden_units]

    shape = [*image_shape[:-1], outputs]
    last = [keras.layers.Dense(math.prod(shape)), keras.layers.Reshape(shape)]
    return _networks([keras.layers.Flatten(), *dense()], [*dense(), *last], latent_size)


def conv_mnist(outputs: int, latent_size: int) -> Networks:
    """Makes the networks for MNIST: three convolutions, two dense layers, and the way back."""
    encoder = [_conv(32), _conv(32), _conv(32, 2), keras.layers.Flatten(), *_dense(128), *_dense(128)]
    decoder = [
        *_dense(128),
        *_dense(14 * 14 * 64),
        keras.layers.Reshape([14, 14, 64]),
        *_deconv(32),
        *_deconv(32),
        *_deconv(32, 2),
        keras.layers.Conv2D(outputs, 1),
    ]
    return _networks(encoder, decoder, latent_size)


def conv_cifar10(outputs: int, latent_size: int) -> Networks:
    """Makes the networks for CIFAR-10, of the same kind."""
    encoder = [_conv(128), _conv(64, 2), _conv(32, 2), keras.layers.Flatten(), *_dense(512), *_dense(512)]
    decoder = [
        *_dense(512),
        *_dense(4 * 4 * 32),
        keras.layers.Reshape([4, 4, 32]),
        *_deconv(128),
        *_deconv(64, 2),
        *_deconv(32, 2),
        *_deconv(32, 2),
        keras.layers.Conv2D(outputs, 1),
    ]
    return _networks(encoder, decoder, latent_size)


def make(
    name: str, image_shape: Sequence[int], outputs: int, latent_size: int, hidden_units: Sequence[int]
) -> Networks:
    """Makes the networks of a name: 'mlp', 'conv-mnist' or 'conv-cifar10'."""
    if name == 'mlp':
        return mlp(image_shape, outputs, latent_size, hidden_units)
    return {'conv-mnist': conv_mnist, 'conv-cifar10': conv_cifar10}[name](outputs, latent_size)


def _networks(encoder: list[Any], decoder: list[Any], latent_size: int) -> Networks:
    def encode(hidden: Any) -> Any:
        for layer in encoder:
            hidden = layer(hidden)
        return hidden

    return Networks(encode, keras.Sequential([keras.Input([latent_size]), *decoder], name='decoder'))


def _dense(units: int) -> list[Any]:
    return _normalized(keras.layers.Dense(units))


def _conv(filters: int, strides: int = 1) -> Any:
    return keras.layers.Conv2D(filters, 3, strides, padding='same', activation='elu')


def _deconv(filters: int, strides: int = 1) -> list[Any]:
    return _normalized(keras.layers.Conv2DTranspose(filters, 3, strides, padding='same'))


def _normalized(layer: Any) -> list[Any]:
    return [layer, keras.layers.BatchNormalization(), keras.layers.Activation('elu')]
