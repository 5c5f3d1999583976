"""Variational autoencoders on 8x8 digits, with three posteriors: diagonal Gaussian, full-covariance Gaussian, IAF.

`python vae_digits.py` trains each with two and with ten latent dimensions and several seeds, prints a table, and writes
`results.json` and plots; `--quick` is a try of half a minute. All have the same encoder, decoder and schedule. In two
dimensions the true posterior p(z|x) is known by quadrature, so that the figures there are exact: how far is q(z|x) from
it, and what does that cost? Finished runs are kept: after an interruption the same command goes on where it was.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import _common
import _plots
import _quadrature
import _records
import _sampling
import _script
import keras
import numpy as np
import sklearn
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf
import tensorflow_probability as tfp
from _sampling import POSTERIORS, Flow
from absl import app, flags

import tfp_iaf

tfd = tfp.distributions

NUM_PIXELS = 64


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


# Data ----------------------------------------------------------------------------------------------------------------


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1397 training images as intensities in [0, 1], and 400 test images, binarised once and for all."""
    intensities = (sklearn.datasets.load_digits().data / 16).astype(np.float32)
    train, test = sklearn.model_selection.train_test_split(intensities, test_size=400, random_state=0)
    return train, (np.random.default_rng(0).uniform(size=test.shape) < test).astype(np.float32)


def training_batches(intensities: np.ndarray, settings: Settings) -> tf.data.Dataset:
    """Returns endless batches of binary images. Every pixel is drawn anew each time, so that no image is seen twice."""
    images = tf.data.Dataset.from_tensor_slices(intensities).shuffle(len(intensities), seed=settings.seed).repeat()
    return images.batch(settings.batch_size).map(lambda p: tf.cast(tf.random.uniform(tf.shape(p)) < p, tf.float32))


# Model ---------------------------------------------------------------------------------------------------------------


class VAE(keras.Model):
    """A VAE with Bernoulli pixels. `sampling(encoder(x))` is `z, log_q`; `sampling.posterior(*encoder(x))` is q(z|x).

    Args:
        warm_up_steps: Number of steps over which the KL's weight in the training loss grows from 0 to 1.
    """

    def __init__(self, encoder: Any, sampling: Any, decoder: Any, warm_up_steps: int) -> None:
        super().__init__()
        self.encoder, self.sampling, self.decoder, self.warm_up_steps = encoder, sampling, decoder, warm_up_steps
        self.neg_elbo = keras.metrics.Mean(name='neg_elbo')

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns -log p(x|z) and log q(z|x) - log p(z) at one z per image: -ELBO's parts, for all posteriors alike."""
        return self.terms(images, *self.sampling(self.encoder(images)))

    def sample_terms(self, images: tf.Tensor, num_samples: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the same at many z per image, `[num_samples, batch]`."""
        q = self.sampling.posterior(*self.encoder(images))
        return self.terms(images, *q.experimental_sample_and_log_prob(num_samples))

    def terms(self, images: tf.Tensor, z: tf.Tensor, log_q: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the same at given z, `[..., batch, D]`."""
        logits = self.decoder(tf.reshape(z, [-1, z.shape[-1]]))
        logits = tf.reshape(logits, tf.concat([tf.shape(log_q), [NUM_PIXELS]], axis=0))
        likelihood = tfd.Independent(tfd.Bernoulli(logits=logits), 1)
        prior = tfd.Sample(tfd.Normal(0.0, 1.0), z.shape[-1])
        return -likelihood.log_prob(images), log_q - prior.log_prob(z)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True) -> tf.Tensor:
        """Returns -ELBO; in training with the KL's weight."""
        reconstruction, kl = y_pred
        self.neg_elbo.update_state(reconstruction + kl)
        weight = tf.cast(self.optimizer.iterations, tf.float32) / self.warm_up_steps if training else 1.0
        return tf.reduce_mean(reconstruction + tf.minimum(weight, 1.0) * kl)


def make_vae(settings: Settings) -> VAE:
    """Makes a VAE. Only the posterior, with the numbers that it asks of the encoder, is not the same for all."""
    size = settings.latent_size
    images = hidden = keras.Input([NUM_PIXELS])
    for units in settings.hidden_units:
        hidden = keras.layers.Dense(units, activation='elu')(hidden)
    flow = None
    if settings.posterior == 'IAF':
        flow = Flow(settings.num_flows, settings.flow_hidden_units, context_size=settings.context_size)
    inputs = _sampling.posterior_inputs(hidden, settings.posterior, size, flow)
    sampling = _sampling.make_sampling(settings.posterior, flow)
    sampling(inputs)  # built: its variables are made
    layers = [keras.layers.Dense(units, activation='elu') for units in settings.hidden_units]
    decoder = keras.Sequential([keras.Input([size]), *layers, keras.layers.Dense(NUM_PIXELS)])
    vae = VAE(keras.Model(images, inputs), sampling, decoder, warm_up_steps=max(1, settings.steps // 6))
    vae(tf.zeros([1, NUM_PIXELS]))  # built, so that weights can be loaded
    return vae


# Training and evaluation ---------------------------------------------------------------------------------------------


def train(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains and evaluates one VAE; writes its weights to `directory`, and returns its figures."""
    started = time.perf_counter()
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    intensities, test_images = load_digits()
    vae = make_vae(settings)
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    steps_per_epoch = min(100, settings.steps)
    vae.compile(keras.optimizers.Adam(rate), steps_per_execution=steps_per_epoch)
    vae.optimizer.build(vae.trainable_variables)  # or else `fit`, in which they would be made, traces the step twice
    watch = _common.TrainingWatch(settings.name, steps_per_epoch)
    history = vae.fit(
        training_batches(intensities, settings),
        epochs=settings.steps // steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        validation_data=tf.data.Dataset.from_tensors(test_images),
        callbacks=[watch],
        shuffle=False,
        verbose=0,
    )
    figures = {
        **evaluate(vae, test_images, settings),
        'ms_per_step': watch.ms_per_step,
        'parameters': vae.count_params(),
        'curve_steps': [steps_per_epoch * (epoch + 1) for epoch in history.epoch],
        'curve_neg_elbo': history.history['val_neg_elbo'],
    }
    with _common.atomic(directory / f'{settings.name}.weights.h5') as path:
        vae.save_weights(path)
    return {**figures, 'seconds': time.perf_counter() - started}


def evaluate(vae: VAE, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Returns means over the test images of -ELBO and its two parts, of the NLL, and of KL(q || true posterior).

    With two latent dimensions the NLL is exact. With more it is an upper bound, by importance weighting, and the KL,
    which is -ELBO - NLL, a lower one.
    """
    sample_terms = tf.function(vae.sample_terms)
    samples = settings.evaluation_samples
    reconstruction, kl_to_prior = np.zeros([2, samples, len(images)], np.float32)
    # In pieces, so that what the networks need does not grow with the number of images and samples.
    for k, i in itertools.product(range(0, samples, 100), range(0, len(images), 100)):
        piece = np.s_[k : k + 100, i : i + 100]
        reconstruction[piece], kl_to_prior[piece] = sample_terms(images[i : i + 100], min(100, samples - k))
    neg_elbo = np.mean(reconstruction + kl_to_prior, axis=0)
    nll = iw_nll = -tfp_iaf.objectives.importance_weighted_log_likelihood(-reconstruction - kl_to_prior).numpy()
    if settings.latent_size == 2:
        nll = -_quadrature.log_likelihoods(vae.decoder, images, _quadrature.Grid(size=settings.grid_size))
    return {
        'neg_elbo': float(neg_elbo.mean()),
        'neg_elbo_error_over_images': float(neg_elbo.std(ddof=1) / np.sqrt(len(images))),
        'reconstruction': float(reconstruction.mean()),
        'kl_to_prior': float(kl_to_prior.mean()),
        'nll': float(nll.mean()),
        'importance_weighted_nll': float(iw_nll.mean()),
        'kl_to_posterior': float((neg_elbo - nll).mean()),
        'kl_to_posterior_by_image': (neg_elbo - nll).tolist(),
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
        neg_elbo, nll, kl = (_common.format_estimate(row[key]) for key in ('neg_elbo', 'nll', 'kl_to_posterior'))
        nll, kl = (nll, kl) if row['latent_size'] == 2 else (f'<= {nll}', f'>= {kl}')
        ms_per_step = f'{min(row["ms_per_step"]["by_seed"]):.2f}'
        cells.append([f'D = {row["latent_size"]}', row['posterior'], neg_elbo, nll, kl, ms_per_step])
    notes = [
        'Nats per test image, mean ± standard error over seeds. With D = 2 NLL and KL are exact, by quadrature; with',
        'more they are bounds, by importance sampling. ms/step: median over epochs after the first, in which',
        'TensorFlow compiles, of the fastest seed; runs share the machine: compare it within one table only.\n',
    ]
    others = [row for row in rows if row['posterior'] != 'diagonal']
    comparison = [_common.format_difference(row, 'diagonal', with_kl=row['latent_size'] == 2) for row in others]
    table = _common.format_table(['', 'posterior', '-ELBO', 'NLL', 'KL(q || p(z|x))', 'ms/step'], cells)
    return '\n'.join(['', table, *notes, *comparison])


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes the plots: learning curves of all runs, and what the models of the first seed have learnt."""
    _, images = load_digits()
    curves: dict[str, dict[str, _plots.Curve]] = {}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for size in dict.fromkeys(run.latent_size for run in results):
        title = f'{size} latent dimensions'
        curves[title], vaes = {}, {}
        for posterior in POSTERIORS:
            runs = [run for run in results if (run.latent_size, run.posterior) == (size, posterior)]
            values = np.array([results[run]['curve_neg_elbo'] for run in runs])
            curves[title][posterior] = _plots.Curve(results[runs[0]]['curve_steps'], values)
            vaes[posterior] = make_vae(runs[0])
            vaes[posterior].load_weights(output_dir / 'runs' / f'{runs[0].name}.weights.h5')
        pictures[title] = reconstructions_and_samples(vaes, images[:12], size)
        if size == 2:
            ranks = np.array([1, 4, 16, 64])
            chosen = _quadrature.least_gaussian_first(vaes, images)[ranks - 1]
            labels = [f'no. {rank} of {len(images)}' for rank in ranks]
            rows = [_quadrature.posterior_densities(vaes, image) for image in chosen]
            _plots.plot_densities(labels, chosen.reshape(-1, 8, 8), rows, output_dir / 'posteriors.png')
    _plots.plot_learning_curves(curves, POSTERIORS, '-ELBO on test images (nats)', output_dir / 'learning_curves.png')
    _plots.plot_images(pictures, output_dir / 'reconstructions_and_samples.png')


def reconstructions_and_samples(vaes: dict[str, VAE], images: np.ndarray, latent_size: int) -> dict[str, np.ndarray]:
    """Returns rows of images: every model's reconstructions of `images`, and its samples, as pixel probabilities."""
    noise = np.random.default_rng(0).normal(size=[len(images), latent_size]).astype(np.float32)
    rows = {'test images': images}
    for name, vae in vaes.items():
        rows[f'reconstructed, {name}'] = tf.sigmoid(vae.decoder(vae.sampling(vae.encoder(images))[0]))
    rows |= {f'sampled, {name}': tf.sigmoid(vae.decoder(noise)) for name, vae in vaes.items()}
    return {label: np.reshape(row, [-1, 8, 8]) for label, row in rows.items()}


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
    rows = _common.aggregate(results, ['neg_elbo', 'nll', 'kl_to_posterior', 'ms_per_step'], baseline='diagonal')
    print(report(rows))
    plot(results, output_dir)
    return {'aggregated': rows, 'runs': _records.of_runs(_records.without_lists(results))}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, train, describe, conclude, sklearn)


if __name__ == '__main__':
    define_flags()
    app.run(main)
