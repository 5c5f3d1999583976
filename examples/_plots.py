"""The example scripts' plots. Each function takes arrays and writes one PNG."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import _records
import matplotlib
import matplotlib.lines
import matplotlib.ticker
import numpy as np
from _grid import Density, levels_of_mass
from matplotlib.figure import Figure

matplotlib.use('Agg')

_MASSES = (0.99, 0.9, 0.5, 0.1)
_BINS = 60


class Curve(NamedTuple):
    """Learning curves of one model: `steps` `[epochs]`, `values` `[seeds, epochs]`, and the style of their line."""

    steps: Sequence[float]
    values: np.ndarray
    style: str = '-'


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure to `path` at once."""
    with _records.atomic(path) as temporary:
        figure.savefig(temporary, dpi=130)


def plot_learning_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    colors: Mapping[str, str],
    ylabel: str,
    path: pathlib.Path,
    xlabels: Sequence[str] | None = None,
) -> None:
    """Draws one panel per title: the mean over seeds of each model's curve, and the range of the seeds around it."""
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    xlabels = xlabels or ['training step'] * len(panels)
    for axis, xlabel, (title, curves) in zip(axes, xlabels, panels.items(), strict=True):
        for name, curve in curves.items():
            axis.plot(curve.steps, curve.values.mean(axis=0), curve.style, color=colors[name], label=name)
            low, high = curve.values.min(axis=0), curve.values.max(axis=0)
            axis.fill_between(curve.steps, low, high, color=colors[name], alpha=0.2, linewidth=0)
        # The first epochs of a long run, nats above the rest, would press the curves' ends together.
        values = [curve.values for curve in curves.values()]
        top = max(value[:, value.shape[-1] // 12 :].max() for value in values)
        axis.set_ylim(min(value.min() for value in values) - 0.1, top + 0.1)
        axis.set(title=title, xlabel=f'{xlabel} (line: mean over seeds, band: their range)', ylabel=ylabel)
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside right upper')
    save(figure, path)


def plot_images(panels: Mapping[str, Mapping[str, np.ndarray]], path: pathlib.Path) -> None:
    """Draws a column for each title: labelled rows of images in [0, 1], `[count, height, width]`, or with channels."""
    labels = list(next(iter(panels.values())))
    figure = Figure(figsize=(1.9 + 5 * len(panels), 0.5 * len(labels) + 0.4), layout='constrained')
    grid = figure.subplots(len(labels), len(panels), squeeze=False)
    for column, (title, rows) in zip(grid.T, panels.items(), strict=True):
        column[0].set_title(title, fontsize=11)
        for axis, label in zip(column, labels, strict=True):
            axis.imshow(_side_by_side(rows[label]), cmap='gray_r', vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if axis in grid[:, 0]:
                axis.set_ylabel(label, rotation=0, ha='right', va='center', fontsize=10)
    save(figure, path)


def _side_by_side(images: np.ndarray) -> np.ndarray:
    framed = [np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2)) for image in images]
    return np.hstack(framed)


def plot_densities(
    labels: Sequence[str], images: Sequence[np.ndarray], rows: Sequence[Mapping[str, Density]], path: pathlib.Path
) -> None:
    """Draws a row for each image, `[height, width, ...]`: the image, and each model's p, and beside it q."""
    names = list(rows[0])
    figure = Figure(figsize=(1.3 + 3.4 * len(names), 1.9 * len(rows) + 0.9), layout='constrained')
    figure.suptitle(
        'The true posterior p(z|x), and beside it q(z|x). Test images ranked by how far p(z|x) is from a Gaussian.\n'
        'The shades hold 10, 50, 90 and 99 % of the mass; the black line holds 90 % of the mass of p(z|x).\n',
        fontsize=10,
    )
    # An empty column before each model sets its pair apart.
    ratios = [0.8] + [0.05, 1.0, 1.0] * len(names)
    axes = figure.subplots(len(rows), len(ratios), squeeze=False, gridspec_kw={'width_ratios': ratios})
    for axis in axes[:, 1::3].flat:
        axis.set_axis_off()
    shades = {name: matplotlib.colormaps[name](np.linspace(0.3, 0.9, len(_MASSES))) for name in ('Greys', 'Oranges')}
    for line, label, image, densities in zip(axes, labels, images, rows, strict=True):
        line[0].imshow(image, cmap='gray_r', vmin=0, vmax=1)
        line[0].set(xticks=[], yticks=[], xlabel=label)
        for left, right, density in zip(line[2::3], line[3::3], densities.values(), strict=True):
            outline = levels_of_mass(density.p, [0.9])
            for axis, values, colors in ((left, density.p, 'Greys'), (right, density.q, 'Oranges')):
                levels = [*levels_of_mass(values, _MASSES), 1.001 * values.max()]
                axis.contourf(*density.axes, values.T, levels=levels, colors=shades[colors])
                axis.contour(*density.axes, density.p.T, levels=outline, colors='black', linewidths=0.8)
                axis.set_aspect('equal')
                axis.tick_params(labelsize=6, length=2)
            left.set_title('p(z|x)', fontsize=9, pad=3)
            right.set_title(f'q(z|x), KL {density.kl:.2f}', fontsize=9, pad=3)
            right.set_yticklabels([])
    for name, axis in zip(names, axes[0, 2::3], strict=True):
        place = {'xycoords': 'axes fraction', 'ha': 'center', 'in_layout': False}
        axis.annotate(name, (1.08, 1.2), fontsize=11, weight='bold', **place)
    save(figure, path)


@dataclasses.dataclass(frozen=True)
class Exact:
    """What samples are compared with: K named coordinates, the ends of each one's axis, and exact samples `[M, K]`."""

    names: Sequence[str]
    window: Sequence[tuple[float, float]]
    samples: np.ndarray

    @functools.cached_property
    def marginals(self) -> list[np.ndarray]:
        """For each coordinate the shares of all samples in the cells of a histogram."""
        columns = zip(self.samples.T, self.window, strict=True)
        return [np.histogram(column, _BINS, ends)[0] / len(column) for column, ends in columns]

    @functools.cached_property
    def densities(self) -> dict[tuple[int, int], tuple[list[np.ndarray], np.ndarray]]:
        """For each pair the centres of a histogram's cells along either axis, and its counts, slightly smoothed."""
        result = {}
        for i, j in itertools.combinations(range(len(self.names)), 2):
            ends = [self.window[i], self.window[j]]
            counts, *edges = np.histogram2d(self.samples[:, i], self.samples[:, j], 120, ends)
            for axis in range(2):
                counts = np.apply_along_axis(np.convolve, axis, counts, np.array([0.25, 0.5, 0.25]), 'same')
            result[i, j] = [(edge[1:] + edge[:-1]) / 2 for edge in edges], counts
        return result

    def draw_marginal(self, axis: Any, i: int, samples: np.ndarray, color: str) -> None:
        """Draws the histogram of samples of coordinate i, `[N]`, and the outline of the exact samples'."""
        bins = np.linspace(*self.window[i], _BINS + 1)
        # Shares of all samples, and not only of those in the window.
        axis.hist(
            samples, bins, weights=np.full(len(samples), 1 / len(samples)), color=color, alpha=0.6, label='samples'
        )
        axis.stairs(self.marginals[i], bins, color='black', linewidth=0.8, label='exact')
        axis.set(xlim=self.window[i], yticks=[])

    def draw_pair(self, axis: Any, i: int, j: int, samples: np.ndarray, color: str) -> None:
        """Draws samples of coordinates i < j, `[N, 2]`, and over them the contours of the exact samples."""
        axes, density = self.densities[i, j]
        axis.plot(*samples.T, ',', color=color, alpha=0.5)
        axis.contour(*axes, density.T, levels=levels_of_mass(density, [0.99, 0.9, 0.5]), colors='black', linewidths=0.7)
        axis.set(xlim=self.window[i], ylim=self.window[j])


def plot_corners(
    exact: Exact, models: Mapping[str, tuple[str, np.ndarray]], colors: Mapping[str, str], path: pathlib.Path
) -> None:
    """Draws for each model, with a title and samples `[N, K]`, every coordinate's density and every pair's samples."""
    size = len(exact.names)
    lines = 1 + (len(models) > 3)
    columns = -(-len(models) // lines)
    figure = Figure(figsize=(1.7 * size * columns, (1.6 * size + 0.4) * lines + 0.4), layout='constrained')
    figure.suptitle(
        'Samples of q in colour; in black the exact p, with contours that hold 50, 90 and 99 % of the mass in view',
        fontsize=12,
    )
    parts = figure.subfigures(lines, columns, squeeze=False).flat
    for part, (model, (title, samples)) in zip(parts, models.items(), strict=False):
        part.suptitle(title, fontsize=11)
        grid = part.subplots(size, size, sharex='col', squeeze=False)
        for (row, column), axis in np.ndenumerate(grid):
            if column > row:
                axis.set_axis_off()
            elif column == row:
                exact.draw_marginal(axis, row, samples[:, row], colors[model])
            else:
                exact.draw_pair(axis, column, row, samples[:, [column, row]], colors[model])
            axis.tick_params(labelsize=7, length=2, labelleft=column == 0)
        for name, bottom, left in zip(exact.names, grid[-1], grid[:, 0], strict=True):
            bottom.set_xlabel(name)
            if left is not grid[0, 0]:
                left.set_ylabel(name)
        part.align_ylabels(grid[:, 0])
    save(figure, path)


class Chains(NamedTuple):
    """A sampler's title, the first coordinate in one chain `[N]`, the gradients a state took, and samples `[M, K]`."""

    title: str
    trace: np.ndarray
    gradients_per_state: int
    samples: np.ndarray


def plot_chains(samplers: Mapping[str, Chains], exact: Exact, colors: Mapping[str, str], path: pathlib.Path) -> None:
    """Draws a row for each sampler: one chain, and of all chains the first coordinate, and the first two."""
    figure = Figure(figsize=(12.0, 3.0 * len(samplers)), layout='constrained')
    grid = figure.subplots(len(samplers), 3, squeeze=False, gridspec_kw={'width_ratios': [2.2, 1, 1]})
    for (trace, marginal, pair), (name, chains) in zip(grid, samplers.items(), strict=True):
        # The same number of gradients in all rows.
        count = 6000 // chains.gradients_per_state
        states = chains.trace[:count]
        trace.plot(chains.gradients_per_state * np.arange(len(states)), states, color=colors[name], linewidth=0.6)
        trace.set(ylim=exact.window[0], title=chains.title, xlabel='gradients', ylabel=exact.names[0])
        trace.grid(alpha=0.3)
        exact.draw_marginal(marginal, 0, chains.samples[:, 0], colors[name])
        marginal.set_xlabel(exact.names[0])
        marginal.legend(fontsize=8)
        exact.draw_pair(pair, 0, 1, chains.samples[:, :2], colors[name])
        pair.set(xlabel=exact.names[0], ylabel=exact.names[1])
    save(figure, path)


class Panels(NamedTuple):
    """Densities on a grid, `[size, size]`, each with a title, and the grid's axes; the first is the exact one."""

    axes: tuple[np.ndarray, np.ndarray]
    densities: Mapping[str, tuple[str, np.ndarray]]


def plot_panels(rows: Mapping[str, Panels], path: pathlib.Path) -> None:
    """Draws a labelled row for each exact density, and in it the models' beside it, in the same colours."""
    columns = list(next(iter(rows.values())).densities)
    figure = Figure(figsize=(0.4 + 2.0 * len(columns), 0.3 + 2.2 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (line, (label, row)) in enumerate(zip(grid, rows.items(), strict=True)):
        brightest = next(iter(row.densities.values()))[1].max()
        extent = [end for axis in row.axes for end in (axis[0], axis[-1])]
        for axis, (title, density) in zip(line, row.densities.values(), strict=True):
            axis.imshow(density.T, 'magma', origin='lower', extent=extent, vmin=0, vmax=brightest)
            axis.set(xticks=[-4, 0, 4], yticks=[-4, 0, 4])
            axis.tick_params(labelsize=7, length=2, labelleft=axis is line[0], labelbottom=i == len(rows) - 1)
            axis.set_xlabel(title, fontsize=10)
        line[0].set_ylabel(label, fontsize=12, rotation=0, ha='right', va='center')
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(column, fontsize=11)
    save(figure, path)


def plot_by_depth(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    colors: Mapping[str, str],
    ylabel: str,
    path: pathlib.Path,
) -> None:
    """Draws a panel per title: each model's mean over seeds against its number of steps, and every seed as a dot."""
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            # One place for every depth, no matter how far apart they are.
            places = range(len(curve))
            axis.plot(places, [np.mean(values) for values in curve.values()], color=colors[name], label=name)
            for place, values in zip(places, curve.values(), strict=True):
                axis.plot([place] * len(values), values, 'o', color=colors[name], ms=3.5, alpha=0.7)
        axis.set_xticks(places, [f'{depth}' for depth in curve])
        axis.set(title=title, yscale='log')
        axis.yaxis.set_major_formatter('{x:g}')
        axis.grid(alpha=0.3, which='both')
    axes[0].set_ylabel(ylabel)
    figure.supxlabel('steps of the flow (0: diagonal Gaussian); line: mean over seeds, dots: seeds', fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=len(colors))
    save(figure, path)
