"""The VAEs on digits: a tiny run of the script itself, and its parts against what is known of them."""

import json
import math

import _datasets
import _quadrature
import _runs
import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import vae_digits

from tests.examples import scripts

tfd = tfp.distributions

TINY = {'steps': 6, 'evaluation_samples': 30, 'grid_size': 100}
RUNS = [vae_digits.Settings(posterior, size, 0, **TINY) for size in (2, 10) for posterior in vae_digits.POSTERIORS]
PLOTS = ('learning_curves', 'posteriors', 'reconstructions_and_samples')


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else, with two processes."""
    return scripts.run(vae_digits, tmp_path_factory.mktemp('elsewhere'), seeds=1, **TINY)


def never(directory, run):
    raise AssertionError(f'{run.name} is trained again')


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = json.loads((directory / 'results.json').read_text())
        assert record['flags']['steps'] == TINY['steps'] and record['flags']['latent_sizes'] == ['2', '10']
        assert set(record['versions']) >= {'tfp_iaf', 'tensorflow', 'tensorflow_probability', 'keras'}
        assert [(run['latent_size'], run['posterior'], run['seed']) for run in record['runs']] == [
            (run.latent_size, run.posterior, run.seed) for run in RUNS
        ]
        assert [(row['latent_size'], row['posterior']) for row in record['aggregated']] == [
            (run.latent_size, run.posterior) for run in RUNS
        ]
        for row in record['aggregated']:
            for key in ('neg_elbo', 'nll', 'kl_to_posterior', 'ms_per_step'):
                assert math.isfinite(row[key]['mean']) and row[key]['standard_error'] is None
                assert math.isfinite(row['less_baseline'][key]['mean'])
            assert f'{row["neg_elbo"]["mean"]:.3f}' in output

    def test_figures_fit_one_another(self, tiny_run):
        record = json.loads((tiny_run[0] / 'results.json').read_text())
        for run in record['runs']:
            assert all(math.isfinite(value) for value in run.values() if isinstance(value, float))
            assert run['importance_weighted_nll'] < run['neg_elbo']
            error = run['neg_elbo_error_over_images']
            assert 0 < error < 2
            if run['latent_size'] == 2:
                # Both estimate the same NLL, the weights with a bias of about their variance over twice their number.
                assert run['importance_weighted_nll'] == pytest.approx(run['nll'], abs=0.1)
                assert run['kl_to_posterior'] > -0.02

    @pytest.mark.parametrize('name', PLOTS)
    def test_draws(self, tiny_run, name):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / f'{name}.png').shape
        assert height > 300 and width > 600

    def test_goes_on_without_repeating(self, tiny_run, capsys):
        runs = [*RUNS]
        again = _runs.run_cached(never, runs, tiny_run[0] / 'runs', 1, False, vae_digits.describe)
        assert list(again) == runs
        assert 'Resuming: 6 of 6 runs' in capsys.readouterr().out

    def test_leaves_no_temporary_file(self, tiny_run):
        files = [path for path in tiny_run[0].rglob('*') if path.is_file()]
        assert len(files) == 2 * len(RUNS) + len(PLOTS) + 1
        assert not [path for path in files if path.name.startswith('.')]

    def test_same_seed_same_figures(self, tiny_run, tmp_path):
        stored = json.loads((tiny_run[0] / 'runs' / f'{RUNS[0].name}.json').read_text())
        assert vae_digits.train(tmp_path, RUNS[0])['neg_elbo'] == pytest.approx(stored['neg_elbo'], abs=1e-3)


def test_training_that_diverges_ends_with_its_name(tmp_path):
    run = vae_digits.Settings('diagonal', 2, 0, steps=4, learning_rate=float('nan'))
    with pytest.raises(FloatingPointError, match=rf'{run.name}: .*loss became nan within 4 steps'):
        vae_digits.train(tmp_path, run)
    assert not list(tmp_path.iterdir())


def test_other_settings_have_other_names():
    others = [vae_digits.Settings('IAF', 2, 0), vae_digits.Settings('IAF', 2, 0, learning_rate=1e-3), *RUNS]
    assert len({run.name for run in others}) == len(others)


class TestVAE:
    def test_kl_is_warmed_up_in_training_alone(self):
        vae = vae_digits.make_vae(vae_digits.Settings('diagonal', 2, 0, steps=60))
        vae.compile('sgd')
        parts = tf.constant([3.0, 5.0]), tf.constant([2.0, 4.0])
        assert float(vae.compute_loss(None, None, parts, training=False)) == 7
        for step, expected in ((0, 4.0), (5, 5.5), (10, 7.0), (50, 7.0)):
            vae.optimizer.iterations.assign(step)
            assert float(vae.compute_loss(None, None, parts)) == expected
        assert float(vae.neg_elbo.result()) == 7

    def test_terms_of_a_posterior_and_a_decoder_that_are_known(self):
        vae = vae_digits.make_vae(vae_digits.Settings('diagonal', 2, 0))
        logits, mean, log_var = vae.decoder.layers[-2], *map(vae.encoder.get_layer, ('z_mean', 'z_log_var'))
        for layer, bias in ((logits, np.full(64, 0.7)), (mean, [1.0, 0.0]), (log_var, [0.0, 0.0])):
            layer.set_weights([np.zeros(layer.kernel.shape), np.array(bias)])
        images = np.repeat(_datasets.load_digits().test[:5], 1000, axis=0)
        reconstruction, kl = vae(images)
        exact = np.sum(np.log1p(np.exp(0.7)) - 0.7 * images, axis=(1, 2, 3))
        np.testing.assert_allclose(reconstruction, exact, rtol=1e-5)
        assert np.mean(kl) == pytest.approx(0.5, abs=0.06) and np.std(kl) == pytest.approx(1, abs=0.06)


class TestQuadrature:
    def test_linear_gaussian_model(self):
        # z ~ N(0, I), x|z ~ N(A z, s^2 I): x ~ N(0, A A^T + s^2 I).
        rng = np.random.default_rng(0)
        loading, s = rng.normal(size=[5, 2]), 0.7
        x = rng.normal(size=[3, 5])
        grid = _quadrature.Grid()
        z = tf.constant(grid.points, tf.float64)
        log_joint = tfd.MultivariateNormalDiag(tf.matmul(z, loading, transpose_b=True), s * tf.ones([5], tf.float64))
        log_joint = log_joint.log_prob(x[:, np.newaxis]) + tfd.MultivariateNormalDiag(tf.zeros_like(z[0])).log_prob(z)
        exact = tfd.MultivariateNormalFullCovariance(np.zeros(5), loading @ loading.T + s**2 * np.eye(5)).log_prob(x)
        np.testing.assert_allclose(grid.log_integral(log_joint.numpy()), exact, rtol=1e-6)
        # Its posterior is Gaussian.
        np.testing.assert_allclose(grid.non_gaussianity(log_joint.numpy()), np.zeros(3), atol=1e-4)

    def test_likelihood_of_a_decoder_that_ignores_z(self):
        images = np.random.default_rng(0).integers(0, 2, [25, 7]).astype(np.float32)
        bias = np.linspace(-3, 3, 7)
        decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(7, kernel_initializer='zeros')])
        decoder.layers[0].bias.assign(bias)
        exact = tfd.Independent(tfd.Bernoulli(logits=bias), 1).log_prob(images)
        np.testing.assert_allclose(_quadrature.log_likelihoods(decoder, images, _quadrature.Grid()), exact, atol=1e-4)

    def test_two_separate_gaussians(self):
        # Entropy ln 2 above that of one, in a Gaussian of variance 1 + a^2 along one axis.
        a, sigma = 2.0, 0.3
        grid = _quadrature.Grid()
        modes = tfd.MultivariateNormalDiag([[-a, 1.0], [a, 1.0]], scale_diag=[sigma, sigma])
        log_density = tf.reduce_logsumexp(modes.log_prob(grid.points[:, np.newaxis]), axis=-1).numpy()
        exact = 0.5 * np.log(1 + (a / sigma) ** 2) - np.log(2)
        assert grid.non_gaussianity(log_density) == pytest.approx(exact, abs=1e-3)

    def test_contours_of_mass(self):
        grid = _quadrature.Grid()
        density = np.exp(-0.5 * np.square(grid.points).sum(axis=-1)) / (2 * np.pi)
        levels = _quadrature.levels_of_mass(density, [0.99, 0.5])
        np.testing.assert_allclose(levels, np.array([0.01, 0.5]) / (2 * np.pi), rtol=0.02)

    @pytest.mark.parametrize('posterior', vae_digits.POSTERIORS)
    def test_kl_by_samples_is_kl_by_quadrature(self, posterior):
        run = vae_digits.Settings(posterior, 2, 0, grid_size=150)
        images = _datasets.load_digits().test
        vae = vae_digits.make_vae(run)
        # Sharper than at its start, so that the KL is not small.
        vae.decoder.layers[-2].kernel.assign(3 * vae.decoder.layers[-2].kernel)
        figures = vae_digits.evaluate(vae, images[:3], run)
        for kl, image in zip(figures['kl_to_posterior_by_image'], images, strict=False):
            density = _quadrature.posterior_densities({'': vae.parts}, image)['']
            assert density.kl == pytest.approx(kl, rel=0.1, abs=0.05)
            cell = np.prod([axis[1] - axis[0] for axis in density.axes])
            assert density.p.sum() * cell == pytest.approx(1, abs=1e-4)
            assert density.q.sum() * cell == pytest.approx(1, abs=0.02)


def test_least_gaussian_first():
    vae = vae_digits.make_vae(RUNS[0])
    images = _datasets.load_digits().test[:30]
    ranked = _quadrature.least_gaussian_first({'': vae.parts}, images)
    assert sorted(map(bytes, ranked)) == sorted(map(bytes, images))
