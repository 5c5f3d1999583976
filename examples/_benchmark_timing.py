"""Timing, without TensorFlow: sizes, taking turns, ratios with their spread, and the memory that a step needs."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

WORKS = {
    'sample': 'sample and log q',
    'sample_gradient': 'sample and log q, gradient',
    'log_prob': 'log q of a new point',
    'log_prob_gradient': 'log q of a new point, gradient',
    'vae_step': 'training step of a VAE',
}

Step = Callable[[], Any]  # does its work once, waits for it, and returns log q, or the loss whose gradient it took
Timer = Callable[[float], float]  # seconds of one call, from as many calls as take at least so long
Prepared = tuple[Step, dict[str, Any]]  # with what was found out on the way, such as the seconds for compiling
Key = TypeVar('Key')


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a chain: D entries, two hidden layers of H units, T steps, a batch of contexts with C entries.

    With `samples` K > 0, K samples are drawn for each context, and one for each otherwise.
    """

    event: int
    hidden: int
    flows: int
    batch: int
    context: int = 32
    samples: int = 0

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads `DxHxTxbatch`, `DxHxTxbatchxC` or `DxHxTxbatchxCxK`."""
        try:
            numbers = list(map(int, text.split('x')))
            size = cls(*numbers)
        except (TypeError, ValueError):
            raise ValueError(f'sizes: got {text!r}, expected such as 32x320x4x100, of DxHxTxbatch[xC[xK]].') from None
        if min(numbers[:5]) < 1 or size.samples < 0:
            raise ValueError(f'sizes: got {text!r}, expected numbers above 0.')
        return size

    @property
    def label(self) -> str:
        """The sizes by name, those that are not the usual ones at the end."""
        text = f'D {self.event}, H {self.hidden}, T {self.flows}, batch {self.batch}'
        text += '' if self.context == Size.context else f', C {self.context}'
        return text + (f', K {self.samples}' if self.samples else '')

    def __str__(self) -> str:
        numbers = dataclasses.astuple(self)
        keep = 6 if self.samples else 5 if self.context != Size.context else 4
        return 'x'.join(map(str, numbers[:keep]))


def make_inputs(size: Size) -> tuple[list[np.ndarray], np.ndarray, tuple[int, ...]]:
    """Returns loc, scale and context, a point, and the shape of the samples to draw."""
    rng = np.random.default_rng(0)
    sample_shape = (size.samples,) if size.samples else ()
    shapes = [(size.batch, size.event), (size.batch, size.event), (size.batch, size.context)]
    loc, scale, context = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    point = rng.standard_normal((*sample_shape, *loc.shape)).astype(np.float32)
    return [0.1 * loc, np.exp(0.1 * scale), context], point, sample_shape


def pin_threads(threads: int) -> int:
    """Holds this process and its children to so many threads, 0 for one a core; returns how many. First of all calls.

    Where the system can, it holds them to so many cores too: not every library asks for the number.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
    threads = min(threads, len(allowed)) or len(allowed)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, allowed[:threads])
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NPROC'):
        os.environ[variable] = str(threads)
    return threads


def seconds_per_call(step: Step, at_least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the median time of as many calls as take `at_least` seconds together.

    The median, since the first call after others' turns finds the caches full of their data.
    """
    times: list[float] = []
    while not times or sum(times) < at_least:
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times)


def take_turns(
    timers: Mapping[Key, Timer],
    rounds: int,
    at_least: float,
    patience: float,
    advance: Callable[[], Any] = lambda: None,
) -> dict[Key, list[float | None]]:
    """Times all in rounds, so that whatever else the machine does falls on all alike.

    Args:
        timers: What to time. Each round starts with another one.
        rounds: Number of rounds.
        at_least: Least seconds of one measurement.
        patience: One whose measurements took so many seconds is left out of later rounds.
        advance: Called after every round.

    Returns:
        Seconds a call in each round, `None` where it was left out.
    """
    keys = list(timers)
    for timer in timers.values():
        timer(0.0)  # not counted: TensorFlow optimises a graph anew once others were made
    times: dict[Key, list[float | None]] = {key: [] for key in keys}
    for i in range(rounds):
        first = i % max(1, len(keys))
        for key in keys[first:] + keys[:first]:
            spent = sum(max(seconds or 0.0, at_least) for seconds in times[key])
            times[key].append(None if i and spent >= patience else timers[key](at_least))
        advance()
    return times


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the median and the quartiles around it; of a single value it three times."""
    if len(values) == 1:
        return dict.fromkeys(('median', 'low', 'high'), values[0])
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return {'median': median, 'low': low, 'high': high}


def ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float] | None:
    """Returns the quartiles of the ratios in each round, or `None` if no round has both."""
    both = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return quartiles(both) if both else None


# Memory --------------------------------------------------------------------------------------------------------------

# For processes whose memory is measured: a freed block goes back to the system at once, and counts no more. TensorFlow
# would otherwise keep what it once had for later steps.
EXACT_MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': '65536',
    'MALLOC_TRIM_THRESHOLD_': '0',
    'TF_ONEDNN_USE_SYSTEM_ALLOCATOR': 'true',
}


def peak_memory(prepare: Callable[[], Prepared], calls: int = 2) -> tuple[float, str]:
    """Returns how many MB the peak of a step lies above what the process held before it, and how that was found.

    Where Linux lets a process set its peak back, what tracing and compiling took does not count. Elsewhere all since
    before `prepare` does.
    """
    before = _highest()
    step, _ = prepare()
    step()
    gc.collect()
    if not _reset_highest():
        for _ in range(calls):
            step()
        return (_highest() - before) / 1e6, 'ru_maxrss, with compiling'
    before = _status('VmRSS')
    for _ in range(calls):
        step()
    return (_status('VmHWM') - before) / 1e6, 'VmHWM'


def _highest() -> float:
    # On macOS in bytes, elsewhere in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == 'darwin' else 1024.0)


def _status(field: str) -> float:
    # Not ru_maxrss: a process starts with that of the one that started it, which may be far above all that it needs.
    lines = pathlib.Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def _reset_highest() -> bool:
    if sys.platform != 'linux':
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
        _status('VmHWM')
    except (AttributeError, OSError, StopIteration):
        return False
    return True
