"""The frame of a script that makes runs and compares them: the flags that all such scripts have, and their `main`."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import _records
import _runs
from absl import app, flags

flags.disclaim_key_flags()  # those that are defined here are the script's own


def define_flags(output_dir: str, quick: Mapping[str, Any]) -> None:
    """Defines the flags that all scripts of this frame have.

    Flags are defined in a function, since worker processes and tests import the scripts too.

    Args:
        output_dir: Where results are written if the command does not say.
        quick: The values of flags, by name, with `--quick`, where the command does not say.
    """
    define_flags_of_runs(output_dir)
    flags.DEFINE_bool('quick', False, f'A try of a minute or two: {dict(quick)}, where not given.')


def define_flags_of_runs(output_dir: str) -> None:
    """Defines the flags that say how runs are made, and where they are kept if the command does not say."""
    flags.DEFINE_integer('jobs', 2, 'Number of runs at a time, each in a process with one thread.', lower_bound=1)
    flags.DEFINE_string('output_dir', output_dir, 'Where results, plots and finished runs are written.')
    flags.DEFINE_bool('fresh', False, 'Make anew the runs that output_dir already has.')


def define_some_of(name: str, known: Iterable[str], text: str, default: Sequence[str] | None = None) -> None:
    """Defines a flag whose value is a list of some of the known names; of all, unless it has another default."""
    names = list(known)
    flags.DEFINE_list(name, names if default is None else list(default), text)
    flags.register_validator(name, lambda given: given and set(given) <= set(names), f'expected some of {names}')


def run(
    argv: Sequence[str],
    quick: Mapping[str, Any],
    plan: Callable[[], Sequence[_runs.AnyRun]],
    make: Callable[[pathlib.Path, _runs.AnyRun], dict[str, Any]],
    describe: Callable[[_runs.AnyRun, dict[str, Any]], str],
    conclude: Callable[[dict[_runs.AnyRun, dict[str, Any]], pathlib.Path], dict[str, Any]],
    *libraries: ModuleType,
) -> None:
    """Makes the runs that the command line says, reports on them, and writes `results.json`.

    Args:
        argv: The command line's arguments that are no flags. There must be none but the script's name.
        quick: As for `define_flags`.
        plan: Returns the settings of the runs, by the flags.
        make: Makes a run, as `_runs.run_cached` needs it.
        describe: Gives the line that is printed at the end of a run.
        conclude: Prints the report on all runs' figures, draws the plots in the output directory, and returns what
            `results.json` says of the runs.
        *libraries: Those whose versions are kept besides the ones that all figures depend on.
    """
    check_arguments(argv)
    started = time.perf_counter()
    options = flags.FLAGS
    for name, value in quick.items() if options.quick else ():
        options.set_default(name, value)
    runs, output_dir = plan(), pathlib.Path(options.output_dir)
    print(f'{len(runs)} runs, {options.jobs} at a time.')
    results = _runs.run_cached(make, runs, output_dir / 'runs', options.jobs, options.fresh, describe)
    write(conclude(results, output_dir), output_dir, started, *libraries)


def check_arguments(argv: Sequence[str]) -> None:
    """Raises UsageError if the command line has arguments that are no flags, besides the script's name."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')


def write(conclusions: Mapping[str, Any], output_dir: pathlib.Path, started: float, *libraries: ModuleType) -> None:
    """Writes `results.json`, the last of a script's files, and says so.

    Args:
        conclusions: What it says of the runs.
        output_dir: Where it is written.
        started: When the script started, by `time.perf_counter`.
        *libraries: Those whose versions are kept besides the ones that all figures depend on.
    """
    record = {
        'flags': _records.used_flags(),
        'versions': _records.versions(*libraries),
        **conclusions,
        'seconds': time.perf_counter() - started,
    }
    _records.write_json(output_dir / 'results.json', record)
    print(f'\nWrote results.json and plots to {output_dir} in {record["seconds"]:.0f} s.')
