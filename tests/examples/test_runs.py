"""Runs are made once, in this process or in others, and what is finished is kept."""

import functools
import json
import operator
import os
from typing import NamedTuple

import _runs
import pytest


class Run(NamedTuple):
    name: str


RUNS = [Run(letter) for letter in 'abcd']


def test_interrupted_runs_go_on(tmp_path, capsys):
    made = []

    def make(directory, run):
        if run.name == 'c' and len(made) == 2:
            raise KeyboardInterrupt
        made.append(run.name)
        return {'figure': len(made)}

    def figures(fresh=False):
        found = _runs.run_cached(make, RUNS, tmp_path, 1, fresh, lambda run, new: f'{run.name} is {new["figure"]}')
        assert list(found) == RUNS
        return [new['figure'] for new in found.values()]

    with pytest.raises(KeyboardInterrupt):
        figures()
    assert 'Resuming' not in capsys.readouterr().out
    made.append('interrupted')
    assert figures() == [1, 2, 4, 5] and made[3:] == ['c', 'd']
    output = capsys.readouterr().out
    assert 'Resuming: 2 of 4 runs' in output and 'd is 5' in output and 'a is' not in output
    assert json.loads((tmp_path / 'd.json').read_text()) == {'figure': 5}
    assert figures(fresh=True) == [6, 7, 8, 9]


def test_one_job_needs_no_other_process():
    results = dict(_runs.run_all(lambda item: (item + 1, os.getpid()), [1, 2], jobs=1))
    assert results == {1: (2, os.getpid()), 2: (3, os.getpid())}


@pytest.mark.slow
def test_an_error_in_a_worker_ends_all(tmp_path):
    found = []
    with pytest.raises(ZeroDivisionError):
        for item, result in _runs.run_all(functools.partial(operator.truediv, 1.0), [2.0, 0.0], jobs=2):
            found.append((item, result))
    assert found in ([], [(2.0, 0.5)])
