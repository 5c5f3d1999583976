"""The figures of a trained VAE of images on test images, kept apart from its training."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import _estimates
import _image_vae
import _images
import _quadrature
import _records
import numpy as np
from _datasets import Split
from _estimates import Parts
from _grid import Grid
from _image_settings import Evaluation, Settings
from _likelihoods import LIKELIHOODS

_ACTIVE = 0.01  # the variance of a unit's posterior mean from which it counts as active; Burda et al. 2016, Section 5


def test_images(data: Split, settings: Settings) -> np.ndarray:
    """Returns all test images, as the likelihood is of them."""
    return _images.Binarization(settings.binarization).fixed(data.test, seed=0)


def evaluate(
    load: Callable[[], Split], runs: pathlib.Path, directory: pathlib.Path, evaluation: Evaluation
) -> dict[str, Any]:
    """Evaluates a VAE; writes the figures of every image to `directory`, and returns their means.

    Args:
        load: Gives the images.
        runs: Where the weights are.
        directory: Where the figures of images are kept.
        evaluation: What to evaluate.
    """
    started = time.perf_counter()
    images = test_images(load(), evaluation.run)
    of_nll = images[: evaluation.nll_images]
    vae = Parts.of(_image_vae.trained_vae(runs, evaluation.run, images.shape[1:]))
    neg_log_prob = LIKELIHOODS[evaluation.run.likelihood].neg_log_prob
    bound = _estimates.estimate(vae, neg_log_prob, images, evaluation.elbo_samples, seed=1)
    weighted = _estimates.estimate(vae, neg_log_prob, of_nll, evaluation.nll_samples, seed=2, label='NLL')
    by_image = {
        'neg_elbo': bound.neg_elbo,
        'reconstruction': bound.reconstruction,
        'kl': bound.kl,
        'nll': weighted.nll,
    }
    if evaluation.run.latent_size == 2 and evaluation.run.likelihood == 'bernoulli':
        grid = Grid(size=evaluation.grid_size)
        by_image['importance_weighted_nll'] = weighted.nll
        by_image['nll'] = -_quadrature.log_likelihoods(vae.decoder, of_nll, grid)
    with _records.atomic(images_path(directory, evaluation)) as path:
        np.savez(path, allow_pickle=False, **by_image)
    return {
        **{key: float(values.mean()) for key, values in by_image.items()},
        'active_units': int(np.sum(bound.activity > _ACTIVE)),
        'activity': bound.activity.tolist(),
        'image_shape': images.shape[1:],
        'images': len(images),
        'nll_images': len(of_nll),
        'evaluation_seconds': time.perf_counter() - started,
    }


def images_path(directory: pathlib.Path, evaluation: Evaluation) -> pathlib.Path:
    """Returns where `evaluate` writes the figures of every image."""
    return directory / f'{evaluation.name}.npz'
