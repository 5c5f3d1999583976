"""Inverse autoregressive flows fitted by maximum likelihood to samples of 2-D densities: moons, rings, a checkerboard.

`python densities.py` fits a flow to each, prints a table, and writes `results.json` and a plot. The likelihood of a
given point goes through the flow's slow direction, the inverse: elsewhere a network pass for every dimension, and for
the gradient as many again. Here it takes two to three times as long as a sample with its density, in any number of
dimensions, and four to five times with its gradient (`benchmark.py` measures them): a density that is quick to sample
can be fitted to data as well.

The densities p are known. So is the entropy, below which no model's NLL can come; what the NLL has more is KL(p || q).
It does not vanish: a flow bends the plane but never tears it. Parts that are separate in p stay joined in q by thin
bridges, and a ring is a band whose ends meet at a seam. How well that is hidden varies with the seed.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _plots
import _records
import _script
import _summary
import _watch
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _densities import TARGETS
from absl import app, flags
from matplotlib.figure import Figure

import tfp_iaf

tfb, tfd = tfp.bijectors, tfp.distributions

STEPS_PER_CALL = 100


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on."""

    target: str
    steps: int = 16000
    num_affine: int = 12
    num_gated: int = 4
    seed: int = 0
    hidden_units: tuple[int, ...] = (32, 32)
    batch_size: int = 256
    learning_rate: float = 3e-3
    test_points: int = 50000

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        return f'{self.target.replace(" ", "-")}-seed{self.seed}-{_records.digest(self)}'


# Flow ----------------------------------------------------------------------------------------------------------------


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


def fit(flow: Any, settings: Settings) -> dict[str, Any]:
    """Maximises the likelihood, and returns the learning curve: the mean loss of every 100 steps.

    Every batch is new: no point is seen twice, and the training loss estimates the NLL of new points.
    """
    variables = flow.trainable_variables
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    optimizer.build(variables)

    @tf.function(jit_compile=True)
    def train_on(batches: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(tf.float32, size=STEPS_PER_CALL)
        for i in tf.range(STEPS_PER_CALL):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(flow.log_prob(batches[i]))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            losses = losses.write(i, loss)
        return losses.stack()

    rng = np.random.default_rng(settings.seed)
    curve, seconds = [], []
    for done in range(0, settings.steps, STEPS_PER_CALL):
        points = TARGETS[settings.target].sample(rng, STEPS_PER_CALL * settings.batch_size).astype(np.float32)
        started = time.perf_counter()
        losses = train_on(points.reshape(STEPS_PER_CALL, settings.batch_size, 2)).numpy()
        seconds.append(time.perf_counter() - started)
        if not np.all(np.isfinite(losses)):
            bad = int(np.argmin(np.isfinite(losses)))
            raise FloatingPointError(
                f'{settings.name}: the loss became {losses[bad]} at step {done + bad}. Lower the learning rate.'
            )
        curve.append(float(losses.mean()))
    return {'curve': curve, 'ms_per_step': _watch.ms_per_step(seconds, STEPS_PER_CALL)}


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Fits one flow; writes what is drawn of it to `directory`, and returns its figures."""
    started = time.perf_counter()
    target, rng = TARGETS[settings.target], np.random.default_rng([settings.seed, 1])
    data, test_points = (target.sample(rng, settings.test_points) for _ in range(2))
    mean, deviation = data.mean(axis=0), data.std(axis=0)
    flow = make_flow(settings, mean.astype(np.float32), deviation.astype(np.float32))
    training = fit(flow, settings)

    log_prob = tf.function(flow.log_prob, input_signature=[tf.TensorSpec([None, 2])])
    samples, log_q = tf.function(flow.experimental_sample_and_log_prob)(settings.test_points, seed=[settings.seed, 2])
    grid = target.grid(500, scale=2.0)
    log_q_on_grid = log_prob(grid.points).numpy()
    with _records.atomic(directory / f'{settings.name}.npz') as path:
        np.savez_compressed(path, samples=samples, density=np.exp(log_q_on_grid).reshape(grid.size, grid.size))
    gaussian = tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(np.cov(data.T)))
    models = {'Gaussian': gaussian.log_prob(test_points), 'IAF': log_prob(test_points.astype(np.float32))}
    log_p = target.log_density(test_points)
    return {
        **training,
        'entropy': target.entropy(),
        'nll': {model: estimate(-values.numpy()) for model, values in models.items()},
        # Point by point: the two vary together, so that the error is smaller than that of the NLL.
        'kl': {model: estimate(log_p - values.numpy()) for model, values in models.items()},
        'integral': float(np.exp(grid.log_integral(log_q_on_grid))),
        'inverse_less_forward': float(np.max(np.abs(log_prob(samples) - log_q))),
        'seconds': time.perf_counter() - started,
    }


def estimate(values: np.ndarray) -> dict[str, float]:
    """Returns the mean over points and its standard error."""
    return {'mean': float(values.mean()), 'standard_error': float(values.std(ddof=1) / np.sqrt(len(values)))}


# Table and plot ------------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    nll = _summary.format_estimate(figures['nll']['IAF'])
    return f'{settings.target:12s} NLL {nll}, {figures["ms_per_step"]:.2f} ms/step, {figures["seconds"]:.0f} s'


def report(results: dict[Settings, dict[str, Any]]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = []
    for settings, figures in results.items():
        own = [f'{figures["integral"]:.4f}', f'{figures["inverse_less_forward"]:.0e}', f'{figures["ms_per_step"]:.2f}']
        for model, rest in (('Gaussian', ['', '', '']), ('IAF', own)):
            nll, kl = (_summary.format_estimate(figures[key][model]) for key in ('nll', 'kl'))
            rows.append([settings.target, model, f'{figures["entropy"]:.3f}', nll, kl, *rest])
    header = ['p', 'model q', 'entropy of p', 'NLL', 'KL(p || q)', 'integral of q', 'inverse - forward', 'ms/step']
    notes = [
        'Nats per test point, mean ± standard error over points; KL = NLL - entropy, estimated point by point.',
        'inverse - forward: the largest difference between what either direction says the log-density of a sample is.',
        'ms/step: median over calls of 100 steps after the first, in which XLA compiles; runs share the machine.',
    ]
    return '\n'.join(['', _summary.format_table(header, rows), *notes])


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Draws for each target what the flow was shown, what it has learnt, and its learning curve."""
    figure = Figure(figsize=(13, 3.1 * len(results)), layout='constrained')
    axes = figure.subplots(len(results), 4, squeeze=False)
    titles = ('samples of p', 'q, by the inverse', 'samples of q, by the forward pass', 'NLL of new points, by step')
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for (settings, figures), row in zip(results.items(), axes, strict=True):
        target = TARGETS[settings.target]
        with np.load(output_dir / 'runs' / f'{settings.name}.npz') as arrays:
            samples, density = arrays['samples'][:20000], arrays['density']
        (left, right), (bottom, top) = target.grid(2, scale=2.0).axes
        brightest = 1.3 * np.exp(target.log_density(target.grid(100).points).max())
        row[0].plot(*target.sample(np.random.default_rng(0), len(samples)).T, 'k,', alpha=0.5)
        row[1].imshow(density.T, 'magma', origin='lower', extent=(left, right, bottom, top), vmin=0, vmax=brightest)
        row[2].plot(*samples.T, 'k,', alpha=0.5)
        x, y = target.grid(2).axes
        for axis in row[:3]:
            axis.set(xlim=x, ylim=y, xticks=[], yticks=[], aspect='equal')
        row[0].set_ylabel(settings.target)
        row[3].plot(STEPS_PER_CALL * np.arange(1, len(figures['curve']) + 1), figures['curve'], 'C1', label='IAF')
        row[3].axhline(figures['nll']['Gaussian']['mean'], color='0.5', linestyle='--', label='Gaussian')
        row[3].axhline(figures['entropy'], color='C2', label='entropy of p')
        row[3].locator_params('x', nbins=4)
        row[3].grid(alpha=0.3)
        row[3].legend()
    _plots.save(figure, output_dir / 'densities.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {'steps': 200, 'num_affine': 2, 'num_gated': 1, 'output_dir': 'results/densities_quick'}


def define_flags() -> None:
    """Defines the command line."""
    _script.define_some_of('targets', TARGETS, 'Densities to fit.')
    flags.DEFINE_integer('steps', 16000, f'Training steps, a multiple of {STEPS_PER_CALL}.', lower_bound=1)
    flags.DEFINE_integer('num_affine', 12, 'Affine steps of each flow.', lower_bound=0)
    flags.DEFINE_integer('num_gated', 4, 'Gated steps of each flow.', lower_bound=0)
    flags.DEFINE_integer('seed', 0, 'Seed of weights, data and samples.', lower_bound=0)
    _script.define_flags('results/densities', QUICK)
    text = f'expected a multiple of {STEPS_PER_CALL}'
    flags.register_validator('steps', lambda steps: steps % STEPS_PER_CALL == 0, text)


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    same = {name: flags.FLAGS[name].value for name in ('steps', 'num_affine', 'num_gated', 'seed')}
    return [Settings(target, **same) for target in flags.FLAGS.targets]


def conclude(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> dict[str, Any]:
    """Prints the table, draws the plot, and returns what is written down."""
    print(report(results))
    plot(results, output_dir)
    return {'runs': _records.of_runs(results)}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, run, describe, conclude)


if __name__ == '__main__':
    define_flags()
    app.run(main)
