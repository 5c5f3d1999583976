"""Variational autoencoders on 8x8 digits, with three posteriors: diagonal Gaussian, full-covariance Gaussian, IAF.

`python vae_digits.py` trains each with two and with ten latent dimensions and several seeds, prints a table, and writes
`results.json` and plots; `--quick` is a try of half a minute. All have the same encoder, decoder and schedule. In two
dimensions the true posterior p(z|x) is known by quadrature, so that the figures there are exact: how far is q(z|x) from
it, and what does that cost? Finished runs are kept: after an interruption the same command goes on where it was.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import _quiet  # noqa: F401
import _architectures
import _datasets
import _estimates
import _images
import _pictures
import _plots
import _posteriors
import _quadrature
import _records
import _script
import _summary
import _watch
import keras
import numpy as np
import sklearn
import tensorflow as tf
from _estimates import Parts
from _likelihoods import bernoulli
from _posteriors import POSTERIORS, Flow, log_standard_normal
from absl import app, flags

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
        warm_up_steps: Number of steps over which the KL's weight in the training loss grows from 0 to 1.
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
        """Returns -log p(x|z) and log q(z|x) - log p(z) at one z per image: -ELBO's parts, for all posteriors alike."""
        z, log_q = self.sampling(self.encoder(images))
        return bernoulli(images, self.decoder(z)), log_q - log_standard_normal(z)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True) -> tf.Tensor:
        """Returns -ELBO; in training with the KL's weight, and with the penalties of regularisers, if there are any."""
        reconstruction, kl = y_pred
        self.neg_elbo.update_state(reconstruction + kl)
        if not training:
            return tf.reduce_mean(reconstruction + kl)
        weight = tf.minimum(tf.cast(self.optimizer.iterations, tf.float32) / self.warm_up_steps, 1.0)
        return tf.reduce_mean(reconstruction + weight * kl) + sum(self.losses)


def make_vae(settings: Settings) -> VAE:
    """Makes a VAE. Only the posterior, with the numbers that it asks of the encoder, is not the same for all."""
    flow = None
    if settings.posterior == 'IAF':
        flow = Flow(settings.num_flows, settings.flow_hidden_units, context_size=settings.context_size)
    inputs = functools.partial(
        _posteriors.posterior_inputs, posterior=settings.posterior, latent_size=settings.latent_size, flow=flow
    )
    return assemble(settings, inputs, _posteriors.make_sampling(settings.posterior, flow))


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
    vae = VAE(parts, warm_up_steps or max(1, settings.steps // 6))
    vae(tf.zeros([1, *IMAGE_SHAPE]))  # built, so that weights can be loaded
    return vae


# Training and evaluation ---------------------------------------------------------------------------------------------


def train(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains and evaluates one VAE; writes its weights to `directory`, and returns its figures."""
    _, figures = make_and_train(directory, settings, make_vae)
    return figures


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
        nll = -_quadrature.log_likelihoods(vae.decoder, images, _quadrature.Grid(size=settings.grid_size))
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


# Table and plots -----------------------------------------------------------------------------------------------------


def describe(run: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimates = '-ELBO {neg_elbo:.3f}, NLL {nll:.3f}, {ms_per_step:.2f} ms/step, {seconds:.0f} s'.format(**figures)
    return f'{run.posterior:15s} D = {run.latent_size:<2d} seed {run.seed}: {estimates}'


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the aggregated figures as a table, with notes and the comparison below."""
    cells = []
    for row in rows:
        neg_elbo, nll, kl = (_summary.format_estimate(row[key]) for key in ('neg_elbo', 'nll', 'kl_to_posterior'))
        nll, kl = (nll, kl) if row['latent_size'] == 2 else (f'<= {nll}', f'>= {kl}')
        ms_per_step = f'{min(row["ms_per_step"]["by_seed"]):.2f}'
        cells.append([f'D = {row["latent_size"]}', row['posterior'], neg_elbo, nll, kl, ms_per_step])
    notes = [
        'Nats per test image, mean ± standard error over seeds. With D = 2 NLL and KL are exact, by quadrature; with',
        'more they are bounds, by importance sampling. ms/step: median over epochs after the first, in which',
        'TensorFlow compiles, of the fastest seed; runs share the machine: compare it within one table only.\n',
    ]
    others = [row for row in rows if row['posterior'] != 'diagonal']
    comparison = [_summary.format_difference(row, 'diagonal', with_kl=row['latent_size'] == 2) for row in others]
    table = _summary.format_table(['', 'posterior', '-ELBO', 'NLL', 'KL(q || p(z|x))', 'ms/step'], cells)
    return '\n'.join(['', table, *notes, *comparison])


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes the plots: learning curves of all runs, and what the models of the first seed have learnt."""
    images = _datasets.load_digits().test
    curves: dict[str, dict[str, _plots.Curve]] = {}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for size in dict.fromkeys(run.latent_size for run in results):
        title = f'{size} latent dimensions'
        curves[title], vaes = {}, {}
        for posterior in POSTERIORS:
            runs = [run for run in results if (run.latent_size, run.posterior) == (size, posterior)]
            values = np.array([results[run]['curve_neg_elbo'] for run in runs])
            curves[title][posterior] = _plots.Curve(results[runs[0]]['curve_steps'], values)
            vaes[posterior] = trained_parts(output_dir / 'runs', runs[0], make_vae)
        pictures[title] = _pictures.reconstructions_and_samples(vaes, images[:12])
        if size == 2:
            _pictures.plot_posteriors(vaes, images, output_dir / 'posteriors.png')
    _plots.plot_learning_curves(curves, POSTERIORS, '-ELBO on test images (nats)', output_dir / 'learning_curves.png')
    _plots.plot_images(pictures, output_dir / 'reconstructions_and_samples.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {
    'latent_sizes': ['2'],
    'jobs': 1,  # another process would take longer to start than these runs take
    'seeds': 1,
    'steps': 200,
    'evaluation_samples': 100,
    'output_dir': 'results/vae_digits_quick',
}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer('seeds', 3, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('steps', 6000, 'Training steps of a run: a multiple of 100, or less than 100.', lower_bound=1)
    flags.DEFINE_list('latent_sizes', ['2', '10'], 'Numbers of latent dimensions.')
    flags.DEFINE_integer('evaluation_samples', 1000, 'Samples of z per test image.', lower_bound=1)
    flags.DEFINE_integer('grid_size', 300, 'Points per axis of the grid for D = 2.', lower_bound=2)
    _script.define_flags('results/vae_digits', QUICK)
    check = flags.register_validator
    check('steps', lambda steps: steps < 100 or steps % 100 == 0, 'expected a multiple of 100, or less than 100')
    check('latent_sizes', lambda sizes: all(size.isdecimal() and int(size) for size in sizes), 'expected such as 2,10')


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    options = flags.FLAGS
    same = {name: options[name].value for name in ('steps', 'evaluation_samples', 'grid_size')}
    kinds = itertools.product(map(int, options.latent_sizes), range(options.seeds), POSTERIORS)
    return [Settings(posterior, size, seed, **same) for size, seed, posterior in kinds]


def conclude(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> dict[str, Any]:
    """Prints the table, draws the plots, and returns what is written down."""
    rows = _summary.aggregate(results, ['neg_elbo', 'nll', 'kl_to_posterior', 'ms_per_step'], baseline='diagonal')
    print(report(rows))
    plot(results, output_dir)
    return {'aggregated': rows, 'runs': _records.of_runs(_records.without_lists(results))}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, train, describe, conclude, sklearn)


if __name__ == '__main__':
    define_flags()
    app.run(main)
