"""Surrogate posteriors of many widths at many learning rates: what the `base_width` of a masked network does.

Each is fitted twice: by networks whose long sums are scaled (base_width 16, that of `build_iaf_surrogate_posterior`),
and by ordinary ones (a base_width that no sum reaches). Needs `inference-gym`, as `gauntlet` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

import tfp_iaf

from . import gauntlet, gym, reports, runs
from .commands import Command
from .gauntlet import Fit, Result

QUICK = {'target': ('NealsFunnel',), 'width': (32,), 'rate': ('1e-2',), 'steps': 100}


@dataclasses.dataclass(frozen=True)
class Settings(Fit):
    """All that a fit depends on; what varies is of the networks and of Adam."""

    steps: int = 300
    evaluation_samples: int = 5000
    width: int = 0
    rate: str = ''
    base_width: int = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate as a number."""
        return float(self.rate)


def run(store: runs.Store, settings: Settings) -> Result:
    """Fits one q, and estimates its ELBO by new samples."""
    target = gym.load(settings.target)
    networks = [
        tfp_iaf.MaskedAutoregressiveNetwork(
            target.size,
            (settings.width, settings.width),
            order='right-to-left' if step % 2 else 'left-to-right',
            base_width=settings.base_width,
            seed=settings.seed * 100 + step,
        )
        for step in range(settings.depth)
    ]
    q = tfp_iaf.build_iaf_surrogate_posterior(target.event_shape, target.bijector, networks=networks)
    losses = gauntlet.fit(q, target.log_density, settings)
    sample, log_q = q.experimental_sample_and_log_prob(settings.evaluation_samples, seed=[settings.seed, 1])
    elbo = np.mean(target.log_density(sample) - log_q)
    return Result({'elbo': float(elbo), 'lost_steps': float(np.sum(~np.isfinite(losses)))})


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    varied = {
        'target': gym.TARGETS,
        'base_width': (10**6, 16),
        'width': (32, 128, 512),
        'rate': ('1e-3', '3e-3', '1e-2', '3e-2'),
    }
    command = Command('rates', __doc__, Settings(), varied)
    options = command.parse(argv, QUICK)
    results = runs.run_all(run, command.plan(options), options.output_dir, options.jobs)
    reports.write(options, report(results), results)


def report(results: Mapping[Settings, Result]) -> str:
    """Writes a table of ELBOs, with a row for each width and a column for each rate."""
    rows: dict[tuple[str, str, int], dict[str, str]] = {}
    for settings, figures in reports.by_seed(results).items():
        kind = f'scaled above {settings.base_width}' if settings.base_width < 10**6 else 'ordinary'
        row = {'target': settings.target, 'networks': kind, 'width': str(settings.width)}
        elbo = np.mean(figures['elbo'])
        text = f'{elbo:.1f} ({figures["lost_steps"].mean():.0f})' if np.isfinite(elbo) else 'NaN'
        rows.setdefault((settings.target, kind, settings.width), row)[settings.rate] = text
    notes = 'ELBO in nats, by learning rate; in brackets, the steps in which a sample overflowed the target.'
    return f'{reports.table(list(rows.values()))}\n\n{notes}'
