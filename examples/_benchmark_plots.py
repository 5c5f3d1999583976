"""The benchmark's plots. Each function takes medians and quartiles, and writes one PNG."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import _plots
import matplotlib.lines
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def plot_ratios(
    panels: Mapping[str, Mapping[str, Mapping[str, Spread]]], colors: Mapping[str, str], unit: str, path: pathlib.Path
) -> None:
    """Draws a panel per title: a line for each label, and on it each name's ratio to `unit`, with its quartiles."""
    names = [name for name in colors if any(name in line for lines in panels.values() for line in lines.values())]
    heights = [len(lines) for lines in panels.values()]
    size = (7.5, 1.5 + 0.55 * len(panels) + 0.3 * sum(heights))
    figure = Figure(figsize=size, layout='constrained')
    grid = {'height_ratios': [height + 0.5 for height in heights]}
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for i, line in enumerate(lines.values()):
            shown = [name for name in names if name in line]
            for name, offset in zip(shown, np.linspace(-0.25, 0.25, len(shown)), strict=True):
                median, low, high = line[name]
                bars = [[median - low], [high - median]]
                axis.errorbar([median], [i + offset], xerr=bars, fmt='o', ms=5, color=colors[name], lw=1.5)
        axis.axvline(1, color='black', linewidth=1)
        axis.set(title=title, xscale='log', ylim=(len(lines) - 0.5, -0.5))
        axis.set_yticks(range(len(lines)), list(lines), fontsize=9)
        axis.grid(alpha=0.3, axis='x', which='both')
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter('')
        axis.tick_params(axis='x', labelbottom=True)
    axes[-1].set_xlabel(f'time / time of {unit} (dot: median over rounds, bar: quartiles)')
    handles = [matplotlib.lines.Line2D([], [], marker='o', color=colors[name], label=name) for name in names]
    figure.legend(handles=handles, loc='outside upper center', ncols=min(5, len(handles)))
    _plots.save(figure, path)


def plot_costs(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[int, Spread]]]],
    colors: Mapping[str, str],
    path: pathlib.Path,
) -> None:
    """Draws a row per title and a column per quantity: milliseconds against it, both on logarithmic axes."""
    quantities = list(dict.fromkeys(quantity for columns in panels.values() for quantity in columns))
    drawn = [curves for columns in panels.values() for curves in columns.values()]
    names = [name for name in colors if any(name in curves for curves in drawn)]
    figure = Figure(figsize=(1 + 3.1 * len(quantities), 0.9 + 2.8 * len(panels)), layout='constrained')
    grid = figure.subplots(len(panels), len(quantities), sharex='col', sharey='row', squeeze=False)
    for row, (title, columns) in zip(grid, panels.items(), strict=True):
        for axis, quantity in zip(row, quantities, strict=True):
            for name in names:
                curve = columns.get(quantity, {}).get(name, {})
                values = np.array([curve[x] for x in sorted(curve)]).reshape(-1, 3)
                axis.plot(sorted(curve), values[:, 0], color=colors[name], marker='o', ms=4)
                axis.fill_between(sorted(curve), values[:, 1], values[:, 2], color=colors[name], alpha=0.2, lw=0)
            axis.set(xscale='log', yscale='log')
            axis.grid(alpha=0.3, which='both')
        row[0].set_ylabel(f'{title}\nms')
    for axis, quantity in zip(grid[-1], quantities, strict=True):
        curves = [curve for columns in panels.values() for curve in columns.get(quantity, {}).values()]
        measured = sorted(set(itertools.chain(*curves)))
        axis.set_xticks(measured, [f'{x:d}' for x in measured])
        axis.minorticks_off()
        axis.set_xlabel(quantity)
    handles = [matplotlib.lines.Line2D([], [], marker='o', color=colors[name], label=name) for name in names]
    figure.legend(handles=handles, loc='outside upper center', ncols=min(6, len(handles)))
    _plots.save(figure, path)
