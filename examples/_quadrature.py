"""A VAE's exact likelihood and posterior, by quadrature over two latent dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from _grid import Density, Grid, levels_of_mass


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
    """Returns the true posterior of one image, `[...]`, under each VAE, and q(z|x) beside it.

    Each VAE's window shows all of both; all windows are of one width.

    Args:
        vaes: Models with a `decoder` as of `log_joints`, an `encoder`, and a layer `sampling` that has a `posterior`.
        image: A binary image.
        size: Number of points per axis.
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
        result[name] = Density(window.axes, p, q, kl)
    return result
