"""Files that earlier versions wrote still load, and give what they gave, however kernels are multiplied."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
from tests import golden

OUTPUTS = np.load(golden.FOLDER / 'outputs.npz')


@pytest.mark.parametrize(
    ('name', 'num_blocks'),
    [*((name, None) for name in golden.MAKERS), ('posterior', 4), ('tf_keras', 4)],
    ids=lambda value: {None: 'whole', 4: 'in_blocks'}.get(value, value),
)
def test_weights(name, num_blocks, monkeypatch):
    """No setting of speed may decide whether a file fits."""
    if num_blocks is not None:
        monkeypatch.setattr(tfp_iaf.MaskedAutoregressiveNetwork, '_num_blocks', lambda network, values: num_blocks)
    made = golden.MAKERS[name](seed=1)
    assert np.abs(golden.outputs_of(made) - OUTPUTS[name]).max() > 1e-3
    if name in golden.CHECKPOINTS:
        file, key = golden.CHECKPOINTS[name]
        tf.train.Checkpoint(**{key: made}).read(str(golden.FOLDER / file)).assert_consumed()
    else:
        made.load_weights(golden.FOLDER / f'{name}.weights.h5')
    np.testing.assert_allclose(golden.outputs_of(made), OUTPUTS[name], rtol=1e-4, atol=1e-4)


def test_saved_model():
    loaded = tf.saved_model.load(str(golden.FOLDER / 'saved_model'))
    outputs = loaded.log_prob(*map(tf.constant, golden.INPUTS))
    np.testing.assert_allclose(outputs, OUTPUTS['posterior'], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'file', ['keras.keras', 'spline.keras', 'tf_keras.keras', 'tf_keras.h5', 'tf_keras_saved_model']
)
def test_whole_model(file):
    name = file.removesuffix('_saved_model').split('.')[0]
    kit = tf_keras if name == 'tf_keras' else keras
    wrote, reads = str(OUTPUTS[f'{kit.__name__}_version']), kit.__version__
    older = [int(part) for part in reads.split('.')[:2]] < [int(part) for part in wrote.split('.')[:2]]
    if older and not file.endswith('saved_model'):
        pytest.skip(f'{kit.__name__} {wrote} wrote the file, which {reads} does not promise to read')
    made = kit.models.load_model(golden.FOLDER / file)
    np.testing.assert_allclose(golden.outputs_of(made), OUTPUTS[name], rtol=1e-4, atol=1e-4)
