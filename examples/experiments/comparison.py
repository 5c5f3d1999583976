"""VAEs that differ in their posterior, compared: what `digits`, `mnist`, `cifar10` and `freyfaces` share."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from . import datasets, evaluation, plots, reports, runs, vae
from .commands import Command
from .evaluation import Evaluated, Settings
from .likelihoods import LIKELIHOODS
from .posteriors import BASIC, FAMILIES

_SHOWN = 12  # images in a row of a plot
_RANKED = 400  # images of which some are chosen to draw their posteriors

Group = dict[Settings, Evaluated]  # by seed


def main(
    name: str, text: str | None, defaults: Settings, argv: Sequence[str], quick: Mapping[str, Any],
    latent_sizes: Sequence[int] = (), seeds: int = 1, posteriors: Collection[str] = BASIC,
    data_sets: Sequence[str] = (),
) -> None:  # fmt: skip
    """Trains and evaluates the VAEs that the command line describes, and reports on them.

    With `data_sets`, their names, each seed has another one in turn; by default all have that of the settings.
    """
    varied = {'latent_size': latent_sizes or (defaults.latent_size,), 'posterior': posteriors}
    command = Command(name, text, defaults, varied, seeds, fixed=('dataset', 'fingerprint', 'mistakes', 'sampled_kl'))
    command.add('longer_baseline', 0, 'train the diagonal one for so many epochs, too; 0: do not')
    options = command.parse(argv, quick)
    data = [(data_set, load(data_set, options.data)) for data_set in data_sets or (defaults.dataset,)]
    images, plan = data[0][1], []
    for settings in command.plan(options):
        dataset, of_seed = data[settings.seed % len(data)]
        plan.append(dataclasses.replace(settings, dataset=dataset, fingerprint=of_seed.fingerprint))
    if options.longer_baseline:
        baselines = [settings for settings in plan if settings.posterior == 'diagonal']
        plan += [dataclasses.replace(settings, epochs=options.longer_baseline) for settings in baselines]
    results = runs.run_all(evaluation.evaluate, plan, options.output_dir, options.jobs)
    sections = []
    for size in options.latent_size:
        groups: dict[str, Group] = {}
        for settings, result in results.items():
            if settings.latent_size == size:
                longer = f', {settings.epochs} epochs' if settings.epochs != options.epochs else ''
                groups.setdefault(settings.posterior + longer, {})[settings] = result
        sections.append(report(size, groups, images))
        plot(groups, images, options.output_dir, f'_{size}d' if len(options.latent_size) > 1 else '')
    reports.write(options, '\n\n'.join(sections), results)


def load(dataset: str, data: str = '') -> datasets.Images:
    """Returns the images, or ends the program with what to do."""
    try:
        return datasets.load(dataset, data)
    except FileNotFoundError as error:
        sys.exit(str(error))


def values(group: Group, key: str) -> np.ndarray:
    """Returns a figure by seed; by image if there is one seed, and so known."""
    results = list(group.values())
    if len(results) == 1 and key in results[0].by_image:
        return results[0].by_image[key]
    return np.array([result.figures[key] for result in results])


def report(size: int, groups: Mapping[str, Group], images: datasets.Images) -> str:
    """Writes the table of a size of z, notes, and the table of differences from the diagonal posterior."""
    settings, result = next(iter(next(iter(groups.values())).items()))
    likelihood, exact = LIKELIHOODS[settings.likelihood], evaluation.is_exact(settings)
    in_bits = 1 / (math.log(2) * math.prod(images.test.shape[1:]))
    upper, lower = ('', '') if exact else ('≤ ', '≥ ')
    rows, differences = [], []
    for label, group in groups.items():
        text = {key: reports.estimate(values(group, key)) for key in ('neg_elbo', 'nll', 'gap', 'reconstruction', 'kl')}
        mean = {key: np.mean([member.figures[key] for member in group.values()]) for key in result.figures}
        row = {
            'posterior': label,
            'epochs': f'{next(iter(group)).epochs}',
            '-ELBO': text['neg_elbo'],
            'NLL': upper + text['nll'],
            'KL(q ‖ p(z|x))': lower + text['gap'],
            '-log p(x|z)': text['reconstruction'],
            'KL': text['kl'],
            'active': f'{mean["active"]:.1f}',
            'CPU s': f'{mean["cpu_seconds"]:.0f}',
        }
        if settings.local_steps:
            row['approximation gap'] = lower + reports.estimate(values(group, 'approximation_gap'))
            row['amortization gap'] = reports.estimate(values(group, 'amortization_gap'))
            row['parameters'] = f'{mean["parameters"]:.0f}'
        if likelihood.in_bits:
            row['-ELBO, bits/dim'] = f'{mean["neg_elbo"] * in_bits:.3f}'
            row['NLL, bits/dim'] = f'{upper}{mean["nll"] * in_bits:.3f}'
        rows.append(row)
        for baseline, other in groups.items():
            if baseline.startswith('diagonal') and baseline != label and label != 'diagonal':
                less = {
                    name: reports.estimate(values(group, key) - values(other, key), sign=True)
                    for name, key in (('-ELBO', 'neg_elbo'), ('NLL', 'nll'), ('KL(q ‖ p(z|x))', 'gap'))
                }
                times = mean['cpu_seconds'] / np.mean([member.figures['cpu_seconds'] for member in other.values()])
                differences.append({'difference': f'{label} minus {baseline}', **less, 'times as long': f'{times:.2f}'})
    over = f'{len(group)} seeds' if len(group) > 1 else 'images, of one seed'
    count, nll_count = len(result.by_image['neg_elbo']), len(result.by_image['nll'])
    notes = (
        f'Nats per image of {count} test images (NLL: of {nll_count}), mean ± standard error over {over}; differences '
        f'are paired. NLL: {"exact, by quadrature" if exact else "an upper bound, by importance weighting"}. Active: '
        f'units whose posterior mean varies. CPU s: of training. {likelihood.note}'
    )
    if settings.local_steps:
        notes += ' Gaps: what remains of KL(q ‖ p(z|x)) with q optimized for each image, and what that takes off.'
    parts = [f'{size} latent dimensions', reports.table(rows), notes.strip()]
    return '\n\n'.join([*parts, reports.table(differences)] if differences else parts)


def plot(groups: Mapping[str, Group], images: datasets.Images, output_dir: pathlib.Path, suffix: str) -> None:
    """Draws the learning curves of all runs, and what the models of the first seed have learnt."""
    by_epoch, by_time, vaes = {}, {}, {}
    for label, group in groups.items():
        curves = [result.curves for result in group.values()]
        neg_elbo = np.array([curve['val_neg_elbo'] for curve in curves])
        seconds = np.mean([curve['cpu_seconds'].cumsum() for curve in curves], axis=0)
        style = FAMILIES[label.split(',')[0]].color, '-' if label in FAMILIES else '--'
        by_epoch[label] = plots.Curve(np.arange(1, neg_elbo.shape[1] + 1), neg_elbo, *style)
        by_time[label] = plots.Curve(seconds, neg_elbo, *style)
        settings = next(iter(group))
        vaes[label] = vae.parts(vae.trained(runs.Store(output_dir / 'runs'), settings, images.test.shape[1:])[0])
    panels = {('By epoch', 'epoch'): by_epoch, ('By time', 'CPU seconds of training'): by_time}
    label = '-ELBO on validation images (nats)'
    plots.learning_curves(panels, label, output_dir / f'learning_curves{suffix}.png')
    tests = evaluation.test_images(settings)
    plots.images(vaes, tests[:_SHOWN], LIKELIHOODS[settings.likelihood].mean, output_dir / f'images{suffix}.png')
    if evaluation.is_exact(settings):
        plots.posteriors(vaes, tests[:_RANKED], output_dir / f'posteriors{suffix}.png')
