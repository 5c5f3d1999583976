"""Hamiltonian Monte Carlo on Neal's funnel: in its own coordinates, and through a fitted flow (NeuTra).

No step size suits both the neck of the funnel and its mouth: a sampler stays in the one and misses the other. NeuTra
runs HMC on the noise that a flow turns into the posterior's coordinates, where the posterior is close to a standard
normal distribution. The chain is exact however good the flow is; the flow only makes it quick. Both samplers get the
same number of gradients, and the cost of the fit is counted too.

References:
    Hoffman, Sountsov, Dillon, Langmore, Tran and Vasudevan 2019, "NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo
    Using Neural Transport".
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf

from . import inference, reports, runs
from .commands import Command
from .targets import JOINTS

FUNNEL = JOINTS['funnel']
SAMPLERS = 'HMC:10:0.8,HMC:30:0.8,HMC:100:0.8,HMC:30:0.95,HMC:100:0.95,NeuTra:2:0.8,NeuTra:4:0.8'
QUICK = {'gradients': 64000, 'samplers': 'HMC:10:0.8,NeuTra:2:0.8', 'fit_steps': 1000}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on.

    gradients: of log p in each run, over all chains, of whose transitions the first quarter is warm-up
    fit_steps: of the flow
    """

    method: str
    leapfrogs: int = 10
    acceptance: float = 0.8
    seed: int = 0
    gradients: int = 640000
    chains: int = 16
    fit_steps: int = 4000

    def __post_init__(self) -> None:
        if not self.warm_up:
            least = 4 * self.chains * self.leapfrogs
            raise ValueError(f'gradients: got {self.gradients}, expected at least {least}: four transitions a chain.')

    @property
    def transitions(self) -> int:
        """Number of transitions of each chain."""
        return self.gradients // (self.chains * self.leapfrogs)

    @property
    def warm_up(self) -> int:
        """How many of them adapt the step size; their states are dropped."""
        return self.transitions // 4


def sample_chains(q: Any, settings: Settings) -> tuple[Any, float]:
    """Runs HMC on the noise that q turns into its samples, so that they have the funnel's distribution.

    That takes a pass through the flow and its gradient for each leapfrog step, and never an inverse.
    (`tfp.mcmc.TransformedTransitionKernel` does the same with one bijector for each part of the state; q's takes a
    single vector to all parts.)

    Returns:
        The states, with a leading shape `[transitions, chains]`, and the share of proposals accepted.
    """
    bijector = q.bijector  # from standard normal noise

    def log_prob(noise: tf.Tensor) -> tf.Tensor:
        return FUNNEL.log_density(bijector.forward(noise)) + bijector.forward_log_det_jacobian(noise, event_ndims=1)

    @tf.function(jit_compile=True, autograph=False)
    def sample(seed: tf.Tensor) -> tuple[Any, tf.Tensor]:
        start_seed, chain_seed = tf.unstack(tfp.random.split_seed(seed))
        kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size=0.1, num_leapfrog_steps=settings.leapfrogs)
        # The rest of the warm-up is there to forget where the steps of other sizes led.
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            kernel, int(0.8 * settings.warm_up), target_accept_prob=settings.acceptance
        )
        noise, accepted = tfp.mcmc.sample_chain(
            settings.transitions - settings.warm_up,
            tf.random.stateless_normal([settings.chains, *q.distribution.event_shape], start_seed),
            kernel=kernel,
            num_burnin_steps=settings.warm_up,
            trace_fn=lambda _, results: results.inner_results.is_accepted,
            seed=chain_seed,
        )
        return bijector.forward(noise), tf.reduce_mean(tf.cast(accepted, tf.float32))

    states, accepted = sample(tf.constant([settings.seed, 1]))
    return states, float(accepted)


def statistics(values: tf.Tensor) -> dict[str, float]:
    """Returns how well chains of v and x, `[transitions, chains, D]`, have mixed, and mean and deviation of v."""
    r_hat = tfp.mcmc.potential_scale_reduction(values, independent_chain_ndims=1, split_chains=True)
    ess = tfp.mcmc.effective_sample_size(values, filter_beyond_positive_pairs=True, cross_chain_dims=1)
    v = values[..., 0].numpy().astype(np.float64)
    return {
        'ess': float(np.min(ess)),
        'r_hat': float(np.max(r_hat)),
        'v_mean': float(v.mean()),
        'v_stddev': float(v.std()),
    }


class Result(NamedTuple):
    """The figures of a run."""

    figures: dict[str, float]


def run(store: runs.Store, settings: Settings) -> Result:
    """Runs one sampler, after the fit of its flow."""
    gradients_to_fit = 0
    if settings.method == 'NeuTra':
        fit = inference.Settings('funnel', seed=settings.seed, steps=settings.fit_steps)
        q, gradients_to_fit = inference.fit(fit)[0], fit.steps * fit.sample_size
    else:
        # A flow of no steps takes a vector to the parts of the model, and leaves the numbers as they are.
        q = tfp_iaf.build_iaf_surrogate_posterior(FUNNEL.event_shape, num_flows=0)
    states, accepted = sample_chains(q, settings)
    figures = statistics(tf.concat([states.v[..., tf.newaxis], states.x], axis=-1))
    # A leapfrog step is one gradient; the first transition needs that of the start besides.
    gradients = settings.chains * (settings.transitions * settings.leapfrogs + 1)
    return Result({
        **figures,
        'accepted': accepted,
        'per_1000_gradients': 1e3 * figures['ess'] / gradients,
        'with_the_fit': 1e3 * figures['ess'] / (gradients + gradients_to_fit),
    })  # fmt: skip


def report(results: Mapping[Settings, Result]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = []
    for settings, figures in reports.by_seed(results).items():
        digits, mean = 3 if settings.method == 'HMC' else 1, figures.mean()
        rows.append({
            'method': settings.method,
            'leapfrog steps': f'{settings.leapfrogs}',
            'target acceptance': f'{settings.acceptance}',
            'R-hat': f'{figures["r_hat"].max():.2f}',
            'ESS': f'{mean["ess"]:.0f}',
            'ESS per 1000 gradients': reports.estimate(figures['per_1000_gradients'], digits),
            'with the fit': reports.estimate(figures['with_the_fit'], digits),
            'mean of v': f'{mean["v_mean"]:+.2f}',
            'sd of v': f'{mean["v_stddev"]:.2f}',
        })  # fmt: skip
    notes = (
        'Means ± standard error over seeds; R-hat: the worst of them. ESS: the effective sample size of the worst of '
        'ten coordinates, from all chains; where no chain saw the neck of the funnel it says too much. With the fit: '
        'the gradients of the variational inference are counted too. v should be N(0, 3²).'
    )
    return f'{reports.table(rows)}\n\n{notes}'


def samplers(text: str) -> list[tuple[str, int, float]]:
    """Parses such as `HMC:30:0.95,NeuTra:2:0.8`: methods, leapfrog steps, and the shares of proposals to accept."""
    try:
        parts = [part.split(':') for part in text.split(',')]
        parsed = [(method, int(leapfrogs), float(acceptance)) for method, leapfrogs, acceptance in parts]
    except ValueError:
        parsed = [('', 0, 0.0)]
    if not all(method in ('HMC', 'NeuTra') and steps >= 1 and 0 < share < 1 for method, steps, share in parsed):
        raise argparse.ArgumentTypeError(f'got {text!r}, expected such as {SAMPLERS}')
    return parsed


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    fixed = ('method', 'leapfrogs', 'acceptance')
    command = Command('neutra', __doc__, Settings('NeuTra'), {}, seeds=3, fixed=fixed)
    command.add('samplers', SAMPLERS, 'methods, leapfrog steps, target acceptance', type=samplers)
    options = command.parse(argv, QUICK)
    plan = [
        dataclasses.replace(settings, method=method, leapfrogs=leapfrogs, acceptance=acceptance)
        for (method, leapfrogs, acceptance), settings in itertools.product(options.samplers, command.plan(options))
    ]
    results = runs.run_all(run, plan, options.output_dir, options.jobs)
    reports.write(options, report(results), results)
