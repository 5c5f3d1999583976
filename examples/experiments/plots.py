"""The plots. Each function takes arrays and writes one PNG."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from . import quadrature, runs
from .quadrature import Grid, levels_of_mass

matplotlib.use('Agg')

_MASSES = (0.99, 0.9, 0.5, 0.1)
_RANKS = (1, 4, 16, 64)  # of the images whose posteriors are drawn


class Curve(NamedTuple):
    """Learning curves of one model: `steps` `[epochs]`, `values` `[seeds, epochs]`, and how they are drawn."""

    steps: np.ndarray
    values: np.ndarray
    color: str
    style: str = '-'


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure to `path` at once."""
    with runs.atomic(path) as temporary:
        figure.savefig(temporary, dpi=130)


def learning_curves(panels: Mapping[tuple[str, str], Mapping[str, Curve]], ylabel: str, path: pathlib.Path) -> None:
    """Draws a panel per title and axis: the mean over seeds of each model's curve, and their range around it."""
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((title, xlabel), curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            axis.plot(curve.steps, curve.values.mean(axis=0), curve.style, color=curve.color, label=name)
            low, high = curve.values.min(axis=0), curve.values.max(axis=0)
            axis.fill_between(curve.steps, low, high, color=curve.color, alpha=0.2, linewidth=0)
        # The first epochs of a long run, nats above the rest, would press the curves' ends together.
        values = [curve.values for curve in curves.values()]
        top = max(value[:, value.shape[-1] // 12 :].max() for value in values)
        axis.set_ylim(min(value.min() for value in values) - 0.1, top + 0.1)
        axis.set(title=title, xlabel=f'{xlabel} (line: mean over seeds, band: their range)', ylabel=ylabel)
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc='outside right upper')
    save(figure, path)


def images(
    vaes: Mapping[str, Any], tests: np.ndarray, mean: Callable[[tf.Tensor], tf.Tensor], path: pathlib.Path
) -> None:
    """Draws test images, and each VAE's reconstructions of them and as many samples, as means of pixels."""
    rows = {'test images': tests}
    for name, vae in vaes.items():
        z = vae.sampling.posterior(*vae.encoder(tests)).sample(seed=[0, 0])
        rows[f'reconstructed, {name}'] = np.asarray(mean(vae.decoder(z)))
    for name, vae in vaes.items():
        z = np.random.default_rng(0).normal(size=[len(tests), vae.decoder.input_shape[-1]])
        rows[f'sampled, {name}'] = np.asarray(mean(vae.decoder(z.astype(np.float32))))
    figure = Figure(figsize=(6.9, 0.5 * len(rows) + 0.4), layout='constrained')
    for axis, (label, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axis.imshow(np.hstack(list(np.pad(row, [(0, 0), (1, 1), (1, 1), (0, 0)]))), cmap='gray_r', vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha='right', va='center', fontsize=10)
    save(figure, path)


def posteriors(vaes: Mapping[str, Any], tests: np.ndarray, path: pathlib.Path) -> None:
    """Draws a row for some binary images: the image, and each VAE's true posterior p, and beside it q.

    The images are chosen by how far from Gaussian their true posteriors are, from the first rank of all downwards.
    """
    ranked = quadrature.least_gaussian_first(vaes, tests)
    ranks = [rank for rank in _RANKS if rank <= len(ranked)]
    rows = [quadrature.posterior_densities(vaes, ranked[rank - 1]) for rank in ranks]
    names = list(vaes)
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
    for line, rank, densities in zip(axes, ranks, rows, strict=True):
        line[0].imshow(ranked[rank - 1], cmap='gray_r', vmin=0, vmax=1)
        line[0].set(xticks=[], yticks=[], xlabel=f'no. {rank} of {len(ranked)}')
        for left, right, density in zip(line[2::3], line[3::3], densities.values(), strict=True):
            outline = levels_of_mass(density.p, [0.9])
            for axis, values, colors in ((left, density.p, 'Greys'), (right, density.q, 'Oranges')):
                levels = [*levels_of_mass(values, _MASSES), 1.001 * values.max()]
                axis.contourf(*density.grid.axes, values.T, levels=levels, colors=shades[colors])
                axis.contour(*density.grid.axes, density.p.T, levels=outline, colors='black', linewidths=0.8)
                axis.set_aspect('equal')
                axis.tick_params(labelsize=6, length=2)
            left.set_title('p(z|x)', fontsize=9, pad=3)
            right.set_title(f'q(z|x), KL {density.kl:.2f}', fontsize=9, pad=3)
            right.set_yticklabels([])
    for name, axis in zip(names, axes[0, 2::3], strict=True):
        place = {'xycoords': 'axes fraction', 'ha': 'center', 'in_layout': False}
        axis.annotate(name, (1.08, 1.2), fontsize=11, weight='bold', **place)
    save(figure, path)


def panels(
    rows: Mapping[str, Mapping[str, tuple[str, np.ndarray]]],
    windows: Mapping[str, Grid],
    path: pathlib.Path,
    power: float = 1.0,
) -> None:
    """Draws a labelled row of titled densities in a window, `[size, size]`, with captions; the first is the exact one.

    A power below 1 brings out the tails.
    """
    columns = list(next(iter(rows.values())))
    figure = Figure(figsize=(0.4 + 2.0 * len(columns), 0.6 + 2.3 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        shades = matplotlib.colors.PowerNorm(power, 0, next(iter(row.values()))[1].max())
        for axis, (caption, density) in zip(line, row.values(), strict=True):
            axis.imshow(density.T, 'magma', norm=shades, aspect='auto', origin='lower', extent=windows[label].extent)
            axis.set_box_aspect(1)
            axis.tick_params(labelsize=7, length=2, labelleft=axis is line[0])
            axis.set_xlabel(caption, fontsize=10)
        line[0].set_ylabel(label, fontsize=12, rotation=0, ha='right', va='center')
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=11)
    save(figure, path)


def by_depth(
    rows: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    colors: Mapping[str, str],
    ylabel: str,
    path: pathlib.Path,
) -> None:
    """Draws a panel per title: each model's mean over seeds against its number of steps, and every seed as a dot."""
    figure = Figure(figsize=(3.2 * len(rows), 3.6), layout='constrained')
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, rows.items(), strict=True):
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


def differences(columns: Mapping[str, Mapping[str, np.ndarray]], xlabel: str, path: pathlib.Path) -> None:
    """Draws a column for each title: a line of values by seed for each name, and their mean with its error."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(2.2 + 4.0 * len(columns), 1.1 + 0.33 * rows), layout='constrained')
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, (title, lines) in zip(axes, columns.items(), strict=True):
        for i, values in enumerate(lines.values()):
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            axis.plot(values, np.full(len(values), i), 'o', color='0.7', markersize=4)
            axis.errorbar(np.mean(values), i, xerr=error, fmt='o', color='#D55E00', capsize=3)
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(range(rows), list(lines))
        axis.set(title=title, ylim=(rows - 0.5, -0.5), xlabel=xlabel)
        axis.grid(alpha=0.3)
    save(figure, path)
