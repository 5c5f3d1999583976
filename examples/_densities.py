"""Known densities on the plane, and samples of them: moons, rings, a checkerboard."""

from __future__ import annotations

import abc

import numpy as np
from _grid import Grid


class Target(abc.ABC):
    """A known density on the plane, and the square window that it is drawn in."""

    center: tuple[float, float] = (0.0, 0.0)
    half_width: float

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns independent points, `[count, 2]`."""

    @abc.abstractmethod
    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Returns the log-density, `[N]`, at points `[N, 2]`."""

    def entropy(self) -> float:
        """Returns the differential entropy, by quadrature."""
        grid = self.grid(200)
        log_p = self.log_density(grid.points)
        return -float(np.exp(grid.log_cell) * np.sum(np.exp(log_p) * log_p))

    def grid(self, size: int, scale: float = 1.0) -> Grid:
        """Returns a grid on the window, whose sides are made `scale` times as long."""
        (a, b), reach = self.center, scale * self.half_width
        return Grid((a - reach, b - reach), (a + reach, b + reach), size)


class TwoMoons(Target):
    """Two half circles, each around an end of the other, with Gaussian noise."""

    center = (0.5, 0.25)
    half_width = 2.0
    noise = 0.1

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        moons = self._moons(rng.uniform(0, np.pi, count))
        return moons[rng.integers(2, size=count), np.arange(count)] + rng.normal(scale=self.noise, size=[count, 2])

    def log_density(self, points: np.ndarray) -> np.ndarray:
        # The integral over the angle, by the midpoint rule: 200 Gaussians on each moon, a sixth of their width apart.
        centers = self._moons((np.arange(200) + 0.5) * np.pi / 200).reshape(-1, 2)
        pieces = []
        for piece in np.array_split(points, -(-len(points) // 5000)):  # not all at once, for the memory
            squares = np.sum((piece[:, np.newaxis] - centers) ** 2, axis=-1)
            pieces.append(np.logaddexp.reduce(-squares / (2 * self.noise**2), axis=-1))
        return np.concatenate(pieces) - np.log(len(centers) * 2 * np.pi * self.noise**2)

    @staticmethod
    def _moons(angle: np.ndarray) -> np.ndarray:
        x, y = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([x, y], axis=-1), np.stack([1 - x, 0.5 - y], axis=-1)])


class Rings(Target):
    """Two concentric rings, the outer one with twice the mass, and Gaussian noise in the radius."""

    half_width = 2.7
    radii, shares = np.array([1.0, 2.0]), np.array([1 / 3, 2 / 3])
    noise = 0.12

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        radius = rng.normal(rng.choice(self.radii, size=count, p=self.shares), self.noise)
        angle = rng.uniform(0, 2 * np.pi, count)
        return radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        # That of the radius, spread over a circle. A radius below 0 is eight standard deviations away.
        radius = np.linalg.norm(points, axis=-1)
        exponents = -0.5 * ((radius[:, np.newaxis] - self.radii) / self.noise) ** 2
        log_of_radius = np.logaddexp.reduce(exponents + np.log(self.shares), axis=-1)
        return log_of_radius - np.log(self.noise * np.sqrt(2 * np.pi) * 2 * np.pi * np.maximum(radius, 1e-6))


class Checkerboard(Target):
    """Uniform on the eight black squares, of side 1, of a board of four by four."""

    half_width = 2.5

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        column, pair = rng.integers(4, size=count), rng.integers(2, size=count)
        return np.stack([column, 2 * pair + column % 2], axis=-1) - 2 + rng.uniform(size=[count, 2])

    def log_density(self, points: np.ndarray) -> np.ndarray:
        squares = np.floor(points)
        black = np.all((squares >= -2) & (squares < 2), axis=-1) & (squares.sum(axis=-1) % 2 == 0)
        return np.where(black, -self.entropy(), -np.inf)

    def entropy(self) -> float:
        return float(np.log(8))


TARGETS: dict[str, Target] = {'two moons': TwoMoons(), 'rings': Rings(), 'checkerboard': Checkerboard()}
