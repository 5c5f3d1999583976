"""How good a fitted posterior is, in figures and in words, and samples that are better than its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._checks import checked_size
from tfp_iaf._pareto import smoothed, tail_size

__all__ = ['Diagnosis', 'diagnose']

# Of samples, from which on a fit is not judged by the others.
_LOST_SHARE = 0.01


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    r"""The figures of a fitted posterior q for an unnormalised target p; `print` says what they mean.

    With importance weights w = p / q of samples of q:

    Attributes:
        elbo: The mean of log w.
        elbo_error: Its standard error.
        log_evidence: $\log \hat Z$, the logarithm of the mean of w.
        effective_samples: $1 / \sum_i w_i^2$ of the `weights`: how many samples of p those of q are worth.
        k_hat: The shape of the tail of w. Above `k_limit`, what is estimated by weights is not reliable. Minus infinity
            if the largest weights are equal, infinity if one is all.
        k_hat_error: About its standard error, $(1 + \hat k) / \sqrt{M}$ for M weights in the tail.
        k_limit: $\min(1 - 1 / \log_{10} S,\ 0.7)$ for S samples.
        num_lost: Samples of which the target's log-density is NaN or infinite. They have weight 0. The ELBO, which is
            minus infinity or NaN with them, is that of the other samples.
        num_without_gradient: Samples at which the gradient of the target's log-density is NaN or infinite. A surrogate
            that `build_iaf_surrogate_posterior` made is not pulled by the target there.
        samples: The samples, a structure like that of q.
        weights: The weight of each sample, `[S]`, Pareto-smoothed; they add up to 1.
    """

    elbo: float
    elbo_error: float
    log_evidence: float
    effective_samples: float
    k_hat: float
    k_hat_error: float
    k_limit: float
    num_lost: int
    num_without_gradient: int
    samples: Any
    weights: np.ndarray

    def resample(self, num_samples: int, seed: int | None = None) -> Any:
        """Returns samples that are corrected towards the target: some of `samples`, drawn by their weights.

        They are drawn with replacement, so a few with large weights can come many times. Worth having where `k_hat` is
        below `k_limit`.

        Args:
            num_samples: How many; no more than `effective_samples` are of use.
            seed: Of the choice; `None` makes another one at each call.

        Raises:
            ValueError: If `num_samples` is below 1.
            TypeError: If it is not an int.
        """
        count = checked_size('num_samples', num_samples)
        chosen = np.random.default_rng(seed).choice(len(self.weights), count, p=self.weights)
        return tf.nest.map_structure(lambda part: tf.gather(part, chosen), self.samples)

    def __str__(self) -> str:
        count = len(self.weights)
        kl = f'about {max(self.log_evidence - self.elbo, 0.0):.2g} nats' if not self.num_lost else 'not finite'
        k_hat = f'{self.k_hat:.2f} ± {self.k_hat_error:.2f}' if np.isfinite(self.k_hat) else f'{self.k_hat}'
        lines = [
            f'ELBO {self.elbo:.3f} ± {self.elbo_error:.3f}, log evidence {self.log_evidence:.3f} by importance '
            f'weights: KL(q || p) is {kl}.',
            f'Pareto k-hat {k_hat}, effective samples {self.effective_samples:.0f} of {count}: {self._judgement()}',
        ]
        if self.num_lost:
            lines.append(
                f'The log-density of the target is NaN or infinite at {self.num_lost} of {count} samples: they have '
                'weight 0, and the ELBO leaves them out.'
            )
        if self.num_without_gradient:
            lines.append(
                f'The gradient of the target is NaN or infinite at {self.num_without_gradient} of {count} samples: a '
                'fit learns nothing from the target there, and goes wrong where there are many.'
            )
        lines.append('Parts of the target that q never visits show in none of them.')
        return '\n'.join(lines)

    __repr__ = __str__

    def _judgement(self) -> str:
        if self.num_lost > _LOST_SHARE * len(self.weights):
            return 'not to be trusted. Too much of q is where the target is not finite.'
        if abs(self.k_hat - self.k_limit) < self.k_hat_error:
            return 'on the limit of what is usable. More samples (`num_samples`) tell on which side.'
        if self.k_hat <= 0.5 and self.k_hat <= self.k_limit:
            return 'good. Weighted or resampled, the samples stand for the target.'
        if self.k_hat <= self.k_limit:
            return 'usable. Weighted or resampled, the samples stand for the target, with some more noise.'
        if self.k_hat < 1:
            return (
                'not reliable. The tail of the weights is heavy: q is too narrow somewhere. The log evidence is '
                'probably too low, and weights do not correct q. Train for longer, or take a more flexible flow.'
            )
        return (
            'not to be trusted. q leaves out or misshapes a part of the target: the log evidence and the KL are '
            'probably too low, by an unknown amount. Train for longer, take a more flexible flow, or use MCMC.'
        )


def diagnose(
    target_log_prob_fn: Callable[..., tf.Tensor], surrogate_posterior: Any, num_samples: int = 10000, seed: Any = None
) -> Diagnosis:
    r"""Tells how far a fitted posterior can be trusted, from new samples of it.

    $$w_i = \frac{p(z_i)}{q(z_i)}, \quad z_i \sim q, \quad \mathrm{ELBO} \approx \frac1S \sum_i \log w_i \le
      \log Z \approx \log \frac1S \sum_i w_i$$

    Args:
        target_log_prob_fn: The unnormalised log-density that q was fitted to, called as
            `tfp.vi.fit_surrogate_posterior` calls it.
        surrogate_posterior: q, of batch shape `[]`.
        num_samples: S. The shape of the tail needs some thousands.
        seed: Of the samples.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: If `num_samples` is below 100, q has a batch shape, or the target does not give one log-density for
            each sample, or is not finite anywhere.
        TypeError: If `num_samples` is not an int, or the target's dtype is not that of q.

    Cost: one pass of each network, and one evaluation of the target with its gradient, for each sample, all at once.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto Smoothed Importance Sampling",
        https://arxiv.org/abs/1507.02646.
        Yao, Vehtari, Simpson and Gelman 2018, "Yes, but Did It Work?: Evaluating Variational Inference",
        https://arxiv.org/abs/1802.02538.
        Eq. `importance-weighted` of the mathematics page.

    >>> import tensorflow_probability as tfp
    >>> q = tfp.distributions.Normal(0.0, 1.0)
    >>> diagnosis = diagnose(q.log_prob, q, seed=[0, 0])
    >>> diagnosis.elbo, round(diagnosis.effective_samples)
    (0.0, 10000)
    """
    count = checked_size('num_samples', num_samples, minimum=100)

    def draw() -> tuple[Any, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        samples, log_q = surrogate_posterior.experimental_sample_and_log_prob(count, seed=seed)
        with tf.GradientTape() as tape:
            tape.watch(samples)
            value = _compat.call_with_parts(target_log_prob_fn, samples)
            log_p = tf.convert_to_tensor(value, dtype_hint=log_q.dtype)
        if log_p.dtype != log_q.dtype:
            raise TypeError(
                f'target_log_prob_fn: got log-densities of dtype {log_p.dtype.name}, expected {log_q.dtype.name}, that '
                'of surrogate_posterior. Cast them, or make q in the dtype of the target.'
            )
        return samples, log_p, log_q, tape.gradient(log_p, tf.nest.flatten(samples), unconnected_gradients='zero')

    # As a concrete function: TensorFlow would warn of tracing again, when several fits are diagnosed.
    samples, log_p, log_q, slopes = tf.function(draw, autograph=False).get_concrete_function()()
    if log_q.shape != [count]:
        raise ValueError(
            f'surrogate_posterior: got log-densities of shape {log_q.shape.as_list()} for {count} samples, expected '
            f'[{count}]: one posterior, of batch shape [].'
        )
    if log_p.shape != [count]:
        raise ValueError(
            f'target_log_prob_fn: got log-densities of shape {log_p.shape.as_list()} for {count} samples, expected '
            f'[{count}]: one for each sample. Sum over the axes of an event alone, not over those of the samples.'
        )
    log_weights = (log_p - log_q).numpy().astype(np.float64)
    is_known = np.isfinite(log_weights)
    if not is_known.any():
        raise ValueError(
            f'target_log_prob_fn: got no finite value at {count} samples of surrogate_posterior, expected '
            'log-densities.'
        )
    known = log_weights[is_known]
    log_smoothed, k_hat = smoothed(known)
    weights = np.zeros(count)
    weights[is_known] = np.exp(log_smoothed)
    return Diagnosis(
        elbo=float(known.mean()),
        elbo_error=float(known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else np.nan,
        log_evidence=float(np.logaddexp.reduce(known) - np.log(count)),
        effective_samples=float(1 / np.sum(weights**2)),
        k_hat=k_hat,
        k_hat_error=float((1 + k_hat) / np.sqrt(tail_size(known.size))) if np.isfinite(k_hat) else 0.0,
        k_limit=min(1 - 1 / np.log10(count), 0.7),
        num_lost=int(count - known.size),
        num_without_gradient=int(np.sum(~np.all([_are_finite(slope) for slope in slopes], axis=0))),
        samples=samples,
        weights=weights / weights.sum(),
    )


def _are_finite(slope: tf.Tensor) -> np.ndarray:
    """Tells of which samples, `[S]`, the part of a gradient is finite."""
    return np.all(np.isfinite(np.reshape(slope, [len(slope), -1])), axis=1)
