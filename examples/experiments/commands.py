"""The command line of an experiment: an option for each of its settings, and those that all experiments have."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import pathlib
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any


class Command:
    """The command line of an experiment.

    Args:
        name: Of the experiment.
        text: What it does.
        defaults: The default settings: a frozen dataclass. Its int, float, str and int-tuple fields become options.
        varied: The fields that take several values in an experiment, whose options are lists, with their defaults.
        seeds: Number of seeds by default.
        fixed: The fields that have no option.
    """

    def __init__(
        self,
        name: str,
        text: str | None,
        defaults: Any,
        varied: Mapping[str, Collection[Any]],
        seeds: int = 1,
        fixed: Iterable[str] = (),
    ) -> None:
        self._parser = argparse.ArgumentParser(
            f'python -m experiments {name}',
            description=text,
            epilog='\n'.join(inspect.cleandoc(kind.__doc__ or '') for kind in type(defaults).__mro__[:-1]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._defaults, self._varied = defaults, list(varied)
        names = [field.name for field in dataclasses.fields(defaults) if field.name not in {*varied, *fixed, 'seed'}]
        self._fields = names
        for field, values in varied.items():
            self.add(field, tuple(values), 'a list')
        self.add('seeds', seeds, 'number of seeds, from 0')
        for field in names:
            self.add(field, getattr(defaults, field))
        self.add('jobs', 2, 'runs at a time, each in a process of its own; 1: all in this process')
        self.add('output_dir', pathlib.Path('results', name), 'where tables, plots and finished runs are written')

    def add(self, name: str, default: Any, text: str = '', **options: Any) -> None:
        """Adds an option. A list is one of numbers, or of some of the texts in its default."""
        kind: Callable[[str], Any] = type(default)
        if isinstance(default, tuple):
            kind = numbers if not isinstance(default[0], str) else some_of(default)
        elif isinstance(default, int):
            kind = number
        shown = ','.join(map(str, default)) if isinstance(default, tuple) else default
        self._parser.add_argument(
            f'--{name.replace("_", "-")}',
            **{'type': kind, 'default': default, 'help': f'{text} (default: {shown})'.strip(), **options},
        )

    def parse(self, argv: Sequence[str], quick: Mapping[str, Any]) -> argparse.Namespace:
        """Returns the options; with `--quick` those of `quick` are the defaults, for one seed in this process."""
        quick = {'seeds': 1, 'jobs': 1, **quick}
        self._parser.add_argument('--quick', action='store_true', help=f'a try of a minute: {quick}')
        if self._parser.parse_args(argv).quick:
            self._parser.set_defaults(**quick)
        options = self._parser.parse_args(argv)
        options.command = shlex.join([*self._parser.prog.split(), *argv])
        return options

    def plan(self, options: argparse.Namespace) -> list[Any]:
        """Returns the settings of all runs, seed by seed."""
        given = {name: getattr(options, name) for name in self._fields}
        products = itertools.product(range(options.seeds), *(getattr(options, name) for name in self._varied))
        return [
            dataclasses.replace(self._defaults, **given, seed=seed, **dict(zip(self._varied, product, strict=True)))
            for seed, *product in products
        ]


def number(text: str) -> int:
    """Parses a number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'got {text!r}, expected a whole number of at least 0')
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Parses a list of such numbers, such as `320,320`."""
    return tuple(map(number, text.split(',')))


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns what parses a list of known names, such as `U1,U4`."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(','))
        if not set(chosen) <= set(known):
            raise argparse.ArgumentTypeError(f'got {text!r}, expected some of {",".join(known)}')
        return chosen

    return parse
