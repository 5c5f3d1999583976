"""The benchmark's cases: which implementations take turns at some work, and how that is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _benchmark_chains
import _benchmark_peers
import _benchmark_remote
import tensorflow as tf
import tqdm
from _benchmark_timing import Size, Timer, quartiles, seconds_per_call, take_turns


@dataclasses.dataclass(frozen=True)
class Case:
    """Some work at a size, and how it is measured."""

    size: Size
    work: str
    implementations: tuple[str, ...]
    modes: tuple[str, ...]
    rounds: int
    seconds: float
    patience: float
    memory: bool
    threads: int
    versions: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:10]
        return f'{self.size}-{self.work}-{digest}'

    @property
    def candidates(self) -> list[tuple[str, str, str]]:
        """Implementation, work and mode of all that takes turns; our forward pass among them, to compare with."""
        names = [name for name in self.implementations if does(name, self.size, self.work)]
        found = [(name, self.work, mode) for name in names for mode in self._modes(name)]
        if self.work not in ('sample', 'vae_step'):
            found += [('tfp_iaf', 'sample', mode) for mode in self.modes]
        return found

    def _modes(self, name: str) -> tuple[str, ...]:
        return (_benchmark_peers.PEERS[name][2],) if name in _benchmark_peers.PEERS else self.modes


def does(name: str, size: Size, work: str) -> bool:
    """Returns whether an implementation does some work that is not another's already."""
    if work == 'vae_step':
        return name in _benchmark_chains.VAES
    if name == 'fixed_point':
        return work.startswith('log_prob')  # the two inverses have one forward direction
    if name == 'dense':
        return work.startswith('sample')  # layers without masks are no flow
    return size.samples > 0 if name == 'repeated' else name != 'no_flow'


def measure(
    remotes: Mapping[str, _benchmark_remote.Remote], peer_python: str, directory: pathlib.Path, case: Case
) -> dict[str, Any]:
    """Times all candidates of a case; returns a row for each, and why others are missing."""
    timers: dict[tuple[str, str, str], Timer] = {}
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    skipped = []
    for candidate in _progress(case.candidates, f'{case.size} {case.work}: compiling'):
        name, work, mode = candidate
        try:
            if name in remotes:
                timers[candidate], found = remotes[name].prepare(case.size, work, mode)
            else:
                step, found = _benchmark_chains.prepare(name, case.size, work, mode)
                timers[candidate] = functools.partial(seconds_per_call, step)
        except (_benchmark_remote.RemoteError, tf.errors.OpError, MemoryError) as error:
            skipped.append({'implementation': name, 'work': work, 'mode': mode, 'reason': str(error)[:300]})
            continue
        rows[candidate] = {'implementation': name, 'work': work, 'mode': mode, **found}
    description = f'{case.size} {case.work}: rounds'
    with tqdm.tqdm(total=case.rounds, desc=description, leave=False, dynamic_ncols=True) as bar:
        times = take_turns(timers, case.rounds, case.seconds, case.patience, bar.update)
    timers.clear()
    for remote in remotes.values():
        remote.forget()
    for candidate, row in rows.items():
        measured = [seconds for seconds in times[candidate] if seconds is not None]
        row |= {'seconds': times[candidate], 'ms': quartiles([1e3 * seconds for seconds in measured])}
        first = row.pop('first_call_s')
        row['compile_s'] = None if row['mode'] == 'eager' else max(0.0, first - row['ms']['median'] / 1e3)
    # Eagerly, TFP's inverse would take minutes in each process.
    measured_too = [row for row in rows.values() if case.memory and row['work'] == case.work]
    measured_too = [
        row for row in measured_too if row['implementation'] in _benchmark_peers.PEERS or row['mode'] != 'eager'
    ]
    for row in _progress(measured_too, f'{case.size} {case.work}: memory'):
        name = row['implementation']
        python = peer_python if name in _benchmark_peers.PEERS else sys.executable
        try:
            row |= _benchmark_remote.measure_memory(
                name, case.size, case.work, row['mode'], python, _benchmark_chains.device()
            )
        except _benchmark_remote.RemoteError as error:
            key = {'implementation': name, 'work': case.work, 'mode': row['mode']}
            skipped.append({**key, 'reason': f'memory: {error}'[:300]})
    return {'rows': list(rows.values()), 'skipped': skipped}


def _progress(items: Sequence[Any], description: str) -> Any:
    return tqdm.tqdm(items, desc=description, leave=False, dynamic_ncols=True)


def start_peers(
    names: Sequence[str], python: str, stack: contextlib.ExitStack
) -> tuple[dict[str, _benchmark_remote.Remote], dict[str, str]]:
    """Starts the libraries that have processes of their own; returns these, and why others are missing."""
    remotes, skipped = {}, {}
    for name in names:
        try:
            remote = stack.enter_context(_benchmark_remote.start(name, python, _benchmark_chains.device()))
        except (_benchmark_remote.RemoteError, OSError) as error:
            skipped[name] = str(error)
            continue
        if remote.about['device'] != _benchmark_chains.device():
            skipped[name] = (
                f'it computes on the {remote.about["device"]}, TensorFlow on the {_benchmark_chains.device()}'
            )
        else:
            remotes[name] = remote
    return remotes, skipped
