"""Every experiment from its command line, tiny, and what it fits against what is known."""

import dataclasses
import importlib
import types

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from experiments import ablation, densities, digits, inference, neutra, plots, runs
from experiments.__main__ import EXPERIMENTS
from experiments.quadrature import Grid
from scipy import special

import tfp_iaf
from tests.experiments import small
from tests.flows import raises

tfd = tfp.distributions
SMALL_VAE = '--flows=1 --flow-units=8 --context-size=4 --epochs=2 --elbo-samples=3 --nll-samples=5 --nll-images=20'
TINY = {
    'digits': f'{SMALL_VAE} --steps-per-epoch=5 --hidden-units=16 --posterior=IAF --grid-size=50',
    'families': f'{SMALL_VAE} --steps-per-epoch=5 --hidden-units=16 --latent-size=2 --local-steps=3',
    'mnist': f'{SMALL_VAE} --batch-size=50 --posterior=diagonal --longer-baseline=3 --latent-size=3',
    'cifar10': f'{SMALL_VAE} --batch-size=10 --steps-per-epoch=2 --posterior=IAF --latent-size=4',
    'freyfaces': f'{SMALL_VAE} --batch-size=5 --steps-per-epoch=1 --posterior=diagonal --latent-size=4 --nll-images=3',
    'ablation': '--epochs=1 --steps-per-epoch=2 --elbo-samples=2 --nll-samples=3 --latent-size=2',
    'energies': '--steps=20 --evaluation-samples=500 --target=U4 --depth=0,1 --family=planar,radial',
    'gauntlet': '--steps=5 --evaluation-samples=200 --target=NealsFunnel',
    'rates': '--steps=5 --evaluation-samples=200',
    'surrogates': '--steps=20 --evaluation-samples=500 --target=banana --family=affine',
    'neutra': '--gradients=3200 --fit-steps=20 --samplers=NeuTra:4:0.9',
    'densities': '--steps=100 --num-affine=1 --num-gated=1 --target=rings --test-points=2000',
}
RUNS = {
    'digits': 1,
    'families': 1,
    'mnist': 2,
    'cifar10': 1,
    'freyfaces': 2,
    'ablation': 2,
    'energies': 3,
    'gauntlet': 2,
    'rates': 2,
    'surrogates': 1,
    'neutra': 1,
    'densities': 1,
}
PLOTS = {
    'digits': ['images', 'learning_curves', 'posteriors'],
    'families': ['images', 'learning_curves', 'posteriors'],
    'mnist': ['images', 'learning_curves'],
    'cifar10': ['images', 'learning_curves'],
    'freyfaces': ['images', 'learning_curves'],
    'ablation': ['ablation', 'posteriors'],
    'energies': [f'energies_{name}' for name in ('kl_by_steps', 'planar', 'radial', 'transforms')],
    'gauntlet': [],
    'rates': [],
    'surrogates': ['surrogates'],
    'neutra': [],
    'densities': ['densities'],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_tiny_run(name, tmp_path, monkeypatch, capsys):
    arguments = TINY[name].split()
    if name == 'mnist':
        arguments.append(f'--data={small.write_mnist(tmp_path)[0]}')
    if name == 'cifar10':
        arguments.append(f'--data={small.write_cifar10(tmp_path)[0]}')
    if name == 'freyfaces':
        arguments += [f'--data={small.write_freyfaces(tmp_path)}', '--seeds=2']
    if name == 'families':
        arguments.append('--posterior=planar 4')
    if name in ('gauntlet', 'rates'):
        pytest.importorskip('inference_gym', reason='the Inference Gym is not installed')
    if name == 'gauntlet':
        arguments.append("--rival=TFP's IAF,IAF affine")
    if name == 'ablation':
        fewer = {'hidden_units': (8,), 'flow_units': (8,), 'flows': 1, 'grid_size': 50}
        monkeypatch.setattr(digits, 'SETTINGS', dataclasses.replace(digits.SETTINGS, **fewer))
        monkeypatch.setattr(ablation, '_DRAWN', ('the post',))
        monkeypatch.setattr(ablation, 'ROWS', {label: ablation.ROWS[label] for label in ('diagonal', 'the post')})
    main = importlib.import_module(f'experiments.{name}').main
    output_dir = tmp_path / 'out'
    main(['--quick', f'--output-dir={output_dir}', *arguments])
    printed = capsys.readouterr().out
    report = (output_dir / 'report.md').read_text()
    assert report.split('\n\n', 2)[2].strip() in printed and f'experiments {name} --quick' in report
    frame = pd.read_csv(output_dir / 'runs.csv', keep_default_na=False)
    assert len(frame) == RUNS[name] and np.all(np.isfinite(frame.select_dtypes('number')))
    assert sorted(path.stem for path in output_dir.glob('*.png')) == PLOTS[name]
    for path in output_dir.glob('*.png'):
        assert min(matplotlib.image.imread(path).shape[:2]) > 100
    assert not list(output_dir.rglob('.[0-9]*'))
    if name == 'freyfaces':  # every seed has a shuffle of its own
        assert frame['dataset'].tolist() == ['freyfaces 123', 'freyfaces 321'] and frame['fingerprint'].nunique() == 2
    if name == 'rates':  # it is not repeated
        before = {path: path.stat().st_mtime for path in output_dir.rglob('output.pkl')}
        main(['--quick', f'--output-dir={output_dir}', *arguments])
        assert before and {path: path.stat().st_mtime for path in output_dir.rglob('output.pkl')} == before


@pytest.mark.parametrize(
    ('name', 'option', 'error'),
    [
        ('digits', '--network=conv', "network: got 'conv', expected one of dense, conv-mnist, conv-cifar10"),
        ('digits', '--binarization=x', "binarization: got 'x', expected one of dynamic, threshold, none"),
        ('densities', '--steps=150', 'steps: got 150, expected a multiple of 100'),
        ('neutra', '--gradients=639', 'gradients: got 639, expected at least 640'),
    ],
)
def test_wrong_settings(name, option, error):
    with raises(ValueError, error):
        importlib.import_module(f'experiments.{name}').main([option])


class TestInference:
    @pytest.mark.slow
    def test_annealing_raises_the_target_to_a_growing_power(self, monkeypatch):
        """The target's density is e everywhere, and the learning rate 0: the losses show what the power lacks to 1."""
        flat = types.SimpleNamespace(event_shape=[2], bijector=None, log_density=lambda z: 1.0 + 0.0 * z[..., 0])
        monkeypatch.setitem(inference.TARGETS, 'flat', flat)

        def losses(annealing):
            settings = inference.Settings('flat', depth=0, steps=10, learning_rate=0.0, annealing=annealing)
            return inference.fit(settings)[1]

        lacking = [0.99, 0.79, 0.59, 0.39, 0.19, 0.0, 0.0, 0.0, 0.0, 0.0]
        np.testing.assert_allclose(losses(0.5) - losses(0.0), lacking, atol=1e-5)

    @pytest.mark.slow
    def test_mean_field_reaches_its_optimum_and_a_flow_comes_closer(self):
        kinds = {depth: inference.Settings('funnel', depth=depth, steps=500) for depth in (0, 2)}
        figures = {depth: inference.run(runs.Store('nowhere'), settings).figures for depth, settings in kinds.items()}
        assert figures[0]['kl'] == pytest.approx(inference.TARGETS['funnel'].mean_field_kl, abs=0.05)
        assert -4 * figures[2]['standard_error'] < figures[2]['kl'] < 0.1

    @pytest.mark.slow
    def test_samples_agree_with_the_density_that_is_drawn(self):
        settings = inference.Settings('U4', depth=1, activation='tanh', steps=20, evaluation_samples=2000)
        figures, q = inference.run(runs.Store('nowhere'), settings)
        energy, window = inference.TARGETS['U4'], inference.WINDOW
        log_p = energy.log_density(window.points).numpy() - energy.log_z
        shares = q.ravel() * np.exp(window.log_cell)
        assert shares.sum() == pytest.approx(1, abs=0.02)
        kl = np.sum(special.xlogy(shares, q.ravel()) - shares * log_p)
        assert figures['kl'] == pytest.approx(kl, abs=4 * figures['standard_error'] + 0.01)

    @pytest.mark.parametrize('family', ['planar', 'radial'])
    def test_steps_of_the_paper_start_as_the_identity_and_are_of_energies_alone(self, family):
        q, x = inference.make_posterior(inference.Settings('U1', family, depth=3)), tf.constant([[1.0, -2.0]])
        np.testing.assert_allclose(q.bijector.forward(x), x, rtol=1e-6)
        assert len(q.trainable_variables) == 2 + 3 * 3
        with raises(ValueError, f"family: got '{family}' for 'funnel'"):
            inference.make_posterior(inference.Settings('funnel', family))

    @pytest.mark.parametrize('family', ['gated', 'affine', 'spline', 'full covariance'])
    @pytest.mark.parametrize('target', ['U1', 'funnel'])
    def test_families_are_over_the_target_and_follow_the_seed(self, target, family):
        def sample(seed):
            q = inference.make_posterior(inference.Settings(target, family, seed=seed))
            parts = q.sample(2, seed=[0, 0])
            assert np.all(np.isfinite(inference.TARGETS[target].log_density(parts)))
            return np.asarray(parts[-1])

        np.testing.assert_array_equal(sample(0), sample(0))
        assert not np.any(sample(0)[..., -1] == sample(1)[..., -1])


class TestNeutra:
    @pytest.mark.slow
    def test_chains_are_exact_whatever_the_flow(self, monkeypatch):
        """Through a flow that was never fitted, and bends a lot: without its log-det they would be far off."""

        def model():
            a = yield tfd.JointDistributionCoroutine.Root(tfd.Normal(1.0, 2.0, name='a'))
            yield tfd.Normal(0.5 * a, 1.0, name='b')

        joint = tfd.JointDistributionCoroutine(model)
        monkeypatch.setattr(neutra, 'FUNNEL', types.SimpleNamespace(log_density=joint.log_prob))
        # Bounded, or else chance makes corners that no chain comes out of.
        q = tfp_iaf.build_iaf_surrogate_posterior(joint.event_shape_tensor(), None, 2, (8,), activation='tanh', seed=0)
        rng = np.random.default_rng(0)
        for variable in q.trainable_variables:
            variable.assign_add(0.4 * rng.normal(size=variable.shape))
        noise = rng.normal(size=[1000, 2]).astype(np.float32)
        assert np.std(q.bijector.forward_log_det_jacobian(noise, event_ndims=1)) > 0.2
        settings = neutra.Settings('NeuTra', 3, gradients=192000)
        states, accepted = neutra.sample_chains(q, settings)
        assert states.a.shape == [3000, settings.chains]
        assert accepted == pytest.approx(0.8, abs=0.1)
        np.testing.assert_allclose([np.mean(states.a), np.mean(states.b)], [1.0, 0.5], atol=0.08)
        np.testing.assert_allclose(np.cov(np.ravel(states.a), np.ravel(states.b)), [[4.0, 2.0], [2.0, 2.0]], atol=0.2)

    def test_statistics(self):
        """Four chains with v from N(0, 3^2), each state .9 times the one before, and noise; and apart."""
        rng = np.random.default_rng(0)
        values, state = np.zeros([4000, 4, 10], np.float32), rng.normal(size=[4, 10])
        for now in values:
            state = 0.9 * state + np.sqrt(1 - 0.81) * rng.normal(size=[4, 10])
            now[...] = 3 * state
        figures = neutra.statistics(tf.constant(values))
        # Autocorrelations 0.9^k: a tenth of the states over 1.9.
        assert figures['ess'] == pytest.approx(16000 * 0.1 / 1.9, rel=0.35) and figures['r_hat'] < 1.05
        assert figures['v_mean'] == pytest.approx(0, abs=0.5) and figures['v_stddev'] == pytest.approx(3, abs=0.3)
        apart = neutra.statistics(tf.constant(values + np.array([0, 0, 9, 9], np.float32)[:, np.newaxis]))
        assert apart['r_hat'] > 1.5 and apart['ess'] < 100

    @pytest.mark.parametrize('text', ['', 'HMC', 'HMC:0:0.8', 'HMC:x:0.8', 'NUTS:3:0.8', 'HMC:3:1.0', 'HMC:3:0.8:1'])
    def test_no_sampler(self, text, capsys):
        with pytest.raises(SystemExit):
            neutra.main([f'--samplers=HMC:3:0.8,{text}'])
        assert '--samplers' in capsys.readouterr().err


@pytest.mark.slow
def test_a_few_hundred_steps_beat_the_gaussian():
    settings = densities.Settings('two moons', steps=400, num_affine=3, num_gated=1, test_points=5000)
    result = densities.run(runs.Store('nowhere'), settings)
    figures = result.figures
    assert figures['entropy'] < figures['nll'] < figures['nll_of_gaussian'] - 0.3
    assert result.curve[-1] == pytest.approx(figures['nll'], abs=0.1)
    assert figures['integral'] == pytest.approx(1, abs=2e-3) and figures['inverse_less_forward'] < 1e-2


def test_panels_are_drawn_where_they_belong(tmp_path):
    """The second axis of an array is the vertical one, upwards: a bright corner is seen where its coordinates say."""
    density = np.zeros([50, 50])
    density[40:, :10] = 1.0  # large z1, small z2: the lower right
    plots.panels({'row': {'p': ('', density)}}, {'row': Grid((-5.0, -5.0), (5.0, 5.0), 50)}, tmp_path / 'one.png')
    image = matplotlib.image.imread(tmp_path / 'one.png')[..., :3]
    bright = np.argwhere((image[..., 0] > 0.9) & (image[..., 1] > 0.9) & (image[..., 2] < 0.9))
    dark = np.argwhere(image.sum(axis=-1) < 0.1)
    assert len(bright) > 100 and np.all(bright.mean(axis=0) > dark.mean(axis=0))
