"""The targets of variational inference and of maximum likelihood, each against another way to compute it."""

import numpy as np
import pytest
import tensorflow as tf
from experiments.planar import DENSITIES
from experiments.quadrature import Grid
from experiments.targets import ENERGIES, GRID, JOINTS, WINDOW
from scipy import integrate, special

SCALES = {'U2': [0.4], 'U3': [0.35, 0.35], 'U4': [0.4, 0.35]}


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


@pytest.mark.parametrize('name', ENERGIES)
class TestEnergies:
    def test_is_that_of_the_paper_within_walls(self, name):
        z1, z2 = np.random.default_rng(1).uniform(-6, 6, [2, 1000])
        wall = 0 if name == 'U1' else 0.5 * (np.maximum(np.abs(z1) - 4, 0) / 0.4) ** 2  # U1 has an end of its own
        log_density = ENERGIES[name].log_density(tf.constant(np.stack([z1, z2], axis=-1)))
        np.testing.assert_allclose(log_density, -formula(name, z1, z2) - wall, rtol=1e-6)

    def test_grid_and_window_hold_the_mass(self, name):
        energy, wide = ENERGIES[name], Grid((-14.0, -14.0), (14.0, 14.0), 700)
        log_density = energy.log_density(tf.constant(wide.points)).numpy()
        shares = np.exp(log_density.astype(np.float64) - energy.log_z + wide.log_cell)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        for grid, missing in ((GRID, 1e-14), (WINDOW, 4e-4)):
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
            z = np.sqrt(2 * np.pi) * sum(SCALES[name]) * (8 + 0.4 * np.sqrt(2 * np.pi))
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


def log_normal(deviation, variance):
    return -0.5 * (deviation**2 / variance + np.log(2 * np.pi * variance))


# The first coordinate's standard deviation, log p(another one | the first), and the optimum of a mean field: means and
# standard deviations of the first and of any other coordinate, where the gradient vanishes.
U_FUNNEL, U_BANANA = 1 / (4.5 + 1 / 9), np.roots([4 * 0.03**2, 0.01, -1]).max()
FACTORS = {
    'funnel': (3.0, lambda v, x: log_normal(x, np.exp(v)), [0.0, 0.0, np.sqrt(U_FUNNEL), np.exp(-U_FUNNEL / 4)]),
    'banana': (
        10.0,
        lambda x, y: log_normal(y - 0.03 * (x**2 - 100), 1.0),
        [0.0, 0.03 * (U_BANANA - 100), np.sqrt(U_BANANA), 1.0],
    ),
}


@pytest.mark.parametrize('name', JOINTS)
class TestJoints:
    def test_density_is_a_product(self, name):
        first = np.random.default_rng(0).normal(size=200).astype(np.float32)
        stddev, log_p_of_other, _ = FACTORS[name]
        others = np.random.default_rng(1).normal(size=[9 if name == 'funnel' else 1, 200]).astype(np.float32)
        log_p = log_normal(first, stddev**2) + sum(log_p_of_other(first, other) for other in others)
        rest = others.T if name == 'funnel' else others[0]
        np.testing.assert_allclose(JOINTS[name].log_density(first, rest), log_p, rtol=1e-4)

    def test_best_mean_field(self, name):
        """By Gauss and Hermite's quadrature: the optimum's KL is what is said, and no neighbour's is lower."""
        (stddev_of_first, log_p_of_other, optimum), others = FACTORS[name], 9 if name == 'funnel' else 1
        optimum = np.array(optimum)
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        noise = np.stack(np.meshgrid(nodes, nodes, indexing='ij'), axis=-1).reshape(-1, 2)
        weights = np.outer(weights, weights).ravel() / (2 * np.pi)

        def kl(means, deviations):
            points = means + deviations * noise
            log_q = log_normal(noise, 1.0) - np.log(deviations)
            log_p = log_normal(points[:, 0], stddev_of_first**2), log_p_of_other(*points.T)
            return weights @ (log_q[:, 0] - log_p[0] + others * (log_q[:, 1] - log_p[1]))

        assert kl(optimum[:2], optimum[2:]) == pytest.approx(JOINTS[name].mean_field_kl, abs=1e-6)
        rng = np.random.default_rng(0)
        for means, factors in rng.normal(size=[100, 2, 2]):
            assert kl(optimum[:2] + 0.3 * means, optimum[2:] * np.exp(0.3 * factors)) > JOINTS[name].mean_field_kl

    def test_histogram_is_that_of_the_first_coordinates(self, name):
        target = JOINTS[name]
        histogram = target.histogram(target.joint.sample(100000, seed=[0, 0]))
        assert histogram.shape == (100, 100) and 0.9 < histogram.sum() <= 1
        edges = np.linspace(target.window.low[0], target.window.high[0], 101)
        cdf = special.ndtr(edges / FACTORS[name][0])
        np.testing.assert_allclose(histogram.sum(axis=1)[45:55], np.diff(cdf)[45:55], rtol=0.15)


@pytest.mark.parametrize('target', DENSITIES.values(), ids=list(DENSITIES))
class TestDensities:
    def test_entropy_is_that_of_the_samples(self, target):
        log_p = target.log_density(target.sample(np.random.default_rng(0), 20000))
        assert target.entropy() == pytest.approx(-log_p.mean(), abs=4 * log_p.std() / np.sqrt(len(log_p)) + 1e-9)

    def test_samples_have_the_density(self, target):
        """Their shares in 10 * 10 squares of the window are those of the density, by the midpoint rule."""
        count, cells, per_cell = 20000, 10, 20
        side = 2 * target.half_width / cells
        offsets = (np.arange(cells * per_cell) + 0.5) * side / per_cell - target.half_width
        points = np.stack(np.meshgrid(*(c + offsets for c in target.center), indexing='ij'), axis=-1).reshape(-1, 2)
        p = np.exp(target.log_density(points)).reshape(cells, per_cell, cells, per_cell)
        shares = p.mean(axis=(1, 3)) * side**2
        assert shares.sum() == pytest.approx(1, abs=1e-3)
        edges = [np.linspace(c - target.half_width, c + target.half_width, cells + 1) for c in target.center]
        found = np.histogram2d(*target.sample(np.random.default_rng(1), count).T, bins=edges)[0]
        assert found.sum() > 0.999 * count
        np.testing.assert_array_less(np.abs(found - count * shares), 5 * np.sqrt(count * shares) + 3)
