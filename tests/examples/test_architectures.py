"""The encoders and decoders."""

import _architectures
import _image_vae
import keras
import numpy as np
import pytest

from tests.examples.image_data import small_settings


@pytest.mark.parametrize(
    ('name', 'image_shape', 'outputs', 'size'),
    [('mlp', (8, 6, 1), 2, 2), ('conv-mnist', (28, 28, 1), 1, 5), ('conv-cifar10', (32, 32, 3), 6, 5)],
)
def test_shapes(name, image_shape, outputs, size):
    networks = _architectures.make(name, image_shape, outputs, size, (7, 9))
    hidden = networks.encode(keras.Input(image_shape))
    assert hidden.shape[1:] == {'mlp': (9,), 'conv-mnist': (128,), 'conv-cifar10': (512,)}[name]
    decoded = networks.decoder(np.zeros([2, size], np.float32))
    assert decoded.shape == (2, *image_shape[:-1], outputs)
    assert networks.decoder.name == 'decoder'


@pytest.mark.parametrize(
    ('name', 'image_shape', 'size', 'parameters'),
    [('conv-mnist', (28, 28, 1), 32, 2558017), ('conv-cifar10', (32, 32, 3), 128, 2015427)],
)
def test_as_many_parameters_as_in_the_blog(name, image_shape, size, parameters):
    settings = small_settings('diagonal', network=name, latent_size=size, hidden_units=())
    model = _image_vae.make_vae(settings, image_shape)
    of_sampling = sum(int(np.prod(weight.shape)) for weight in model.get_layer('sampling').weights)
    assert model.count_params() - of_sampling == parameters
