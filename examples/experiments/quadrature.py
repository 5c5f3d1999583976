"""Integrals over the plane by quadrature: of densities, and of a VAE's exact likelihood and posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy import special


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of `size` times `size` points on a rectangle, for integrals over the plane by the rectangle rule.

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
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top, as of `imshow`."""
        return self.low[0], self.high[0], self.low[1], self.high[1]

    @property
    def log_cell(self) -> float:
        """The logarithm of a cell's area."""
        return float(sum(np.log((b - a) / (self.size - 1)) for a, b in zip(self.low, self.high, strict=True)))

    def log_integral(self, log_density: np.ndarray) -> np.ndarray:
        """Returns the log-integral, `[...]`, of log-densities at the points, `[..., size * size]`."""
        return special.logsumexp(log_density.astype(np.float64), axis=-1) + self.log_cell

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
    """A posterior p and its approximation q on a grid, both `[size, size]`, and KL(q || p)."""

    grid: Grid
    p: np.ndarray
    q: np.ndarray
    kl: float


def log_joints(decoder: Any, images: np.ndarray, grid: Grid) -> Iterator[np.ndarray]:
    """Yields log p(x, z) for batches of binary images x, `[..., pixels]`, and every point z: `[batch, points]`.

    Args:
        decoder: A Keras model from z, with the prior N(0, I), to the logits of the pixels.
        images: Binary images, `[count, ...]`.
        grid: The points.
    """
    points = grid.points
    logits = np.concatenate([decoder(points[i : i + 10000]) for i in range(0, len(points), 10000)])
    logits = np.reshape(logits, [len(points), -1])
    log_prior = -0.5 * np.square(points).sum(axis=-1) - np.log(2 * np.pi, dtype=np.float32)
    # sum_i log p(x_i|z) = sum_i x_i logit_i - softplus(logit_i): one matrix product for all images and points.
    constant = log_prior - tf.reduce_sum(tf.math.softplus(logits), axis=-1).numpy()
    for i in range(0, len(images), 20):
        some = images[i : i + 20]
        yield some.reshape(len(some), -1) @ logits.T + constant


def log_likelihoods(decoder: Any, images: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns log p(x) of every image, `[count]`; see `log_joints`."""
    return np.concatenate([grid.log_integral(log_joint) for log_joint in log_joints(decoder, images, grid)])


def least_gaussian_first(vaes: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """Returns the images sorted by how far from Gaussian their true posteriors are, in the mean over VAEs.

    A rule that looks at the true posteriors alone, not at how well they are met.
    """
    grid = Grid(size=150)
    scores = [
        np.concatenate([grid.non_gaussianity(log_joint) for log_joint in log_joints(vae.decoder, images, grid)])
        for vae in vaes.values()
    ]
    return images[np.argsort(-np.mean(scores, axis=0))]


def posterior_densities(vaes: Mapping[str, Any], image: np.ndarray, size: int = 120) -> dict[str, Density]:
    """Returns the true posterior of one binary image, `[...]`, under each VAE, and q(z|x) beside it.

    Each VAE's window shows all of both; all windows are of one width.
    """

    def densities(vae: Any, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        (log_joint,) = next(log_joints(vae.decoder, image[np.newaxis], grid))
        # The layer's own log-density, at points that it did not sample.
        q = vae.sampling.posterior(*vae.encoder(image[np.newaxis]))
        return log_joint - grid.log_integral(log_joint), q.log_prob(grid.points[:, np.newaxis]).numpy()[:, 0]

    everywhere = Grid(size=100)
    corners = {}
    for name, vae in vaes.items():
        seen = np.zeros(len(everywhere.points), bool)
        for log_density in densities(vae, everywhere):
            seen |= log_density >= np.log(levels_of_mass(np.exp(log_density), [0.997])[0])
        corners[name] = everywhere.points[seen].min(axis=0), everywhere.points[seen].max(axis=0)
    half_width = 0.55 * max(np.max(high - low) for low, high in corners.values())
    result = {}
    for name, vae in vaes.items():
        center = np.add(*corners[name]) / 2
        window = Grid(tuple(center - half_width), tuple(center + half_width), size)
        log_p, log_q = densities(vae, window)
        kl = float(np.sum(np.exp(log_q + window.log_cell) * (log_q - log_p)))
        p, q = (np.exp(log_density).reshape(size, size) for log_density in (log_p, log_q))
        result[name] = Density(window, p, q, kl)
    return result
