"""Variational inference on the energies U1 to U4: a tiny run of the script, and the energies against what is known."""

import _plots
import _variational
import energies
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from _energies import ENERGIES
from _grid import Grid
from scipy import integrate, special

from tests.examples import scripts

TINY = {'steps': 20, 'evaluation_samples': 500}
KINDS = [(energy, 'affine', depth) for energy in ('U1', 'U4') for depth in (0, 1)]
RUNS = [energies.Settings(*kind, **TINY) for kind in KINDS]
PLOTS = ('affine.png', 'kl_by_steps.png', 'transforms.png')
NAMES = pytest.mark.parametrize('name', ENERGIES)


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else."""
    folder = tmp_path_factory.mktemp('elsewhere')
    return scripts.run(energies, folder, '--quick', jobs=1, energies='U1,U4', num_flows=1, **TINY)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = scripts.read_record(directory)
        assert record['flags']['steps'] == TINY['steps'] and record['flags']['jobs'] == 1
        assert [(run['energy'], run['transform'], run['num_flows']) for run in record['runs']] == KINDS
        for run, row in zip(record['runs'], record['aggregated'], strict=True):
            assert 0.05 < run['mass_found'] < 1.5 and 0 < run['least_branch'] <= 1
            assert run['integral_over_window'] == pytest.approx(1, abs=0.02)
            assert row['kl']['by_seed'] == [run['kl']] and f'{run["kl"]:.3f}' in output

    def test_samples_agree_with_the_density_that_is_drawn(self, tiny_run):
        """KL and branches' shares, from samples of q and their densities: again by quadrature, from q on a grid."""
        for settings, run in zip(RUNS, scripts.read_record(tiny_run[0])['runs'], strict=True):
            energy = ENERGIES[settings.energy]
            with np.load(tiny_run[0] / 'runs' / f'{settings.name}.npz') as arrays:
                q = arrays['density'].ravel()
            log_branches = energy.log_branches(tf.constant(energy.window.points)).numpy()
            log_p = special.logsumexp(log_branches, axis=-1) - energy.log_z
            shares = q * np.exp(energy.window.log_cell)
            kl = np.sum(special.xlogy(shares, q) - shares * log_p)
            assert 0 < run['standard_error'] < 0.3 * kl
            assert run['kl'] == pytest.approx(kl, abs=4 * run['standard_error'])
            by_branch = shares @ special.softmax(log_branches, axis=-1)
            np.testing.assert_allclose(run['branch_shares'], by_branch, atol=2 / np.sqrt(TINY['evaluation_samples']))

    @pytest.mark.parametrize('name', PLOTS)
    def test_draws(self, tiny_run, name):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / name).shape
        assert height > 400 and width > 400

    def test_goes_on_without_repeating(self, tiny_run, capsys):
        scripts.check_goes_on(tiny_run[0], RUNS, capsys)

    def test_leaves_no_temporary_file(self, tiny_run):
        scripts.check_files(tiny_run[0], RUNS, 'npz', ['results.json', *PLOTS])


@pytest.mark.slow
def test_a_few_hundred_steps_beat_the_gaussian(tmp_path):
    figures = {
        depth: energies.run(tmp_path, energies.Settings('U2', num_flows=depth, steps=500, evaluation_samples=20000))
        for depth in (0, 2)
    }
    assert figures[2]['kl'] < 0.6 * figures[0]['kl']
    assert -4 * figures[2]['standard_error'] < figures[2]['kl']
    assert figures[2]['parameters'] > 1000 and figures[0]['parameters'] == 4
    # The density that is drawn is that of what was drawn.
    assert figures[2]['integral_over_window'] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('transform', energies.TRANSFORMS)
def test_entries_are_joint_and_follow_the_seed(transform):
    def sample(seed, depth=2):
        q = energies.make_posterior(energies.Settings('U1', transform, depth, seed))
        return q.sample(5, seed=[0, 0]).numpy()

    np.testing.assert_array_equal(sample(0), sample(0))
    assert not np.any(sample(0)[:, 1] == sample(1)[:, 1])
    # Without steps it is the diagonal Gaussian of all transforms.
    np.testing.assert_array_equal(sample(0, depth=0), sample(1, depth=0))


def test_annealing_raises_the_target_to_a_growing_power():
    """The target's density is e everywhere, and the learning rate 0: the losses show what the power lacks to 1."""
    settings = energies.Settings('U1', num_flows=0, steps=10, learning_rate=0.0)

    def losses(annealing):
        q = energies.make_posterior(settings)
        return _variational.fit(lambda z: 1.0 + 0.0 * tf.reduce_sum(z, axis=-1), q, settings, annealing)

    lacking = [0.99, 0.79, 0.59, 0.39, 0.19, 0.0, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(losses(0.5) - losses(0.0), lacking, atol=1e-5)


def test_aggregates_over_seeds():
    rest = {'log_evidence': 1.0, 'parameters': 4, 'standard_error': 0.1, 'seconds_to_fit': 1.0, 'least_branch': 1.0}
    results = {
        energies.Settings('U1', num_flows=depth, seed=seed): {'kl': 10.0 * depth + seed, 'mass_found': 0.5, **rest}
        for depth in (0, 1)
        for seed in (0, 1)
    }
    diagonal, flow = energies.aggregate(results)
    assert (diagonal['posterior'], flow['posterior']) == ('diagonal', 'IAF affine, 1 step')
    assert diagonal['kl'] == {'mean': 0.5, 'standard_error': pytest.approx(0.5), 'by_seed': [0.0, 1.0]}
    assert flow['kl']['by_seed'] == [10.0, 11.0]


def test_other_settings_have_other_names():
    others = [energies.Settings('U1', num_flows=depth, seed=seed) for depth in (0, 4) for seed in (0, 1)]
    others += [energies.Settings('U2'), energies.Settings('U1', 'spline'), energies.Settings('U1', steps=10)]
    assert len({settings.name for settings in [*others, *RUNS]}) == len(others) + len(RUNS)


# Energies ------------------------------------------------------------------------------------------------------------


def formula(name, z1, z2):
    """Table 1 of the paper, written out once more, for |z1| <= 4."""
    exp, log = np.exp, np.log
    w1, w2, w3 = np.sin(2 * np.pi * z1 / 4), 3 * exp(-0.5 * ((z1 - 1) / 0.6) ** 2), 3 * special.expit((z1 - 1) / 0.3)
    if name == 'U1':
        sides = exp(-0.5 * ((z1 - 2) / 0.6) ** 2) + exp(-0.5 * ((z1 + 2) / 0.6) ** 2)
        return 0.5 * ((np.hypot(z1, z2) - 2) / 0.4) ** 2 - log(sides)
    if name == 'U2':
        return 0.5 * ((z2 - w1) / 0.4) ** 2
    if name == 'U3':
        return -log(exp(-0.5 * ((z2 - w1) / 0.35) ** 2) + exp(-0.5 * ((z2 - w1 + w2) / 0.35) ** 2))
    return -log(exp(-0.5 * ((z2 - w1) / 0.4) ** 2) + exp(-0.5 * ((z2 - w1 + w3) / 0.35) ** 2))


@NAMES
class TestEnergies:
    def test_is_that_of_the_paper(self, name):
        z = np.random.default_rng(0).uniform(-4, 4, [1000, 2])
        np.testing.assert_allclose(ENERGIES[name].log_density(tf.constant(z)), -formula(name, *z.T), rtol=1e-6)

    def test_walls_are_tails_of_a_gaussian(self, name):
        z1, z2 = np.random.default_rng(1).uniform(-6, 6, [2, 1000])
        wall = 0 if name == 'U1' else 0.5 * (np.maximum(np.abs(z1) - 4, 0) / 0.4) ** 2  # U1 has an end of its own
        log_density = ENERGIES[name].log_density(tf.constant(np.stack([z1, z2], axis=-1)))
        np.testing.assert_allclose(log_density, -formula(name, z1, z2) - wall, rtol=1e-6)

    def test_grid_and_window_hold_the_mass(self, name):
        energy, wide = ENERGIES[name], Grid((-14.0, -14.0), (14.0, 14.0), 700)
        log_density = energy.log_density(tf.constant(wide.points)).numpy()
        shares = np.exp(log_density.astype(np.float64) - energy.log_z + wide.log_cell)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        for grid, missing in ((energy.grid, 1e-14), (energy.window, 4e-4)):
            outside = np.any((wide.points < grid.low) | (wide.points > grid.high), axis=-1)
            assert shares[outside].sum() < missing

    def test_log_z_by_an_independent_quadrature(self, name):
        if name == 'U1':
            # In polar coordinates, where the ring is a factor.
            def integrand(angle, r):
                sides = sum(np.exp(-0.5 * ((r * np.cos(angle) - c) / 0.6) ** 2) for c in (-2, 2))
                return r * np.exp(-0.5 * ((r - 2) / 0.4) ** 2) * sides

            z, _ = integrate.dblquad(integrand, 0, 6, 0, 2 * np.pi, epsabs=1e-5)
        else:
            # Gaussians in z2 for every z1, and what is left is flat between tails of a Gaussian.
            z = np.sqrt(2 * np.pi) * sum(ENERGIES[name].scales) * (8 + 0.4 * np.sqrt(2 * np.pi))
        assert ENERGIES[name].log_z == pytest.approx(np.log(z), abs=1e-5)

    def test_branch_shares(self, name):
        energy = ENERGIES[name]
        expected = {'U1': [0.5, 0.5], 'U2': [1.0], 'U3': [0.5, 0.5], 'U4': [0.4 / 0.75, 0.35 / 0.75]}[name]
        np.testing.assert_allclose(energy.exact_branch_shares, expected, atol=1e-5)
        # Points on the second branch alone, where there is one.
        point = {'U1': [-2.0, 0.0], 'U2': [1.0, 1.0], 'U3': [1.0, -2.0], 'U4': [3.0, -4.0]}[name]
        shares = energy.branch_shares(tf.constant([point] * 3))
        assert shares.shape == (len(expected),) and shares[-1] > 0.99

    def test_gradient_is_finite_everywhere(self, name):
        z = tf.constant([[0.0, 0.0], [30.0, -30.0], [-4.0, 4.0]])
        with tf.GradientTape() as tape:
            tape.watch(z)
            log_density = ENERGIES[name].log_density(z)
        assert np.all(np.isfinite(log_density)) and np.all(np.isfinite(tape.gradient(log_density, z)))

    def test_window_shows_all(self, name):
        energy = ENERGIES[name]
        log_density = energy.log_density(tf.constant(energy.window.points)).numpy()
        assert energy.window.log_integral(log_density) == pytest.approx(energy.log_z, abs=0.01)


def test_panels_are_drawn_where_they_belong(tmp_path):
    """The second axis of an array is the vertical one, upwards: a bright corner is seen where its coordinates say."""
    density = np.zeros([50, 50])
    density[40:, :10] = 1.0  # large z1, small z2: the lower right
    axes = (np.linspace(-5, 5, 50),) * 2
    _plots.plot_panels({'row': _plots.Panels(axes, {'p': ('', density)})}, tmp_path / 'one.png')
    image = matplotlib.image.imread(tmp_path / 'one.png')[..., :3]
    bright = np.argwhere((image[..., 0] > 0.9) & (image[..., 1] > 0.9) & (image[..., 2] < 0.9))
    assert len(bright) > 100
    dark = np.argwhere(image.sum(axis=-1) < 0.1)
    assert bright[:, 0].mean() > dark[:, 0].mean() and bright[:, 1].mean() > dark[:, 1].mean()
