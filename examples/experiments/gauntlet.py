"""Variational inference on real posteriors, those of TFP's Inference Gym: TFP's surrogate posteriors beside ours.

All are fitted in the same way, at the learning rate of TFP's tutorials. A higher ELBO is better. The
importance-weighted log evidence is at least as large, and can be trusted if k-hat is below 0.7. Needs `inference-gym`:
pip install --no-deps inference-gym immutabledict
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import diagnostics, objectives

from . import gym, reports, rivals, runs
from .commands import Command

QUICK = {'target': ('EightSchools', 'Banana'), 'steps': 100}


@dataclasses.dataclass(frozen=True)
class Fit:
    """Of every fit:

    depth: steps of a flow
    steps, sample_size: by Adam, whose rate ends at zero as a cosine does; samples are those of a step
    clipnorm: largest norm of a gradient; 0: do not clip
    estimator: of the gradient: 'reparameterization' or 'path derivative'
    evaluation_samples: new samples that a fit is judged by
    """

    target: str = ''
    seed: int = 0
    depth: int = 2
    steps: int = 2000
    sample_size: int = 16
    clipnorm: float = 10.0
    estimator: str = 'reparameterization'
    evaluation_samples: int = 10000


@dataclasses.dataclass(frozen=True)
class Settings(Fit):
    """All that a fit depends on.

    learning_rate: of Adam
    """

    rival: str = ''
    learning_rate: float = 1e-2


class Result(NamedTuple):
    """The figures of a fit."""

    figures: dict[str, float]


def run(store: runs.Store, settings: Settings) -> Result:
    """Fits one q, and judges it by new samples."""
    target = gym.load(settings.target)
    started = time.process_time()
    q = rivals.build(settings.rival, target, settings.depth, settings.seed)
    losses = fit(q, target.log_density, settings)
    figures = {
        'cpu_seconds': time.process_time() - started,
        'lost_steps': float(np.sum(~np.isfinite(losses))),
        'elbo': np.nan,
        'parameters': float(sum(np.prod(variable.shape) for variable in q.trainable_variables)),
    }
    if not all(np.all(np.isfinite(variable.numpy())) for variable in q.trainable_variables):
        return Result(figures)
    diagnosis = diagnostics.diagnose(target.log_density, q, settings.evaluation_samples, seed=[settings.seed, 1])
    names = ('elbo', 'elbo_error', 'log_evidence', 'k_hat', 'effective_samples', 'num_lost')
    return Result(
        {**figures, **{name: float(getattr(diagnosis, name)) for name in names}, **target.errors(diagnosis.samples)}
    )


def fit(q: Any, log_density: Any, settings: Any) -> np.ndarray:
    """Maximises the ELBO of q, and returns -ELBO at every step, estimated with that step's samples, `[steps]`."""
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=settings.clipnorm or None)
    optimizer.build(q.trainable_variables)
    options: dict[str, Any] = {}
    if settings.estimator == 'path derivative':
        options = {
            'gradient_estimator': tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
            'stopped_surrogate_posterior': objectives.path_derivative(q),
        }

    def loss(seed: Any) -> tf.Tensor:
        return tfp.vi.monte_carlo_variational_loss(
            log_density, q, sample_size=settings.sample_size, seed=seed, **options
        )

    # Not compiled by XLA, which takes longer to compile some of these targets than to fit them.
    minimize = tf.function(
        lambda: tfp.math.minimize(
            loss, settings.steps, optimizer, trainable_variables=q.trainable_variables, seed=[settings.seed, 0]
        ),
        autograph=False,
    )
    return minimize().numpy()


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    varied = {'target': gym.TARGETS, 'rival': rivals.RIVALS}
    command = Command('gauntlet', __doc__, Settings(), varied, seeds=3)
    options = command.parse(argv, QUICK)
    plan = [one for one in command.plan(options) if rivals.applies(one.rival, gym.load(one.target))]
    results = runs.run_all(run, plan, options.output_dir, options.jobs)
    reports.write(options, report(results), results)


def report(results: Mapping[Settings, Result]) -> str:
    """Writes a table of ELBOs, and one of what else is known."""
    elbos: dict[str, dict[str, str]] = {}
    rows = []
    for settings, figures in reports.by_seed(results).items():
        elbo = reports.estimate(figures['elbo'], 2) if np.all(np.isfinite(figures['elbo'])) else 'NaN'
        row = {'target': settings.target, 'entries': str(gym.load(settings.target).size)}
        elbos.setdefault(settings.target, row)[settings.rival] = elbo
        if elbo == 'NaN':
            continue
        mean = figures.mean()
        rows.append(
            {
                'target': settings.target,
                'q': settings.rival,
                'ELBO': elbo,
                'log evidence': f'{mean["log_evidence"]:.2f}',
                'k-hat': f'{mean["k_hat"]:.2f}',
                'effective': f'{mean["effective_samples"] / settings.evaluation_samples:.1%}',
                'error of means': f'{mean["mean_error"]:.2f}',
                'of deviations': f'{mean["deviation_error"]:.2f}',
                'lost steps': f'{mean["lost_steps"]:.0f}',
                'CPU s': f'{mean["cpu_seconds"]:.0f}',
            }
        )
    notes = (
        'Nats; ± is the standard error over seeds, where there are several. NaN: a fit was lost. Errors: root mean '
        'squares over entries, in units of the true standard deviations. Lost steps: those in which a sample '
        'overflowed the target.'
    )
    return '\n\n'.join([reports.table(list(elbos.values())), reports.table(rows), notes])
