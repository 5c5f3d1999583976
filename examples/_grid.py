"""A grid over two dimensions: integrals of densities, and the contours that enclose a share of their mass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of `size` times `size` points on a rectangle, for integrals over two dimensions by the rectangle rule.

    For a smooth density that vanishes at the border the rule converges faster than any power of the distance of the
    points: it is as good as exact once that is below the density's narrowest standard deviation.

    Args:
        low, high: Two opposite corners.
        size: Number of points per axis.
    """

    low: tuple[float, float] = (-6.0, -6.0)
    high: tuple[float, float] = (6.0, 6.0)
    size: int = 300

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates along either axis, each `[size]`."""
        a, b = (np.linspace(*ends, self.size, dtype=np.float32) for ends in zip(self.low, self.high, strict=True))
        return a, b

    @property
    def points(self) -> np.ndarray:
        """All points, `[size * size, 2]`; the second coordinate runs fastest."""
        return np.stack(np.meshgrid(*self.axes, indexing='ij'), axis=-1).reshape(-1, 2)

    @property
    def log_cell(self) -> float:
        """The logarithm of a cell's area."""
        return float(sum(np.log((b - a) / (self.size - 1)) for a, b in zip(self.low, self.high, strict=True)))

    def log_integral(self, log_density: np.ndarray) -> np.ndarray:
        """Returns the log-integral, `[...]`, of log-densities at the points, `[..., size * size]`."""
        top = np.max(log_density, axis=-1, keepdims=True)
        total = np.sum(np.exp(log_density - top), axis=-1, dtype=np.float64)
        return np.log(total) + top[..., 0] + self.log_cell

    def non_gaussianity(self, log_density: np.ndarray) -> np.ndarray:
        """Returns KL(p || the Gaussian of p's mean and covariance), `[...]`, for log-densities as of `log_integral`.

        It is the difference of the two entropies.
        """
        log_p = log_density - self.log_integral(log_density)[..., np.newaxis].astype(np.float32)
        shares = np.exp(log_p + self.log_cell)
        a, b = self.points.T
        powers = np.stack([a, b, a * a, a * b, b * b], axis=-1)
        mean_a, mean_b, mean_aa, mean_ab, mean_bb = np.moveaxis(shares @ powers, -1, 0)
        determinant = (mean_aa - mean_a**2) * (mean_bb - mean_b**2) - (mean_ab - mean_a * mean_b) ** 2
        return 1 + np.log(2 * np.pi) + 0.5 * np.log(determinant) + np.sum(shares * log_p, axis=-1)


def levels_of_mass(density: np.ndarray, masses: Sequence[float]) -> list[float]:
    """Returns the heights of the contours of a density on a grid that enclose the given shares of its mass."""
    heights = np.sort(density, axis=None)[::-1]
    shares = np.cumsum(heights, dtype=np.float64)
    shares /= shares[-1]
    return [float(heights[np.searchsorted(shares, mass)]) for mass in masses]


class Density(NamedTuple):
    """A posterior p and its approximation q on a grid, both `[size, size]`, with the grid's axes and KL(q || p)."""

    axes: tuple[np.ndarray, np.ndarray]
    p: np.ndarray
    q: np.ndarray
    kl: float
