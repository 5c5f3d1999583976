"""Runs in worker processes, kept when finished."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import tensorflow as tf
import tqdm
from _records import write_json


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
