"""Maximum likelihood on 2-D densities: a tiny run of the script itself, and the targets against their densities."""

import densities
import matplotlib.image
import numpy as np
import pytest
from _densities import TARGETS

from tests.examples import scripts

TINY = {'steps': 100, 'num_affine': 1, 'num_gated': 1}
RUNS = [densities.Settings(target, **TINY) for target in TARGETS]


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else."""
    return scripts.run(densities, tmp_path_factory.mktemp('elsewhere'), '--quick', jobs=1, **TINY)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = scripts.read_record(directory)
        assert record['flags']['steps'] == TINY['steps']
        assert [run['target'] for run in record['runs']] == list(TARGETS)
        for run in record['runs']:
            assert len(run['curve']) == 1 and run['ms_per_step'] > 0
            assert run['integral'] == pytest.approx(1, abs=5e-3)
            assert run['inverse_less_forward'] < 1e-3
            for model in ('Gaussian', 'IAF'):
                nll, kl = run['nll'][model], run['kl'][model]
                # The estimates differ by that of the entropy from the test points.
                assert nll['mean'] - kl['mean'] == pytest.approx(run['entropy'], abs=5 * nll['standard_error'])
                assert kl['mean'] > 0 and f'{nll["mean"]:.3f} ± {nll["standard_error"]:.3f}' in output

    def test_draws(self, tiny_run):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / 'densities.png').shape
        assert height > 900 and width > 1200

    def test_goes_on_without_repeating(self, tiny_run, capsys):
        scripts.check_goes_on(tiny_run[0], RUNS, capsys)

    def test_leaves_no_temporary_file(self, tiny_run):
        scripts.check_files(tiny_run[0], RUNS, 'npz', ['results.json', 'densities.png'])


@pytest.mark.slow
def test_a_few_hundred_steps_beat_the_gaussian(tmp_path):
    run = densities.Settings('two moons', steps=400, num_affine=3, num_gated=1)
    figures = densities.run(tmp_path, run)
    nll, entropy = figures['nll'], figures['entropy']
    assert entropy < nll['IAF']['mean'] < nll['Gaussian']['mean'] - 0.3
    assert figures['curve'][-1] == pytest.approx(nll['IAF']['mean'], abs=0.1)
    assert figures['integral'] == pytest.approx(1, abs=2e-3)


def test_training_that_diverges_ends_with_its_name_and_step(tmp_path):
    run = densities.Settings('rings', learning_rate=float('nan'), **TINY)
    with pytest.raises(FloatingPointError, match=rf'{run.name}: the loss became nan at step 1\.'):
        densities.run(tmp_path, run)
    assert not list(tmp_path.iterdir())


def test_other_settings_have_other_names():
    others = [densities.Settings('rings'), densities.Settings('rings', seed=1), densities.Settings('rings', steps=100)]
    assert len({run.name for run in [*others, densities.Settings('two moons')]}) == 4


@pytest.mark.parametrize('target', TARGETS.values(), ids=list(TARGETS))
class TestTargets:
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

        samples = target.sample(np.random.default_rng(1), count)
        edges = [np.linspace(c - target.half_width, c + target.half_width, cells + 1) for c in target.center]
        found = np.histogram2d(*samples.T, bins=edges)[0]
        assert found.sum() > 0.999 * count
        np.testing.assert_array_less(np.abs(found - count * shares), 5 * np.sqrt(count * shares) + 3)

    def test_samples_depend_on_the_seed_alone(self, target):
        first, again, other = (target.sample(np.random.default_rng(seed), 5) for seed in (0, 0, 1))
        assert first.shape == (5, 2)
        np.testing.assert_array_equal(first, again)
        assert not np.any(first == other)


def test_entropy_of_narrow_rings():
    # Rings that do not overlap: the entropy of the choice, of a Gaussian radius, and of the circle's length.
    rings = TARGETS['rings']
    of_radius = 0.5 * np.log(2 * np.pi * np.e * rings.noise**2)
    of_choice = -np.sum(rings.shares * np.log(rings.shares))
    # E[log r] = log R - noise^2 / (2 R^2), to second order.
    of_circle = np.sum(rings.shares * (np.log(2 * np.pi * rings.radii) - 0.5 * (rings.noise / rings.radii) ** 2))
    assert rings.entropy() == pytest.approx(of_choice + of_radius + of_circle, abs=1e-3)
