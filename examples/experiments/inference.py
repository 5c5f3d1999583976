"""Variational inference on the densities of `targets.py`: q, its fit, and its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf

from . import reports, runs
from .targets import ENERGIES, JOINTS, WINDOW, Energy

tfb, tfd = tfp.bijectors, tfp.distributions

TARGETS: dict[str, Any] = {**ENERGIES, **JOINTS}
_VECTOR_FLOWS = ('planar', 'radial')


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a fit depends on.

    family: 'gated', 'affine' or 'spline' steps of an IAF; 'planar' or 'radial' steps, of energies alone; or 'full
        covariance', without a flow
    depth: steps of the flow; 0: a diagonal Gaussian
    activation: of the networks; a bounded one keeps the inverse of a point far from q's samples finite
    steps, sample_size, learning_rate: of the fit; samples are those of a step
    annealing: the target is p to a power that grows from 0.01 to 1 over this share of the steps; 0: it is p
    evaluation_samples: new samples that KL(q || p) is estimated with
    """

    target: str
    family: str = 'affine'
    depth: int = 2
    seed: int = 0
    activation: str = 'elu'
    steps: int = 4000
    sample_size: int = 100
    learning_rate: float = 2e-2
    annealing: float = 0.0
    evaluation_samples: int = 100000

    @property
    def title(self) -> str:
        """What q is called in tables and plots."""
        if self.family == 'full covariance':
            return self.family
        kind = self.family if self.family in _VECTOR_FLOWS else f'IAF {self.family}'
        return f'{kind}, {self.depth} step{"s" * (self.depth > 1)}' if self.depth else 'diagonal'


class Result(NamedTuple):
    """The figures of a fit, and the density of q in a window, `[size, size]`: of two coordinates if it has more."""

    figures: dict[str, float]
    density: np.ndarray


def make_posterior(settings: Settings) -> Any:
    """Returns a trainable q: a distribution over the same structure as the target.

    Order matters: a step moves and scales each entry by those before it, in the order of the model. With energies it
    alternates from step to step, but for splines. In one order the first entry, z1, never hears of the other, and is
    what gated and affine steps leave of a Gaussian: a Gaussian. A spline bends it to any density, and z2 given z1 to
    another. In a funnel v, which sets the scale of all others, comes first, as hyperparameters do in a model. No step
    takes the entries of the joint distributions in the other order: v is no function of any one x, and where a step
    bent the banana's x by its y, some seeds lost a part of one arm for good.
    """
    target = TARGETS[settings.target]
    if settings.family in _VECTOR_FLOWS:
        if not isinstance(target, Energy):
            raise ValueError(f'family: got {settings.family!r} for {settings.target!r}, expected that of an IAF.')
        return _vector_flows(settings, target.event_shape)
    if settings.family == 'full covariance':
        keras.utils.set_random_seed(settings.seed)  # this builder has no seed
        return tfp.experimental.vi.build_affine_surrogate_posterior(target.event_shape, 'tril', target.bijector)
    return tfp_iaf.build_iaf_surrogate_posterior(
        target.event_shape,
        target.bijector,
        settings.depth,
        # By name, the gate would start nearer the identity than in the runs that were published.
        transform=tfp_iaf.transforms.Gated(2.0) if settings.family == 'gated' else settings.family,
        activation=settings.activation,
        alternate_order=isinstance(target, Energy) and settings.family != 'spline',
        seed=settings.seed,
    )


def _vector_flows(settings: Settings, event_shape: Sequence[int]) -> Any:
    """Returns a diagonal Gaussian and steps whose parameters are variables; every step starts as the identity."""
    seeds = iter(tfp.random.split_seed([settings.seed, 0], 2 * settings.depth))
    zeros = tf.zeros(event_shape)

    def step() -> Any:
        place = tf.Variable(tf.random.stateless_normal(event_shape, next(seeds)))
        offset = tf.Variable(tf.random.stateless_normal([], next(seeds)))
        if settings.family == 'planar':
            return tfp_iaf.PlanarFlow(tf.Variable(zeros), place, offset)
        return tfp_iaf.RadialFlow(place, offset, tf.Variable(0.0))

    scale = tfp.util.TransformedVariable(tf.ones(event_shape), tfb.Exp())
    base = tfd.MultivariateNormalDiag(tf.Variable(zeros), scale)
    return tfd.TransformedDistribution(base, tfb.Chain([step() for _ in range(settings.depth)]))


def fit(settings: Settings) -> tuple[Any, np.ndarray]:
    r"""Returns q, with its ELBO maximised, and -ELBO at every step, `[steps]`, estimated with that step's samples.

    With annealing the target is $p^\beta$: at first so flat that q spreads over all of it, before it settles.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", Eq. 20.
    """
    q, target = make_posterior(settings), TARGETS[settings.target]
    # A sample in the neck of a funnel has a gradient thousands of times larger than others: hence the clipping.
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    optimizer.build(q.trainable_variables)

    def log_density(*parts: Any, **named_parts: Any) -> tf.Tensor:
        log_p = target.log_density(*parts, **named_parts)
        if not settings.annealing:
            return log_p
        done = tf.cast(optimizer.iterations, tf.float32) / (settings.annealing * settings.steps)
        return tf.minimum(0.01 + done, 1.0) * log_p

    losses = tfp.vi.fit_surrogate_posterior(
        log_density,
        q,
        optimizer,
        settings.steps,
        sample_size=settings.sample_size,
        trainable_variables=q.trainable_variables,
        jit_compile=settings.family not in _VECTOR_FLOWS,  # XLA takes minutes for 32 of their steps
        seed=[settings.seed, 0],  # a pair: a single number would depend on what ran before
    ).numpy()
    runs.check_finite(losses)
    return q, losses


def run(store: runs.Store, settings: Settings) -> Result:
    """Fits one q, and evaluates it by new samples."""
    target = TARGETS[settings.target]
    q, _ = fit(settings)

    @tf.function(autograph=False)
    def sample_and_densities() -> tuple[Any, tf.Tensor, tf.Tensor]:
        sample, log_q = q.experimental_sample_and_log_prob(settings.evaluation_samples, seed=[settings.seed, 1])
        return sample, log_q, target.log_density(sample)

    sample, log_q, log_p = sample_and_densities()
    log_weights = log_p.numpy().astype(np.float64) - log_q.numpy()
    figures = {
        'log_z': target.log_z,
        'kl': target.log_z - float(log_weights.mean()),
        'standard_error': float(log_weights.std(ddof=1) / np.sqrt(len(log_weights))),
        'mass_found': float(np.mean(np.exp(log_weights - target.log_z))),  # the mean of p / q
        'parameters': int(sum(np.prod(variable.shape) for variable in q.trainable_variables)),
    }
    if not isinstance(target, Energy):
        return Result(figures, target.histogram(sample))
    figures['least_branch'] = float(np.min(target.branch_shares(sample) / target.exact_branch_shares))
    # Of points that q did not sample: by the inverse of every step.
    log_q = tf.function(q.log_prob, input_signature=[tf.TensorSpec([None, 2])])(WINDOW.points).numpy()
    return Result(figures, np.exp(log_q).reshape(WINDOW.size, -1))


def report(results: Mapping[Settings, Result]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = []
    for settings, figures in reports.by_seed(results).items():
        row = {
            'p': settings.target,
            'q': settings.title,
            'log Z': f'{figures["log_z"][0]:.3f}',
            'KL(q ‖ p)': reports.estimate(figures['kl']),
            'worst seed': f'{figures["kl"].max():.3f}',
            'mean p / q': f'{figures["mass_found"].mean():.3f}',
        }
        if 'least_branch' in figures:
            row['least branch'] = f'{figures["least_branch"].mean():.3f}'
        rows.append({**row, 'parameters': f'{figures["parameters"][0]}'})
    error = max(result.figures['standard_error'] for result in results.values())
    notes = (
        f'Nats, mean ± standard error over seeds; KL = log Z - ELBO from {settings.evaluation_samples} new samples of '
        f"q, with a standard error of at most {error:.4f} for each seed's. Mean p / q: under q; below 1 where samples "
        f'miss a part of p. Least branch: the share of a branch in q over that in p, for the branch where it is least.'
    )
    return f'{reports.table(rows)}\n\n{notes}'
