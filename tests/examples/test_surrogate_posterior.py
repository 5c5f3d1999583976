"""Variational inference on known posteriors: a tiny run of the script, and the posteriors against what is known."""

import _grid
import _plots
import _surrogates
import _targets
import matplotlib.image
import numpy as np
import pytest
import surrogate_posterior
import tensorflow as tf

from tests.examples import scripts

TINY = {'steps': 20, 'evaluation_samples': 500}
KINDS = [(target, posterior) for target in ('banana', 'eight schools') for posterior in ('mean field', 'IAF affine')]
RUNS = [_surrogates.Settings(*kind, **TINY) for kind in KINDS]
PLOTS = ('corner_banana.png', 'corner_eight_schools.png', 'learning_curves.png')
TARGETS = pytest.mark.parametrize('name', _targets.TARGETS)


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else."""
    values = {'targets': 'banana,eight schools', 'posteriors': 'mean field,IAF affine', **TINY}
    return scripts.run(surrogate_posterior, tmp_path_factory.mktemp('elsewhere'), '--quick', jobs=2, **values)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = scripts.read_record(directory)
        assert record['flags']['steps'] == TINY['steps'] and record['flags']['jobs'] == 2
        assert [(run['target'], run['posterior']) for run in record['runs']] == KINDS
        for run, row in zip(record['runs'], record['aggregated'], strict=True):
            evidence = {'banana': 0.0, 'eight schools': -36.131}[run['target']]
            assert run['kl'] == pytest.approx(evidence - run['elbo'], abs=5e-4)
            assert run['kl'] > 0 and 0 < run['standard_error'] < 0.3 * run['kl']
            # A fifth of the samples, and the last step, which is small.
            assert len(run['curve_kl']) == TINY['steps']
            assert run['curve_kl'][-1] == pytest.approx(run['kl'], abs=10 * run['standard_error'])
            assert row['kl']['by_seed'] == [run['kl']] and f'{run["kl"]:.3f}' in output
        assert '0.7258 on the banana' in output

    @pytest.mark.parametrize('name', PLOTS)
    def test_draws(self, tiny_run, name):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / name).shape
        assert height > 400 and width > 600

    def test_goes_on_without_repeating(self, tiny_run, capsys):
        scripts.check_goes_on(tiny_run[0], RUNS, capsys)

    def test_leaves_no_temporary_file(self, tiny_run):
        scripts.check_files(tiny_run[0], RUNS, 'npz', ['results.json', *PLOTS])


@pytest.mark.slow
class TestFit:
    def figures(self, tmp_path, posterior):
        settings = _surrogates.Settings('funnel', posterior, steps=1000, evaluation_samples=20000)
        return surrogate_posterior.run(tmp_path, settings)

    def test_mean_field_reaches_its_optimum(self, tmp_path):
        figures = self.figures(tmp_path, 'mean field')
        assert figures['kl'] == pytest.approx(_targets.TARGETS['funnel'].mean_field_kl, abs=0.05)
        assert figures['curve_kl'][-1] == pytest.approx(figures['kl'], abs=0.3)

    def test_flow_comes_closer(self, tmp_path):
        figures = self.figures(tmp_path, 'IAF affine')
        assert -4 * figures['standard_error'] < figures['kl'] < 0.1
        # The seed alone counts, not what ran before.
        assert self.figures(tmp_path, 'IAF affine')['curve_kl'] == pytest.approx(figures['curve_kl'], abs=1e-3)


def test_fit_that_diverges_ends_with_its_name_and_step(tmp_path):
    settings = _surrogates.Settings('banana', 'mean field', learning_rate=float('nan'), **TINY)
    with pytest.raises(FloatingPointError, match=rf'{settings.name}: the loss became nan at step 1\.'):
        surrogate_posterior.run(tmp_path, settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('posterior', _surrogates.POSTERIORS)
@TARGETS
def test_families_are_over_the_model_and_follow_the_seed(name, posterior):
    def sample(seed):
        q = _surrogates.make_posterior(_surrogates.Settings(name, posterior, seed))
        parts = q.sample(2, seed=[0, 0])
        assert np.all(np.isfinite(_targets.TARGETS[name].joint.unnormalized_log_prob(parts)))
        return q, parts

    (q, first), (_, again), (_, other) = sample(0), sample(0), sample(1)
    shapes = _targets.TARGETS[name].joint.event_shape_tensor()._asdict()
    assert {part: list(value.shape) for part, value in first._asdict().items()} == {
        part: [2, *shape.numpy()] for part, shape in shapes.items()
    }
    assert len(q.trainable_variables) >= 2
    np.testing.assert_array_equal(first[-1], again[-1])
    assert not np.any(first[-1] == other[-1])


def test_other_settings_have_other_names():
    others = [_surrogates.Settings(*KINDS[0], seed=seed, steps=steps) for seed in (0, 1) for steps in (20, 40)]
    assert len({settings.name for settings in [*others, *RUNS]}) == len(others) + len(RUNS)


def test_scales_come_first():
    """A step scales an entry by those before it: what sets the scale of others must come first."""
    order = {name: target.joint.event_shape_tensor()._fields for name, target in _targets.TARGETS.items()}
    assert order['funnel'] == ('v', 'x') and order['banana'] == ('x', 'y')
    assert order['eight schools'] == ('effect', 'log_stddev', 'standard_effects')


def log_normal(deviation, variance):
    return -0.5 * (deviation**2 / variance + np.log(2 * np.pi * variance))


# Of the two whose density is a product: the first coordinate's standard deviation, and log p(another one | the first).
FACTORS = {
    'funnel': (3.0, lambda v, x: log_normal(x, np.exp(v))),
    'banana': (10.0, lambda x, y: log_normal(y - 0.03 * (x**2 - 100), 1.0)),
}
PRODUCTS = pytest.mark.parametrize('name', FACTORS)


class TestTargets:
    """Joint distributions, their exact samples, and optima, each against another way to compute it."""

    def points(self, count=200):
        return np.random.default_rng(0).normal(size=[count, 2]).astype(np.float32)

    @PRODUCTS
    def test_density_is_a_product(self, name):
        joint, first = _targets.TARGETS[name].joint, self.points()[:, 0]
        stddev, log_p_of_other = FACTORS[name]
        others = np.random.default_rng(1).normal(size=[9 if name == 'funnel' else 1, len(first)]).astype(np.float32)
        log_p = log_normal(first, stddev**2) + sum(log_p_of_other(first, other) for other in others)
        rest = others.T if name == 'funnel' else others[0]
        np.testing.assert_allclose(joint.log_prob(first, rest), log_p, rtol=1e-4)

    def test_eight_schools_less_their_conditional_are_the_marginal(self):
        """log p(effect, stddev, e, y) - log p(e | effect, stddev, y), which is Gaussian, at any e."""
        schools, (effect, log_stddev) = _targets.TARGETS['eight schools'], self.points().T * [[5], [1]] + [[5], [2]]
        e = np.random.default_rng(1).normal(size=[len(effect), 8])
        tau, y, sigma = np.exp(log_stddev)[:, None], np.array(schools.effects), np.array(schools.stddevs)
        variance = sigma**2 / (sigma**2 + tau**2)
        mean = tau * (y - effect[:, None]) / (sigma**2 + tau**2)
        conditional = -0.5 * np.sum((e - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=-1)
        values = [tf.constant(value, tf.float32) for value in (effect, log_stddev, e)]
        marginal = schools.joint.unnormalized_log_prob(*values) - conditional
        np.testing.assert_allclose(schools.log_marginal(np.stack([effect, log_stddev], axis=-1)), marginal, rtol=1e-4)

    def test_evidence(self):
        assert _targets.TARGETS['eight schools'].log_evidence() == pytest.approx(-36.131, abs=5e-4)

    @TARGETS
    def test_samples_are_exact(self, name):
        """By parts, E[d/dz log p] = 0 and E[z d/dz log p] = -1 for every coordinate z, under p and nothing else."""
        target = _targets.TARGETS[name]
        parts = [tf.convert_to_tensor(part) for part in target.sample(40000, seed=0)]
        with tf.GradientTape() as tape:
            tape.watch(parts)
            log_p = target.joint.unnormalized_log_prob(*parts)
        for part, score in zip(parts, tape.gradient(log_p, parts), strict=True):
            for values, expected in ((score, 0), (part * score, -1)):
                error = np.std(values, axis=0) / np.sqrt(len(values))
                assert np.all(error < 0.1)
                assert np.all(abs(np.mean(values, axis=0) - expected) < 4 * error)

    def test_samples_of_eight_schools_have_the_means_of_quadrature(self):
        schools = _targets.TARGETS['eight schools']
        grid = _grid.Grid((-40.0, -6.0), (50.0, 10.0), 400)
        shares = np.exp(schools.log_marginal(grid.points) - schools.log_evidence() + grid.log_cell)
        sample = schools.sample(40000, seed=0)
        for values, points in zip((sample.effect, sample.log_stddev), grid.points.T, strict=True):
            mean, square = shares @ points, shares @ points**2
            assert np.mean(values) == pytest.approx(mean, abs=4 * np.sqrt((square - mean**2) / len(values)))
            assert np.std(values) == pytest.approx(np.sqrt(square - mean**2), rel=0.03)

    @TARGETS
    def test_samples_give_the_coordinates_in_their_window(self, name):
        target = _targets.TARGETS[name]
        first, again, other = (target.sample(2000, seed) for seed in (0, 0, 1))
        coordinates = target.coordinates(first)
        np.testing.assert_array_equal(coordinates, target.coordinates(again))
        assert not np.any(coordinates == target.coordinates(other))
        assert coordinates.shape == (2000, len(target.names)) and len(target.window) == len(target.names)
        np.testing.assert_array_equal(coordinates[:, 0], first[0])
        np.testing.assert_array_equal(coordinates[:, 1], np.reshape(first[1], [2000, -1])[:, 0])
        if name == 'funnel':
            np.testing.assert_array_equal(coordinates[:, 2], first.x[:, 1])
        if name == 'eight schools':
            school = first.effect + np.exp(first.log_stddev) * first.standard_effects[:, 0]
            np.testing.assert_allclose(coordinates[:, 2], school, rtol=1e-5)
        low, high = np.transpose(target.window)
        shown = np.mean((low < coordinates) & (coordinates < high), axis=0)
        assert np.all(shown > 0.9)

    @PRODUCTS
    def test_best_mean_field(self, name):
        """By Gauss and Hermite's quadrature: the optimum's KL is what is said, and no neighbour's is lower."""
        target, (stddev_of_first, log_p_of_other) = _targets.TARGETS[name], FACTORS[name]
        # Means and standard deviations of the first and of any other coordinate, where the gradient vanishes.
        if name == 'funnel':
            others, u = 9, 1 / (4.5 + 1 / 9)
            optimum = np.array([0.0, 0.0, np.sqrt(u), np.exp(-u / 4)])
        else:
            others, u = 1, np.roots([4 * target.curvature**2, 0.01, -1]).max()
            optimum = np.array([0.0, target.curvature * (u - 100), np.sqrt(u), 1.0])
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        noise = np.stack(np.meshgrid(nodes, nodes, indexing='ij'), axis=-1).reshape(-1, 2)
        weights = np.outer(weights, weights).ravel() / (2 * np.pi)

        def kl(means, deviations):
            points = means + deviations * noise
            log_q = log_normal(noise, 1.0) - np.log(deviations)
            log_p = log_normal(points[:, 0], stddev_of_first**2), log_p_of_other(*points.T)
            return weights @ (log_q[:, 0] - log_p[0] + others * (log_q[:, 1] - log_p[1]))

        assert kl(optimum[:2], optimum[2:]) == pytest.approx(target.mean_field_kl, abs=1e-6)
        rng = np.random.default_rng(0)
        for _ in range(100):
            means, factors = rng.normal(size=[2, 2])
            assert kl(optimum[:2] + 0.3 * means, optimum[2:] * np.exp(0.3 * factors)) > target.mean_field_kl


def test_contours_enclose_their_share():
    """Of a Gaussian: disks, whose areas are known."""
    samples = np.random.default_rng(0).normal(size=[400000, 3]) * [1, 5, 2]
    exact = _plots.Exact('abc', ((-4, 4), (-20, 20), (-8, 8)), samples)
    (a, c), density = exact.densities[0, 2]
    for mass, level in zip((0.5, 0.9), _grid.levels_of_mass(density, [0.5, 0.9]), strict=True):
        area = np.sum(density >= level) * (a[1] - a[0]) * (c[1] - c[0])
        assert area == pytest.approx(1 * 2 * np.pi * -2 * np.log(1 - mass), rel=0.03)
    top = np.unravel_index(np.argmax(density), density.shape)
    assert abs(a[top[0]]) < 0.5 and abs(c[top[1]]) < 1
