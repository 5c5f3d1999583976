"""What the scripts with VAEs of images share beyond their training: the parts of a model, saving, evaluation.

A VAE is a functional Keras model from images to what a likelihood takes, with a layer 'sampling', of `_sampling`, and
one 'decoder'.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import _common
import _estimates
import _images
import _training
import keras
import numpy as np
from _estimates import Parts
from _likelihoods import bernoulli
from _vae_settings import Settings


def parts(model: Any) -> Parts:
    """Returns the parts of a VAE."""
    sampling = model.get_layer('sampling')
    return Parts(keras.Model(model.input, sampling.input), sampling, model.get_layer('decoder'))


def fit(model: Any, data: _images.Data, settings: Settings, directory: pathlib.Path) -> _common.TrainingWatch:
    """Trains a VAE, or goes on from the newest checkpoint in `directory`; returns what was watched."""
    steps = _images.steps_per_epoch(data.train, settings.batch_size)
    batches = functools.partial(_images.training_batches, data.train, settings.batch_size, settings.seed)
    warm_up_steps = max(1, settings.epochs * steps // 4)
    return _training.fit(model, settings.name, directory, batches, steps, settings.epochs, warm_up_steps)


def save(model: Any, images: np.ndarray, path: pathlib.Path) -> None:
    """Writes the model to `path`, reads it, and makes sure that it gives the same q(z|x), to the bit."""
    with _common.atomic(path) as temporary:
        model.save(temporary)

    def samples_and_densities(model: Any) -> list[np.ndarray]:
        encoder, sampling, _ = parts(model)
        z, log_q = sampling.posterior(*encoder(images)).experimental_sample_and_log_prob(5, seed=[0, 0])
        return [z.numpy(), log_q.numpy()]

    kept, read = samples_and_densities(model), samples_and_densities(keras.saving.load_model(path))
    if not all(np.array_equal(a, b) for a, b in zip(kept, read, strict=True)):
        raise RuntimeError(f'{path}: the model that was read does not give the q(z|x) of the one that was written.')


def evaluate(model: Any, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Returns means over the images of -ELBO and of the NLL's importance-weighted upper bound."""
    estimates = _estimates.estimate(parts(model), bernoulli, images, settings.evaluation_samples)
    return {
        'neg_elbo': float(estimates.neg_elbo.mean()),
        'nll': float(estimates.nll.mean()),
        'images': len(images),
    }
