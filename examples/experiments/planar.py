"""Known densities in the plane, and samples of them: moons, rings, a checkerboard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from .quadrature import Grid

_MOONS_NOISE, _RINGS_NOISE = 0.1, 0.12
_RADII, _SHARES = np.array([1.0, 2.0]), np.array([1 / 3, 2 / 3])


@dataclasses.dataclass(frozen=True)
class Density:
    """A known density, and the square window that it is drawn in.

    Args:
        sample: Returns independent points, `[count, 2]`, given a generator and their count.
        log_density: Returns the log-density, `[N]`, at points `[N, 2]`.
        half_width, center: Of the window.
    """

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]
    half_width: float
    center: tuple[float, float] = (0.0, 0.0)

    def grid(self, size: int, scale: float = 1.0) -> Grid:
        """Returns a grid on the window, whose sides are made `scale` times as long."""
        (a, b), reach = self.center, scale * self.half_width
        return Grid((a - reach, b - reach), (a + reach, b + reach), size)

    def entropy(self) -> float:
        """Returns the differential entropy, by quadrature."""
        log_p = self.log_density(self.grid(200).points)
        p = np.exp(log_p)
        return -float(np.sum(p[p > 0] * log_p[p > 0]) / p.sum())


def _moons(angle: np.ndarray) -> np.ndarray:
    """Two half circles, each around an end of the other."""
    x, y = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([x, y], axis=-1), np.stack([1 - x, 0.5 - y], axis=-1)])


def _sample_moons(rng: np.random.Generator, count: int) -> np.ndarray:
    moons = _moons(rng.uniform(0, np.pi, count))
    return moons[rng.integers(2, size=count), np.arange(count)] + rng.normal(scale=_MOONS_NOISE, size=[count, 2])


def _log_moons(points: np.ndarray) -> np.ndarray:
    # The integral over the angle, by the midpoint rule: 200 Gaussians on each moon, a sixth of their width apart.
    centers = _moons((np.arange(200) + 0.5) * np.pi / 200).reshape(-1, 2)
    pieces = []
    for piece in np.array_split(points, -(-len(points) // 5000)):  # not all at once, for the memory
        squares = np.sum((piece[:, np.newaxis] - centers) ** 2, axis=-1)
        pieces.append(np.logaddexp.reduce(-squares / (2 * _MOONS_NOISE**2), axis=-1))
    return np.concatenate(pieces) - np.log(len(centers) * 2 * np.pi * _MOONS_NOISE**2)


def _sample_rings(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two concentric rings, with Gaussian noise in the radius."""
    radius = rng.normal(rng.choice(_RADII, size=count, p=_SHARES), _RINGS_NOISE)
    angle = rng.uniform(0, 2 * np.pi, count)
    return radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _log_rings(points: np.ndarray) -> np.ndarray:
    # That of the radius, spread over a circle. A radius below 0 is eight standard deviations away.
    radius = np.linalg.norm(points, axis=-1)
    exponents = -0.5 * ((radius[:, np.newaxis] - _RADII) / _RINGS_NOISE) ** 2
    log_of_radius = np.logaddexp.reduce(exponents + np.log(_SHARES), axis=-1)
    return log_of_radius - np.log(_RINGS_NOISE * np.sqrt(2 * np.pi) * 2 * np.pi * np.maximum(radius, 1e-6))


def _sample_checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniform on the eight black squares, of side 1, of a board of four by four."""
    column, pair = rng.integers(4, size=count), rng.integers(2, size=count)
    return np.stack([column, 2 * pair + column % 2], axis=-1) - 2 + rng.uniform(size=[count, 2])


def _log_checkerboard(points: np.ndarray) -> np.ndarray:
    squares = np.floor(points)
    black = np.all((squares >= -2) & (squares < 2), axis=-1) & (squares.sum(axis=-1) % 2 == 0)
    return np.where(black, -np.log(8), -np.inf)


DENSITIES = {
    'two moons': Density(_sample_moons, _log_moons, 2.0, (0.5, 0.25)),
    'rings': Density(_sample_rings, _log_rings, 2.7),
    'checkerboard': Density(_sample_checkerboard, _log_checkerboard, 2.5),
}
