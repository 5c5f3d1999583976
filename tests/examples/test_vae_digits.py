"""The VAEs on digits: a tiny run of the script itself."""

import json
import math

import _digits_vae
import matplotlib.image
import pytest
import vae_digits
from _posteriors import POSTERIORS

from tests.examples import scripts

TINY = {'steps': 6, 'evaluation_samples': 30, 'grid_size': 100}
RUNS = [_digits_vae.Settings(posterior, size, 0, **TINY) for size in (2, 10) for posterior in POSTERIORS]
PLOTS = ('learning_curves', 'posteriors', 'reconstructions_and_samples')


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else, with two processes."""
    return scripts.run(vae_digits, tmp_path_factory.mktemp('elsewhere'), seeds=1, **TINY)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = scripts.read_record(directory)
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
        record = scripts.read_record(tiny_run[0])
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
        scripts.check_goes_on(tiny_run[0], RUNS, capsys)

    def test_leaves_no_temporary_file(self, tiny_run):
        files = [path for path in tiny_run[0].rglob('*') if path.is_file()]
        assert len(files) == 2 * len(RUNS) + len(PLOTS) + 1
        assert not [path for path in files if path.name.startswith('.')]

    def test_same_seed_same_figures(self, tiny_run, tmp_path):
        stored = json.loads((tiny_run[0] / 'runs' / f'{RUNS[0].name}.json').read_text())
        assert vae_digits.train(tmp_path, RUNS[0])['neg_elbo'] == pytest.approx(stored['neg_elbo'], abs=1e-3)


def test_training_that_diverges_ends_with_its_name(tmp_path):
    run = _digits_vae.Settings('diagonal', 2, 0, steps=4, learning_rate=float('nan'))
    with pytest.raises(FloatingPointError, match=rf'{run.name}: .*loss became nan within 4 steps'):
        vae_digits.train(tmp_path, run)
    assert not list(tmp_path.iterdir())
