"""Posteriors whose answer is known: Neal's funnel, a banana, and the eight schools.

Each is a TFP joint distribution, as a user would write a model, with its log evidence, and the exact density of two of
its coordinates, to be drawn beside an approximation's samples.

None is one of TFP's `AutoBatched` joint distributions: with those, XLA compiles a sampler anew for every seed.
"""

from __future__ import annotations

import abc
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _quadrature import Grid, levels_of_mass

tfd = tfp.distributions
_Root = tfd.JointDistributionCoroutine.Root


class Target(abc.ABC):
    """A posterior, and what is known of it.

    Attributes:
        joint: The model; where data are observed, pinned to them. Its `unnormalized_log_prob` is the log-density of the
            posterior plus `log_evidence()`.
        pair: The names of the two coordinates that are drawn.
        window: Where.
        mean_field_kl: The least KL(q || posterior) of all q with independent Gaussian coordinates, or None if unknown.
    """

    joint: Any
    pair: tuple[str, str]
    window: Grid
    mean_field_kl: float | None = None

    @abc.abstractmethod
    def coordinates(self, sample: Any) -> np.ndarray:
        """Returns the two coordinates, `[N, 2]`, of N samples of a distribution like `joint`."""

    @abc.abstractmethod
    def log_marginal(self, points: np.ndarray) -> np.ndarray:
        """Returns the log-density of the two coordinates, plus the log evidence, `[N]`, at points `[N, 2]`."""

    def log_evidence(self) -> float:
        """Returns the logarithm of the integral over what is not observed."""
        return 0.0

    def density(self) -> np.ndarray:
        """Returns the density of the two coordinates on the window's grid, `[size, size]`."""
        log_density = self.log_marginal(self.window.points) - self.log_evidence()
        return np.exp(log_density).reshape(self.window.size, self.window.size)

    def levels_of_mass(self, masses: Sequence[float]) -> list[float]:
        """Returns the heights of the contours of the density that enclose the given shares of its mass."""
        return levels_of_mass(self.density(), masses)


class Funnel(Target):
    r"""Neal's funnel: $v \sim N(0, 3^2)$, and nine times $x_i | v \sim N(0, e^v)$ (a variance).

    The best mean field has $E_q[e^{-v}] = 1$ and $v$ of the variance 1 / (4.5 + 1/9); no covariance betters it.

    References:
        Neal 2003, "Slice Sampling", Section 8.
    """

    pair = ('v', 'x[0]')
    window = Grid((-10.0, -25.0), (10.0, 25.0), 801)
    mean_field_kl = float(np.log(3) + 0.5 * np.log(4.5 + 1 / 9))

    def __init__(self, size: int = 10) -> None:
        def model() -> Generator[Any, Any, None]:
            v = yield _Root(tfd.Normal(0.0, 3.0, name='v'))
            scale = tf.exp(0.5 * v)[..., tf.newaxis] * tf.ones([size - 1])
            yield tfd.Independent(tfd.Normal(0.0, scale), 1, name='x')

        self.joint = tfd.JointDistributionCoroutine(model)

    def coordinates(self, sample: Any) -> np.ndarray:
        return np.stack([sample.v, sample.x[..., 0]], axis=-1)

    def log_marginal(self, points: np.ndarray) -> np.ndarray:
        v, x = points.astype(np.float64).T
        return _log_normal(v, 9.0) + _log_normal(x, np.exp(v))

    def levels_of_mass(self, masses: Sequence[float]) -> list[float]:
        # From samples: the mouth is wider than the window, and the neck narrower than a grid's cell.
        v, x = np.random.default_rng(0).normal(size=[2, 100000])
        points = np.stack([3 * v, np.exp(1.5 * v) * x], axis=-1)
        heights = np.exp(self.log_marginal(points))
        return [float(np.quantile(heights, 1 - mass)) for mass in masses]


class Banana(Target):
    r"""A Gaussian bent along a parabola: $x \sim N(0, 10^2)$, $y | x \sim N(c (x^2 - 10^2), 1)$, with c = 0.03.

    Under the best mean field x has the variance u that minimises $(u/100 - 1 - \ln(u/100)) / 2 + c^2 u^2$.

    References:
        Haario, Saksman and Tamminen 1999, "Adaptive proposal distribution for random walk Metropolis algorithm".
    """

    pair = ('x', 'y')
    window = Grid((-32.0, -9.0), (32.0, 29.0), 400)
    curvature = 0.03

    def __init__(self) -> None:
        def model() -> Generator[Any, Any, None]:
            x = yield _Root(tfd.Normal(0.0, 10.0, name='x'))
            yield tfd.Normal(self.curvature * (x**2 - 100), 1.0, name='y')

        self.joint = tfd.JointDistributionCoroutine(model)
        # The root of the derivative, -1 / (2 u) + 1 / 200 + 2 c^2 u = 0.
        c2 = self.curvature**2
        u = (np.sqrt(0.01**2 + 16 * c2) - 0.01) / (8 * c2)
        self.mean_field_kl = float(0.5 * (u / 100 - 1 - np.log(u / 100)) + c2 * u**2)

    def coordinates(self, sample: Any) -> np.ndarray:
        return np.stack([sample.x, sample.y], axis=-1)

    def log_marginal(self, points: np.ndarray) -> np.ndarray:
        x, y = points.astype(np.float64).T
        return _log_normal(x, 100.0) + _log_normal(y - self.curvature * (x**2 - 100), 1.0)


class EightSchools(Target):
    r"""How much coaching helps at eight schools, in the parameterisation of TFP's tutorial.

    $\mu \sim N(0, 10^2)$, $\ln \tau \sim N(5, 1)$, $\epsilon_j \sim N(0, 1)$, and the effect observed at school j,
    $y_j \sim N(\mu + \tau \epsilon_j, \sigma_j^2)$. Given $\mu$ and $\tau$ the integral over all $\epsilon_j$ is known.

    References:
        Rubin 1981, "Estimation in Parallel Randomized Experiments".
    """

    pair = ('effect', 'log_stddev')
    window = Grid((-18.0, 0.0), (28.0, 4.5), 400)
    effects = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
    stddevs = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)

    def __init__(self) -> None:
        def model() -> Generator[Any, Any, None]:
            effect = yield _Root(tfd.Normal(0.0, 10.0, name='effect'))
            log_stddev = yield _Root(tfd.Normal(5.0, 1.0, name='log_stddev'))
            standard = yield _Root(tfd.Sample(tfd.Normal(0.0, 1.0), len(self.effects), name='standard_effects'))
            means = effect[..., tf.newaxis] + tf.exp(log_stddev)[..., tf.newaxis] * standard
            yield tfd.Independent(tfd.Normal(means, self.stddevs), 1, name='observed')

        joint = tfd.JointDistributionCoroutine(model)
        self.joint = joint.experimental_pin(observed=tf.constant(self.effects))

    def coordinates(self, sample: Any) -> np.ndarray:
        return np.stack([sample.effect, sample.log_stddev], axis=-1)

    def log_marginal(self, points: np.ndarray) -> np.ndarray:
        effect, log_stddev = points.astype(np.float64).T
        schools = zip(self.effects, self.stddevs, strict=True)
        variance = np.exp(2 * log_stddev)
        log_likelihood = sum(_log_normal(y - effect, sigma**2 + variance) for y, sigma in schools)
        return _log_normal(effect, 100.0) + _log_normal(log_stddev - 5, 1.0) + log_likelihood

    def log_evidence(self) -> float:
        grid = Grid((-60.0, -10.0), (60.0, 15.0), 800)
        return float(grid.log_integral(self.log_marginal(grid.points)))


def _log_normal(deviation: np.ndarray, variance: np.ndarray | float) -> np.ndarray:
    return -0.5 * (deviation**2 / variance + np.log(2 * np.pi * variance))


TARGETS: dict[str, Target] = {'funnel': Funnel(), 'banana': Banana(), 'eight schools': EightSchools()}
