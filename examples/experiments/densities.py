"""Maximum likelihood on densities in the plane: two moons, rings, a checkerboard.

The likelihood of a given point goes through the flow's slow direction, the inverse. The densities p are known, and so
is the entropy, below which no model's NLL can come; what the NLL has more is KL(p || q). It does not vanish: a flow
bends the plane but never tears it. How well seams and bridges are hidden varies with the seed.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure

import tfp_iaf

from . import plots, reports, runs
from .commands import Command
from .planar import DENSITIES

tfb, tfd = tfp.bijectors, tfp.distributions

_STEPS_PER_CALL = 100
_DRAWN = 20000  # samples
QUICK = {'steps': 200, 'num_affine': 2, 'num_gated': 1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a fit depends on.

    steps: a multiple of 100
    num_affine, num_gated, hidden_units: steps of the flow, and their networks
    test_points: that NLL and KL are estimated with
    """

    target: str
    seed: int = 0
    steps: int = 16000
    num_affine: int = 12
    num_gated: int = 4
    hidden_units: tuple[int, ...] = (32, 32)
    batch_size: int = 256
    learning_rate: float = 3e-3
    test_points: int = 50000

    def __post_init__(self) -> None:
        if self.steps % _STEPS_PER_CALL:
            raise ValueError(f'steps: got {self.steps}, expected a multiple of {_STEPS_PER_CALL}.')


class Result(NamedTuple):
    """Figures; -log q and log p - log q by test point; the learning curve; samples; q on twice the window."""

    figures: dict[str, float]
    nll: np.ndarray
    kl: np.ndarray
    curve: np.ndarray
    samples: np.ndarray
    density: np.ndarray


def make_flow(settings: Settings, mean: np.ndarray, deviation: np.ndarray) -> Any:
    """Returns the distribution: noise through gated and affine steps, and on to the data's mean and scale.

    Only affine steps widen; the gated ones keep the chain calm. A bounded activation matters, where points come from
    outside: with an unbounded one a point far out gets an exponential scale, which sends it further out in the next.
    """
    options: dict[str, Any] = {'hidden_units': settings.hidden_units, 'activation': 'tanh'}
    # By name, the gate would start nearer the identity than in the runs that were published.
    gate = tfp_iaf.transforms.Gated(gate_bias=2.0)
    gated = tfp_iaf.IAFPosterior(2, settings.num_gated, transform=gate, seed=settings.seed, **options)
    affine = tfp_iaf.IAFPosterior(2, settings.num_affine, transform='affine', seed=settings.seed + 1, **options)
    # A Chain applies its last bijector first.
    chain = tfb.Chain([tfb.Shift(mean), tfb.Scale(deviation), affine.bijector(), gated.bijector()])
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), chain)


def fit(flow: Any, settings: Settings) -> np.ndarray:
    """Maximises the likelihood, and returns the mean loss of every 100 steps. Every batch is new."""
    variables = flow.trainable_variables
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    optimizer.build(variables)

    @tf.function(jit_compile=True)
    def train_on(batches: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(tf.float32, size=_STEPS_PER_CALL)
        for i in tf.range(_STEPS_PER_CALL):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(flow.log_prob(batches[i]))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            losses = losses.write(i, loss)
        return losses.stack()

    rng, curve = np.random.default_rng(settings.seed), []
    with runs.progress(settings.steps, settings.target, 'step') as bar:
        for done in range(0, settings.steps, _STEPS_PER_CALL):
            points = DENSITIES[settings.target].sample(rng, _STEPS_PER_CALL * settings.batch_size)
            losses = train_on(points.astype(np.float32).reshape(_STEPS_PER_CALL, settings.batch_size, 2)).numpy()
            runs.check_finite(losses, done)
            curve.append(losses.mean())
            bar.set_postfix(loss=f'{curve[-1]:.3f}', refresh=False)
            bar.update(_STEPS_PER_CALL)
    return np.array(curve)


def run(store: runs.Store, settings: Settings) -> Result:
    """Fits one flow, and evaluates it."""
    target, rng = DENSITIES[settings.target], np.random.default_rng([settings.seed, 1])
    data, tests = (target.sample(rng, settings.test_points) for _ in range(2))
    mean, deviation = data.mean(axis=0), data.std(axis=0)
    flow = make_flow(settings, mean.astype(np.float32), deviation.astype(np.float32))
    curve = fit(flow, settings)

    log_prob = tf.function(flow.log_prob, input_signature=[tf.TensorSpec([None, 2])])
    samples, log_q = tf.function(flow.experimental_sample_and_log_prob)(settings.test_points, seed=[settings.seed, 2])
    grid = target.grid(500, scale=2.0)
    log_q_on_grid = log_prob(grid.points).numpy()
    nll = -log_prob(tests.astype(np.float32)).numpy()
    gaussian = tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(np.cov(data.T)))
    figures = {
        'nll': float(nll.mean()),
        'entropy': target.entropy(),
        'nll_of_gaussian': -float(tf.reduce_mean(gaussian.log_prob(tests))),
        'integral': float(np.exp(grid.log_integral(log_q_on_grid))),
        'inverse_less_forward': float(np.max(np.abs(log_prob(samples) - log_q))),
    }
    density = np.exp(log_q_on_grid).reshape(grid.size, grid.size)
    # The KL point by point: the two vary together, so that the error is smaller than that of the NLL.
    return Result(figures, nll, target.log_density(tests) + nll, curve, samples[:_DRAWN].numpy(), density)


def report(results: Mapping[Settings, Result]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = [
        {
            'p': settings.target,
            'entropy of p': f'{result.figures["entropy"]:.3f}',
            'NLL': reports.estimate(result.nll),
            'KL(p ‖ q)': reports.estimate(result.kl),
            'NLL of a Gaussian': f'{result.figures["nll_of_gaussian"]:.3f}',
            'integral of q': f'{result.figures["integral"]:.4f}',
            'inverse - forward': f'{result.figures["inverse_less_forward"]:.0e}',
        }
        for settings, result in results.items()
    ]
    notes = (
        'Nats per test point, mean ± standard error over points; KL = NLL - entropy, estimated point by point. Inverse '
        '- forward: the largest difference between what either direction says the log-density of a sample is.'
    )
    return f'{reports.table(rows)}\n\n{notes}'


def plot(results: Mapping[Settings, Result], path: pathlib.Path) -> None:
    """Draws for each target what the flow was shown, what it has learnt, and its learning curve."""
    figure = Figure(figsize=(13, 3.1 * len(results)), layout='constrained')
    axes = figure.subplots(len(results), 4, squeeze=False)
    titles = ('samples of p', 'q, by the inverse', 'samples of q, by the forward pass', 'NLL of new points, by step')
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for (settings, result), row in zip(results.items(), axes, strict=True):
        target = DENSITIES[settings.target]
        brightest = 1.3 * np.exp(target.log_density(target.grid(100).points).max())
        extent = target.grid(2, scale=2.0).extent
        row[0].plot(*target.sample(np.random.default_rng(0), _DRAWN).T, 'k,', alpha=0.5)
        row[1].imshow(result.density.T, 'magma', origin='lower', extent=extent, vmin=0, vmax=brightest)
        row[2].plot(*result.samples.T, 'k,', alpha=0.5)
        left, right, bottom, top = target.grid(2).extent
        for axis in row[:3]:
            axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect='equal')
        row[0].set_ylabel(settings.target)
        row[3].plot(_STEPS_PER_CALL * np.arange(1, len(result.curve) + 1), result.curve, 'C1', label='IAF')
        row[3].axhline(result.figures['nll_of_gaussian'], color='0.5', linestyle='--', label='Gaussian')
        row[3].axhline(result.figures['entropy'], color='C2', label='entropy of p')
        row[3].locator_params('x', nbins=4)
        row[3].grid(alpha=0.3)
        row[3].legend()
    plots.save(figure, path)


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    command = Command('densities', __doc__, Settings('rings'), {'target': DENSITIES})
    options = command.parse(argv, QUICK)
    results = runs.run_all(run, command.plan(options), options.output_dir, options.jobs)
    plot(results, options.output_dir / 'densities.png')
    reports.write(options, report(results), results)
