"""The frame of the scripts: their shared flags, what `--quick` means, and what is written down."""

import dataclasses
import sys

import _records
import _script
import blog_ablation
import densities
import energies
import neutra_hmc
import pytest
import sklearn
import surrogate_posterior
import vae_digits
from absl import app, flags

from tests.examples import scripts

QUICK = {'steps': 3, 'output_dir': 'quick'}
SCRIPTS = (energies, surrogate_posterior, neutra_hmc, densities, vae_digits, blog_ablation)


@dataclasses.dataclass(frozen=True)
class Settings:
    letter: str
    steps: int

    @property
    def name(self):
        return f'{self.letter}{self.steps}'


def define_flags():
    _script.define_some_of('letters', 'abc', 'Letters.')
    flags.DEFINE_integer('steps', 7, 'Steps.')
    _script.define_flags('results', QUICK)


def plan():
    return [Settings(letter, flags.FLAGS.steps) for letter in flags.FLAGS.letters]


def make(directory, settings):
    return {'figure': settings.steps + ord(settings.letter), 'curve': [1, 2]}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the frame with a command line, and returns the output directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [__name__])  # whose flags are the script's

    def of(*command, arguments=(), make=make):
        def conclude(results, output_dir):
            assert output_dir.is_dir()
            return {'aggregated': 'of a script', 'runs': _records.of_runs(results)}

        with monkeypatch.context() as patch:
            scripts.parse_flags(patch, define_flags, '--jobs=1', *command)
            _script.run(
                ['script.py', *arguments], QUICK, plan, make, lambda run, _: f'{run.name} ends', conclude, sklearn
            )

        return tmp_path

    return of


def test_writes_what_came_out(run, capsys):
    record = scripts.read_record(run('--letters=b,a', '--output_dir=out') / 'out')
    shared = {'jobs': 1, 'output_dir': 'out', 'fresh': False, 'quick': False}
    assert record['flags'] == {'letters': ['b', 'a'], 'steps': 7, **shared}
    assert record['versions'] == _records.versions(sklearn) and record['aggregated'] == 'of a script'
    assert record['runs'] == [
        {'letter': letter, 'steps': 7, 'figure': 7 + ord(letter), 'curve': [1, 2]} for letter in 'ba'
    ]
    output = capsys.readouterr().out
    assert output.startswith('2 runs, 1 at a time.') and 'b7 ends\n' in output
    assert output.endswith(f'Wrote results.json and plots to out in {record["seconds"]:.0f} s.\n')


def test_finished_runs_are_kept_unless_fresh(run, capsys):
    def figures(*command):
        folder = run(*command, make=lambda directory, settings: {'figure': 0})
        return [entry['figure'] for entry in scripts.read_record(folder / 'results')['runs']]

    run()
    assert figures() == [7 + ord(letter) for letter in 'abc']
    assert 'Resuming: 3 of 3 runs' in capsys.readouterr().out
    assert figures('--fresh') == [0, 0, 0]


def test_quick_is_for_what_is_not_given(run):
    folder = run('--quick', '--letters=a')
    assert [entry['steps'] for entry in scripts.read_record(folder / 'quick')['runs']] == [3]
    run('--quick', '--letters=a', '--steps=5', '--output_dir=given')
    assert [entry['steps'] for entry in scripts.read_record(folder / 'given')['runs']] == [5]


def test_arguments_that_are_no_flags(run, tmp_path):
    with pytest.raises(app.UsageError, match=r"unexpected arguments: \['quick'\]"):
        run(arguments=['quick'])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('names', ['a,d', ''])
def test_names_that_are_not_known(monkeypatch, names):
    with pytest.raises(flags.IllegalFlagValueError, match=r"expected some of \['a', 'b', 'c'\]"):
        scripts.parse_flags(monkeypatch, define_flags, f'--letters={names}')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.__name__)
class TestScripts:
    def planned(self, script, monkeypatch, *command):
        made = []
        monkeypatch.setattr('_runs.run_cached', lambda *arguments: made.append(arguments) or {})
        monkeypatch.setattr(script, 'conclude', lambda results, output_dir: {})
        monkeypatch.setattr('_records.write_json', lambda path, record: made.append(path))
        scripts.parse_flags(monkeypatch, script.define_flags, *command)
        script.main(['script.py'])
        (_, runs, *_), path = made
        return runs, path

    def test_runs_have_names_of_their_own(self, script, monkeypatch):
        runs, path = self.planned(script, monkeypatch)
        assert len({run.name for run in runs}) == len(runs) >= 3
        assert str(path) == f'results/{script.__name__}/results.json'

    def test_quick_is_quicker(self, script, monkeypatch):
        (run, *_), path = self.planned(script, monkeypatch, '--quick')
        assert str(path) == f'results/{script.__name__}_quick/results.json'
        same = script.QUICK.keys() & vars(run).keys() - {'num_flows'}  # a list there, and one of them here
        assert same and all(getattr(type(run), name) > getattr(run, name) == script.QUICK[name] for name in same)
