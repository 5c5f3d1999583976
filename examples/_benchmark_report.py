"""What the benchmark found, as tables and plots."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import _benchmark_peers
import _benchmark_plots
import _summary
from _benchmark_cases import Case
from _benchmark_timing import WORKS, Size, ratio

# What is timed, with its colour in plots: ours, ours in other ways, and others.
COLORS = {
    'tfp_iaf': '#D55E00',
    'fixed_point': '#E69F00',  # log_prob by iterations over all entries
    'repeated': '#8B4513',  # contexts repeated for each sample, not shared
    'no_flow': '#BBBBBB',  # a VAE with a diagonal Gaussian
    'dense': '#777777',
    'TFP': '#0072B2',
    'Pyro': '#CC79A7',
    'zuko': '#009E73',
    'flowjax': '#56B4E9',
}
OWN_SAMPLE = 'own sample'  # our forward pass

_FIELDS = {'D': 'event', 'H': 'hidden', 'T': 'flows', 'batch': 'batch', 'K': 'samples'}

# Tables --------------------------------------------------------------------------------------------------------------


def fastest(rows: Sequence[dict[str, Any]], name: str, work: str, eager: bool) -> dict[str, Any] | None:
    """Returns the row with the least median time, of eager mode or of the others; PyTorch is eager in either."""
    found = [row for row in rows if row['implementation'] == name and row['work'] == work]
    if eager or name not in _benchmark_peers.PEERS:
        found = [row for row in found if (row['mode'] == 'eager') == eager]
    return min(found, key=lambda row: row['ms']['median'], default=None)


def compare(rows: Sequence[dict[str, Any]], work: str, eager: bool) -> dict[str, Any] | None:
    """Returns our time, and its ratio to that of each of the others, round by round. The better mode of each counts."""
    ours = fastest(rows, 'tfp_iaf', work, eager)
    if ours is None:
        return None
    others = {name: fastest(rows, name, work, eager) for name in COLORS if name != 'tfp_iaf'}
    others[OWN_SAMPLE] = fastest(rows, 'tfp_iaf', 'sample', eager) if work != 'sample' else None
    ratios = {
        name: {**spread, 'mode': other['mode']}
        for name, other in others.items()
        if other and (spread := ratio(ours['seconds'], other['seconds']))
    }
    return {'mode': ours['mode'], 'ms': ours['ms'], 'ratios': ratios}


def ratio_table(results: Mapping[Case, dict[str, Any]], work: str) -> str:
    """Writes what our flow costs against all others that do this work."""
    compared = [
        (case, found)
        for case, figures in results.items()
        for eager in (False, True)
        if case.work == work and (found := compare(figures['rows'], work, eager))
    ]
    names = [name for name in (OWN_SAMPLE, *COLORS) if any(name in found['ratios'] for _, found in compared)]
    lines = []
    for case, found in compared:
        cells = [_format(found['ratios'][name]) if name in found['ratios'] else '' for name in names]
        lines.append([str(case.size), found['mode'], f'{found["ms"]["median"]:.3g}', *cells])
    return _summary.format_table([WORKS[work], '', 'ms', *(f'/ {name}' for name in names)], lines)


def time_table(results: Mapping[Case, dict[str, Any]]) -> str:
    """Writes all times, and what else was found out."""
    lines = []
    for case, figures in results.items():
        for row in figures['rows']:
            if row['work'] != case.work:
                continue
            extra = [
                _optional(row.get('tracing_s'), '.2f'),
                _optional(row['compile_s'], '.2f'),
                _optional(row.get('nodes'), 'd'),
                _optional(row.get('peak_mb'), '.1f'),
            ]
            key = [str(case.size), WORKS[case.work], row['implementation'], row['mode']]
            lines.append([*key, _format(row['ms']), *extra])
    header = ['size', 'work', 'implementation', 'mode', 'ms', 'traced in s', 'compiled in s', 'nodes', 'peak MB']
    return _summary.format_table(header, lines)


def _format(spread: Mapping[str, float]) -> str:
    return '{median:.3g} ({low:.3g}-{high:.3g})'.format(**spread)


def _optional(value: float | None, digits: str) -> str:
    return '' if value is None else format(value, digits)


def describe(case: Case, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a case ends."""
    found = compare(figures['rows'], case.work, eager=False) or compare(figures['rows'], case.work, eager=True)
    if found is None:
        return f'{case.size} {case.work}: nothing of ours was timed'
    ratios = ', '.join(f'{spread["median"]:.2f} of {name}' for name, spread in found['ratios'].items())
    return f'{case.size} {case.work}: {found["ms"]["median"]:.3g} ms ({found["mode"]}); {ratios}'


# Plots ---------------------------------------------------------------------------------------------------------------


def sweeps(sizes: Sequence[Size]) -> dict[str, list[Size]]:
    """Returns, for each quantity, the most sizes, at least three, that differ in it alone."""
    found = {}
    for label, field in _FIELDS.items():
        groups: dict[Size, set[Size]] = {}
        for size in sizes:
            if field != 'samples' or size.samples:
                groups.setdefault(dataclasses.replace(size, **{field: 1}), set()).add(size)
        most = max(groups.values(), key=len, default=set())
        if len(most) >= 3:
            found[label] = sorted(most, key=lambda size: int(getattr(size, field)))
    return found


def plot_ratios(results: Mapping[Case, dict[str, Any]], path: pathlib.Path) -> bool:
    """Draws the others' times in units of ours; returns whether there were any."""
    panels: dict[str, dict[str, dict[str, _benchmark_plots.Spread]]] = {}
    for case, figures in results.items():
        found = compare(figures['rows'], case.work, eager=False) or compare(figures['rows'], case.work, eager=True)
        if found and found['ratios']:
            line = panels.setdefault(WORKS[case.work], {}).setdefault(case.size.label, {})
            for name, spread in found['ratios'].items():
                median, low, high = (1 / spread[key] for key in ('median', 'high', 'low'))
                line[name] = _benchmark_plots.Spread(median, low, high)
    if panels:
        _benchmark_plots.plot_ratios(panels, {OWN_SAMPLE: 'black', **COLORS}, 'tfp_iaf', path)
    return bool(panels)


def plot_costs(results: Mapping[Case, dict[str, Any]], path: pathlib.Path) -> bool:
    """Draws the times of sizes that differ in one quantity alone; returns whether there were any."""
    panels: dict[str, dict[str, dict[str, dict[int, _benchmark_plots.Spread]]]] = {}
    for work in dict.fromkeys(case.work for case in results):
        cases = {case.size: figures['rows'] for case, figures in results.items() if case.work == work}
        for label, sizes in sweeps(list(cases)).items():
            curves = panels.setdefault(WORKS[work], {}).setdefault(label, {})
            for size, name in itertools.product(sizes, COLORS):
                if row := fastest(cases[size], name, work, eager=False) or fastest(cases[size], name, work, eager=True):
                    curves.setdefault(name, {})[getattr(size, _FIELDS[label])] = _benchmark_plots.Spread(**row['ms'])
    if panels:
        _benchmark_plots.plot_costs(panels, COLORS, path)
    return bool(panels)
