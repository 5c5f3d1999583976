"""Timing in turns, without any of the libraries that are timed."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

Step = Callable[[], object]  # does its work once, and waits for it
Key = TypeVar('Key')


def pin_threads(threads: int) -> int:
    """Holds this process to so many threads and cores, 0 for all, and returns how many. Comes before other imports."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
    threads = min(threads, len(allowed)) or len(allowed)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, allowed[:threads])
    os.environ['OMP_NUM_THREADS'] = str(threads)
    # PyTorch's threads would wait for their next work in a loop that takes the cores from whoever is next.
    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
    return threads


def seconds_per_call(step: Step, at_least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the median time of as many calls as take `at_least` seconds together.

    The median, since the first call after another's turn finds the caches full of other data.
    """
    times: list[float] = []
    while not times or sum(times) < at_least:
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times)


def take_turns(
    steps: Mapping[Key, Step], rounds: int, at_least: float, clock: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[Key, int, float]]:
    """Yields key, round and seconds per call of each step in each round.

    In rounds, so that whatever else the machine does affects all steps; each round starts with another one.
    """
    keys = list(steps)
    for i in range(rounds):
        first = i % max(1, len(keys))
        for key in keys[first:] + keys[:first]:
            yield key, i, seconds_per_call(steps[key], at_least, clock)
