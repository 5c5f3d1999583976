"""The VAEs on MNIST: a tiny run of the script itself, what is left when it is killed, and several devices."""

import dataclasses
import functools
import math
import pathlib

import _architectures
import _checkpoints
import _comparison
import _datasets
import _estimates
import _evaluation
import _image_report
import _image_vae
import _likelihoods
import _runs
import h5py
import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
import vae_mnist
from _estimates import Parts
from _image_settings import Evaluation
from _posteriors import POSTERIORS

from tests.examples import scripts
from tests.examples.image_data import small_settings, write_mnist
from tests.flows import raises

TINY = {'epochs': 2, 'batch_size': 25, 'flows': 2, 'flow_hidden_units': 8, 'context_size': 4, 'hidden_units': 16}
TINY |= {'nll_samples': 30, 'nll_images': 30, 'grid_size': 100, 'warm_up_steps': 10}
LABELS = ['diagonal', 'full covariance', 'IAF', 'diagonal, 3 epochs']


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The folder, the output and the record of the script, with all posteriors, and two processes."""
    folder = tmp_path_factory.mktemp('elsewhere')
    posteriors = 'diagonal,full_covariance,iaf'
    flags = {**TINY, 'posteriors': posteriors, 'longer_baseline': 3, 'latent_size': 2, 'tensorboard': True}
    directory, output = scripts.run(vae_mnist, folder, data=write_mnist(folder), **flags)
    return directory, output, scripts.read_record(directory)


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
            assert run['kl'] > 0 and 0 <= run['active_units'] <= 2 and run['cpu_seconds'] > 0
            assert (run['images'], run['nll_images']) == (40, 30)
            assert run['gpus'] == len(tf.config.list_physical_devices('GPU'))
            # Two dimensions: exact, and by importance weighting.
            assert run['importance_weighted_nll'] == pytest.approx(run['nll'], abs=0.3)
            assert run['nll'] < run['neg_elbo'] + 0.5 < 64 * math.log(2) + 5

    def test_says_by_how_much_importance_weighting_is_off(self, tiny_run):
        _, output, record = tiny_run
        assert 'IW excess' in output
        for row, run in zip(record['aggregated'], record['runs'], strict=True):
            bias = row['importance_weighting_bias']
            assert bias['mean'] == pytest.approx(run['importance_weighted_nll'] - run['nll']) and bias['mean'] != 0
            assert f'{bias["mean"]:.3f} ± {bias["standard_error"]:.3f}\n' in output

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
        (trained,) = _runs.run_cached(scripts.never, [run], directory / 'runs', 1, False, str).values()
        evaluations = [Evaluation(run, nll_samples=30, nll_images=30, grid_size=size) for size in (100, 300)]
        assert [(directory / 'evaluations' / f'{each.name}.json').is_file() for each in evaluations] == [True, False]
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


def tiny_convolutions(name, image_shape, outputs, latent_size, hidden_units):
    """An encoder and a decoder with batch normalisation, for 8x8 images."""
    layers = keras.layers
    encoder = [layers.Conv2D(3, 3, 2), layers.BatchNormalization(), layers.Flatten(), layers.Dense(6, 'elu')]
    decoder = [
        layers.Dense(64, 'elu'),
        layers.BatchNormalization(),
        layers.Reshape([8, 8, 1]),
        layers.Conv2D(outputs, 1),
    ]
    return _architectures._networks(encoder, decoder, latent_size)


def trained(folder, network, is_killed):
    """The weights after three epochs, once killed in the third one if told so, the curves, and the last checkpoint."""
    settings = small_settings('IAF')
    if network == 'convolutions':
        _architectures.make = tiny_convolutions  # in a process of its own
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
    checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(own / settings.name)))
    state = {name: checkpoint.get_tensor(name) for name in checkpoint.get_variable_to_shape_map()}
    return weights, figures['curves'], {name: value for name, value in state.items() if 'VARIABLE_VALUE' in name}


@pytest.mark.slow
@pytest.mark.parametrize('network', ['dense', 'convolutions'])
def test_killed_and_started_again_it_ends_with_the_same_averaged_weights(network, tmp_path):
    write_mnist(tmp_path)
    results = dict(_runs.run_all(functools.partial(trained, tmp_path, network), [False, True], jobs=2))
    (weights, curves, state), (resumed, other_curves, other_state) = results[False], results[True]
    assert len(weights) == len(resumed) > 20
    assert any('batch_normalization' in name for name in weights) == (network == 'convolutions')
    # Checkpoints have the same variables as they are in training, not averaged; the epochs; and their own number.
    assert len(state) == len(other_state) == len(weights) + 2
    for one, other in ((weights, resumed), (state, other_state)):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
    for key in ('epoch', 'loss', 'val_reconstruction', 'val_kl'):
        assert curves[key] == other_curves[key] and len(curves[key]) == 3
    assert len(other_curves['cpu_seconds']) == 3


@pytest.mark.slow
def test_mirrored_devices(tmp_path):
    flags = {**TINY, 'posteriors': 'iaf', 'latent_size': 3, 'strategy': 'mirrored', 'batch_size': 20}
    directory, output = scripts.run(vae_mnist, tmp_path, data=write_mnist(tmp_path), **flags)
    assert '1 VAEs, 1 at a time' in output
    (run,) = scripts.read_record(directory)['runs']
    assert run['strategy'] == 'mirrored' and run['nll'] < run['neg_elbo'] < 64 * math.log(2) + 5


def test_data_that_are_not_there_end_the_script_with_what_to_do(monkeypatch):
    def load():
        raise FileNotFoundError('Put it there.')

    monkeypatch.setattr(_comparison.flags, 'FLAGS', None)
    with pytest.raises(SystemExit, match='Put it there'):
        _comparison.run(['vae_mnist.py'], load)


def results(run, shift):
    by_image = {key: np.arange(4.0) + shift for key in ('neg_elbo', 'nll', 'reconstruction', 'kl')}
    figures = {key: float(values.mean()) for key, values in by_image.items()}
    figures |= {
        'active_units': 3,
        'cpu_seconds': 1.0,
        'seconds': 5.0 - shift,
        'images': 4,
        'nll_images': 4,
        'image_shape': [8, 8, 1],
    }
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

    @pytest.mark.parametrize(('gpus', 'header', 'share'), [(0, 'CPU s', '1.00'), (1, ' s', '0.75')])
    def test_on_a_gpu_time_is_that_of_the_clock(self, gpus, header, share):
        groups = {label: [results(small_settings(label), shift)] for label, shift in (('diagonal', 1.0), ('IAF', 2.0))}
        groups['IAF'][0].figures['gpus'] = gpus
        text = _image_report.report(groups, _image_report.aggregate(groups))
        assert text.splitlines()[1].endswith(header) and f'; {share} of its time' in text
        figures = {**groups['IAF'][0].figures, 'ms_per_step': 1.0}
        figures['curves'] = {'val_reconstruction': [1.0], 'val_kl': [1.0]}
        described = _image_report.describe_training(small_settings(), figures)
        assert described.endswith('3 seconds' if gpus else '1 CPU seconds')

    def test_curves_have_the_colours_of_their_posteriors(self, monkeypatch, tmp_path):
        drawn = []
        monkeypatch.setattr(_image_report._plots, 'plot_learning_curves', lambda *args: drawn.append(args))
        groups = {}
        for label, epochs in (('diagonal', 2), ('IAF', 2), ('diagonal, 3 epochs', 3)):
            (result,) = groups[label] = [results(small_settings(label.split(',')[0], epochs=epochs), 0.0)]
            result.figures['curves'] = {
                key: [1.0] * epochs for key in ('val_reconstruction', 'val_kl', 'seconds', 'cpu_seconds')
            }
        _image_report.plot_curves(groups, tmp_path / 'curves.png')
        ((panels, colors, *_),) = drawn
        assert {label: colors[label] for label in ('diagonal', 'IAF')} == {
            k: POSTERIORS[k] for k in ('diagonal', 'IAF')
        }
        assert colors['diagonal, 3 epochs'] == POSTERIORS['diagonal']
        for curves in panels.values():
            assert [curve.style for curve in curves.values()] == ['-', '-', '--']

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
        mean = model.get_layer('z_mean')
        mean.kernel.assign(5 * mean.kernel)  # or else the KL would be too small to be missed
        estimates = _estimates.estimate(Parts.of(model), _likelihoods.bernoulli, images, 500)
        many = np.repeat(images, 200, axis=0)
        losses = model.evaluate(many, many, batch_size=2000, verbose=0, return_dict=True)
        assert losses['loss'] == pytest.approx(estimates.neg_elbo.mean(), abs=0.5)
        assert losses['reconstruction'] == pytest.approx(estimates.reconstruction.mean(), abs=0.3)
        assert estimates.kl.mean() > 10

    @pytest.mark.slow
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


@pytest.mark.parametrize('warm_up', [0, 5])
def test_learning_rate(warm_up):
    rate = _image_vae.learning_rate(small_settings('diagonal', learning_rate=0.1, rate_warm_up_steps=warm_up), 25)
    values = np.array([float(rate(step)) for step in range(26)])
    np.testing.assert_allclose(values[:warm_up], 0.1 * np.arange(warm_up) / 5, rtol=1e-5)
    x = np.linspace(0, 1, 26 - warm_up)
    np.testing.assert_allclose(values[warm_up:], 0.1 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * x))), rtol=1e-4)
