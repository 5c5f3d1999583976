"""What VAEs of images share: evaluation, and saving."""

import dataclasses

import _images
import _vae
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.examples.small_vae import SMALL, small_model


class TestEvaluate:
    @pytest.mark.parametrize('num_flows', [0, 2])
    def test_a_decoder_that_ignores_z_has_a_known_likelihood(self, num_flows):
        model = small_model(num_flows)
        bias = model.get_layer('decoder').layers[-1].bias
        model.get_layer('decoder').layers[-1].kernel.assign(tf.zeros([3, 3, 1, 4]))
        bias.assign([0.7])
        images = _images.load_data('').test[:25]
        exact = float(np.mean(np.sum(np.log1p(np.exp(0.7)) - 0.7 * images, axis=(1, 2, 3))))
        settings = dataclasses.replace(SMALL, num_flows=num_flows)
        figures = _vae.evaluate(model, images, settings)
        assert figures['nll'] == pytest.approx(exact, abs=0.02)
        assert figures['neg_elbo'] > exact
        # What `fit` minimises is the same -ELBO.
        assert model.evaluate(images, images, verbose=0)[0] == pytest.approx(figures['neg_elbo'], abs=0.2)


def test_a_model_that_is_read_otherwise_than_written_is_refused(tmp_path, monkeypatch):
    other = small_model()
    other.get_layer('z_mean').bias.assign([0.0, 0.1, 0.0])
    monkeypatch.setattr(keras.saving, 'load_model', lambda path: other)
    with pytest.raises(RuntimeError, match=r'model\.keras: the model that was read'):
        _vae.save(small_model(), _images.load_data('').test[:2], tmp_path / 'model.keras')
