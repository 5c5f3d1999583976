"""VAEs of the 8x8 digits: their settings, model, training and evaluation, with a posterior that is exchanged."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import _architectures
import _datasets
import _estimates
import _images
import _posteriors
import _quadrature
import _records
import _summary
import _watch
import keras
import numpy as np
import sklearn
import tensorflow as tf
from _estimates import Parts
from _grid import Grid
from _likelihoods import bernoulli
from _posteriors import Flow, log_standard_normal
from absl import flags

# The flags defined below are those of the script that calls: in its --help, and among its key flags.
flags.disclaim_key_flags()

IMAGE_SHAPE = (8, 8, 1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. Only `posterior` differs between the runs that are compared."""

    posterior: str
    latent_size: int
    seed: int
    steps: int = 6000
    batch_size: int = 100
    learning_rate: float = 2e-3
    hidden_units: tuple[int, ...] = (200, 200)
    num_flows: int = 4
    flow_hidden_units: tuple[int, ...] = (64, 64)
    context_size: int = 64
    evaluation_samples: int = 1000
    grid_size: int = 300

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        digest = _records.digest(self, sklearn)
        return f'{self.posterior.replace(" ", "-")}-{self.latent_size}d-seed{self.seed}-{digest}'


AnySettings = TypeVar('AnySettings', bound=Settings)


# Model ---------------------------------------------------------------------------------------------------------------


class VAE(keras.Model):
    """A VAE with Bernoulli pixels.

    Args:
        parts: The encoder, the sampling layer and the decoder.
        warm_up_steps: Number of steps over which the KL's weight in the training loss grows from 0 to 1; it is 1 if 0.
    """

    def __init__(self, parts: Parts, warm_up_steps: int) -> None:
        super().__init__()
        self.encoder, self.sampling, self.decoder = parts
        self.warm_up_steps = warm_up_steps
        self.neg_elbo = keras.metrics.Mean(name='neg_elbo')

    @property
    def parts(self) -> Parts:
        """The encoder, the sampling layer and the decoder."""
        return Parts(self.encoder, self.sampling, self.decoder)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns -log p(x|z) and log q(z|x) - log p(z) at one z per image: -ELBO's parts, by one formula."""
        z, log_q = self.sampling(self.encoder(images))
        return bernoulli(images, self.decoder(z)), log_q - log_standard_normal(z)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True) -> tf.Tensor:
        """Returns -ELBO; in training with the KL's weight, and with the penalties of regularisers, if there are any."""
        reconstruction, kl = y_pred
        self.neg_elbo.update_state(reconstruction + kl)
        if not training:
            return tf.reduce_mean(reconstruction + kl)
        step = tf.cast(self.optimizer.iterations, tf.float32)
        weight = tf.minimum(step / self.warm_up_steps, 1.0) if self.warm_up_steps else 1.0
        return tf.reduce_mean(reconstruction + weight * kl) + sum(self.losses)


def make_vae(settings: Settings) -> VAE:
    """Makes a VAE. Only the posterior, with the numbers that it asks of the encoder, is not the same for all."""
    flow = None
    if settings.posterior == 'IAF':
        flow = Flow(settings.num_flows, settings.flow_hidden_units, context_size=settings.context_size)
    inputs = functools.partial(
        _posteriors.posterior_inputs, posterior=settings.posterior, latent_size=settings.latent_size, flow=flow
    )
    # `VAE` has a KL term of its own.
    return assemble(settings, inputs, _posteriors.make_sampling(settings.posterior, flow, kl_weight=None))


def assemble(
    settings: Settings, inputs: Callable[[Any], list[Any]], sampling: Any, warm_up_steps: int | None = None
) -> VAE:
    """Puts a VAE together.

    Args:
        settings: The sizes of the networks, and the number of training steps.
        inputs: Makes what the sampling layer takes, given the encoder's last hidden layer.
        sampling: The sampling layer.
        warm_up_steps: As of a `VAE`; `None` for a sixth of the training steps.
    """
    networks = _architectures.mlp(IMAGE_SHAPE, 1, settings.latent_size, settings.hidden_units)
    images = keras.Input(IMAGE_SHAPE)
    taken = inputs(networks.encode(images))
    sampling(taken)  # built: its variables are made
    parts = Parts(keras.Model(images, taken), sampling, networks.decoder)
    vae = VAE(parts, settings.steps // 6 if warm_up_steps is None else warm_up_steps)
    vae(tf.zeros([1, *IMAGE_SHAPE]))  # built, so that weights can be loaded
    return vae


# Training and evaluation ---------------------------------------------------------------------------------------------


def make_and_train(
    directory: pathlib.Path,
    settings: AnySettings,
    make: Callable[[AnySettings], VAE],
    rate: float | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[VAE, dict[str, Any]]:
    """Makes, trains and evaluates one VAE; writes its weights to `directory`, and returns it and its figures.

    Args:
        directory: Where the weights are written.
        settings: Of the run.
        make: Makes the VAE.
        rate: The learning rate; `None` for one that falls from that of the settings to zero along a cosine.
        callbacks: What else is called in training. An epoch is 100 steps, or all if they are fewer.
    """
    started = time.perf_counter()
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    data = _datasets.load_digits()
    vae = make(settings)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps) if rate is None else rate
    steps_per_epoch = min(100, settings.steps)
    vae.compile(keras.optimizers.Adam(schedule), steps_per_execution=steps_per_epoch)
    vae.optimizer.build(vae.trainable_variables)  # or else `fit`, in which they would be made, traces the step twice
    watch = _watch.TrainingWatch(settings.name, steps_per_epoch)
    history = vae.fit(
        # Passes over the images: more than all steps take.
        _images.training_batches(data.train, settings.batch_size, settings.seed, range(settings.steps)),
        epochs=settings.steps // steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        validation_data=tf.data.Dataset.from_tensors(data.test),
        callbacks=[watch, *callbacks],
        shuffle=False,
        verbose=0,
    )
    figures = {
        **evaluate(vae, data.test, settings),
        'ms_per_step': watch.ms_per_step,
        'parameters': vae.count_params(),
        'curve_steps': [steps_per_epoch * (epoch + 1) for epoch in history.epoch],
        'curve_neg_elbo': history.history['val_neg_elbo'],
    }
    with _records.atomic(weights_path(directory, settings)) as path:
        vae.save_weights(path)
    return vae, {**figures, 'seconds': time.perf_counter() - started}


def weights_path(directory: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Returns where the weights of a run are written."""
    return directory / f'{settings.name}.weights.h5'


def trained_parts(directory: pathlib.Path, settings: AnySettings, make: Callable[[AnySettings], VAE]) -> Parts:
    """Returns the parts of the VAE of a finished run."""
    vae = make(settings)
    vae.load_weights(weights_path(directory, settings))
    return vae.parts


def evaluate(vae: VAE, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Returns means over the test images of -ELBO and its two parts, of the NLL, and of KL(q || true posterior).

    With two latent dimensions the NLL is exact. With more it is an upper bound, by importance weighting, and the KL,
    which is -ELBO - NLL, a lower one.
    """
    estimates = _estimates.estimate(vae.parts, bernoulli, images, settings.evaluation_samples)
    nll = estimates.nll
    if settings.latent_size == 2:
        nll = -_quadrature.log_likelihoods(vae.decoder, images, Grid(size=settings.grid_size))
    kl_to_posterior = estimates.neg_elbo - nll
    return {
        'neg_elbo': float(estimates.neg_elbo.mean()),
        'neg_elbo_error_over_images': _summary.standard_error(estimates.neg_elbo),
        'reconstruction': float(estimates.reconstruction.mean()),
        'kl_to_prior': float(estimates.kl.mean()),
        'nll': float(nll.mean()),
        'importance_weighted_nll': float(estimates.nll.mean()),
        'kl_to_posterior': float(kl_to_posterior.mean()),
        'kl_to_posterior_by_image': kl_to_posterior.tolist(),
    }


# Command line --------------------------------------------------------------------------------------------------------


def define_flags(*, seeds: int, least_latent_size: int) -> None:
    """Defines the flags that the scripts share, with the default that differs, and with what they need of sizes."""
    flags.DEFINE_integer('seeds', seeds, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('steps', 6000, 'Training steps of a run: a multiple of 100, or less than 100.', lower_bound=1)
    flags.DEFINE_list('latent_sizes', ['2', '10'], f'Numbers of latent dimensions, {least_latent_size} or more.')
    flags.DEFINE_integer('evaluation_samples', 1000, 'Samples of z per test image.', lower_bound=1)
    flags.DEFINE_integer('grid_size', 300, 'Points per axis of the grid for D = 2.', lower_bound=2)
    flags.register_validator(
        'steps', lambda steps: steps < 100 or steps % 100 == 0, 'expected a multiple of 100, or less than 100'
    )
    flags.register_validator(
        'latent_sizes',
        lambda sizes: sizes and all(size.isdecimal() and int(size) >= least_latent_size for size in sizes),
        f'expected numbers of {least_latent_size} or more, such as 2,10',
    )


def options_from_flags() -> dict[str, Any]:
    """Returns the fields of `Settings` that the shared flags say and all runs have in common."""
    return {name: flags.FLAGS[name].value for name in ('steps', 'evaluation_samples', 'grid_size')}
