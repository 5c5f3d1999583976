"""Inverse autoregressive flows fitted by maximum likelihood to samples of 2-D densities: moons, rings, a checkerboard.

`python densities.py` fits one flow to each, prints a table, and writes `results.json` and plots. The likelihood of a
given point goes through the flow's slow direction, the inverse, which elsewhere takes a pass of each network for every
dimension, and the gradient as many again. Here inverse and gradient cost one to three passes in any number of
dimensions, so that a density which is quick to sample can also be fitted to data.

The densities p are known. So is the entropy, below which no model's NLL can be; what the NLL has more is KL(p || q). It
does not come to zero: a flow bends the plane but never tears it. Parts that lie apart in p stay joined in q by thin
bridges, and rings are bands cut open; more steps and more training make the flaws thinner.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import _common
import _plots
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _quadrature import Grid
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
    num_affine: int = 6
    num_gated: int = 6
    hidden_units: tuple[int, ...] = (32, 32)
    batch_size: int = 256
    learning_rate: float = 5e-3
    seed: int = 0
    test_points: int = 50000

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        key = json.dumps([dataclasses.asdict(self), versions()], sort_keys=True)
        return f'{self.target.replace(" ", "-")}-{hashlib.sha256(key.encode()).hexdigest()[:10]}'


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that the figures depend on."""
    return {module.__name__: module.__version__ for module in (tfp_iaf, tf, tfp, keras, np)}


# Targets -------------------------------------------------------------------------------------------------------------


class Target(abc.ABC):
    """A known density on the plane, and a square window that holds all of it."""

    center: tuple[float, float] = (0.0, 0.0)
    half_width: float

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns exact samples, `[count, 2]`."""

    @abc.abstractmethod
    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Returns the log-density, `[N]`, at points `[N, 2]`."""

    def entropy(self) -> float:
        """Returns the differential entropy, by quadrature."""
        grid = self.grid(300)
        log_p = self.log_density(grid.points)
        return float(np.exp(grid.log_cell) * np.sum(np.exp(log_p) * -log_p))

    def grid(self, size: int, scale: float = 1.0) -> Grid:
        """Returns a grid on the window, whose sides are made `scale` times as long."""
        (a, b), reach = self.center, scale * self.half_width
        return Grid((a - reach, b - reach), (a + reach, b + reach), size)


class TwoMoons(Target):
    """Two half circles, each around an end of the other, with Gaussian noise."""

    center = (0.5, 0.25)
    half_width = 2.1
    noise = 0.1

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        on_arcs = self._arcs(rng.uniform(0, np.pi, count))[rng.integers(2, size=count), np.arange(count)]
        return on_arcs + rng.normal(scale=self.noise, size=[count, 2])

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """A mixture of Gaussians along the arcs, so close together that they cannot be told from the integral."""
        centers = self._arcs((np.arange(200) + 0.5) * np.pi / 200).reshape(-1, 2)
        parts = []
        for part in np.array_split(points, -(-len(points) // 5000)):  # in pieces, for the memory
            squares = np.sum((part[:, np.newaxis] - centers) ** 2, axis=-1)
            parts.append(np.logaddexp.reduce(-squares / (2 * self.noise**2), axis=-1))
        return np.concatenate(parts) - np.log(len(centers) * 2 * np.pi * self.noise**2)

    @staticmethod
    def _arcs(angles: np.ndarray) -> np.ndarray:
        x, y = np.cos(angles), np.sin(angles)
        return np.stack([np.stack([x, y], axis=-1), np.stack([1 - x, 0.5 - y], axis=-1)])


class Rings(Target):
    """Concentric rings of equal density, whose radii are Gaussian."""

    half_width = 3.8
    radii = np.array([1.0, 2.0, 3.0])
    noise = 0.12

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        ring = rng.choice(len(self.radii), size=count, p=self.radii / self.radii.sum())
        radius, angle = rng.normal(self.radii[ring], self.noise), rng.uniform(0, 2 * np.pi, count)
        return radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """The density of the radius, spread over the circle."""
        radius = np.maximum(np.linalg.norm(points, axis=-1), 1e-9)
        exponents = -0.5 * ((radius[:, np.newaxis] - self.radii) / self.noise) ** 2
        log_of_radius = np.logaddexp.reduce(exponents + np.log(self.radii / self.radii.sum()), axis=-1)
        return log_of_radius - np.log(self.noise * np.sqrt(2 * np.pi)) - np.log(2 * np.pi * radius)


class Checkerboard(Target):
    """Uniform on the eight black squares of a board of four by four, each of side 1."""

    half_width = 2.5

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        column, pair = rng.integers(4, size=count), rng.integers(2, size=count)
        return np.stack([column, 2 * pair + column % 2], axis=-1) - 2 + rng.uniform(size=[count, 2])

    def log_density(self, points: np.ndarray) -> np.ndarray:
        column, row = np.floor(points).T
        black = (np.abs(points + 0.0).max(axis=-1) <= 2) & ((column + row) % 2 == 0)
        return np.where(black, -np.log(8.0), -np.inf)

    def entropy(self) -> float:
        """The logarithm of the black area."""
        return float(np.log(8.0))


TARGETS: dict[str, Target] = {'two moons': TwoMoons(), 'rings': Rings(), 'checkerboard': Checkerboard()}

# Flow ----------------------------------------------------------------------------------------------------------------


def make_flow(settings: Settings, mean: np.ndarray, deviation: np.ndarray) -> Any:
    """Returns the distribution: noise through gated and affine steps, then to the data's mean and scale.

    Of the two transforms only the affine one can widen. The networks' activation is bounded: without a bound a point
    far out makes an exponential scale, and that in the next step a point further out.
    """
    make = functools.partial(tfp_iaf.IAFPosterior, 2, hidden_units=settings.hidden_units, activation='tanh')
    gated = make(settings.num_gated, transform='gated', seed=settings.seed)
    affine = make(settings.num_affine, transform='affine', seed=settings.seed + 1)
    # A Chain applies its last bijector first.
    chain = tfb.Chain([tfb.Shift(mean), tfb.Scale(deviation), affine.bijector(), gated.bijector()])
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), chain)


def fit(flow: Any, target: Target, settings: Settings) -> tuple[list[float], float]:
    """Maximises the likelihood. Returns the mean loss of every 100 steps, and milliseconds per step.

    Every batch is drawn anew: no point is seen twice, and the training loss estimates the NLL of new points.
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
        points = target.sample(rng, STEPS_PER_CALL * settings.batch_size).astype(np.float32)
        started = time.perf_counter()
        losses = train_on(points.reshape(STEPS_PER_CALL, settings.batch_size, 2)).numpy()
        seconds.append(time.perf_counter() - started)
        if not np.all(np.isfinite(losses)):
            bad = int(np.argmin(np.isfinite(losses)))
            raise FloatingPointError(
                f'{settings.target}: the loss became {losses[bad]} at step {done + bad}. Lower the learning rate.'
            )
        curve.append(float(losses.mean()))
    return curve, float(1e3 * np.median(seconds[1:] or seconds) / STEPS_PER_CALL)  # the first call compiles


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Fits one flow; writes what is drawn of it to `directory`, and returns its figures."""
    started = time.perf_counter()
    keras.utils.set_random_seed(settings.seed)
    target = TARGETS[settings.target]
    rng = np.random.default_rng([settings.seed, 1])
    train_points, test_points = (target.sample(rng, settings.test_points) for _ in range(2))
    mean, covariance = train_points.mean(axis=0), np.cov(train_points.T)
    flow = make_flow(settings, mean.astype(np.float32), train_points.std(axis=0).astype(np.float32))
    curve, ms_per_step = fit(flow, target, settings)

    log_prob = tf.function(flow.log_prob, input_signature=[tf.TensorSpec([None, 2])])
    samples, log_q_of_samples = tf.function(flow.experimental_sample_and_log_prob)(settings.test_points)
    grid = target.grid(500, scale=2.0)
    log_q_on_grid = log_prob(grid.points).numpy()
    log_p = target.log_density(test_points)
    gaussian = tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(covariance))
    with _common.atomic(directory / f'{settings.name}.npz') as path:
        np.savez_compressed(path, samples=samples, density=np.exp(log_q_on_grid).reshape(grid.size, grid.size))
    models = {'Gaussian': gaussian.log_prob(test_points), 'IAF': log_prob(test_points.astype(np.float32))}
    return {
        'entropy': target.entropy(),
        'nll': {name: estimate(-log_q.numpy()) for name, log_q in models.items()},
        # Point by point, since the two vary together: a far smaller error than that of the NLL.
        'kl': {name: estimate(log_p - log_q.numpy()) for name, log_q in models.items()},
        'integral': float(np.exp(grid.log_integral(log_q_on_grid))),
        # What the samples' log-density is by the pass that made them, and by the inverse.
        'largest_difference': float(np.max(np.abs(log_q_of_samples - log_prob(samples)))),
        'ms_per_step': ms_per_step,
        'curve': curve,
        'seconds': time.perf_counter() - started,
    }


def estimate(values: np.ndarray) -> dict[str, float]:
    """Returns the mean over points and its standard error."""
    return {'mean': float(values.mean()), 'standard_error': float(values.std(ddof=1) / np.sqrt(len(values)))}


# Table and plots -----------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    nll = _common.format_estimate(figures['nll']['IAF'])
    return f'{settings.target:13s} NLL {nll}, {figures["ms_per_step"]:.2f} ms/step, {figures["seconds"]:.0f} s'


def report(results: dict[Settings, dict[str, Any]]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = []
    for settings, figures in results.items():
        for model in figures['nll']:
            nll, kl = (_common.format_estimate(figures[key][model]) for key in ('nll', 'kl'))
            row = [settings.target, model, f'{figures["entropy"]:.3f}', nll, kl]
            if model == 'IAF':
                row += [f'{figures[key]:.{digits}f}' for key, digits in (('integral', 4), ('ms_per_step', 2))]
                row.append(f'{figures["largest_difference"]:.0e}')
            rows.append(row + [''] * (8 - len(row)))
    header = ['', 'model q', 'entropy of p', 'NLL', 'KL(p || q)', 'integral of q', 'ms/step', 'inverse - forward']
    return '\n'.join(
        [
            '',
            _common.format_table(header, rows),
            'Nats per test point, mean ± standard error over points. KL = NLL - entropy, estimated point by point.',
            'ms/step: median over calls of 100 steps after the first, in which XLA compiles; runs share the machine.',
            'inverse - forward: the largest difference of the two directions in the log-density of samples of q.',
        ]
    )


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes the plots: what each flow was shown and has learnt, and the learning curves."""
    figure = Figure(figsize=(9, 3 * len(results)), layout='constrained')
    panels = {}
    for settings, row in zip(results, figure.subplots(len(results), 3, squeeze=False), strict=True):
        target, figures = TARGETS[settings.target], results[settings]
        with np.load(output_dir / 'runs' / f'{settings.name}.npz') as arrays:
            samples, density = arrays['samples'], arrays['density']
        data = target.sample(np.random.default_rng(settings.seed), len(samples))
        window, wide = target.grid(2), target.grid(2, scale=2.0)
        extent = (*wide.axes[0], *wide.axes[1])
        peak = 1.3 * np.exp(target.log_density(target.grid(300).points).max())
        row[1].imshow(density.T, origin='lower', extent=extent, cmap='magma', vmin=0, vmax=peak)
        for axis, points in ((row[0], data), (row[2], samples)):
            axis.plot(*points[:20000].T, ',', color='black', alpha=0.5)
        for axis, title in zip(row, ('samples of p', 'q, fitted by maximum likelihood', 'samples of q'), strict=True):
            axis.set(xlim=window.axes[0], ylim=window.axes[1], xticks=[], yticks=[], aspect='equal')
            axis.set_title(title if axis in figure.axes[:3] else '')
        row[0].set_ylabel(settings.target)
        steps = [STEPS_PER_CALL * (i + 1) for i in range(len(figures['curve']))]
        levels = {'Gaussian': figures['nll']['Gaussian']['mean'], 'entropy of p': figures['entropy']}
        panels[settings.target] = {name: _plots.Curve(steps, np.full([1, len(steps)], y)) for name, y in levels.items()}
        panels[settings.target]['IAF'] = _plots.Curve(steps, np.array([figures['curve']]))
    with _common.atomic(output_dir / 'densities.png') as path:
        figure.savefig(path, dpi=130)
    colors = {'Gaussian': '#777777', 'entropy of p': '#009E73', 'IAF': '#D55E00'}
    _plots.plot_learning_curves(panels, colors, 'NLL of new points (nats)', output_dir / 'learning_curves.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {'steps': 200, 'num_affine': 2, 'num_gated': 2, 'output_dir': 'results/densities_quick'}


def define_flags() -> None:
    """Defines the command line; in a function, since worker processes and tests import this module too."""
    flags.DEFINE_list('targets', list(TARGETS), 'Densities to fit.')
    flags.DEFINE_integer('steps', 16000, f'Training steps, a multiple of {STEPS_PER_CALL}.', lower_bound=STEPS_PER_CALL)
    flags.DEFINE_integer('num_affine', 6, 'Affine steps of each flow.', lower_bound=0)
    flags.DEFINE_integer('num_gated', 6, 'Gated steps of each flow.', lower_bound=0)
    flags.DEFINE_integer('jobs', 2, 'Number of runs at a time, each in a process with one thread.', lower_bound=1)
    flags.DEFINE_string('output_dir', 'results/densities', 'Where results, plots and finished runs are written.')
    flags.DEFINE_bool('fresh', False, 'Train anew what output_dir already has.')
    flags.DEFINE_bool('quick', False, f'A try of half a minute: {QUICK}, where not given.')
    validate = flags.register_validator
    validate('steps', lambda steps: steps % STEPS_PER_CALL == 0, f'expected a multiple of {STEPS_PER_CALL}')
    validate('targets', lambda names: set(names) <= set(TARGETS), f'expected some of {list(TARGETS)}')


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    started = time.perf_counter()
    options = flags.FLAGS
    for name, value in QUICK.items() if options.quick else ():
        options.set_default(name, value)
    same = {name: options[name].value for name in ('steps', 'num_affine', 'num_gated')}
    runs = [Settings(target, **same) for target in options.targets]
    output_dir = pathlib.Path(options.output_dir)
    print(f'{len(runs)} flows, {options.jobs} at a time, {options.steps} steps each.')

    results = _common.run_cached(run, runs, output_dir / 'runs', options.jobs, options.fresh, describe)
    print(report(results))
    plot(results, output_dir)
    record = {
        'flags': {flag.name: flag.value for flag in options.get_key_flags_for_module(sys.argv[0])},
        'versions': versions(),
        'runs': [{**dataclasses.asdict(settings), **figures} for settings, figures in results.items()],
        'seconds': time.perf_counter() - started,
    }
    _common.write_json(output_dir / 'results.json', record)
    print(f'\nWrote results.json and plots to {output_dir} in {record["seconds"]:.0f} s.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
