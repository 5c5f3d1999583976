r"""Four densities in the plane, bimodal, winding and forked, known up to a constant: the energies U1 to U4.

p(z) is proportional to exp(-U(z)), with U of Table 1 of Rezende and Mohamed 2015. Three of the four have no end along
z1: they are no densities at all. The paper draws them for |z1| <= 4, and there they stay here just as they are. Beyond,
U grows by a smooth wall,

$$\frac12 \left(\frac{\max(|z_1| - 4, 0)}{0.4}\right)^2,$$

the tail of a Gaussian as narrow as the curves are. What is fitted, what is integrated and what is drawn has this wall.
"""

from __future__ import annotations

import abc
import functools

import numpy as np
import tensorflow as tf
from _grid import Grid


class Energy(abc.ABC):
    """An energy U, and with it the density exp(-U) / Z.

    exp(-U) is a sum of one or two branches: the modes, or arms, of the density. How much of each a sample of another
    distribution has found is what `branch_shares` tells.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", Table 1.
    """

    # The one, for integrals, holds all but 1e-14 of the mass. The other is what is drawn: all but 3e-4, in the walls.
    grid = Grid((-7.0, -7.0), (7.0, 7.0), 400)
    window = Grid((-5.2, -5.2), (5.2, 5.2), 200)

    @abc.abstractmethod
    def log_branches(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the logarithms of the terms whose sum is exp(-U), `[..., K]`, at points `[..., 2]`."""

    def log_density(self, z: tf.Tensor) -> tf.Tensor:
        """Returns -U, the log-density plus `log_z`, `[...]`, at points `[..., 2]`."""
        return tf.reduce_logsumexp(self.log_branches(z), axis=-1)

    @functools.cached_property
    def log_z(self) -> float:
        """The logarithm of the integral of exp(-U), by quadrature."""
        return float(self.grid.log_integral(self.log_density(tf.constant(self.grid.points)).numpy()))

    def branch_shares(self, z: tf.Tensor) -> np.ndarray:
        """Returns the mean over points, `[N, 2]`, of each branch's share in exp(-U) there, `[K]`."""
        return tf.reduce_mean(tf.nn.softmax(self.log_branches(z), axis=-1), axis=0).numpy()

    @functools.cached_property
    def exact_branch_shares(self) -> np.ndarray:
        """What `branch_shares` is for samples of the density itself, `[K]`, by quadrature."""
        log_branches = self.log_branches(tf.constant(self.grid.points)).numpy()
        return np.exp(self.grid.log_integral(log_branches.T) - self.log_z)


class TwoModes(Energy):
    r"""U1: a ring of radius 2, of which two opposite sides are left.

    $$U_1 = \frac12 \left(\frac{\|z\| - 2}{0.4}\right)^2
      - \ln\left(e^{-\frac12 ((z_1 - 2) / 0.6)^2} + e^{-\frac12 ((z_1 + 2) / 0.6)^2}\right)$$
    """

    def log_branches(self, z: tf.Tensor) -> tf.Tensor:
        # At the origin, where the norm has no gradient, sqrt would give NaN; this moves U by 1e-5 at most.
        radius = tf.sqrt(tf.reduce_sum(z**2, axis=-1) + 1e-12)
        return _log_bump(radius - 2, 0.4)[..., tf.newaxis] + _log_bump(z[..., :1] - [2.0, -2.0], 0.6)


class Curve(Energy):
    r"""U2: a band along a sine, and the common form of U3 and U4, which fork from it.

    $$U = -\ln \sum_k e^{-\frac12 ((z_2 - w_1(z_1) + d_k(z_1)) / s_k)^2} + \text{wall}(z_1), \quad
      w_1 = \sin(2 \pi z_1 / 4)$$

    For each z1 the sum is one of Gaussians in z2, and what is left over z1 is uniform up to the wall: Z is known.
    """

    scales: tuple[float, ...] = (0.4,)
    end, wall_scale = 4.0, 0.4

    def distances(self, z1: tf.Tensor) -> list[tf.Tensor]:
        """Returns how far below the sine each branch is, d_k, each `[...]`."""
        return [tf.zeros_like(z1)]

    def log_branches(self, z: tf.Tensor) -> tf.Tensor:
        z1, z2 = z[..., 0], z[..., 1]
        above_sine = z2 - tf.sin(0.5 * np.pi * z1)
        branches = zip(self.distances(z1), self.scales, strict=True)
        wall = _log_bump(tf.nn.relu(tf.abs(z1) - self.end), self.wall_scale)
        return tf.stack([wall + _log_bump(above_sine + distance, scale) for distance, scale in branches], axis=-1)


class Bump(Curve):
    r"""U3: of two equal branches one makes a detour, $d_2 = w_2 = 3 e^{-\frac12 ((z_1 - 1) / 0.6)^2}$."""

    scales = (0.35, 0.35)

    def distances(self, z1: tf.Tensor) -> list[tf.Tensor]:
        return [tf.zeros_like(z1), 3 * tf.exp(_log_bump(z1 - 1, 0.6))]


class Fork(Curve):
    r"""U4: two branches that part for good, $d_2 = w_3 = 3 \sigma((z_1 - 1) / 0.3)$, with $\sigma$ the sigmoid."""

    scales = (0.4, 0.35)

    def distances(self, z1: tf.Tensor) -> list[tf.Tensor]:
        return [tf.zeros_like(z1), 3 * tf.sigmoid((z1 - 1) / 0.3)]


def _log_bump(deviation: tf.Tensor, scale: float) -> tf.Tensor:
    return -0.5 * (deviation / scale) ** 2


ENERGIES: dict[str, Energy] = {'U1': TwoModes(), 'U2': Curve(), 'U3': Bump(), 'U4': Fork()}
