"""Where the time of a step goes: TensorFlow's own record of every operation, as a short table."""

from __future__ import annotations

import itertools
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

# Kinds of operation, by what their types' names contain; the first that fits counts.
KINDS = {
    'matrix products': 'MatMul',  # with bias and activation, where TensorFlow fuses them
    'masks': 'Select',
    'activations': 'Elu|Relu|Selu',
    'random numbers': 'Random|Stateless|Philox',
    'sums': 'Sum|Mean|BiasAddGrad|Max$|Min$',
    'copies and layout': (
        'Reshape|Transpose|Concat|Slice|Split|Pack|Reverse|Gather|Scatter|Tile|Broadcast|ExpandDims|Squeeze|Pad|Fill|'
        'ZerosLike|OnesLike|Shape|Diag|Layout|ToTf'
    ),
    'arithmetic per entry': (
        'Add|Sub|Mul|Div|Neg|Abs|Sign|Square|Sqrt|Pow|Recip|Exp|Log|Sigmoid|Soft|Tanh|Maximum|Minimum|Greater|Less|'
        'Equal|Is|Cast'
    ),
    'variables, constants, control': '',
}
BETWEEN = 'between operations'


def kind_of(op_type: str) -> str:
    """Returns the kind of an operation."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, op_type))


def self_times(events: Iterable[tuple[str, float, float]]) -> dict[str, tuple[int, float]]:
    """Returns how often each name occurs and how much time it took itself, without what ran within it.

    Args:
        events: Name, start and duration of what one thread did.
    """
    totals: dict[str, tuple[int, float]] = {}
    running: list[tuple[str, float]] = []  # names and ends, the innermost last

    def add(name: str, calls: int, duration: float) -> None:
        before = totals.get(name, (0, 0.0))
        totals[name] = before[0] + calls, before[1] + duration

    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while running and running[-1][1] <= start:
            running.pop()
        if running:
            add(running[-1][0], 0, -duration)
        add(name, 1, duration)
        running.append((name, start + duration))
    return totals


def recorded(step: Callable[[], Any], calls: int) -> tuple[dict[str, tuple[int, float]], float]:
    """Returns operations' calls and milliseconds a step, by their type, and the milliseconds of the step."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        started = time.perf_counter()
        for _ in range(calls):
            step()
        elapsed = 1e3 * (time.perf_counter() - started)
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(directory).rglob('*.xplane.pb')
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    totals: dict[str, tuple[int, float]] = {}
    for plane in space.planes:
        for line in plane.lines if plane.name == '/host:CPU' else ():
            names = [plane.event_metadata[event.metadata_id].name for event in line.events]
            # An operation is called `name:Type`; other entries are what TensorFlow does around it.
            matches = [re.fullmatch(r'[^:\s]+:(\w+)', name) for name in names]
            events = [
                (match[1], 1e-9 * event.offset_ps, 1e-9 * event.duration_ps)
                for match, event in zip(matches, line.events, strict=True)
                if match
            ]
            for op_type, (count, ms) in self_times(events).items():
                before = totals.get(op_type, (0, 0.0))
                totals[op_type] = before[0] + count, before[1] + ms
    return {op_type: (count // calls, ms / calls) for op_type, (count, ms) in totals.items()}, elapsed / calls


def profile(step: Callable[[], Any], calls: int = 50) -> dict[str, Any]:
    """Returns the milliseconds and the operations of a step, by their kind.

    What is between operations, TensorFlow's own work and Python's, is the rest of the time. The record itself takes
    time there too; so `ms` is that of a step without it.
    """
    for _ in range(3):
        step()
    started = time.perf_counter()
    for _ in range(calls):
        step()
    plain = 1e3 * (time.perf_counter() - started) / calls
    operations, elapsed = recorded(step, calls)
    kinds: dict[str, dict[str, float]] = {kind: {'calls': 0, 'ms': 0.0} for kind in KINDS}
    for op_type, (count, ms) in operations.items():
        kinds[kind_of(op_type)]['calls'] += count
        kinds[kind_of(op_type)]['ms'] += ms
    inside = sum(figures['ms'] for figures in kinds.values())
    kinds[BETWEEN] = {'calls': 0, 'ms': elapsed - inside}
    return {
        'ms': plain,
        'recorded_ms': elapsed,
        'kinds': kinds,
        'operations': {name: {'calls': count, 'ms': ms} for name, (count, ms) in sorted(operations.items())},
    }


def table_of(profiles: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and lines: a line for each kind, and two columns for each implementation."""
    header = ['kind of operation', '']
    for name in profiles:
        header += [f'{name}: number', 'ms']
    lines = []
    for kind in [*KINDS, BETWEEN]:
        figures = [profiles[name]['kinds'][kind] for name in profiles]
        if any(entry['ms'] for entry in figures):
            cells = [[f'{entry["calls"]:.0f}' if entry['calls'] else '', f'{entry["ms"]:.3f}'] for entry in figures]
            lines.append([kind, '', *itertools.chain(*cells)])
    for label, key in (('all, recorded', 'recorded_ms'), ('all, not recorded', 'ms')):
        cells = [['', f'{figures[key]:.3f}'] for figures in profiles.values()]
        lines.append([label, '', *itertools.chain(*cells)])
    return header, lines
