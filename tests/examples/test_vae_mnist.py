"""The VAEs on MNIST: a tiny run of the script itself, what is left when it is killed, and several devices."""

import dataclasses
import functools
import math
import pathlib

import _checkpoints
import _common
import _datasets
import _evaluation
import _experiment
import _image_report
import _image_vae
import _vae
import h5py
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
import vae_mnist
from _image_settings import Evaluation

from tests.examples.image_data import run_script, small_settings, write_mnist
from tests.flows import raises

TINY = {'epochs': 2, 'batch_size': 25, 'flows': 2, 'flow_hidden_units': 8, 'context_size': 4, 'hidden_units': 16}
TINY |= {'nll_samples': 30, 'nll_images': 30, 'warm_up_steps': 10}
LABELS = ['diagonal', 'full covariance', 'IAF', 'diagonal, 3 epochs']


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The folder, the output and the record of the script, with all posteriors, and two processes."""
    folder = tmp_path_factory.mktemp('elsewhere')
    posteriors = 'diagonal,full_covariance,iaf'
    flags = {**TINY, 'posteriors': posteriors, 'longer_baseline': 3, 'latent_size': 2, 'tensorboard': True}
    output, record = run_script(vae_mnist, folder, data=write_mnist(folder), **flags)
    return folder / 'out', output, record


def never(directory, run):
    raise AssertionError(f'{run.name} is made again')


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        _, output, record = tiny_run
        assert '4 VAEs, 2 at a time. Images: 205 train, 41 validation, 40 test.' in output
        assert record['flags']['epochs'] == 2 and record['flags']['longer_baseline'] == 3
        assert set(record['versions']) >= {'tfp_iaf', 'tensorflow', 'tensorflow_probability', 'keras'}
        assert [row['posterior'] for row in record['aggregated']] == LABELS
        assert [row['epochs'] for row in record['aggregated']] == [2, 2, 2, 3]
        for row in record['aggregated']:
            assert f'{row["neg_elbo"]["mean"]:.3f} ± {row["neg_elbo"]["standard_error"]:.3f}' in output
            assert f'{row["nll"]["mean"]:.3f} ± {row["nll"]["standard_error"]:.3f}' in output
            for other, less in row['less'].items():
                assert f'{row["posterior"]} less {other}: -ELBO {less["neg_elbo"]["mean"]:.3f}' in output
        assert [list(row['less']) for row in record['aggregated']] == [[], *[['diagonal', LABELS[3]]] * 2, ['diagonal']]

    def test_figures_fit_one_another(self, tiny_run):
        for run in tiny_run[2]['runs']:
            assert run['neg_elbo'] == pytest.approx(run['reconstruction'] + run['kl'], abs=1e-6)
            assert run['kl'] > 0 and 0 <= run['active_units'] <= 2 and run['cpu_seconds'] > 0
            assert (run['images'], run['nll_images']) == (40, 30)
            # Two dimensions: exact, and by importance weighting.
            assert run['importance_weighted_nll'] == pytest.approx(run['nll'], abs=0.3)
            assert run['nll'] < run['neg_elbo'] + 0.5 < 64 * math.log(2) + 5

    def test_with_one_seed_errors_are_those_over_images(self, tiny_run):
        directory, _, record = tiny_run
        first, other = (run for run in record['runs'] if run['epochs'] == 2 and run['posterior'] != 'full covariance')
        files = {path.name.split('-')[0]: path for path in (directory / 'evaluations').glob('*-2-epochs-*.npz')}
        with np.load(files['diagonal']) as diagonal, np.load(files['IAF']) as iaf:
            difference = iaf['nll'] - diagonal['nll']
        assert other['posterior'] == 'IAF' and difference.mean() == pytest.approx(other['nll'] - first['nll'])
        (row,) = (row for row in record['aggregated'] if row['posterior'] == 'IAF')
        error = row['less']['diagonal']['nll']['standard_error']
        assert error == pytest.approx(difference.std(ddof=1) / np.sqrt(30))

    @pytest.mark.parametrize('name', ['learning_curves', 'images', 'posteriors'])
    def test_draws(self, tiny_run, name):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / f'{name}.png').shape
        assert height > 300 and width > 600

    def test_logs_for_tensorboard(self, tiny_run):
        for part in ('train', 'validation'):
            (path,) = (tiny_run[0] / 'runs').glob(f'IAF-*/tensorboard/{part}/events.*')
            events = [event for event in tf.compat.v1.train.summary_iterator(str(path)) if event.summary.value]
            assert {event.step for event in events} >= {0, 1}
            assert 'epoch_reconstruction' in {value.tag for event in events for value in event.summary.value}

    def test_leaves_no_temporary_file(self, tiny_run):
        assert not [path for path in tiny_run[0].rglob('.*') if path.is_file()]

    def test_another_evaluation_does_not_train_again(self, tiny_run, tmp_path):
        directory, _, record = tiny_run
        data = _datasets.load_mnist(str(directory.parent / 'mnist.npz'))
        fixed = {'data': data.fingerprint, 'epochs': 2, 'batch_size': 25, 'latent_size': 2}
        run = small_settings('diagonal', **fixed)
        (trained,) = _common.run_cached(never, [run], directory / 'runs', 1, False, str).values()
        evaluation = Evaluation(run, nll_samples=5, nll_images=10)
        figures = _evaluation.evaluate(lambda: data, directory / 'runs', tmp_path, evaluation)
        (old,) = (each for each in record['runs'] if each['posterior'] == 'diagonal' and each['epochs'] == 2)
        assert figures['neg_elbo'] == pytest.approx(old['neg_elbo'], rel=1e-5) and figures['nll_images'] == 10
        assert trained['parameters'] == old['parameters']


def test_a_batch_that_devices_cannot_share(monkeypatch):
    class Three:
        num_replicas_in_sync = 3

    monkeypatch.setattr(_image_vae._training, 'mirrored_strategy', Three)
    assert _image_vae._strategy(small_settings(strategy='mirrored', batch_size=9)).num_replicas_in_sync == 3
    with raises(ValueError, 'batch_size: got 10', 'expected a multiple of 3'):
        _image_vae._strategy(small_settings(strategy='mirrored', batch_size=10))


class KilledError(Exception):
    """What ends a training before its last checkpoint."""


def trained(folder, is_killed):
    """The weights after three epochs, once killed in the third one if told so, and the losses of all epochs."""
    settings = small_settings('IAF')
    train = functools.partial(
        _image_vae.train, functools.partial(_datasets.load_mnist, str(folder / 'mnist.npz')), False
    )
    own = folder / str(is_killed)
    save = _checkpoints.Backup.on_epoch_end

    def killed(self, epoch, logs=None):
        if epoch == 2:
            raise KilledError
        save(self, epoch, logs)

    if is_killed:
        _checkpoints.Backup.on_epoch_end = killed
        with pytest.raises(KilledError):
            train(own, settings)
        _checkpoints.Backup.on_epoch_end = save
    figures = train(own, settings)
    with h5py.File(_image_vae.weights_path(own, settings)) as file:
        weights: dict[str, np.ndarray] = {}
        file.visititems(lambda n, item: weights.update({n: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return weights, figures['curves']


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_averaged_weights(tmp_path):
    write_mnist(tmp_path)
    results = dict(_common.run_all(functools.partial(trained, tmp_path), [False, True], jobs=2))
    (weights, curves), (resumed, other_curves) = results[False], results[True]
    assert len(weights) == len(resumed) > 20
    for name, value in weights.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    for key in ('epoch', 'loss', 'val_reconstruction', 'val_kl'):
        assert curves[key] == other_curves[key] and len(curves[key]) == 3
    assert len(other_curves['cpu_seconds']) == 3


@pytest.mark.slow
def test_mirrored_devices(tmp_path):
    flags = {**TINY, 'posteriors': 'iaf', 'latent_size': 3, 'strategy': 'mirrored', 'batch_size': 20}
    output, record = run_script(vae_mnist, tmp_path, data=write_mnist(tmp_path), **flags)
    assert '1 VAEs, 1 at a time' in output
    (run,) = record['runs']
    assert run['strategy'] == 'mirrored' and run['nll'] < run['neg_elbo'] < 64 * math.log(2) + 5


def test_data_that_are_not_there_end_the_script_with_what_to_do(monkeypatch):
    def load():
        raise FileNotFoundError('Put it there.')

    monkeypatch.setattr(_experiment.flags, 'FLAGS', None)
    with pytest.raises(SystemExit, match='Put it there'):
        _experiment.run(['vae_mnist.py'], load)


def results(run, shift):
    by_image = {key: np.arange(4.0) + shift for key in ('neg_elbo', 'nll', 'reconstruction', 'kl')}
    figures = {key: float(values.mean()) for key, values in by_image.items()}
    figures |= {'active_units': 3, 'cpu_seconds': 1.0, 'images': 4, 'nll_images': 4, 'image_shape': [8, 8, 1]}
    return _image_report.Result(run, figures, by_image)


class TestReport:
    def test_with_several_seeds_errors_are_those_over_seeds(self):
        runs = [small_settings('diagonal', seed=seed) for seed in range(3)]
        flows = [small_settings('IAF', seed=seed) for seed in range(3)]
        shifts = [0.0, 1.0, 5.0]
        groups = {
            'diagonal': [results(run, shift) for run, shift in zip(runs, shifts, strict=True)],
            'IAF': [results(run, shift - 1) for run, shift in zip(flows, shifts, strict=True)],
        }
        baseline, flow = _image_report.aggregate(groups)
        assert baseline['less'] == {} and baseline['nll']['mean'] == 3.5
        assert baseline['nll']['standard_error'] == pytest.approx(np.std(shifts, ddof=1) / np.sqrt(3))
        assert flow['less']['diagonal']['nll'] == {'mean': -1.0, 'standard_error': 0.0, 'by_seed': [-1.0] * 3}
        text = _image_report.report(groups, [baseline, flow])
        assert 'IAF less diagonal: -ELBO -1.000 ± 0.000, NLL -1.000 ± 0.000; 1.00 of its time' in text
        assert 'over 3 seeds' in text and 'bits/dim' not in text

    def test_bits_per_dim(self):
        run = dataclasses.replace(small_settings('diagonal'), likelihood='discretized logistic', binarization=None)
        groups = {'diagonal': [results(run, 64 * 3 * math.log(2) - 1.5)]}
        text = _image_report.report(groups, _image_report.aggregate(groups))
        assert '-ELBO, bits/dim' in text and '3.000' in text


class TestModel:
    @pytest.mark.parametrize('posterior', ['diagonal', 'full covariance', 'IAF'])
    def test_its_loss_is_neg_elbo(self, posterior):
        images = np.random.default_rng(0).integers(0, 2, [40, 8, 8, 1]).astype(np.float32)
        model = _image_vae.make_vae(small_settings(posterior), [8, 8, 1])
        expected = _vae._estimates.estimate(_vae.parts(model), _vae.bernoulli, images, 200).neg_elbo.mean()
        assert model.evaluate(images, images, verbose=0)[0] == pytest.approx(expected, abs=1.0)

    def test_deep_flows_train_at_a_high_rate(self):
        flow = dataclasses.replace(small_settings('IAF').flow, num_flows=16, gate_start=0.0)
        settings = small_settings('IAF', flow=flow, learning_rate=1e-2, max_steps_per_execution=20)
        model = _image_vae.make_vae(settings, [8, 8, 1], steps_per_epoch=30)
        images = np.random.default_rng(0).integers(0, 2, [20, 8, 8, 1]).astype(np.float32)
        data = tf.data.Dataset.from_tensors((images, images)).repeat()
        losses = model.fit(data, steps_per_epoch=30, epochs=2, verbose=0).history['loss']
        assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
        assert int(model.optimizer.iterations) == 60  # as many as asked for
        assert model.get_layer('sampling').transform.gate_bias == 0

    def test_what_is_saved_is_what_is_loaded(self, tmp_path):
        settings = small_settings('full covariance')
        model = _image_vae.make_vae(settings, [8, 8, 1])
        path = pathlib.Path(_image_vae.weights_path(tmp_path, settings))
        model.save_weights(path)
        read = _image_vae.trained_vae(tmp_path, settings, [8, 8, 1])
        for a, b in zip(model.get_weights(), read.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
