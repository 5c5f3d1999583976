"""What the examples of variational inference share: the fit, and the figures of what was fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp


class Fit(Protocol):
    """The settings of a fit: its name, for errors, and what `fit` and `draw` depend on."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def sample_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def evaluation_samples(self) -> int: ...


def fit(log_density: Callable[..., tf.Tensor], q: Any, settings: Fit, annealing: float = 0.0) -> np.ndarray:
    r"""Maximises the ELBO, and returns -ELBO at every step, `[steps]`, each estimated with that step's samples.

    With annealing the target is $p^\beta$, where $\beta$ grows from 0.01 to 1: at first so flat that q spreads over all
    of it, before it settles. The losses until then are not those of p.

    Args:
        log_density: The target's, up to a constant, of a sample of q, whose parts are its arguments.
        q: A distribution with trainable variables.
        settings: How to fit it.
        annealing: The share of the steps after which $\beta$ is 1.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", Eq. 20.
    """
    # A sample in the neck of a funnel has a gradient thousands of times larger than others: hence the clipping.
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    optimizer.build(q.trainable_variables)

    def annealed(*parts: Any, **named_parts: Any) -> tf.Tensor:
        progress = tf.cast(optimizer.iterations, tf.float32) / (annealing * settings.steps)
        return tf.minimum(0.01 + progress, 1.0) * log_density(*parts, **named_parts)

    losses = tfp.vi.fit_surrogate_posterior(
        annealed if annealing else log_density,
        q,
        optimizer,
        settings.steps,
        sample_size=settings.sample_size,
        trainable_variables=q.trainable_variables,
        jit_compile=True,
        seed=[settings.seed, 0],  # a pair: a single number would depend on what ran before
    ).numpy()
    if not np.all(np.isfinite(losses)):
        bad = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(
            f'{settings.name}: the loss became {losses[bad]} at step {bad}. Lower the learning rate.'
        )
    return losses


def draw(log_density: Callable[..., tf.Tensor], q: Any, settings: Fit) -> tuple[Any, np.ndarray]:
    """Returns new samples of q, and log p - log q of each, `[evaluation_samples]`, whose mean estimates the ELBO."""

    @tf.function(autograph=False)
    def sample_and_densities() -> tuple[Any, tf.Tensor, tf.Tensor]:
        sample, log_q = q.experimental_sample_and_log_prob(settings.evaluation_samples, seed=[settings.seed, 1])
        return sample, log_q, log_density(sample)

    sample, log_q, log_p = sample_and_densities()
    return sample, log_p.numpy().astype(np.float64) - log_q.numpy()


def statistics(log_weights: np.ndarray, log_evidence: float) -> dict[str, float]:
    """Returns the ELBO, and KL(q || p) = log evidence - ELBO, with their standard error, of what `draw` gave."""
    elbo = float(log_weights.mean())
    return {
        'log_evidence': log_evidence,
        'elbo': elbo,
        'kl': log_evidence - elbo,
        'standard_error': float(log_weights.std(ddof=1) / np.sqrt(len(log_weights))),
    }
