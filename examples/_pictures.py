"""Pictures of what VAEs of images have learnt: reconstructions, samples, and posteriors over two dimensions."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import _plots
import _quadrature
import numpy as np
import tensorflow as tf
from _estimates import Parts

_RANKS = (1, 4, 16, 64)  # of the images whose posteriors are drawn


def reconstructions_and_samples(
    vaes: Mapping[str, Parts], images: np.ndarray, mean: Callable[[tf.Tensor], tf.Tensor] = tf.sigmoid
) -> dict[str, np.ndarray]:
    """Returns rows of images: the given ones, every VAE's reconstructions of them, and as many samples of each VAE.

    Args:
        vaes: The parts of the VAEs, by the names that the rows get.
        images: Test images, `[count, height, width, channels]`.
        mean: Gives the means of pixels, of what a decoder puts out; the default is that of binary ones.
    """
    rows = {'test images': images}
    for name, vae in vaes.items():
        z = vae.sampling.posterior(*vae.encoder(images)).sample(seed=[0, 0])
        rows[f'reconstructed, {name}'] = np.asarray(mean(vae.decoder(z)))
    for name, vae in vaes.items():
        z = np.random.default_rng(0).normal(size=[len(images), vae.decoder.input_shape[-1]])
        rows[f'sampled, {name}'] = np.asarray(mean(vae.decoder(z.astype(np.float32))))
    return rows


def plot_posteriors(vaes: Mapping[str, Parts], images: np.ndarray, path: pathlib.Path) -> None:
    """Draws the true posteriors of some binary images under each VAE, and q(z|x) beside them.

    The images are chosen by how far from Gaussian their true posteriors are, from the first rank of all downwards.
    """
    ranked = _quadrature.least_gaussian_first(vaes, images)
    ranks = [rank for rank in _RANKS if rank <= len(ranked)]
    chosen = [ranked[rank - 1] for rank in ranks]
    labels = [f'no. {rank} of {len(ranked)}' for rank in ranks]
    rows = [_quadrature.posterior_densities(vaes, image) for image in chosen]
    _plots.plot_densities(labels, chosen, rows, path)
