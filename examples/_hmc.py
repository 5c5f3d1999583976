"""Hamiltonian Monte Carlo on Neal's funnel, in its own coordinates or through a fitted flow: settings, and a run."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import _hmc_statistics
import _records
import _surrogates
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _targets import TARGETS

import tfp_iaf

FUNNEL = TARGETS['funnel']
METHODS = ('HMC', 'NeuTra')


@dataclasses.dataclass(frozen=True)
class Sampler:
    """HMC, with a flow or without, its leapfrog steps, and the share of accepted proposals that the step aims at."""

    method: str
    leapfrogs: int
    target_accept_prob: float = 0.8

    @classmethod
    def parse(cls, text: str) -> Sampler:
        """Reads such as `HMC:30:0.95`, or raises ValueError."""
        method, leapfrogs, target_accept_prob = text.split(':')
        sampler = cls(method, int(leapfrogs), float(target_accept_prob))
        if method not in METHODS or sampler.leapfrogs < 1 or not 0 < sampler.target_accept_prob < 1:
            raise ValueError(text)
        return sampler

    def __str__(self) -> str:
        return f'{self.method}:{self.leapfrogs}:{self.target_accept_prob}'


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. Of the transitions the first quarter is warm-up."""

    sampler: Sampler
    seed: int = 0
    gradients: int = 640000
    chains: int = 16
    fit_steps: int = 4000

    def __post_init__(self) -> None:
        if not self.warm_up:
            least = 4 * self.chains * self.sampler.leapfrogs
            raise ValueError(f'gradients: got {self.gradients}, expected at least {least}: four transitions a chain.')

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        digest = _records.digest(self)
        return f'{self.sampler}-seed{self.seed}-{digest}'.replace(':', '-')

    @property
    def warm_up(self) -> int:
        """Number of transitions of each chain in which the step size is adapted, and whose states are dropped."""
        return self.gradients // (self.chains * self.sampler.leapfrogs) // 4

    @property
    def transitions(self) -> int:
        """Number of transitions of each chain whose states are kept."""
        return self.gradients // (self.chains * self.sampler.leapfrogs) - self.warm_up


# Sampling ------------------------------------------------------------------------------------------------------------


def sample_chains(q: Any, settings: Settings) -> tuple[Any, float, float, float]:
    """Runs HMC on the noise that q turns into its samples, so that they have the funnel's distribution.

    That takes a pass through the flow and its gradient for each leapfrog step, and never an inverse.
    (`tfp.mcmc.TransformedTransitionKernel` does the same with one bijector for each part of the state; q's takes a
    single vector to all parts.)

    Returns:
        The states, with a leading shape `[transitions, chains]`, the share of proposals accepted, the step size after
        the warm-up, and the seconds that it took, warm-up included and compiling left out.
    """
    sampler, bijector = settings.sampler, q.bijector  # from standard normal noise

    def log_prob(noise: tf.Tensor) -> tf.Tensor:
        return FUNNEL.joint.log_prob(bijector.forward(noise)) + bijector.forward_log_det_jacobian(noise, event_ndims=1)

    @tf.function(jit_compile=True, autograph=False)
    def sample(seed: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        start_seed, chain_seed = tf.unstack(tfp.random.split_seed(seed))
        kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size=0.1, num_leapfrog_steps=sampler.leapfrogs)
        # The rest of the warm-up is there to forget where the steps of other sizes led.
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            kernel, int(0.8 * settings.warm_up), target_accept_prob=sampler.target_accept_prob
        )
        noise, (accepted, step_sizes) = tfp.mcmc.sample_chain(
            settings.transitions,
            tf.random.stateless_normal([settings.chains, *q.distribution.event_shape], start_seed),
            kernel=kernel,
            num_burnin_steps=settings.warm_up,
            trace_fn=lambda _, results: (results.inner_results.is_accepted, results.new_step_size),
            seed=chain_seed,
        )
        return bijector.forward(noise), tf.reduce_mean(tf.cast(accepted, tf.float32)), step_sizes[-1]

    sample(tf.constant([settings.seed, 0]))  # compiles
    started = time.perf_counter()
    states, accepted, step_size = sample(tf.constant([settings.seed, 1]))
    return states, float(accepted), float(step_size), time.perf_counter() - started


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Runs one sampler; writes what is drawn of its chains to `directory`, and returns its figures."""
    started = time.perf_counter()
    fit = _surrogates.Settings('funnel', 'IAF affine', settings.seed, settings.fit_steps)
    if settings.sampler.method == 'NeuTra':
        q = _surrogates.make_posterior(fit)
        _surrogates.fit(q, fit)
        gradients_to_fit = fit.steps * fit.sample_size
    else:
        # A flow of no steps takes a vector to the parts of the model, and leaves the numbers as they are.
        q = tfp_iaf.build_iaf_surrogate_posterior(FUNNEL.joint.event_shape_tensor(), num_flows=0)
        gradients_to_fit = 0
    seconds_to_fit = time.perf_counter() - started if gradients_to_fit else 0.0

    states, acceptance, step_size, seconds_to_sample = sample_chains(q, settings)
    figures = _hmc_statistics.of_chains(tf.concat([states.v[..., tf.newaxis], states.x], axis=-1))

    # A leapfrog step is one gradient; the first transition needs that of the start besides.
    transitions = settings.warm_up + settings.transitions
    gradients = settings.chains * (transitions * settings.sampler.leapfrogs + 1)
    ess = figures['smallest_ess']
    coordinates = FUNNEL.coordinates(states)
    with _records.atomic(directory / f'{settings.name}.npz') as path:
        thinned = coordinates.reshape(-1, coordinates.shape[-1])[:: -(-settings.transitions * settings.chains // 20000)]
        np.savez_compressed(path, coordinates=thinned, trace=coordinates[:, 0, 0])
    return {
        **figures,
        'acceptance': acceptance,
        'step_size': step_size,
        'gradients': gradients,
        'gradients_to_fit': gradients_to_fit,
        'ess_per_1000_gradients': 1e3 * ess / gradients,
        'ess_per_1000_gradients_with_fit': 1e3 * ess / (gradients + gradients_to_fit),
        'ess_per_second': ess / seconds_to_sample,
        'ess_per_second_with_fit': ess / (seconds_to_sample + seconds_to_fit),
        'seconds_to_sample': seconds_to_sample,
        'seconds_to_fit': seconds_to_fit,
        'seconds': time.perf_counter() - started,
    }
