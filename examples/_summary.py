"""Statistics over seeds, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Run = TypeVar('Run')
Key = TypeVar('Key', bound=Hashable)
Figures = TypeVar('Figures')


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Returns the standard error of the mean, which one value does not have."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def mean_and_error(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of seeds' values and its standard error, beside the values."""
    error = standard_error(values)
    return {'mean': float(np.mean(values)), 'standard_error': error, 'by_seed': list(values)}


def group_by(results: Mapping[Run, Figures], key: Callable[[Run], Key]) -> dict[Key, list[Figures]]:
    """Returns the figures of the runs that have the same key, as those have that differ in the seed; in their order."""
    groups: dict[Key, list[Figures]] = {}
    for run, figures in results.items():
        groups.setdefault(key(run), []).append(figures)
    return groups


def aggregate(results: Mapping[Any, dict[str, Any]], keys: Sequence[str], baseline: str) -> list[dict[str, Any]]:
    """Returns the statistics over seeds of every latent size and posterior, and the differences from a baseline.

    Args:
        results: Figures of runs whose settings have a `latent_size`, a `posterior` and a `seed`; each posterior has the
            same seeds, in the same order.
        keys: The figures of which mean and standard error are wanted.
        baseline: The posterior with which the others are compared, seed by seed.
    """
    groups = group_by(results, lambda run: (run.latent_size, run.posterior))
    rows = []
    for (latent_size, posterior), runs in groups.items():
        row: dict[str, Any] = {'latent_size': latent_size, 'posterior': posterior, 'seeds': len(runs)}
        row['less_baseline'] = {}
        for key in keys:
            values, others = ([run[key] for run in side] for side in (runs, groups[latent_size, baseline]))
            differences = [value - other for value, other in zip(values, others, strict=True)]
            row[key] = mean_and_error(values)
            row['less_baseline'][key] = mean_and_error(differences)
        rows.append(row)
    return rows


def format_estimate(estimate: dict[str, Any]) -> str:
    """Writes a mean and its standard error as `23.04 ± 0.06`."""
    error = estimate['standard_error']
    return f'{estimate["mean"]:.3f}' + ('' if error is None else f' ± {error:.3f}')


def format_difference(row: dict[str, Any], baseline: str, with_kl: bool) -> str:
    """Writes in one line how a row of `aggregate` differs from the baseline in -ELBO and, if wanted, in the KL."""
    neg_elbo, kl = row['less_baseline']['neg_elbo'], row['less_baseline']['kl_to_posterior']
    by_seed = ', '.join(f'{difference:+.3f}' for difference in neg_elbo['by_seed'])
    percent = 100 * kl['mean'] / (row['kl_to_posterior']['mean'] - kl['mean'])
    return (
        f'D = {row["latent_size"]}, {row["posterior"]} less {baseline}: -ELBO {format_estimate(neg_elbo)} '
        f'(by seed {by_seed})' + (f', KL {percent:+.0f} %' if with_kl else '')
    )


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays text out in columns, the first two to the left and the figures to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append('  '.join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in cells))
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
