"""Runs in worker processes, kept once they have finished."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import joblib
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tqdm
from joblib.externals import loky

import tfp_iaf

Settings = TypeVar('Settings')
Result = TypeVar('Result')

VERSIONS = {module.__name__: module.__version__ for module in (tfp_iaf, tf, tfp, keras, np)}
# What XLA has compiled stays in memory until its process ends, over 100 MB for a run of a small flow.
_RUNS_PER_WORKER = 12


@dataclasses.dataclass(frozen=True)
class Store:
    """Where runs are kept: the results of finished ones, and the checkpoints of others.

    A run is known by its function, its settings, which include the data that it sees, and the versions of the
    libraries. To repeat finished runs, delete the folder.

    Args:
        folder: Where.
    """

    folder: pathlib.Path

    def get(self, function: Callable[[Store, Settings], Result], settings: Settings) -> Result:
        """Returns `function(store, settings)`, from the folder if it has been called before."""
        cached = joblib.Memory(self.folder, verbose=0).cache(_call, ignore=['function', 'store', 'settings'])
        result = cached(_key(function, settings), function, self, settings)
        shutil.rmtree(self.checkpoint(settings), ignore_errors=True)
        return result

    def checkpoint(self, settings: Any) -> pathlib.Path:
        """Returns a folder for what an unfinished run goes on from; other settings have other ones."""
        return self.folder / 'checkpoints' / joblib.hash(_key(type(settings), settings))


def _key(function: Any, settings: Any) -> str:
    # As text: the hash of objects would depend on which of their parts are one object.
    return f'{function.__module__}.{function.__qualname__} {settings!r} {VERSIONS}'


def _call(key: str, function: Callable[[Store, Any], Result], store: Store, settings: Any) -> Result:
    return function(store, settings)


def run_all(
    function: Callable[[Store, Settings], Result], plan: Sequence[Settings], output_dir: pathlib.Path, jobs: int
) -> dict[Settings, Result]:
    """Returns the results of all runs, by settings; finished ones are read, not repeated.

    Args:
        function: Makes a run: a function of a module. The result has the attribute `figures`, a dict of numbers.
        plan: The settings of the runs, frozen dataclasses whose `repr` says all that a run depends on.
        output_dir: Where results are kept, in its folder `runs`.
        jobs: Number of processes at a time.
    """
    store, results, plan = Store(output_dir / 'runs'), {}, list(dict.fromkeys(plan))
    print(f'{len(plan)} runs, {jobs} at a time, kept in {store.folder}.', flush=True)
    for start in range(0, len(plan), jobs * _RUNS_PER_WORKER):
        some = plan[start : start + jobs * _RUNS_PER_WORKER]
        parallel = joblib.Parallel(jobs, return_as='generator_unordered')
        for settings, result in parallel(joblib.delayed(_run)(function, store, settings) for settings in some):
            results[settings] = result
            figures = ', '.join(f'{name} {value:.5g}' for name, value in result.figures.items())
            tqdm.tqdm.write(f'{_varying(settings, plan)}: {figures}')
        if jobs > 1:
            loky.get_reusable_executor().shutdown(wait=True)
    return {settings: results[settings] for settings in plan}


def _run(function: Callable[[Store, Settings], Result], store: Store, settings: Settings) -> tuple[Settings, Result]:
    tf.get_logger().setLevel('ERROR')  # Keras traces functions again for every model; TensorFlow warns of a mistake
    try:
        return settings, store.get(function, settings)
    except Exception as error:
        raise RuntimeError(f'The run {settings} failed: {error}') from error


def _varying(settings: Any, plan: Sequence[Any]) -> str:
    values = dataclasses.asdict(settings)
    others = [dataclasses.asdict(other) for other in plan]
    return ', '.join(f'{name} {value}' for name, value in values.items() if any(o[name] != value for o in others))


def progress(total: int, name: str, unit: str, done: int = 0) -> tqdm.tqdm:
    """Returns a progress bar on a line of this worker's own; a line each minute where the output is no terminal."""
    worker = multiprocessing.current_process().name.rpartition('-')[2]
    position = int(worker) if worker.isdecimal() else 0
    seconds = 0.5 if sys.stderr.isatty() else 60.0
    often = {'mininterval': seconds, 'maxinterval': seconds}
    return tqdm.tqdm(total=total, initial=done, desc=name, unit=unit, position=position, leave=False, **often)


def check_finite(losses: np.ndarray, first_step: int = 0) -> None:
    """Raises FloatingPointError if a loss is not finite."""
    if not np.all(np.isfinite(losses)):
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(f'the loss became {losses[bad]} at step {first_step + bad}. Lower the learning rate.')


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path that becomes `path` at the end, so that nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}-{path.name}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
