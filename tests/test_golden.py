"""Files that earlier versions wrote still load, and give what they gave, however kernels are multiplied."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
from tests import golden

OUTPUTS = np.load(golden.FOLDER / 'outputs.npz')


def skip_if_older(kit):
    """Skips a file that a newer Keras wrote, which Keras does not promise to read."""
    wrote, reads = str(OUTPUTS[f'{kit.__name__}_version']), kit.__version__
    if [int(part) for part in reads.split('.')[:2]] < [int(part) for part in wrote.split('.')[:2]]:
        pytest.skip(f'{kit.__name__} {wrote} wrote the file, a newer one than {reads}')


@pytest.fixture(params=[None, 4], ids=['whole', 'in blocks'])
def num_blocks(request, monkeypatch):
    """No setting of speed may decide whether a file fits."""
    if request.param is not None:
        monkeypatch.setattr(tfp_iaf.MaskedAutoregressiveNetwork, '_num_blocks', lambda network, values: request.param)


def test_checkpoint(num_blocks):
    made = golden.posterior(seed=1)
    assert np.abs(golden.outputs_of_posterior(made) - OUTPUTS['posterior']).max() > 1e-3
    tf.train.Checkpoint(posterior=made).read(str(golden.FOLDER / 'checkpoint')).assert_consumed()
    np.testing.assert_allclose(golden.outputs_of_posterior(made), OUTPUTS['posterior'], rtol=1e-4, atol=1e-4)


def test_saved_model():
    loaded = tf.saved_model.load(str(golden.FOLDER / 'saved_model'))
    outputs = loaded.log_prob(*map(tf.constant, golden.INPUTS))
    np.testing.assert_allclose(outputs, OUTPUTS['posterior'], rtol=1e-4, atol=1e-4)


def test_surrogate_posterior():
    made = golden.surrogate(seed=1)
    assert np.abs(golden.outputs_of_surrogate(made) - OUTPUTS['surrogate']).max() > 1e-3
    tf.train.Checkpoint(q=made).read(str(golden.FOLDER / 'surrogate')).assert_consumed()
    np.testing.assert_allclose(golden.outputs_of_surrogate(made), OUTPUTS['surrogate'], rtol=1e-4, atol=1e-4)


def test_masked_convolutions():
    made = golden.convolutional(seed=1)
    assert np.abs(golden.outputs_of_convolutional(made) - OUTPUTS['convolutional']).max() > 1e-3
    tf.train.Checkpoint(posterior=made).read(str(golden.FOLDER / 'convolutional')).assert_consumed()
    np.testing.assert_allclose(golden.outputs_of_convolutional(made), OUTPUTS['convolutional'], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['keras', 'tf_keras', 'spline'])
def test_weights(name, num_blocks):
    made = golden.model('keras', 1, 'spline') if name == 'spline' else golden.model(name, 1)
    assert np.abs(golden.outputs_of_model(made) - OUTPUTS[name]).max() > 1e-3
    made.load_weights(golden.FOLDER / f'{name}.weights.h5')
    np.testing.assert_allclose(golden.outputs_of_model(made), OUTPUTS[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'file', ['keras.keras', 'spline.keras', 'tf_keras.keras', 'tf_keras.h5', 'tf_keras_saved_model']
)
def test_whole_model(file):
    name = file.removesuffix('_saved_model').split('.')[0]
    kit = tf_keras if name == 'tf_keras' else keras
    if not file.endswith('saved_model'):
        skip_if_older(kit)
    made = kit.models.load_model(golden.FOLDER / file)
    np.testing.assert_allclose(golden.outputs_of_model(made), OUTPUTS[name], rtol=1e-4, atol=1e-4)
