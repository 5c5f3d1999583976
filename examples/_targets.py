"""Posteriors whose answer is known: Neal's funnel, a banana, and the eight schools.

Each is a TFP joint distribution, as a user would write a model, with its log evidence, and independent samples to draw
beside an approximation's.

None is one of TFP's `AutoBatched` joint distributions: with those, XLA compiles a sampler anew for every seed.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Generator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _grid import Grid

tfd = tfp.distributions
_Root = tfd.JointDistributionCoroutine.Root


class Target(abc.ABC):
    """A posterior, and what is known of it.

    Attributes:
        joint: The model; where data are observed, pinned to them. Its `unnormalized_log_prob` is the log-density of the
            posterior plus `log_evidence()`.
        names: Of the coordinates that are drawn.
        window: Where: the ends of an axis for each.
        mean_field_kl: The least KL(q || posterior) of all q with independent Gaussian coordinates, or None if unknown.
    """

    joint: Any
    names: tuple[str, ...]
    window: tuple[tuple[float, float], ...]
    mean_field_kl: float | None = None

    @abc.abstractmethod
    def coordinates(self, sample: Any) -> np.ndarray:
        """Returns the coordinates that are drawn, `[..., K]`, of samples of a distribution like `joint`."""

    def sample(self, count: int, seed: int) -> Any:
        """Returns independent samples of the posterior, in parts as those of `joint`."""
        return self.joint.sample(count, seed=[seed, 0])

    def log_evidence(self) -> float:
        """Returns the logarithm of the integral over what is not observed."""
        return 0.0


class Funnel(Target):
    r"""Neal's funnel: $v \sim N(0, 3^2)$, and nine times $x_i | v \sim N(0, e^v)$ (a variance).

    The best mean field has $E_q[e^{-v}] = 1$ and $v$ of the variance 1 / (4.5 + 1/9); no covariance betters it.

    References:
        Neal 2003, "Slice Sampling", Section 8.
    """

    names = ('$v$', '$x_1$', '$x_2$')
    window = ((-10.0, 10.0), (-25.0, 25.0), (-25.0, 25.0))
    mean_field_kl = float(np.log(3) + 0.5 * np.log(4.5 + 1 / 9))

    def __init__(self, size: int = 10) -> None:
        def model() -> Generator[Any, Any, None]:
            v = yield _Root(tfd.Normal(0.0, 3.0, name='v'))
            scale = tf.exp(0.5 * v)[..., tf.newaxis] * tf.ones([size - 1])
            yield tfd.Independent(tfd.Normal(0.0, scale), 1, name='x')

        self.joint = tfd.JointDistributionCoroutine(model)

    def coordinates(self, sample: Any) -> np.ndarray:
        return np.concatenate([sample.v[..., np.newaxis], sample.x[..., :2]], axis=-1)


class Banana(Target):
    r"""A Gaussian bent along a parabola: $x \sim N(0, 10^2)$, $y | x \sim N(c (x^2 - 10^2), 1)$, with c = 0.03.

    Under the best mean field x has the variance u that minimises $(u/100 - 1 - \ln(u/100)) / 2 + c^2 u^2$.

    References:
        Haario, Saksman and Tamminen 1999, "Adaptive proposal distribution for random walk Metropolis algorithm".
    """

    names = ('$x$', '$y$')
    window = ((-32.0, 32.0), (-9.0, 29.0))
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


class EightSchools(Target):
    r"""How much coaching helps at eight schools, in the parameterisation of TFP's tutorial.

    $\mu \sim N(0, 10^2)$, $\ln \tau \sim N(5, 1)$, $\epsilon_j \sim N(0, 1)$, and the effect observed at school j,
    $y_j \sim N(\theta_j, \sigma_j^2)$ with $\theta_j = \mu + \tau \epsilon_j$. Given $\mu$ and $\tau$ all $\epsilon_j$
    are Gaussian and independent, which leaves an integral over two dimensions.

    References:
        Rubin 1981, "Estimation in Parallel Randomized Experiments".
    """

    names = (r'$\mu$', r'$\ln\,\tau$', r'$\theta_1$')
    window = ((-18.0, 28.0), (0.0, 4.5), (-20.0, 55.0))
    grid = Grid((-60.0, -10.0), (60.0, 15.0), 800)
    effects = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
    stddevs = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)

    @functools.cached_property
    def joint(self) -> Any:
        # Not at the import: to pin is to compute, after which a worker process cannot choose its number of threads.
        def model() -> Generator[Any, Any, None]:
            effect = yield _Root(tfd.Normal(0.0, 10.0, name='effect'))
            log_stddev = yield _Root(tfd.Normal(5.0, 1.0, name='log_stddev'))
            standard = yield _Root(tfd.Sample(tfd.Normal(0.0, 1.0), len(self.effects), name='standard_effects'))
            means = effect[..., tf.newaxis] + tf.exp(log_stddev)[..., tf.newaxis] * standard
            yield tfd.Independent(tfd.Normal(means, self.stddevs), 1, name='observed')

        joint = tfd.JointDistributionCoroutine(model)
        return joint.experimental_pin(observed=tf.constant(self.effects))

    def coordinates(self, sample: Any) -> np.ndarray:
        first_school = sample.effect + np.exp(sample.log_stddev) * sample.standard_effects[..., 0]
        return np.stack([sample.effect, sample.log_stddev, first_school], axis=-1)

    def log_marginal(self, points: np.ndarray) -> np.ndarray:
        """Returns the log-density of effect and log_stddev, plus the log evidence, `[N]`, at points `[N, 2]`."""
        effect, log_stddev = points.astype(np.float64).T
        schools = zip(self.effects, self.stddevs, strict=True)
        variance = np.exp(2 * log_stddev)
        log_likelihood = sum(_log_normal(y - effect, sigma**2 + variance) for y, sigma in schools)
        return _log_normal(effect, 100.0) + _log_normal(log_stddev - 5, 1.0) + log_likelihood

    def log_evidence(self) -> float:
        return float(self.grid.log_integral(self.log_marginal(self.grid.points)))

    def sample(self, count: int, seed: int) -> Any:
        # A cell of the grid, a point in it, and the schools given that.
        rng = np.random.default_rng(seed)
        shares = np.exp(self.log_marginal(self.grid.points) - self.log_evidence() + self.grid.log_cell)
        corners = self.grid.points[rng.choice(len(shares), count, p=shares / shares.sum())]
        spacing = [axis[1] - axis[0] for axis in self.grid.axes]
        effect, log_stddev = (corners + spacing * rng.uniform(-0.5, 0.5, [count, 2])).T
        stddev, noise_variance = np.exp(log_stddev)[:, np.newaxis], np.square(self.stddevs)
        total_variance = noise_variance + stddev**2
        mean = stddev * (np.array(self.effects) - effect[:, np.newaxis]) / total_variance
        standard = mean + np.sqrt(noise_variance / total_variance) * rng.normal(size=mean.shape)
        parts = {'effect': effect, 'log_stddev': log_stddev, 'standard_effects': standard}
        return self.joint.dtype._replace(**{name: part.astype(np.float32) for name, part in parts.items()})


def _log_normal(deviation: np.ndarray, variance: np.ndarray | float) -> np.ndarray:
    return -0.5 * (deviation**2 / variance + np.log(2 * np.pi * variance))


TARGETS: dict[str, Target] = {'funnel': Funnel(), 'banana': Banana(), 'eight schools': EightSchools()}
