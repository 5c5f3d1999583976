"""How well chains have mixed, how far they are from the funnel, and what a flow gains: over chains, then over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import _summary
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

CONVERGED = 1.05  # R-hat below this says that chains have
AVERAGED = (
    'smallest_ess',
    'ess_per_1000_gradients',
    'ess_per_1000_gradients_with_fit',
    'ess_per_second',
    'ess_per_second_with_fit',
    'step_size',
    'acceptance',
    'v_mean',
    'v_stddev',
    'v_ks_distance',
    'seconds_to_sample',
    'seconds_to_fit',
)


def of_chains(values: tf.Tensor) -> dict[str, Any]:
    """Returns how well chains have mixed, and how far their v is from N(0, 3^2).

    Args:
        values: v and x, `[transitions, chains, D]`.
    """
    r_hat = tfp.mcmc.potential_scale_reduction(values, independent_chain_ndims=1, split_chains=True)
    ess = tfp.mcmc.effective_sample_size(values, filter_beyond_positive_pairs=True, cross_chain_dims=1).numpy()
    v = np.sort(values[..., 0].numpy().astype(np.float64), axis=None)
    exact = tfd.Normal(np.float64(0), np.float64(3)).cdf(v).numpy()
    steps = np.arange(len(v) + 1) / len(v)
    return {
        'smallest_ess': float(ess.min()),
        'ess': ess.tolist(),
        'largest_r_hat': float(np.max(r_hat)),
        'v_mean': float(v.mean()),
        'v_stddev': float(v.std()),
        'v_quantiles': np.quantile(v, [0.01, 0.99]).tolist(),
        # Kolmogorov and Smirnov's: the largest difference of the distribution functions, on either side of a step.
        'v_ks_distance': float(max(np.max(steps[1:] - exact), np.max(exact - steps[:-1]))),
    }


def aggregate(results: Mapping[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the statistics over seeds for every sampler, of figures of runs whose settings have a `sampler`."""
    groups = _summary.group_by(results, lambda settings: settings.sampler)
    return [
        {
            'sampler': str(sampler),
            **dataclasses.asdict(sampler),
            **{key: runs[0][key] for key in ('gradients', 'gradients_to_fit')},
            **{key: _summary.mean_and_error([figures[key] for figures in runs]) for key in AVERAGED},
            'largest_r_hat': max(figures['largest_r_hat'] for figures in runs),
        }
        for sampler, runs in groups.items()
    ]


def has_converged(row: dict[str, Any]) -> bool:
    """Returns whether R-hat says of every seed that its chains agree. If they do not, their ESS says too much."""
    return bool(row['largest_r_hat'] < CONVERGED)


def best_of(rows: Sequence[dict[str, Any]], method: str, key: str) -> dict[str, Any]:
    """Returns the row of a method's best settings, by the mean of a figure, of those that have converged if any has."""
    of_method = [row for row in rows if row['method'] == method]
    return max([row for row in of_method if has_converged(row)] or of_method, key=lambda row: row[key]['mean'])


def gains(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns by how much NeuTra at its best betters HMC at its best: the ratios of their mean figures."""
    keys = [key for key in AVERAGED if key.startswith('ess_per')]
    return {key: best_of(rows, 'NeuTra', key)[key]['mean'] / best_of(rows, 'HMC', key)[key]['mean'] for key in keys}
