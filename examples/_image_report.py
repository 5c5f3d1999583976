"""The results of VAEs of images that differ in their posterior: as lines, a table, JSON, and plots."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import _evaluation
import _image_vae
import _pictures
import _plots
import _summary
import numpy as np
from _datasets import Split
from _estimates import Parts
from _image_settings import Evaluation, Settings
from _likelihoods import LIKELIHOODS
from _posteriors import POSTERIORS

_BIAS = 'importance_weighting_bias'  # of the importance-weighted NLL, where the exact one is known
_KEYS = ('neg_elbo', 'nll', 'reconstruction', 'kl', 'active_units', 'cpu_seconds', 'seconds', _BIAS)
_SHOWN = 12  # images in a row of a plot
_RANKED = 400  # images of which some are chosen to draw their posteriors


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained and evaluated VAE: its figures, and those of each test image, `[images]`."""

    run: Settings
    figures: Mapping[str, Any]
    by_image: Mapping[str, np.ndarray]


Groups = Mapping[str, Sequence[Result]]  # by what they are called, and in a group by seed


class Time(NamedTuple):
    """A measure of how long trainings took: its key among the figures, and its name in a table and in sentences."""

    key: str
    header: str
    name: str


def measure_of_time(figures: Iterable[Mapping[str, Any]]) -> Time:
    """Returns the measure in which trainings are compared.

    It is the processor's time, in which what else the machine does has no share; but on a GPU, for which the processor
    waits, the time of the clock.
    """
    if any(each.get('gpus') for each in figures):
        return Time('seconds', 's', 'seconds')
    return Time('cpu_seconds', 'CPU s', 'CPU seconds')


def describe_training(run: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a training ends."""
    curves = figures['curves']
    neg_elbo = curves['val_reconstruction'][-1] + curves['val_kl'][-1]
    time = measure_of_time([figures])
    times = f'{figures["ms_per_step"]:.1f} ms/step, {figures[time.key]:.0f} {time.name}'
    return f'{run.posterior:15s} {run.epochs} epochs, seed {run.seed}: validation -ELBO {neg_elbo:.2f}, {times}'


def describe_evaluation(evaluation: Evaluation, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when an evaluation ends."""
    estimates = 'test -ELBO {neg_elbo:.2f}, NLL {nll:.2f}, {evaluation_seconds:.0f} s'.format(**figures)
    return f'{evaluation.run.posterior:15s} {evaluation.run.epochs} epochs, seed {evaluation.run.seed}: {estimates}'


def group(
    trained: Mapping[Settings, dict[str, Any]], evaluated: Mapping[Evaluation, dict[str, Any]], directory: pathlib.Path
) -> Groups:
    """Gathers the seeds of each posterior, and of each number of epochs where one has several."""
    results = {}
    for evaluation, figures in evaluated.items():
        run = evaluation.run
        with np.load(_evaluation.images_path(directory, evaluation)) as arrays:
            by_image = dict(arrays)
        figures = {**trained[run], **figures}
        if 'importance_weighted_nll' in by_image:  # and the other one is exact
            by_image[_BIAS] = by_image['importance_weighted_nll'] - by_image['nll']
            figures[_BIAS] = float(by_image[_BIAS].mean())
        results[run] = Result(run, figures, by_image)
    epochs = min(run.epochs for run in trained)

    def label(run: Settings) -> str:
        return run.posterior + (f', {run.epochs} epochs' if run.epochs > epochs else '')

    return _summary.group_by(results, label)


def estimate(results: Sequence[Result], key: str, baseline: Sequence[Result] | None = None) -> dict[str, Any]:
    """Returns the mean over seeds of a figure, or of its difference from a baseline, and the standard error.

    With one seed the standard error is that over test images.
    """
    values = [result.figures[key] for result in results]
    if baseline is not None:
        values = [value - other.figures[key] for value, other in zip(values, baseline, strict=True)]
    statistics = _summary.mean_and_error(values)
    if len(results) == 1 and key in results[0].by_image:
        by_image = results[0].by_image[key] - (0 if baseline is None else baseline[0].by_image[key])
        statistics['standard_error'] = _summary.standard_error(by_image)
    return statistics


def aggregate(groups: Groups) -> list[dict[str, Any]]:
    """Returns the statistics of each group, and those of its differences from each group of the diagonal posterior."""
    baselines = [label for label, results in groups.items() if results[0].run.posterior == 'diagonal']
    rows = []
    for label, results in groups.items():
        row: dict[str, Any] = {'posterior': label, 'epochs': results[0].run.epochs, 'seeds': len(results)}
        keys = [key for key in _KEYS if key in results[0].figures]
        row |= {key: estimate(results, key) for key in keys}
        others = [] if label in baselines[:1] else [other for other in baselines if other != label]
        row['less'] = {other: {key: estimate(results, key, groups[other]) for key in keys} for other in others}
        rows.append(row)
    return rows


def report(groups: Groups, rows: Sequence[dict[str, Any]]) -> str:
    """Writes the statistics as a table, with notes and the differences below."""
    first = next(iter(groups.values()))[0]
    dims = int(np.prod(first.figures['image_shape']))
    likelihood = LIKELIHOODS[first.run.likelihood]
    time = measure_of_time(result.figures for results in groups.values() for result in results)
    header = ['posterior', 'epochs', '-ELBO', 'NLL', '-log p(x|z)', 'KL', 'active', time.header]
    cells = []
    for row in rows:
        estimates = [_summary.format_estimate(row[key]) for key in ('neg_elbo', 'nll', 'reconstruction', 'kl')]
        counts = [f'{row["active_units"]["mean"]:.1f}', f'{row[time.key]["mean"]:.0f}']
        bits = [f'{bits_per_dim(row[key]["mean"], dims):.3f}' for key in ('neg_elbo', 'nll') if likelihood.in_bits]
        bias = [_summary.format_estimate(row[_BIAS])] if _BIAS in row else []
        cells.append([row['posterior'], str(row['epochs']), *estimates, *counts, *bits, *bias])
    if likelihood.in_bits:
        header += ['-ELBO, bits/dim', 'NLL, bits/dim']
    seeds = rows[0]['seeds']
    over = f'over {seeds} seeds' if seeds > 1 else 'over the images, of one seed'
    nll, more_notes = 'an upper bound, by importance weighting', [likelihood.note] if likelihood.note else []
    if _BIAS in rows[0]:
        header.append('IW excess')
        nll = 'exact, by quadrature'
        more_notes.append(
            'IW excess: what the estimate by importance weighting has more than the exact one; in expectation 0 or '
            'more. Well below 0, against its error, means that the grid misses mass.'
        )
    count, nll_count = first.figures['images'], first.figures['nll_images']
    notes = [
        f'Nats per image of {count} test images (NLL: of {nll_count}), mean ± standard error {over}.',
        f'NLL: {nll}. active: units whose posterior mean varies. {time.header}: {time.name} of training.',
        *more_notes,
        '',
    ]
    differences = [
        f'{row["posterior"]} less {other}: '
        + ', '.join(
            f'{name} {_summary.format_estimate(less[key])}' for name, key in (('-ELBO', 'neg_elbo'), ('NLL', 'nll'))
        )
        + f'; {row[time.key]["mean"] / (row[time.key]["mean"] - less[time.key]["mean"]):.2f} of its time'
        for row in rows
        for other, less in row['less'].items()
    ]
    return '\n'.join(['', _summary.format_table(header, cells), *notes, *differences])


def bits_per_dim(nats: float, dims: int) -> float:
    """Returns nats per image as bits per pixel and channel."""
    return nats / (dims * math.log(2))


def of_runs(groups: Groups) -> list[dict[str, Any]]:
    """Returns what is written down of every run: its settings, and its figures but the learning curves."""
    return [
        {**dataclasses.asdict(result.run), **{k: v for k, v in result.figures.items() if k != 'curves'}}
        for results in groups.values()
        for result in results
    ]


def plot_curves(groups: Groups, path: pathlib.Path) -> None:
    """Draws the learning curves of all runs, by epoch and by time, in the colours of their posteriors."""
    colors = {label: POSTERIORS[results[0].run.posterior] for label, results in groups.items()}
    time = measure_of_time(result.figures for results in groups.values() for result in results)
    by_epoch, by_time = {}, {}
    for label, results in groups.items():
        curves = [result.figures['curves'] for result in results]
        values = np.array([np.add(curve['val_reconstruction'], curve['val_kl']) for curve in curves])
        seconds = np.mean([np.cumsum(curve[time.key]) for curve in curves], axis=0)
        style = '-' if label in POSTERIORS else '--'  # of a posterior that is there with another number of epochs
        by_epoch[label] = _plots.Curve(range(1, values.shape[1] + 1), values, style)
        by_time[label] = _plots.Curve(list(seconds), values, style)
    _plots.plot_learning_curves(
        {'By epoch': by_epoch, 'By time': by_time},
        colors,
        '-ELBO on validation images (nats)',
        path,
        ('epoch', f'{time.name} of training'),
    )


def plot_models(groups: Groups, data: Split, runs: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Draws what the models of the first seed have learnt."""
    first = next(iter(groups.values()))[0]
    images = _evaluation.test_images(data, first.run)
    vaes = {
        label: Parts.of(_image_vae.trained_vae(runs, results[0].run, images.shape[1:]))
        for label, results in groups.items()
    }
    rows = _pictures.reconstructions_and_samples(vaes, images[:_SHOWN], LIKELIHOODS[first.run.likelihood].mean)
    _plots.plot_images({'': rows}, output_dir / 'images.png')
    if first.run.latent_size == 2 and first.run.likelihood == 'bernoulli':
        _pictures.plot_posteriors(vaes, images[:_RANKED], output_dir / 'posteriors.png')
