r"""Densities whose normalising constant is known: the energies U1 to U4, Neal's funnel, and a banana.

The energies are those of Table 1 of Rezende and Mohamed 2015: p(z) is proportional to exp(-U(z)). Three of the four
have no end along z1: they are no densities at all. The paper draws them for |z1| <= 4, and there they stay here just as
they are. Beyond, U grows by a smooth wall, $\frac12 (\max(|z_1| - 4, 0) / 0.4)^2$, the tail of a Gaussian as narrow as
the curves are. What is fitted, what is integrated and what is drawn has this wall.

exp(-U) is a sum of one or two branches: the modes, or arms, of the density. How much of each a sample of another
distribution has found is what `branch_shares` tells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from .quadrature import Grid

tfd = tfp.distributions
_Root = tfd.JointDistributionCoroutine.Root

GRID = Grid((-7.0, -7.0), (7.0, 7.0), 400)  # for integrals: holds all but 1e-14 of the mass
WINDOW = Grid((-5.2, -5.2), (5.2, 5.2), 200)  # what is drawn: all but 3e-4, in the walls


def _log_bump(deviation: tf.Tensor, scale: float) -> tf.Tensor:
    return -0.5 * (deviation / scale) ** 2


class Energy:
    """A density in the plane, exp(-U) / Z.

    Args:
        log_branches: Returns the logarithms of the terms whose sum is exp(-U), `[..., K]`, at points `[..., 2]`.
    """

    event_shape, bijector = [2], None

    def __init__(self, log_branches: Callable[[tf.Tensor], tf.Tensor]) -> None:
        self.log_branches = log_branches

    def log_density(self, z: tf.Tensor) -> tf.Tensor:
        """Returns -U, the log-density plus `log_z`, `[...]`, at points `[..., 2]`."""
        return tf.reduce_logsumexp(self.log_branches(z), axis=-1)

    @functools.cached_property
    def log_z(self) -> float:
        """The logarithm of the integral of exp(-U), by quadrature."""
        return float(GRID.log_integral(self.log_density(tf.constant(GRID.points)).numpy()))

    def branch_shares(self, z: tf.Tensor) -> np.ndarray:
        """Returns the mean over points, `[N, 2]`, of each branch's share in exp(-U) there, `[K]`."""
        return tf.reduce_mean(tf.nn.softmax(self.log_branches(z), axis=-1), axis=0).numpy()

    @functools.cached_property
    def exact_branch_shares(self) -> np.ndarray:
        """What `branch_shares` is for samples of the density itself, `[K]`, by quadrature."""
        log_branches = self.log_branches(tf.constant(GRID.points)).numpy()
        return np.exp(GRID.log_integral(log_branches.T) - self.log_z)


def _two_modes(z: tf.Tensor) -> tf.Tensor:
    """U1: a ring of radius 2, of which two opposite sides are left."""
    # At the origin, where the norm has no gradient, sqrt would give NaN; this moves U by 1e-5 at most.
    radius = tf.sqrt(tf.reduce_sum(z**2, axis=-1) + 1e-12)
    return _log_bump(radius - 2, 0.4)[..., tf.newaxis] + _log_bump(z[..., :1] - [2.0, -2.0], 0.6)


def _curve(
    *scales: float, distance: Callable[[tf.Tensor], tf.Tensor] | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """U2: a band along a sine. U3 and U4: a second one, so far below, which makes a detour or parts for good."""

    def log_branches(z: tf.Tensor) -> tf.Tensor:
        z1, above_sine = z[..., 0], z[..., 1] - tf.sin(0.5 * np.pi * z[..., 0])
        distances = [tf.zeros_like(z1), *([] if distance is None else [distance(z1)])]
        wall = _log_bump(tf.nn.relu(tf.abs(z1) - 4), 0.4)
        branches = [wall + _log_bump(above_sine + d, scale) for d, scale in zip(distances, scales, strict=True)]
        return tf.stack(branches, axis=-1)

    return log_branches


ENERGIES: dict[str, Energy] = {
    'U1': Energy(_two_modes),
    'U2': Energy(_curve(0.4)),
    'U3': Energy(_curve(0.35, 0.35, distance=lambda z1: 3 * tf.exp(_log_bump(z1 - 1, 0.6)))),
    'U4': Energy(_curve(0.4, 0.35, distance=lambda z1: 3 * tf.sigmoid((z1 - 1) / 0.3))),
}


class Joint:
    """A joint distribution, as a user of TFP would write it, normalised.

    It is none of TFP's `AutoBatched` ones: with those, XLA compiles a sampler again for every seed.

    Args:
        model: A coroutine, as of `tfd.JointDistributionCoroutine`.
        window: Of two coordinates, in which samples are drawn.
        coordinates: Returns these coordinates, `[..., 2]`, of samples.
        mean_field_kl: The least KL(q || p) of all q with independent Gaussian coordinates.
    """

    log_z = 0.0

    def __init__(
        self,
        model: Callable[[], Generator[Any, Any, None]],
        window: Grid,
        coordinates: Callable[[Any], list[Any]],
        mean_field_kl: float,
    ) -> None:
        self.joint = tfd.JointDistributionCoroutine(model)
        self.log_density, self.event_shape = self.joint.log_prob, self.joint.event_shape_tensor()
        self.bijector = self.joint.experimental_default_event_space_bijector()
        self.window, self.mean_field_kl, self._coordinates = window, mean_field_kl, coordinates

    def histogram(self, sample: Any) -> np.ndarray:
        """Returns the density of two coordinates of samples in the cells of the window, `[size, size]`."""
        edges = [
            np.linspace(*ends, self.window.size + 1) for ends in zip(self.window.low, self.window.high, strict=True)
        ]
        a, b = (np.asarray(values) for values in self._coordinates(sample))
        return np.histogram2d(a, b, edges)[0] / len(a)


def _funnel() -> Generator[Any, Any, None]:
    v = yield _Root(tfd.Normal(0.0, 3.0, name='v'))
    scale = tf.exp(0.5 * v)[..., tf.newaxis] * tf.ones([9])
    yield tfd.Independent(tfd.Normal(0.0, scale), 1, name='x')


def _banana() -> Generator[Any, Any, None]:
    x = yield _Root(tfd.Normal(0.0, 10.0, name='x'))
    yield tfd.Normal(_CURVATURE * (x**2 - 100), 1.0, name='y')


_CURVATURE = 0.03
# The variance u of x under the best mean field of the banana minimises (u / 100 - 1 - ln(u / 100)) / 2 + c^2 u^2: the
# root of the derivative, -1 / (2 u) + 1 / 200 + 2 c^2 u. The funnel's best has E[exp(-v)] = 1.
_U = (np.sqrt(0.01**2 + 16 * _CURVATURE**2) - 0.01) / (8 * _CURVATURE**2)

# Neal 2003, "Slice Sampling", Section 8; Haario, Saksman and Tamminen 1999, "Adaptive proposal distribution for random
# walk Metropolis algorithm".
JOINTS: dict[str, Joint] = {
    'funnel': Joint(
        _funnel,
        Grid((-10.0, -25.0), (10.0, 25.0), 100),
        lambda sample: [sample.v, sample.x[..., 0]],
        float(np.log(3) + 0.5 * np.log(4.5 + 1 / 9)),
    ),
    'banana': Joint(
        _banana,
        Grid((-32.0, -9.0), (32.0, 29.0), 100),
        lambda sample: [sample.x, sample.y],
        float(0.5 * (_U / 100 - 1 - np.log(_U / 100)) + _CURVATURE**2 * _U**2),
    ),
}
