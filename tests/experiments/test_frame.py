"""Command lines, finished runs, and tables."""

import dataclasses
import types

import numpy as np
import pytest
from experiments import __main__ as package
from experiments import comparison, reports, runs
from experiments.commands import Command
from experiments.evaluation import Evaluated
from experiments.runs import Store

from tests.experiments import small
from tests.flows import raises


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    name: str = 'a'
    seed: int = 0
    units: tuple[int, ...] = (4,)
    rate: float = 0.5
    path: str = dataclasses.field(default='', repr=False, compare=False)


class TestCommand:
    def parse(self, *argv, quick=None):
        command = Command('test', 'A test.', Settings(), {'name': ('a', 'b')}, seeds=2)
        options = command.parse(argv, quick or {})
        return options, command.plan(options)

    def test_defaults(self):
        options, plan = self.parse()
        assert plan == [Settings(name, seed) for seed in (0, 1) for name in 'ab'] and options.jobs == 2

    def test_options(self):
        _, plan = self.parse('--name=b', '--seeds=1', '--units=8,16', '--rate=2', '--path=x')
        assert plan == [Settings('b', 0, (8, 16), 2.0)] and plan[0].path == 'x'

    def test_quick_gives_defaults_alone(self):
        options, plan = self.parse('--quick', '--rate=3', quick={'rate': 1.0, 'units': (1,)})
        assert plan == [Settings(name, 0, (1,), 3.0) for name in 'ab'] and options.jobs == 1

    @pytest.mark.parametrize('option', ['--name=c', '--units=x', '--units=-1', '--seeds=-1', '--rate=x', '--other=1'])
    def test_wrong_options(self, option, capsys):
        with pytest.raises(SystemExit):
            self.parse(option)
        assert option.split('=')[0] in capsys.readouterr().err

    def test_package(self, capsys):
        with pytest.raises(SystemExit):
            package.main(['nothing'])
        assert "invalid choice: 'nothing'" in capsys.readouterr().err


def count_calls(store, settings):
    path = store.folder / 'calls'
    path.write_text((path.read_text() if path.exists() else '') + f'{settings.name}{settings.seed} ')
    store.checkpoint(settings).mkdir(parents=True)
    if settings.name == 'fails':
        raise ValueError('It is broken.')
    return types.SimpleNamespace(figures={'seed': settings.seed})


class TestRuns:
    def test_finished_runs_are_read(self, tmp_path, capsys):
        plan = [Settings(seed=seed) for seed in (2, 1, 1)]
        first = runs.run_all(count_calls, plan, tmp_path, jobs=1)
        assert list(first) == plan[:2] and 'seed 2: seed 2' in capsys.readouterr().out
        runs.run_all(count_calls, [*plan, Settings('b'), Settings(path='elsewhere', seed=1)], tmp_path, jobs=1)
        assert (tmp_path / 'runs' / 'calls').read_text().split() == ['a2', 'a1', 'b0']
        assert not list(tmp_path.glob('runs/checkpoints/*'))  # of finished runs

    def test_other_versions_of_the_libraries_are_other_runs(self, tmp_path, monkeypatch):
        for version in ('1', '2', '1'):
            monkeypatch.setattr(runs, 'VERSIONS', {'library': version})
            runs.run_all(count_calls, [Settings()], tmp_path, jobs=1)
        assert (tmp_path / 'runs' / 'calls').read_text().split() == ['a0', 'a0']

    def test_a_failure_names_its_run_and_keeps_its_checkpoint(self, tmp_path):
        with raises(RuntimeError, "The run Settings(name='fails', seed=3", 'failed: It is broken.'):
            runs.run_all(count_calls, [Settings('fails', 3)], tmp_path, jobs=1)
        assert Store(tmp_path / 'runs').checkpoint(Settings('fails', 3)).is_dir()

    def test_half_a_file_is_never_seen(self, tmp_path):
        (tmp_path / 'file').write_text('whole')
        with pytest.raises(ValueError, match='stopped'), runs.atomic(tmp_path / 'file') as path:
            path.write_text('ha')
            raise ValueError('stopped')
        assert [path.name for path in tmp_path.iterdir()] == ['file'] and (tmp_path / 'file').read_text() == 'whole'

    def test_losses_that_are_not_finite(self):
        with raises(FloatingPointError, 'the loss became nan at step 102'):
            runs.check_finite(np.array([1.0, 2.0, np.nan]), 100)


class TestReports:
    def test_estimate(self):
        assert reports.estimate([1.0, 2.0, 4.5]) == f'2.500 ± {np.std([1, 2, 4.5], ddof=1) / np.sqrt(3):.3f}'
        assert reports.estimate([1.0], 1, sign=True) == '+1.0'

    def test_table(self):
        lines = reports.table(
            [{'q(z|x)': 'a', 'KL': '1.50'}, {'q(z|x)': 'b', 'KL': '≤ 0.2', 'more': '+1'}]
        ).splitlines()
        assert lines[0].split('|')[1].strip() == 'q(z\\' and '1.50' in lines[2] and '≤ 0.2' in lines[3]
        assert lines[1].split('|')[2].endswith(':') and not lines[1].split('|')[1].endswith(':')


def group(posterior, shifts, **changes):
    members = {}
    for seed, shift in enumerate(shifts):
        by_image = {
            key: np.arange(4.0) ** 2 * (1 + shift) + shift for key in ('neg_elbo', 'nll', 'gap', 'reconstruction', 'kl')
        }
        figures = {key: float(values.mean()) for key, values in by_image.items()}
        figures |= {'active': 3, 'cpu_seconds': 5.0 - shift, 'weighted_nll': 2.0}
        members[small.settings(posterior, seed=seed, **changes)] = Evaluated(figures, by_image, None)
    return members


class TestComparison:
    IMAGES = types.SimpleNamespace(test=np.zeros([4, 8, 8, 3]))

    def test_several_seeds(self):
        groups = {'diagonal': group('diagonal', [0.0, 1.0, 4.0]), 'IAF': group('IAF', [-1.0, 0.0, 3.0])}
        text = comparison.report(3, groups, self.IMAGES)
        less = comparison.values(groups['IAF'], 'nll') - comparison.values(groups['diagonal'], 'nll')
        assert f'≤ {reports.estimate(comparison.values(groups["IAF"], "nll"))}' in text
        assert f'| IAF minus diagonal | {reports.estimate(less, sign=True)}' in text and '1.30 |' in text
        assert 'over 3 seeds' in text and 'bits/dim' not in text

    def test_one_seed(self):
        groups = {'diagonal': group('diagonal', [0.0], latent_size=2), 'IAF': group('IAF', [1.0], latent_size=2)}
        text = comparison.report(2, groups, self.IMAGES)
        by_image = [next(iter(groups[name].values())).by_image['nll'] for name in ('IAF', 'diagonal')]
        assert reports.estimate(by_image[0]) in text and reports.estimate(by_image[0] - by_image[1], sign=True) in text
        assert 'over images, of one seed' in text and 'exact, by quadrature' in text and '≤' not in text

    def test_bits_per_dim(self):
        members = group('diagonal', [0.0], likelihood='discretized logistic')
        next(iter(members.values())).figures['neg_elbo'] = 2.5 * 64 * 3 * np.log(2)
        assert '2.500' in comparison.report(3, {'diagonal': members}, self.IMAGES)
