"""Saving and loading of Keras 3 models with the layer."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import raises, tfb, tfd
from tests.keras_models import (
    CONTEXT,
    K3,
    LATENT,
    SubclassedModel,
    assert_equal,
    built,
    data,
    fit,
    flow_of,
    flow_variables,
    log_laplace,
    log_q_of_a_fixed_point,
    narrow_at_first,
    parameters_of,
    point,
    train,
)
from tfp_iaf import transforms
from tfp_iaf.keras import IAFSampling

functional_model = K3.functional_model
each_model = pytest.mark.parametrize('make', [functional_model, SubclassedModel], ids=['functional', 'subclassed'])


@keras.saving.register_keras_serializable(package='tests')
def cubed(x):
    return x**3


@keras.saving.register_keras_serializable(package='tests')
def shifted(params):
    return tfb.Shift(params[..., 0])


@each_model
def test_keras_file_brings_everything_back(make, tmp_path):
    model = built(make())
    train(model, epochs=1, rows=5)
    model.save(tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras')
    np.testing.assert_array_equal(log_q_of_a_fixed_point(loaded), log_q_of_a_fixed_point(model))
    for a, b in zip(loaded.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    before = flow_variables(loaded)[0].numpy()
    loaded.run_eagerly = True
    fit(loaded, epochs=1, rows=5)
    assert np.any(flow_variables(loaded)[0].numpy() != before), 'a loaded model continues training'


@each_model
def test_weights_file_brings_everything_back(make, tmp_path):
    model, other = built(make()), built(make())
    assert np.all(log_q_of_a_fixed_point(other) != log_q_of_a_fixed_point(model))
    model.save_weights(tmp_path / 'model.weights.h5')
    other.load_weights(tmp_path / 'model.weights.h5')
    np.testing.assert_array_equal(log_q_of_a_fixed_point(other), log_q_of_a_fixed_point(model))


@each_model
def test_checkpoint_brings_everything_back(make, tmp_path):
    model, other = built(make()), built(make())
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    assert np.all(log_q_of_a_fixed_point(other) != log_q_of_a_fixed_point(model))
    tf.train.Checkpoint(model=other).read(path).expect_partial()
    np.testing.assert_array_equal(log_q_of_a_fixed_point(other), log_q_of_a_fixed_point(model))


@each_model
def test_exported_model_samples_from_the_same_posterior(make, tmp_path):
    model = built(make())
    model.export(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    result = loaded.serve(data())
    expected = flow_of(model).posterior(*parameters_of(model)).log_prob(tf.identity(result['z']))
    np.testing.assert_allclose(result['log_q'], expected, rtol=1e-4, atol=1e-4)
    assert np.all(loaded.serve(data())['z'] != result['z']), 'every call has its own noise'


def test_exported_density_is_the_same(tmp_path):
    model = built(functional_model(num_flows=1))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        'log_q',
        lambda *tensors: flow_of(model).posterior(*tensors[:3]).log_prob(tensors[3]),
        input_signature=[tf.TensorSpec([None, size]) for size in (LATENT, LATENT, CONTEXT, LATENT)],
    )
    archive.write_out(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.log_q(*point()), log_q_of_a_fixed_point(model), rtol=1e-5)


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'num_flows': 3, 'hidden_units': [4, 5], 'transform': 'affine', 'seed': 3, 'kl_weight': 0.1},
        {
            'transform': transforms.Affine(2.0),
            'alternate_order': False,
            'inverse': 'fixed_point',
            'activation': 'tanh',
            'name': 'mine',
        },
        {'transform': transforms.Gated(1.0), 'activation': keras.activations.silu, 'dtype': 'float64'},
        {'transform': transforms.RationalQuadraticSpline(num_bins=4, bound=3.0)},
        {'transform': transforms.ScalarBijector(shifted, params=1)},
        {'activation': cubed, 'kl_weight': 1, 'free_bits': 0.5, 'prior': log_laplace},
        {'activation': 'mish', 'seed': np.int64(3), 'network': narrow_at_first},
    ],
    ids=['default', 'names', 'objects', 'callable', 'spline', 'bijector', 'registered', 'of_keras'],
)
def test_config_makes_an_equal_layer(arguments):
    first = IAFSampling(**arguments)
    second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    assert second.get_config() == first.get_config()
    json.dumps(first.get_config())
    assert second.transform == first.transform
    for name, value in arguments.items():
        if name in (
            'num_flows',
            'alternate_order',
            'network',
            'inverse',
            'seed',
            'name',
            'activation',
            'free_bits',
            'prior',
        ):
            assert getattr(second, name) == value


def test_config_survives_json():
    config = IAFSampling(transform=transforms.Affine(2.0)).get_config()
    assert IAFSampling.from_config(json.loads(json.dumps(config))).transform == transforms.Affine(2.0)


@keras.saving.register_keras_serializable(package='tests')
@dataclasses.dataclass(frozen=True)
class Doubled(transforms.Affine):
    """A transform of a user's own."""

    factor: float = 2.0


def test_own_transform_and_network_come_back_from_a_file(tmp_path):
    inputs = [keras.Input([3]), keras.Input([3])]
    layer = IAFSampling(2, (8,), transform=Doubled(factor=3.0), network=narrow_at_first)
    keras.Model(inputs, layer(inputs)).save(tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras')
    assert loaded.layers[-1].transform == Doubled(factor=3.0)
    np.testing.assert_array_equal(loaded.layers[-1].weights[0], layer.weights[0])
    assert loaded.layers[-1].weights[0].shape == (3, 5)


def test_clone():
    model = functional_model(activation=cubed, free_bits=0.2, prior=log_laplace)
    flow_of(model).kl_weight.assign(0.1)
    clone = keras.models.clone_model(model)
    assert flow_of(clone).get_config() == flow_of(model).get_config()
    assert flow_of(clone).kl_weight.numpy() == 0.5
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(log_q_of_a_fixed_point(clone), log_q_of_a_fixed_point(model))


def test_weight_of_the_kl_comes_back(tmp_path):
    model = functional_model()
    flow_of(model).kl_weight.assign(0.125)
    model.save(tmp_path / 'model.keras')
    model.save_weights(tmp_path / 'model.weights.h5')
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    first, second, third = keras.models.load_model(tmp_path / 'model.keras'), functional_model(), functional_model()
    second.load_weights(tmp_path / 'model.weights.h5')
    tf.train.Checkpoint(model=third).read(path).expect_partial()
    for other in (first, second, third):
        assert flow_of(other).kl_weight.numpy() == 0.125
        assert flow_of(other).get_config()['kl_weight'] == 0.5


def test_samples_go_on_where_they_were(tmp_path):
    model = functional_model()
    model(data())
    model.save(tmp_path / 'model.keras')
    model.save_weights(tmp_path / 'model.weights.h5')
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    first, second, third = keras.models.load_model(tmp_path / 'model.keras'), functional_model(), functional_model()
    second.load_weights(tmp_path / 'model.weights.h5')
    tf.train.Checkpoint(model=third).read(path).expect_partial()
    expected = model(data())
    for other in (first, second, third):
        assert_equal(other(data()), expected)


def test_distribution_as_the_prior_has_no_config(tmp_path):
    model = functional_model(prior=tfd.Laplace(0.0, 1.0))
    with raises(NotImplementedError, 'prior', 'Laplace', 'keras.saving.register_keras_serializable', 'layer'):
        model.save(tmp_path / 'model.keras')
    model.save_weights(tmp_path / 'model.weights.h5')
