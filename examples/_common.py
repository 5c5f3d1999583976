"""What the example scripts share: runs in worker processes, kept when finished, and their statistics as a table."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported: its notes on the hardware

import keras
import numpy as np
import tensorflow as tf
import tqdm

# Keras traces functions anew for every model; TensorFlow takes that for a mistake, and warns.
tf.get_logger().setLevel('ERROR')


class Run(Protocol):
    """The settings of a run."""

    @property
    def name(self) -> str:
        """A file name that no other settings have."""
        ...


# What XLA has compiled stays in memory until its process ends, over 100 MB for a run of a small flow.
_RUNS_PER_WORKER = 12

AnyRun = TypeVar('AnyRun', bound=Run)
Item = TypeVar('Item')
Result = TypeVar('Result')


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path that becomes `path` at the end: a reader never sees half a file, whoever is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}-{path.name}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` to `path` at once; NaN and infinities, which are no JSON, raise ValueError."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + '\n', encoding='utf-8')


def run_cached(
    train: Callable[[pathlib.Path, AnyRun], dict[str, Any]],
    runs: Sequence[AnyRun],
    directory: pathlib.Path,
    jobs: int,
    fresh: bool,
    describe: Callable[[AnyRun, dict[str, Any]], str],
) -> dict[AnyRun, dict[str, Any]]:
    """Returns the figures of all runs, in their order; finished ones are read from `directory`, not repeated.

    Args:
        train: Makes a run: writes what else it keeps to `directory`, and returns its figures. A function of a module.
        runs: The settings of each run, hashable, whose property `name` is unlike that of any other settings.
        directory: Where each run's figures are kept, as `<name>.json`.
        jobs: Number of processes at a time.
        fresh: Whether to repeat finished runs.
        describe: Gives the line that is printed at the end of a run.
    """
    figures = {}
    for run in runs:
        path = directory / f'{run.name}.json'
        if path.exists() and not fresh:
            figures[run] = json.loads(path.read_text(encoding='utf-8'))
    if figures:
        print(f'Resuming: {len(figures)} of {len(runs)} runs are in {directory}; --fresh trains them anew.')
    missing = [run for run in runs if run not in figures]
    with tqdm.tqdm(total=len(runs), initial=len(figures), unit='run', dynamic_ncols=True, leave=False) as bar:
        for run, new in run_all(functools.partial(train, directory), missing, jobs):
            write_json(directory / f'{run.name}.json', new)
            figures[run] = new
            bar.write(describe(run, new))
            bar.update()
    return {run: figures[run] for run in runs}


def run_all(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[tuple[Item, Result]]:
    """Yields each item with its result, in the order in which they end; with several jobs, from worker processes.

    An error in one of them, or Ctrl-C, ends all. One item alone is computed in a worker, too: with another number of
    threads some operations add up in another order.
    """
    if jobs == 1:
        for item in items:
            yield item, function(item)
        return
    batch = jobs * _RUNS_PER_WORKER
    for start in range(0, len(items), batch):
        yield from _run_in_workers(function, items[start : start + batch], jobs)


def _run_in_workers(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Result]]:
    # Spawned, not forked: a fork of a process in which TensorFlow has threads may hang.
    context = multiprocessing.get_context('spawn')
    workers = min(jobs, len(items))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _start_worker() -> None:
    # One thread each: the networks are small, and the workers share the cores. On a GPU they share its memory.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    # Ctrl-C reaches all processes; the first one ends the others. One that is killed cannot: they watch it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def inner_bar() -> dict[str, Any]:
    """Returns options for a progress bar within a run: below that of `run_cached`, on a line of each worker's own."""
    identity = multiprocessing.current_process()._identity
    return {'position': identity[0] if identity else 1, 'leave': False, 'dynamic_ncols': True}


def ms_per_step(seconds: Sequence[float], steps: int) -> float:
    """Returns the median over epochs, or calls, of so many steps: without the first, in which TensorFlow compiles."""
    return float(1e3 * np.median(seconds[1:] or seconds) / steps)


class TrainingWatch(keras.callbacks.Callback):
    """Times the training part of every epoch, and stops a run whose loss is not finite.

    The times, in seconds and in those of the processor, are added to the logs that the callbacks after this one get.

    Args:
        name: Of the run, for the error.
        steps_per_epoch: Number of steps in an epoch.
    """

    def __init__(self, name: str, steps_per_epoch: int) -> None:
        super().__init__()
        self._name = name
        self._steps_per_epoch = steps_per_epoch
        self._seconds: list[float] = []
        self._start = self._end = self._cpu_start = self._cpu_end = 0.0
        self._steps_done = 0

    @property
    def ms_per_step(self) -> float:
        """Of the epochs that were trained; 0 if none was left."""
        return ms_per_step(self._seconds, self._steps_per_epoch) if self._seconds else 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_done = epoch * self._steps_per_epoch
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(self._steps_done + batch + 1, {'loss': (logs or {}).get('loss', 0)})  # waits for an accelerator
        self._end, self._cpu_end = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._seconds.append(self._end - self._start)
        self._check(self._steps_done + self._steps_per_epoch, logs or {})
        if logs is not None:  # for the callbacks that follow
            logs |= {'seconds': self._seconds[-1], 'cpu_seconds': self._cpu_end - self._cpu_start}

    def _check(self, steps: int, logs: Mapping[str, Any]) -> None:
        for name, value in logs.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f'{self._name}: {name} became {value} within {steps} steps. Lower the learning rate, or look for '
                    f'what overflows.'
                )


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Returns the standard error of the mean, which one value does not have."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def mean_and_error(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of seeds' values and its standard error, beside the values."""
    error = standard_error(values)
    return {'mean': float(np.mean(values)), 'standard_error': error, 'by_seed': list(values)}


def aggregate(results: Mapping[Any, dict[str, Any]], keys: Sequence[str], baseline: str) -> list[dict[str, Any]]:
    """Returns the statistics over seeds of every latent size and posterior, and the differences from a baseline.

    Args:
        results: Figures of runs whose settings have a `latent_size`, a `posterior` and a `seed`; each posterior has the
            same seeds, in the same order.
        keys: The figures of which mean and standard error are wanted.
        baseline: The posterior with which the others are compared, seed by seed.
    """
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run, figures in results.items():
        groups.setdefault((run.latent_size, run.posterior), []).append(figures)
    rows = []
    for (latent_size, posterior), runs in groups.items():
        row: dict[str, Any] = {'latent_size': latent_size, 'posterior': posterior, 'seeds': len(runs)}
        row['less_baseline'] = {}
        for key in keys:
            values, others = ([run[key] for run in side] for side in (runs, groups[latent_size, baseline]))
            differences = [value - other for value, other in zip(values, others, strict=True)]
            row[key] = mean_and_error(values)
            row['less_baseline'][key] = mean_and_error(differences)
        rows.append(row)
    return rows


def format_estimate(estimate: dict[str, Any]) -> str:
    """Writes a mean and its standard error as `23.04 ± 0.06`."""
    error = estimate['standard_error']
    return f'{estimate["mean"]:.3f}' + ('' if error is None else f' ± {error:.3f}')


def format_difference(row: dict[str, Any], baseline: str, with_kl: bool) -> str:
    """Writes in one line how a row of `aggregate` differs from the baseline in -ELBO and, if wanted, in the KL."""
    neg_elbo, kl = row['less_baseline']['neg_elbo'], row['less_baseline']['kl_to_posterior']
    by_seed = ', '.join(f'{difference:+.3f}' for difference in neg_elbo['by_seed'])
    percent = 100 * kl['mean'] / (row['kl_to_posterior']['mean'] - kl['mean'])
    return (
        f'D = {row["latent_size"]}, {row["posterior"]} less {baseline}: -ELBO {format_estimate(neg_elbo)} '
        f'(by seed {by_seed})' + (f', KL {percent:+.0f} %' if with_kl else '')
    )


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays text out in columns, the first two to the left and the figures to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append('  '.join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in cells))
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
