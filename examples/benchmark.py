"""How fast is the flow? Ours beside TFP's, Pyro's, zuko's and flowjax's, and beside dense layers of the same shapes.

`python benchmark.py` times chains of gated steps with a context; `--preset=quick` takes about two minutes. Everyone
takes turns, so that whatever else the machine does falls on all alike: read the ratios, not the milliseconds. TFP's
`Invert(MaskedAutoregressiveFlow)` and the dense layers, the floor for a masked dense network that skips no zeros, run
in this process; the other libraries, where installed (`pip install tfp_iaf[benchmark]`), in their own. Prints tables,
and writes `results.json` and plots. Finished cases are kept: after an interruption the same command goes on.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import _benchmark_cases
import _benchmark_chains
import _benchmark_peers
import _benchmark_profile
import _benchmark_report
import _records
import _runs
import _script
import _summary
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _benchmark_timing import WORKS, Size, pin_threads
from absl import app, flags

import tfp_iaf

PLAIN_WORKS = ('sample', 'sample_gradient', 'log_prob')

SIZES = ('32x320x4x100', '32x320x4x6400', '32x1920x2x100', '256x1024x2x100', '784x1568x1x100')
DESIGN_SIZES = ('32x320x4x100', '32x1920x2x100', '256x1024x2x100')
MANY_SAMPLES = ('32x320x4x100x1024x64',)
VAE_SIZES = ('32x320x4x100',)
CURVES = {
    'D': ('8x320x4x100', '32x320x4x100', '96x320x4x100', '320x320x4x100'),
    'H': ('32x80x4x100', '32x320x4x100', '32x640x4x100', '32x1280x4x100'),
    'T': ('32x320x1x100', '32x320x2x100', '32x320x4x100', '32x320x8x100'),
    'batch': ('32x320x4x1', '32x320x4x10', '32x320x4x100', '32x320x4x1000'),
    'K': ('32x320x4x100x1024x1', '32x320x4x100x1024x4', '32x320x4x100x1024x16', *MANY_SAMPLES),
}
CURVE_SIZES = tuple(dict.fromkeys(itertools.chain(*CURVES.values())))


class Part(NamedTuple):
    """Sizes, each at all of the works."""

    sizes: Sequence[str]
    works: Sequence[str] = PLAIN_WORKS
    modes: Sequence[str] = _benchmark_chains.MODES
    memory: bool = False


_CURVES = Part(CURVE_SIZES, modes=('graph', 'xla'))
# Parts of each preset, and its other flags where not given.
PRESETS: dict[str, tuple[list[Part], dict[str, Any]]] = {
    'quick': (
        [Part(['16x64x2x50']), Part(['16x64x2x50x32x4'], ['sample']), Part(['16x64x2x50'], ['vae_step'])],
        {'rounds': 5, 'seconds': 0.05, 'patience': 2.0, 'output_dir': 'results/benchmark_quick'},
    ),
    'design': ([Part(DESIGN_SIZES)], {}),
    'curves': ([_CURVES], {'rounds': 5}),
    'full': (
        [
            Part(SIZES, memory=True),
            Part(DESIGN_SIZES, ['log_prob_gradient'], memory=True),  # of the largest, TFP needs gigabytes
            Part(MANY_SAMPLES, ['sample', 'sample_gradient'], memory=True),
            Part(VAE_SIZES, ['vae_step'], memory=True),
            _CURVES,
        ],
        {},
    ),
}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_enum(
        'preset',
        'design',
        list(PRESETS),
        'quick: a try of two minutes. design: three sizes, on which the flow was designed. curves: cost against D, H, '
        'T, batch and K. full: all of that, larger sizes, gradients of log q, many samples, a VAE, and memory.',
    )
    sizes, works = ','.join(SIZES), ','.join(PLAIN_WORKS)
    flags.DEFINE_list('sizes', [], f"Instead of the preset's: DxHxTxbatch[xC[xK]]. With --works alone: {sizes}.")
    flags.DEFINE_list('works', [], f"Instead of the preset's: of {list(WORKS)}. With --sizes alone: {works}.")
    flags.DEFINE_list('implementations', list(_benchmark_report.COLORS)[1:], 'What to time beside tfp_iaf.')
    flags.DEFINE_list('modes', [], f"Instead of the preset's: how TensorFlow runs, of {list(_benchmark_chains.MODES)}.")
    flags.DEFINE_integer('rounds', 7, 'Rounds, of which the median counts.', lower_bound=1)
    flags.DEFINE_float('seconds', 0.3, 'Least time of a measurement in a round.', lower_bound=0.0)
    flags.DEFINE_float('patience', 20.0, 'What took so many seconds is left out of later rounds.', lower_bound=0.0)
    flags.DEFINE_bool('memory', None, "Instead of the preset's: measure steps' peak memory, each in its own process.")
    flags.DEFINE_integer('threads', 0, 'Threads of every library, 0 for one a core.', lower_bound=0)
    flags.DEFINE_string('peer_python', sys.executable, 'The interpreter that has Pyro, zuko and flowjax.')
    flags.DEFINE_string('output_dir', 'results/benchmark', 'Where results, plots and finished cases are written.')
    flags.DEFINE_bool('fresh', False, 'Measure anew what output_dir already has.')
    flags.DEFINE_string('profile', None, 'Instead, write to this folder what operations the first size spends time on.')
    for flag, allowed in {
        'works': list(WORKS),
        'implementations': list(_benchmark_report.COLORS),
        'modes': _benchmark_chains.MODES,
    }.items():
        check = functools.partial(lambda values, allowed: set(values) <= set(allowed), allowed=allowed)
        flags.register_validator(flag, check, f'expected some of {list(allowed)}')


def planned(options: Any) -> list[tuple[Size, str, Part]]:
    """Returns the sizes and works that the flags ask for, each once, with the part that they come from."""
    parts, defaults = PRESETS[options.preset]
    for name, value in defaults.items():
        options.set_default(name, value)
    if options.sizes or options.works:
        parts = [Part(options.sizes or SIZES, options.works or PLAIN_WORKS)]
    found: dict[tuple[Size, str], Part] = {}
    for part in parts:
        for size, work in itertools.product(part.sizes, part.works):
            found.setdefault((Size.parse(size), work), part)
    return [(*key, part) for key, part in found.items()]


def run_profile(size: Size, directory: pathlib.Path) -> None:
    """Prints and writes what operations a step takes, of ours and of others in a graph."""
    record = {}
    for work in ('sample', 'sample_gradient'):
        names = ('tfp_iaf', 'TFP', 'dense')
        record[work] = {
            name: _benchmark_profile.profile(_benchmark_chains.prepare(name, size, work, 'graph')[0]) for name in names
        }
        print(f'{size}, {WORKS[work]}, graph, ms a step:')
        print(_summary.format_table(*_benchmark_profile.table_of(record[work])), '\n')
    _records.write_json(directory / 'profile.json', {'size': str(size), 'works': record})
    print(f'Wrote profile.json to {directory}.')


def main(argv: Sequence[str]) -> None:
    """Measures, and writes what came out."""
    _script.check_arguments(argv)
    started = time.perf_counter()
    options = flags.FLAGS
    try:
        plan = planned(options)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    threads = pin_threads(options.threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # One operation at a time where their times are added up.
    tf.config.threading.set_inter_op_parallelism_threads(1 if options.profile else threads)
    if options.profile:
        return run_profile(plan[0][0], pathlib.Path(options.profile))
    output_dir = pathlib.Path(options.output_dir)
    with contextlib.ExitStack() as stack:
        wanted = [name for name in _benchmark_report.COLORS if name in ('tfp_iaf', *options.implementations)]
        peers = [name for name in wanted if name in _benchmark_peers.PEERS]
        remotes, missing = _benchmark_cases.start_peers(peers, options.peer_python, stack)
        for name, reason in missing.items():
            print(f'Skipped {name}: {reason}.')
        versions = {module.__name__: module.__version__ for module in (tfp_iaf, tf, tfp, np)}
        versions |= {name: remote.about['version'] for name, remote in remotes.items()}
        settings: dict[str, Any] = {
            'implementations': tuple(name for name in wanted if name not in missing),
            **{name: options[name].value for name in ('rounds', 'seconds', 'patience')},
            'threads': threads,
            'versions': tuple(versions.items()),
        }
        cases = []
        for size, work, part in plan:
            modes, memory = options.modes or part.modes, part.memory if options.memory is None else options.memory
            cases.append(_benchmark_cases.Case(size, work, modes=tuple(modes), memory=memory, **settings))
        print(
            f'{len(cases)} cases on the {_benchmark_chains.device()}, {threads} threads, {options.rounds} rounds each.'
        )
        measure_case = functools.partial(_benchmark_cases.measure, remotes, options.peer_python)
        results = _runs.run_cached(
            measure_case, cases, output_dir / 'cases', 1, options.fresh, _benchmark_report.describe
        )
    works = dict.fromkeys(case.work for case in cases)
    for table in (
        _benchmark_report.time_table(results),
        *(_benchmark_report.ratio_table(results, work) for work in works),
    ):
        print(f'\n{table}')
    print('\nSizes are DxHxTxbatch[xC[xK]]. Medians over rounds, in brackets the quartiles. Ratios are of our time to')
    print("another's, taken round by round, the faster of graph and XLA for each, or eager: below 1, ours is faster.")
    if methods := {row['memory_by'] for figures in results.values() for row in figures['rows'] if 'memory_by' in row}:
        print(f'Peak MB is what a step needs above what its process holds before it, by {" and ".join(methods)}.')
    for case, figures in results.items():
        for entry in figures['skipped']:
            print(f'{case.size} {entry["work"]}: no {entry["implementation"]}, {entry["mode"]}: {entry["reason"]}')
    in_rows = {case: results[case] for case, (*_, part) in zip(cases, plan, strict=True) if part is not _CURVES}
    drawn = {
        'ratios.png': _benchmark_report.plot_ratios(in_rows, output_dir / 'ratios.png'),
        'costs.png': _benchmark_report.plot_costs(results, output_dir / 'costs.png'),
    }
    record = {
        'devices': [device.name for device in tf.config.list_physical_devices()],
        'threads': threads,
        'versions': versions,
        'flags': _records.used_flags(),
        'missing': missing,
        'cases': [
            {
                'size': dataclasses.asdict(case.size),
                'work': case.work,
                **figures,
                'compiled': _benchmark_report.compare(figures['rows'], case.work, eager=False),
                'eager': _benchmark_report.compare(figures['rows'], case.work, eager=True),
            }
            for case, figures in results.items()
        ],
    }
    _records.write_json(output_dir / 'results.json', record)
    written = ' and '.join(['results.json', *(name for name, done in drawn.items() if done)])
    print(f'\nWrote {written} to {output_dir} in {time.perf_counter() - started:.0f} s.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
