"""The VAE of the digits against what is known of its parts."""

import _datasets
import _digits_vae
import _quadrature
import numpy as np
import pytest
import tensorflow as tf
from _posteriors import POSTERIORS
from absl import flags

from tests.examples import scripts


def test_other_settings_have_other_names():
    others = [
        _digits_vae.Settings('IAF', 2, 0),
        _digits_vae.Settings('IAF', 2, 0, learning_rate=1e-3),
        _digits_vae.Settings('IAF', 10, 0),
    ]
    assert len({run.name for run in others}) == len(others)


class TestVAE:
    def test_kl_is_warmed_up_in_training_alone(self):
        vae = _digits_vae.make_vae(_digits_vae.Settings('diagonal', 2, 0, steps=60))
        vae.compile('sgd')
        parts = tf.constant([3.0, 5.0]), tf.constant([2.0, 4.0])
        assert float(vae.compute_loss(None, None, parts, training=False)) == 7
        for step, expected in ((0, 4.0), (5, 5.5), (10, 7.0), (50, 7.0)):
            vae.optimizer.iterations.assign(step)
            assert float(vae.compute_loss(None, None, parts)) == expected
        assert float(vae.neg_elbo.result()) == 7
        vae.warm_up_steps = 0
        vae.optimizer.iterations.assign(0)
        assert float(vae.compute_loss(None, None, parts)) == 7

    def test_terms_of_a_posterior_and_a_decoder_that_are_known(self):
        vae = _digits_vae.make_vae(_digits_vae.Settings('diagonal', 2, 0))
        logits, mean, log_var = vae.decoder.layers[-2], *map(vae.encoder.get_layer, ('z_mean', 'z_log_var'))
        for layer, bias in ((logits, np.full(64, 0.7)), (mean, [1.0, 0.0]), (log_var, [0.0, 0.0])):
            layer.set_weights([np.zeros(layer.kernel.shape), np.array(bias)])
        images = np.repeat(_datasets.load_digits().test[:5], 1000, axis=0)
        reconstruction, kl = vae(images)
        exact = np.sum(np.log1p(np.exp(0.7)) - 0.7 * images, axis=(1, 2, 3))
        np.testing.assert_allclose(reconstruction, exact, rtol=1e-5)
        assert np.mean(kl) == pytest.approx(0.5, abs=0.06) and np.std(kl) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize('posterior', POSTERIORS)
def test_kl_by_samples_is_kl_by_quadrature(posterior):
    run = _digits_vae.Settings(posterior, 2, 0, grid_size=150)
    images = _datasets.load_digits().test
    vae = _digits_vae.make_vae(run)
    # Sharper than at its start, so that the KL is not small.
    vae.decoder.layers[-2].kernel.assign(3 * vae.decoder.layers[-2].kernel)
    figures = _digits_vae.evaluate(vae, images[:3], run)
    for kl, image in zip(figures['kl_to_posterior_by_image'], images, strict=False):
        density = _quadrature.posterior_densities({'': vae.parts}, image)['']
        assert density.kl == pytest.approx(kl, rel=0.1, abs=0.05)
        cell = np.prod([axis[1] - axis[0] for axis in density.axes])
        assert density.p.sum() * cell == pytest.approx(1, abs=1e-4)
        assert density.q.sum() * cell == pytest.approx(1, abs=0.02)


class TestFlags:
    def define(self):
        _digits_vae.define_flags(seeds=3, least_latent_size=2)

    def test_fields_of_settings(self, monkeypatch):
        scripts.parse_flags(monkeypatch, self.define, '--steps=300', '--latent_sizes=2,20')
        assert flags.FLAGS.seeds == 3 and flags.FLAGS.latent_sizes == ['2', '20']
        settings = _digits_vae.Settings('IAF', 2, 0, **_digits_vae.options_from_flags())
        assert settings == _digits_vae.Settings('IAF', 2, 0, steps=300)

    @pytest.mark.parametrize('command', ['steps=250', 'steps=0', 'latent_sizes=1,2', 'latent_sizes=', 'latent_sizes=x'])
    def test_what_makes_no_sense_is_refused(self, monkeypatch, command):
        with pytest.raises(flags.IllegalFlagValueError):
            scripts.parse_flags(monkeypatch, self.define, f'--{command}')
