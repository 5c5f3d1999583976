"""The Keras VAE: a tiny run of the script itself, its parts and settings, and what is left when it is killed."""

import dataclasses
import functools
import math
import shutil
import signal
import time

import _datasets
import _keras_vae
import keras
import keras_vae
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from _estimates import Parts

from tests.examples import scripts
from tests.examples.small_vae import SMALL, small_model

TINY = {'flows': 2, 'epochs': 3, 'batch_size': 20, 'evaluation_images': 30, 'evaluation_samples': 20}


def weights_of(path):
    return keras.saving.load_model(path).get_weights()


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The folder and the output of the script, called from somewhere else."""
    return scripts.run(keras_vae, tmp_path_factory.mktemp('elsewhere'), **TINY)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        assert 'Data: 8x8 digits' in output
        record = scripts.read_record(directory)
        assert record['flags']['epochs'] == TINY['epochs'] and record['flags']['batch_size'] == TINY['batch_size']
        assert set(record['versions']) >= {'tfp_iaf', 'tensorflow', 'tensorflow_probability', 'keras'}
        assert [run['num_flows'] for run in record['runs']] == [0, 2]
        for run in record['runs']:
            assert run['images'] == TINY['evaluation_images']
            assert math.isfinite(run['neg_elbo']) and run['nll'] < run['neg_elbo'] < 64 * math.log(2)
            assert f'{run["neg_elbo"]:.2f}' in output and f'{run["nll"]:.2f}' in output
        height, width, _ = matplotlib.image.imread(directory / 'reconstructions_and_samples.png').shape
        assert height > 200 and width > 600

    def test_models_can_be_used(self, tiny_run):
        (path,) = (tiny_run[0] / 'runs').glob('2-flows-*.keras')
        images = _datasets.load_digits().test[:4]
        model = keras.saving.load_model(path)
        assert model(images).shape == images.shape
        encoder, sampling, _ = Parts.of(model)
        assert sampling.posterior(*encoder(images)).sample(5).shape == (5, 4, 16)

    def test_leaves_no_temporary_file(self, tiny_run):
        assert not [path for path in tiny_run[0].rglob('.*') if path.is_file()]

    def test_killed_and_started_again_it_ends_with_the_same_weights(self, tiny_run, tmp_path):
        # The run without a flow is taken as finished, so that the one with a flow is killed.
        shutil.copytree(tiny_run[0] / 'runs', tmp_path / 'out' / 'runs', ignore=shutil.ignore_patterns('2-flows-*'))
        process = scripts.start(keras_vae, tmp_path, **TINY)
        while process.poll() is None and not list((tmp_path / 'out' / 'runs').glob('2-flows-*/checkpoint')):
            time.sleep(0.01)
        time.sleep(0.1)  # into an epoch
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not list((tmp_path / 'out' / 'runs').glob('2-flows-*.keras'))
        output, errors = scripts.ended(scripts.start(keras_vae, tmp_path, **TINY))
        assert 'Resuming: 1 of 2 runs' in output and 'goes on after' in output + errors
        (whole,), (resumed,) = ((path / 'runs').glob('2-flows-*.keras') for path in (tiny_run[0], tmp_path / 'out'))
        weights = weights_of(whole)
        assert all(np.array_equal(a, b) for a, b in zip(weights, weights_of(resumed), strict=True))


def test_training_that_diverges_ends_with_its_step(tmp_path):
    run = dataclasses.replace(SMALL, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=rf'{run.name}: loss became \S+ within 2 steps. Lower'):
        keras_vae.train(tmp_path, run)
    assert not list(tmp_path.rglob('ckpt*')) and not list(tmp_path.glob('*.keras'))


def test_images_like_mnist():
    images = np.zeros([5, 28, 28, 1], np.float32)
    assert keras_vae.make_vae(SMALL, images.shape[1:])(images).shape == images.shape


class TestEvaluate:
    @pytest.mark.parametrize('num_flows', [0, 2])
    def test_a_decoder_that_ignores_z_has_a_known_likelihood(self, num_flows):
        model = small_model(num_flows)
        bias = model.get_layer('decoder').layers[-1].bias
        model.get_layer('decoder').layers[-1].kernel.assign(tf.zeros([3, 3, 1, 4]))
        bias.assign([0.7])
        images = _datasets.load_digits().test[:25]
        exact = float(np.mean(np.sum(np.log1p(np.exp(0.7)) - 0.7 * images, axis=(1, 2, 3))))
        settings = dataclasses.replace(SMALL, num_flows=num_flows)
        figures = _keras_vae.evaluate(model, images, settings)
        assert figures['nll'] == pytest.approx(exact, abs=0.02)
        assert figures['neg_elbo'] > exact
        # What `fit` minimises is the same -ELBO.
        assert model.evaluate(images, images, verbose=0)[0] == pytest.approx(figures['neg_elbo'], abs=0.2)


def test_a_model_that_is_read_otherwise_than_written_is_refused(tmp_path, monkeypatch):
    other = small_model()
    other.get_layer('z_mean').bias.assign([0.0, 0.1, 0.0])
    monkeypatch.setattr(keras.saving, 'load_model', lambda path: other)
    with pytest.raises(RuntimeError, match=r'\.keras: the model that was read'):
        _keras_vae.save(small_model(), _datasets.load_digits().test[:2], tmp_path, SMALL)


def test_other_settings_have_other_names():
    others = [SMALL, *(dataclasses.replace(SMALL, **{key: 7}) for key in ('num_flows', 'epochs', 'seed', 'data'))]
    assert len({run.name for run in others}) == len(others)


@pytest.mark.parametrize(('epochs', 'command', 'expected'), [(None, [], 300), (20, [], 20), (20, ['--epochs=7'], 7)])
def test_settings_from_the_command_line(epochs, command, expected, monkeypatch, tmp_path):
    monkeypatch.setenv('KERAS_HOME', str(tmp_path))
    define = functools.partial(_keras_vae.define_flags, 'results', epochs)
    scripts.parse_flags(monkeypatch, define, '--flows=0', '--batch_size=7', '--evaluation_samples=8', *command)
    settings = _keras_vae.from_flags()
    assert settings == _keras_vae.Settings(0, '', expected, batch_size=7, evaluation_samples=8)
