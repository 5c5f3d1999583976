"""Pareto smoothing of importance weights (NumPy only).

Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto Smoothed Importance Sampling", https://arxiv.org/abs/1507.02646.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ['smoothed', 'tail_size']

_FEWEST_OF_TAIL = 5


def tail_size(count: int) -> int:
    """Returns how many of so many weights are in the tail."""
    return int(min(0.2 * count, 3 * math.sqrt(count)))


def smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the logarithms of smoothed and normalised weights, `[S]`, and k-hat, the shape of their tail.

    The largest weights are replaced by the quantiles of a generalised Pareto distribution that was fitted to them. If
    all weights of the tail are nearly equal, nothing is smoothed, and k-hat is minus infinity. If one weight is all, or
    there are fewer than 25, it is infinity.

    >>> log_weights = np.random.default_rng(0).exponential(size=10000)  # of weights with P(w > t) = 1 / t, so k is 1
    >>> abs(smoothed(log_weights)[1] - 1.0) < 0.1
    True
    """
    # What is added to all cancels, and the largest weight is now 1.
    log_weights = log_weights - np.max(log_weights)
    size = tail_size(log_weights.size)
    if size < _FEWEST_OF_TAIL:
        return log_weights - np.logaddexp.reduce(log_weights), np.inf
    by_size = np.argsort(log_weights)
    tail, cutoff = by_size[-size:], np.exp(log_weights[by_size[-size - 1]])
    excess = np.exp(log_weights[tail]) - cutoff
    # In float32 log-densities equal weights differ by rounding.
    is_flat = excess[-1] <= 1e-3 * cutoff
    # Where one weight is all, the others of the tail are zero beside it.
    shape = -np.inf if is_flat else np.inf
    if not is_flat and excess[int(size / 4 + 0.5) - 1] > 0:
        shape, scale = _fitted(excess)
        levels = (np.arange(size) + 0.5) / size
        # A quantile of the distribution, whose limit for a shape of 0 is the exponential one.
        quantiles = scale * (np.expm1(-shape * np.log1p(-levels)) / shape if shape else -np.log1p(-levels))
        log_weights[tail] = np.minimum(np.log(cutoff + quantiles), 0.0)
    return log_weights - np.logaddexp.reduce(log_weights), float(shape)


def _fitted(excess: np.ndarray) -> tuple[float, float]:
    """Returns shape and scale of a generalised Pareto distribution, given sorted positive values.

    Zhang and Stephens 2009, "A New and Efficient Estimation Method for the Generalized Pareto Distribution": the mean
    of theta = -shape / scale over its profile likelihood. The shape is drawn towards 0.5 as by ten values more.
    """
    size = excess.size
    count = 30 + int(math.sqrt(size))
    quartile, largest = excess[int(size / 4 + 0.5) - 1], excess[-1]
    theta = 1 / largest + (1 - np.sqrt(count / (np.arange(count) + 0.5))) / (3 * quartile)
    shapes = np.mean(np.log1p(-theta[:, np.newaxis] * excess), axis=1)
    log_likelihood = size * (np.log(-theta / shapes) - shapes - 1)
    likelihood = np.exp(log_likelihood - np.max(log_likelihood))
    mean = np.sum(theta * likelihood) / np.sum(likelihood)
    shape = np.mean(np.log1p(-mean * excess))
    return float((size * shape + 10 * 0.5) / (size + 10)), float(-shape / mean)
