"""What `keras_vae.py` and `distributed_vae.py` share: settings, training, saving, evaluation, and results."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import _datasets
import _estimates
import _images
import _pictures
import _plots
import _records
import _summary
import _training
import _watch
import keras
import numpy as np
import sklearn
from _estimates import Parts
from _likelihoods import bernoulli
from absl import flags

# The flags defined below are those of the script that calls: in its --help, and among its key flags.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. Only `num_flows` differs between the runs that are compared."""

    num_flows: int
    data: str  # the path of MNIST, or '' for the digits
    epochs: int
    seed: int = 0
    batch_size: int = 100
    learning_rate: float = 1e-3
    latent_size: int = 16
    filters: tuple[int, int] = (32, 64)
    hidden_units: tuple[int, ...] = (128, 128)
    context_size: int = 64
    evaluation_images: int = 1000
    evaluation_samples: int = 100

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        return f'{self.num_flows}-flows-seed{self.seed}-{_records.digest(self, sklearn)}'

    @property
    def title(self) -> str:
        """Names the posterior."""
        return f'IAF, {self.num_flows} steps' if self.num_flows else 'diagonal'


# Command line --------------------------------------------------------------------------------------------------------


def define_flags(output_dir: str, epochs: int | None = None) -> None:
    """Defines the flags that say the settings, and where results go.

    Args:
        output_dir: Where they go if the command does not say.
        epochs: Their number if the command does not say; `None` for one that depends on the images.
    """
    otherwise = '; else 10 of MNIST or 300 of the digits' if epochs is None else ''
    flags.DEFINE_string('data', '', 'Path of mnist.npz. Else MNIST from the cache of Keras, or else 8x8 digits.')
    flags.DEFINE_integer('flows', 4, 'Number of steps of the flow; 0 for a diagonal Gaussian.', lower_bound=0)
    flags.DEFINE_integer('epochs', epochs, f'Passes over the training images{otherwise}.', lower_bound=1)
    flags.DEFINE_integer('seed', 0, 'Seed of everything random.', lower_bound=0)
    flags.DEFINE_integer('batch_size', 100, 'Images per training step, of all devices together.', lower_bound=1)
    flags.DEFINE_integer('evaluation_images', 1000, 'Number of test images, at most.', lower_bound=1)
    flags.DEFINE_integer('evaluation_samples', 100, 'Samples of z per test image.', lower_bound=1)
    flags.DEFINE_string('output_dir', output_dir, 'Where results, models and checkpoints are written.')


def from_flags() -> Settings:
    """Returns the settings that the command line says."""
    options = flags.FLAGS
    data = _datasets.find_mnist(options.data)
    epochs = options.epochs or (10 if data else 300)
    same = {name: options[name].value for name in ('seed', 'batch_size', 'evaluation_images', 'evaluation_samples')}
    return Settings(options.flows, data, epochs, **same)


# Training and evaluation ---------------------------------------------------------------------------------------------


def fit(model: Any, data: _datasets.Data, settings: Settings, directory: pathlib.Path) -> _watch.TrainingWatch:
    """Trains a VAE, or goes on from the newest checkpoint in `directory`; returns what was watched."""
    steps = _images.steps_per_epoch(data.train, settings.batch_size)
    batches = functools.partial(_images.training_batches, data.train, settings.batch_size, settings.seed)
    warm_up_steps = max(1, settings.epochs * steps // 4)
    return _training.fit(model, settings.name, directory, batches, steps, settings.epochs, warm_up_steps)


def save(model: Any, images: np.ndarray, directory: pathlib.Path, settings: Settings) -> None:
    """Writes the model to `directory`, reads it, and makes sure that it gives the same q(z|x), to the bit."""
    path = model_path(directory, settings)
    with _records.atomic(path) as temporary:
        model.save(temporary)

    def samples_and_densities(model: Any) -> list[np.ndarray]:
        encoder, sampling, _ = Parts.of(model)
        z, log_q = sampling.posterior(*encoder(images)).experimental_sample_and_log_prob(5, seed=[0, 0])
        return [z.numpy(), log_q.numpy()]

    kept, read = samples_and_densities(model), samples_and_densities(keras.saving.load_model(path))
    if not all(np.array_equal(a, b) for a, b in zip(kept, read, strict=True)):
        raise RuntimeError(f'{path}: the model that was read does not give the q(z|x) of the one that was written.')


def model_path(directory: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Returns where `save` writes the model."""
    return directory / f'{settings.name}.keras'


def evaluate(model: Any, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Returns means over the first images of -ELBO and of the NLL's importance-weighted upper bound."""
    images = images[: settings.evaluation_images]
    estimates = _estimates.estimate(Parts.of(model), bernoulli, images, settings.evaluation_samples)
    return {
        'neg_elbo': float(estimates.neg_elbo.mean()),
        'nll': float(estimates.nll.mean()),
        'images': len(images),
    }


# Results -------------------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimates = '-ELBO {neg_elbo:.3f}, NLL <= {nll:.3f}, {ms_per_step:.1f} ms/step, {seconds:.0f} s'.format(**figures)
    return f'{settings.title:14s} {estimates}'


def report(results: Mapping[Settings, dict[str, Any]]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = [
        [run.title, str(figures['parameters']), *(f'{figures[key]:.2f}' for key in ('neg_elbo', 'nll', 'ms_per_step'))]
        for run, figures in results.items()
    ]
    count = next(iter(results.values()))['images']
    note = f'Nats per image, means over {count} test images, of one seed. NLL: an upper bound, by importance weighting.'
    return '\n'.join(['', _summary.format_table(['posterior', 'parameters', '-ELBO', 'NLL', 'ms/step'], rows), note])


def plot(results: Mapping[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Draws test images, and every model's reconstructions and samples, as pixel probabilities."""
    images = _datasets.load_mnist_or_digits(next(iter(results)).data).test[:12]
    vaes = {run.title: Parts.of(keras.saving.load_model(model_path(output_dir / 'runs', run))) for run in results}
    rows = _pictures.reconstructions_and_samples(vaes, images)
    _plots.plot_images({'': rows}, output_dir / 'reconstructions_and_samples.png')
