"""The densities in the plane: a tiny run of the script itself, and its samplers against the densities they state."""

import json
import math
import subprocess
import sys

import densities
import numpy as np
import pytest

TARGETS = list(densities.TARGETS.items())


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the command, called from somewhere else."""
    folder = tmp_path_factory.mktemp('elsewhere')
    flags = ['--targets=two moons', '--steps=100', '--num_affine=1', '--num_gated=1', '--output_dir=out']
    command = [sys.executable, densities.__file__, *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, command


@pytest.mark.slow
def test_tiny_run_writes_what_it_says(tiny_run):
    folder, command = tiny_run
    (run,) = json.loads((folder / 'out' / 'results.json').read_text())['runs']
    assert run['nll']['IAF']['mean'] < run['nll']['Gaussian']['mean']
    assert run['kl']['IAF']['mean'] > 0 and run['integral'] == pytest.approx(1, abs=0.02)
    assert run['largest_difference'] < 1e-3
    for plot in ('densities', 'learning_curves'):
        assert (folder / 'out' / f'{plot}.png').stat().st_size > 1000
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and 'Resuming: 1 of 1 runs' in again.stdout


@pytest.mark.parametrize(('name', 'target'), TARGETS)
def test_density_integrates_to_one_in_the_window(name, target):
    grid = target.grid(400)
    assert math.exp(grid.log_integral(target.log_density(grid.points))) == pytest.approx(
        1, abs=1e-2
    )  # a square of the board may cut a cell


@pytest.mark.parametrize(('name', 'target'), TARGETS)
def test_samples_have_the_stated_density(name, target):
    """Their mean log-density is minus the entropy, and the shares of the quadrants those of the density."""
    points = target.sample(np.random.default_rng(0), 40000)
    log_p = target.log_density(points)
    error = log_p.std() / math.sqrt(len(points)) + 1e-3
    assert -log_p.mean() == pytest.approx(target.entropy(), abs=5 * error)
    grid = target.grid(400)
    weights = np.exp(grid.log_cell + target.log_density(grid.points))
    middle = np.asarray(target.center) + 0.3
    for signs in np.ndindex(2, 2):
        share, expected = (
            np.average(np.all((where > middle) == np.array(signs, bool), axis=-1), weights=weight)
            for where, weight in ((points, None), (grid.points, weights))
        )
        assert share == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(('name', 'target'), TARGETS)
def test_window_holds_all_samples(name, target):
    points = target.sample(np.random.default_rng(1), 10000)
    assert np.all(np.abs(points - target.center) < target.half_width)


def test_loss_that_is_not_finite_names_the_step(monkeypatch):
    class Nowhere(densities.TwoMoons):
        def sample(self, rng, count):
            return np.full([count, 2], np.nan)

    settings = densities.Settings('two moons', steps=100, num_affine=1, num_gated=0)
    flow = densities.make_flow(settings, np.zeros(2, np.float32), np.ones(2, np.float32))
    with pytest.raises(FloatingPointError, match='two moons: the loss became nan at step 0'):
        densities.fit(flow, Nowhere(), settings)
