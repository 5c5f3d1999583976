"""Scripts run as a user runs them, and what is asked of all that keep finished runs."""

import functools
import json
import os
import subprocess
import sys

import _runs
from absl import flags


def start(script, folder, *arguments, environment=(), **values):
    """Starts a script from `folder`, which is not its own, as where Keras has stored no data."""
    command = [sys.executable, script.__file__, '--output_dir=out', *arguments]
    command += [f'--{name}={value}' for name, value in values.items()]
    environment = {**os.environ, 'KERAS_HOME': str(folder), **dict(environment)}
    output = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=folder, env=environment, **output)


def ended(process):
    """Waits for a script that shall not fail, and returns its output, and what it wrote to stderr."""
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return output, errors


def run(script, folder, *arguments, **values):
    """Runs a script as `start` says, and returns its output directory and its output."""
    output, _ = ended(start(script, folder, *arguments, **values))
    return folder / 'out', output


def read_record(directory):
    return json.loads((directory / 'results.json').read_text())


def never(directory, settings):
    raise AssertionError(f'{settings.name} is made again')


def check_goes_on(directory, runs, capsys):
    """Finished runs are found, and are those of the record."""
    kept = _runs.run_cached(never, runs, directory / 'runs', 1, False, str)
    assert f'Resuming: {len(runs)} of {len(runs)} runs' in capsys.readouterr().out
    for figures, recorded in zip(kept.values(), read_record(directory)['runs'], strict=True):
        assert figures and figures | recorded == recorded | figures


def check_files(directory, runs, ending, others):
    """A run leaves its figures and a file with the other ending, the script the other files, and nothing is left."""
    names = sorted(path.name for path in directory.rglob('*') if path.is_file())
    assert names == sorted([f'{run.name}.{end}' for run in runs for end in ('json', ending)] + list(others))


def parse_flags(monkeypatch, define_flags, *command):
    """Gives absl's flags, until the test ends, the values of a command line."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, 'FLAGS', values)
    for name in ('bool', 'enum', 'float', 'integer', 'list', 'string'):
        define = functools.partial(getattr(flags, f'DEFINE_{name}'), flag_values=values)
        monkeypatch.setattr(flags, f'DEFINE_{name}', define)
    check = functools.partial(flags.register_validator, flag_values=values)
    monkeypatch.setattr(flags, 'register_validator', check)
    define_flags()
    values(['script.py', *command])
