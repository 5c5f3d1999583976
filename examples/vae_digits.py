"""Variational autoencoders on 8x8 digits, with three posteriors: diagonal Gaussian, full-covariance Gaussian, IAF.

`python vae_digits.py` trains each with two and with ten latent dimensions and several seeds, prints a table, and writes
`results.json` and plots; `--quick` is a try of half a minute. All have the same encoder, decoder and schedule. In two
dimensions the true posterior p(z|x) is known by quadrature, so that the figures there are exact: how far is q(z|x) from
it, and what does that cost? Finished runs are kept: after an interruption the same command goes on where it was.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _datasets
import _digits_vae
import _pictures
import _plots
import _records
import _script
import _summary
import numpy as np
import sklearn
from _digits_vae import Settings
from _posteriors import POSTERIORS
from absl import app, flags


def train(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains and evaluates one VAE; writes its weights to `directory`, and returns its figures."""
    _, figures = _digits_vae.make_and_train(directory, settings, _digits_vae.make_vae)
    return figures


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
            vaes[posterior] = _digits_vae.trained_parts(output_dir / 'runs', runs[0], _digits_vae.make_vae)
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
    _digits_vae.define_flags(seeds=3, least_latent_size=1)
    _script.define_flags('results/vae_digits', QUICK)


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    options = flags.FLAGS
    kinds = itertools.product(map(int, options.latent_sizes), range(options.seeds), POSTERIORS)
    same = _digits_vae.options_from_flags()
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
