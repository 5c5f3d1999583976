"""Variational inference on Neal's funnel and a banana, whose log evidence is known, and so KL(q || p) too.

Gaussians and flows are fitted by `tfp.vi.fit_surrogate_posterior`, with the same optimizer and steps for all. One
affine step can be either density exactly. Gated steps only narrow what the base distribution has made wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from . import inference, plots, reports, runs
from .commands import Command
from .inference import Settings
from .targets import JOINTS

QUICK = {'steps': 500, 'evaluation_samples': 10000}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    varied = {'target': JOINTS, 'family': ('diagonal', 'full covariance', 'gated', 'affine', 'spline')}
    command = Command('surrogates', __doc__, Settings('funnel'), varied, seeds=3)
    options = command.parse(argv, QUICK)
    plan = [
        dataclasses.replace(one, family='affine', depth=0) if one.family == 'diagonal' else one
        for one in command.plan(options)
    ]
    results = runs.run_all(inference.run, plan, options.output_dir, options.jobs)
    rows = {}
    for name in options.target:
        rows[name] = {'p': ('', JOINTS[name].histogram(JOINTS[name].joint.sample(4000000, seed=[0, 0])))}
        for settings, result in results.items():
            if (settings.target, settings.seed) == (name, 0):
                rows[name][settings.title] = f'KL {result.figures["kl"]:.3f}', result.density
    plots.panels(rows, {name: JOINTS[name].window for name in rows}, options.output_dir / 'surrogates.png', 0.5)
    known = ' and '.join(f'{JOINTS[name].mean_field_kl:.4f} ({name})' for name in options.target)
    note = f'No Gaussian with independent entries can have a KL below {known}.'
    reports.write(options, f'{inference.report(results)} {note}', results)
