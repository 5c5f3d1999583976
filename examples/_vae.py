"""What the scripts with VAEs of images share: the loss, `fit` that goes on where it was killed, saving, evaluation.

A VAE is a functional Keras model from images to logits, with a layer 'sampling', the `IAFSampling`, and one 'decoder'.
"""

from __future__ import annotations

import pathlib
from typing import Any

import _checkpoints
import _common
import _images
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tqdm
import tqdm.keras
from _vae_settings import Settings

import tfp_iaf
import tfp_iaf.keras

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package='examples')
def reconstruction(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, with Bernoulli pixels."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, logits), axis=[-3, -2, -1])


def parts(model: Any) -> tuple[Any, Any, Any]:
    """Returns encoder, sampling layer and decoder: `sampling.posterior(*encoder(images))` is q(z|x)."""
    sampling = model.get_layer('sampling')
    return keras.Model(model.input, sampling.input), sampling, model.get_layer('decoder')


def fit(model: Any, data: _images.Data, settings: Settings, directory: pathlib.Path) -> _common.TrainingWatch:
    """Trains a VAE, or goes on from the newest checkpoint in `directory`; returns what was watched."""
    backup = _checkpoints.Backup(model, directory)
    epochs_done = backup.restore()
    if epochs_done:
        tqdm.tqdm.write(f'{settings.name}: goes on after {epochs_done} of {settings.epochs} epochs.')
    steps = _images.steps_per_epoch(data.train, settings.batch_size)
    watch = _common.TrainingWatch(settings.name, steps)
    # Or else the decoder would learn to do without z, before z says anything.
    warm_up = tfp_iaf.keras.KLWarmup(max(1, settings.epochs * steps // 4))
    epochs = range(epochs_done, settings.epochs)
    batches = _images.training_batches(data.train, settings.batch_size, settings.seed, epochs)
    model.fit(
        batches.map(_images.with_itself),
        epochs=settings.epochs,
        initial_epoch=epochs_done,
        steps_per_epoch=steps,
        # The watch goes before the backup: no state is kept after a loss that is not finite.
        callbacks=[watch, backup, warm_up, tqdm.keras.TqdmCallback(leave=False, dynamic_ncols=True)],
        shuffle=False,
        verbose=0,
    )
    return watch


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
    encoder, sampling, decoder = parts(model)
    count, size = settings.evaluation_samples, settings.latent_size

    @tf.function(input_signature=[tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([2], tf.int32)])
    def log_weights(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        z, log_q = sampling.posterior(*encoder(images)).experimental_sample_and_log_prob(count, seed=seed)
        logits = tf.reshape(decoder(tf.reshape(z, [-1, size])), [count, *tf.unstack(tf.shape(images))])
        targets = tf.broadcast_to(images, tf.shape(logits))
        return tfd.Sample(tfd.Normal(0.0, 1.0), size).log_prob(z) - log_q - reconstruction(targets, logits)

    # In pieces, so that what the networks need does not grow with the number of images.
    pieces = np.array_split(images, -(-len(images) * count // 4000))
    weights = np.concatenate([log_weights(piece, [1, i]) for i, piece in enumerate(pieces)], axis=1)
    nll = -tfp_iaf.objectives.importance_weighted_log_likelihood(weights)
    return {'neg_elbo': -float(weights.mean()), 'nll': float(tf.reduce_mean(nll)), 'images': len(images)}
