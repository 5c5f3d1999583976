"""The results of VAEs of images that differ in their posterior: as lines, a table, JSON, and plots."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import _common
import _evaluation
import _image_vae
import _plots
import _quadrature
import _records
import _vae
import numpy as np
from _datasets import Split
from _image_settings import Evaluation, Settings
from _likelihoods import LIKELIHOODS
from _sampling import POSTERIORS

_KEYS = ('neg_elbo', 'nll', 'reconstruction', 'kl', 'active_units', 'cpu_seconds')
_SHOWN = 12  # images in a row of a plot


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained and evaluated VAE: its figures, and those of each test image, `[images]`."""

    run: Settings
    figures: Mapping[str, Any]
    by_image: Mapping[str, np.ndarray]


Groups = Mapping[str, Sequence[Result]]  # by what they are called, and in a group by seed


def describe_training(run: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a training ends."""
    curves = figures['curves']
    neg_elbo = curves['val_reconstruction'][-1] + curves['val_kl'][-1]
    times = '{ms_per_step:.1f} ms/step, {cpu_seconds:.0f} s of CPU time'.format(**figures)
    return f'{run.posterior:15s} {run.epochs} epochs, seed {run.seed}: validation -ELBO {neg_elbo:.2f}, {times}'


def describe_evaluation(evaluation: Evaluation, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when an evaluation ends."""
    estimates = 'test -ELBO {neg_elbo:.2f}, NLL {nll:.2f}, {evaluation_seconds:.0f} s'.format(**figures)
    return f'{evaluation.run.posterior:15s} {evaluation.run.epochs} epochs, seed {evaluation.run.seed}: {estimates}'


def group(
    trained: Mapping[Settings, dict[str, Any]], evaluated: Mapping[Evaluation, dict[str, Any]], directory: pathlib.Path
) -> Groups:
    """Gathers the seeds of each posterior, and of each number of epochs where one has several."""
    groups: dict[str, list[Result]] = {}
    epochs = min(run.epochs for run in trained)
    for evaluation, figures in evaluated.items():
        run = evaluation.run
        label = run.posterior + (f', {run.epochs} epochs' if run.epochs > epochs else '')
        with np.load(_evaluation.images_path(directory, evaluation)) as arrays:
            by_image = dict(arrays)
        groups.setdefault(label, []).append(Result(run, {**trained[run], **figures}, by_image))
    return groups


def estimate(results: Sequence[Result], key: str, baseline: Sequence[Result] | None = None) -> dict[str, Any]:
    """Returns the mean over seeds of a figure, or of its difference from a baseline, and the standard error.

    With one seed the standard error is that over test images.
    """
    values = [result.figures[key] for result in results]
    if baseline is not None:
        values = [value - other.figures[key] for value, other in zip(values, baseline, strict=True)]
    statistics = _common.mean_and_error(values)
    if len(results) == 1 and key in results[0].by_image:
        by_image = results[0].by_image[key] - (0 if baseline is None else baseline[0].by_image[key])
        statistics['standard_error'] = _common.standard_error(by_image)
    return statistics


def aggregate(groups: Groups) -> list[dict[str, Any]]:
    """Returns the statistics of each group, and those of its differences from each group of the diagonal posterior."""
    baselines = [label for label, results in groups.items() if results[0].run.posterior == 'diagonal']
    rows = []
    for label, results in groups.items():
        row: dict[str, Any] = {'posterior': label, 'epochs': results[0].run.epochs, 'seeds': len(results)}
        row |= {key: estimate(results, key) for key in _KEYS}
        others = [] if label in baselines[:1] else [other for other in baselines if other != label]
        row['less'] = {other: {key: estimate(results, key, groups[other]) for key in _KEYS} for other in others}
        rows.append(row)
    return rows


def report(groups: Groups, rows: Sequence[dict[str, Any]]) -> str:
    """Writes the statistics as a table, with notes and the differences below."""
    first = next(iter(groups.values()))[0]
    dims = int(np.prod(first.figures['image_shape']))
    likelihood = LIKELIHOODS[first.run.likelihood]
    header = ['posterior', 'epochs', '-ELBO', 'NLL', '-log p(x|z)', 'KL', 'active', 'CPU s']
    cells = []
    for row in rows:
        estimates = [_common.format_estimate(row[key]) for key in ('neg_elbo', 'nll', 'reconstruction', 'kl')]
        counts = [f'{row["active_units"]["mean"]:.1f}', f'{row["cpu_seconds"]["mean"]:.0f}']
        bits = [f'{bits_per_dim(row[key]["mean"], dims):.3f}' for key in ('neg_elbo', 'nll') if likelihood.in_bits]
        cells.append([row['posterior'], str(row['epochs']), *estimates, *counts, *bits])
    if likelihood.in_bits:
        header += ['-ELBO, bits/dim', 'NLL, bits/dim']
    seeds = rows[0]['seeds']
    over = f'over {seeds} seeds' if seeds > 1 else 'over the images, of one seed'
    exact = 'importance_weighted_nll' in first.by_image
    nll = 'exact, by quadrature' if exact else 'an upper bound, by importance weighting'
    count, nll_count = first.figures['images'], first.figures['nll_images']
    notes = [
        f'Nats per image of {count} test images (NLL: of {nll_count}), mean ± standard error {over}.',
        f'NLL: {nll}. active: units whose posterior mean varies. CPU s: time of the processor for training.',
        f'{likelihood.note}\n',
    ]
    differences = [
        f'{row["posterior"]} less {other}: '
        + ', '.join(
            f'{name} {_common.format_estimate(less[key])}' for name, key in (('-ELBO', 'neg_elbo'), ('NLL', 'nll'))
        )
        + f'; {row["cpu_seconds"]["mean"] / (row["cpu_seconds"]["mean"] - less["cpu_seconds"]["mean"]):.2f} of its time'
        for row in rows
        for other, less in row['less'].items()
    ]
    return '\n'.join(['', _common.format_table(header, cells), *notes, *differences])


def bits_per_dim(nats: float, dims: int) -> float:
    """Returns nats per image as bits per pixel and channel."""
    return nats / (dims * math.log(2))


def write(groups: Groups, rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes the flags, the versions of the libraries, the statistics, and every run's settings and figures as JSON."""
    runs = [
        {**dataclasses.asdict(result.run), **{k: v for k, v in result.figures.items() if k != 'curves'}}
        for results in groups.values()
        for result in results
    ]
    record = {'flags': _records.used_flags(), 'versions': _records.versions(), 'aggregated': rows, 'runs': runs}
    _common.write_json(path, record)


def plot(groups: Groups, data: Split, runs: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Writes the plots: learning curves of all runs, and what the models of the first seed have learnt."""
    colors = {label: POSTERIORS.get(label, 'black') for label in groups}
    by_epoch, by_time = {}, {}
    for label, results in groups.items():
        curves = [result.figures['curves'] for result in results]
        values = np.array([np.add(curve['val_reconstruction'], curve['val_kl']) for curve in curves])
        seconds = np.mean([np.cumsum(curve['cpu_seconds']) for curve in curves], axis=0)
        by_epoch[label] = _plots.Curve(range(1, values.shape[1] + 1), values)
        by_time[label] = _plots.Curve(list(seconds), values)
    _plots.plot_learning_curves(
        {'By epoch': by_epoch, 'By time': by_time},
        colors,
        '-ELBO on validation images (nats)',
        output_dir / 'learning_curves.png',
        ('epoch', 'CPU seconds of training'),
    )
    first = [results[0] for results in groups.values()]
    images = _evaluation.test_images(data, first[0].run)
    vaes = {
        label: _vae.parts(_image_vae.trained_vae(runs, results[0].run, images.shape[1:]))
        for label, results in groups.items()
    }
    mean = LIKELIHOODS[first[0].run.likelihood].mean
    shown = images[:_SHOWN]
    noise = np.random.default_rng(0).normal(size=[_SHOWN, first[0].run.latent_size]).astype(np.float32)
    rows = {'test images': shown}
    for label, vae in vaes.items():
        z = vae.sampling.posterior(*vae.encoder(shown)).sample(seed=[0, 0])
        rows[f'reconstructed, {label}'] = mean(vae.decoder(z))
    rows |= {f'sampled, {label}': mean(vae.decoder(noise)) for label, vae in vaes.items()}
    _plots.plot_images({'': {label: np.asarray(row) for label, row in rows.items()}}, output_dir / 'images.png')
    if first[0].run.latent_size == 2 and first[0].run.likelihood == 'bernoulli':
        _plot_posteriors(vaes, images[: first[0].figures['nll_images']], output_dir / 'posteriors.png')


def _plot_posteriors(vaes: Mapping[str, Any], images: np.ndarray, path: pathlib.Path) -> None:
    ranked = _quadrature.least_gaussian_first(vaes, images[:400])
    ranks = np.unique(np.geomspace(1, max(1, len(ranked) // 4), 4).astype(int))
    chosen = ranked[ranks - 1]
    labels = [f'no. {rank} of {len(ranked)}' for rank in ranks]
    rows = [_quadrature.posterior_densities(vaes, image) for image in chosen]
    _plots.plot_densities(labels, chosen, rows, path)
