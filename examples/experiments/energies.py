"""Variational inference on the energies U1 to U4 of Rezende and Mohamed 2015: how far steps of a flow help.

A diagonal Gaussian and flows of 1, 2, 4 and 8 steps, IAFs and the planar and radial ones of the paper, are fitted to
four densities known up to a constant, with the same training for all. The constant is known by quadrature, and so
KL(q || p) = log Z - ELBO is known too.

The KL is an expectation under q: what q leaves out costs it little, and a lost branch of p no more than minus the log
of the share that is left. Two figures beside it tell: how much of each branch q has, and the mean of p / q under q.
That is below 1 where samples of q miss a part of p, but a few samples from a thin tail of q can hide it. Fewer branches
are lost with the paper's annealing (Eq. 20), by which all q are fitted here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from . import inference, plots, reports, runs
from .commands import Command
from .inference import Result, Settings
from .targets import ENERGIES, WINDOW

COLORS = {'gated': '#CC79A7', 'affine': '#D55E00', 'spline': '#009E73', 'planar': '#0072B2', 'radial': '#E69F00'}
SETTINGS = Settings('U1', activation='tanh', steps=3000, learning_rate=1e-2, annealing=0.5)
QUICK = {'family': ('affine',), 'depth': (0, 1, 4), 'steps': 500, 'evaluation_samples': 10000}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    varied: dict[str, Any] = {'target': ENERGIES, 'family': COLORS, 'depth': (0, 1, 2, 4, 8)}
    command = Command('energies', __doc__, SETTINGS, varied, seeds=3)
    options = command.parse(argv, QUICK)
    # A Gaussian is the same with all transforms.
    plan = [one if one.depth else dataclasses.replace(one, family='affine') for one in command.plan(options)]
    results = runs.run_all(inference.run, plan, options.output_dir, options.jobs)

    depths = [depth for depth in options.depth if depth]
    middle = 4 if 4 in depths else depths[-1]
    drawn = {family: [('affine', 0), *((family, depth) for depth in depths)] for family in options.family}
    drawn['transforms'] = [(family, middle) for family in options.family]
    for name, kinds in drawn.items():
        rows = {energy: densities(energy, kinds, results) for energy in options.target}
        plots.panels(rows, {energy: WINDOW for energy in rows}, options.output_dir / f'energies_{name}.png')
    kls: dict[str, dict[str, dict[int, list[float]]]] = {}
    for settings, result in results.items():
        for family in [settings.family] if settings.depth else options.family:
            curve = kls.setdefault(settings.target, {}).setdefault(family, {})
            curve.setdefault(settings.depth, []).append(result.figures['kl'])
    plots.by_depth(kls, COLORS, 'KL(q || p) in nats', options.output_dir / 'energies_kl_by_steps.png')
    reports.write(options, inference.report(results), results)


def densities(
    energy: str, kinds: Sequence[tuple[str, int]], results: Mapping[Settings, Result]
) -> dict[str, tuple[str, np.ndarray]]:
    """Returns the densities of an energy, and of q of these families and depths, of the first seed, with their KL."""
    log_p = ENERGIES[energy].log_density(tf.constant(WINDOW.points)).numpy() - ENERGIES[energy].log_z
    row = {'p': ('', np.exp(log_p).reshape(WINDOW.size, -1))}
    for kind in kinds:
        for settings, result in results.items():
            if (settings.target, settings.seed, (settings.family, settings.depth)) == (energy, 0, kind):
                row[settings.title] = f'KL {result.figures["kl"]:.3f}', result.density
    return row
