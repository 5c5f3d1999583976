"""Real posteriors: the targets of TFP's Inference Gym that need no download, from the package `inference-gym`."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import tensorflow as tf

# Those whose names say 'Synthetic' draw their data by themselves, with a fixed seed.
TARGETS = (
    'EightSchools',
    'Banana',
    'NealsFunnel',
    'IllConditionedGaussian',
    'NonIdentifiableQuarticMeasurementModel',
    'BrownianMotionMissingMiddleObservations',
    'BrownianMotionUnknownScalesMissingMiddleObservations',
    'ConvectionLorenzBridge',
    'ConvectionLorenzBridgeUnknownScales',
    'VectorizedStochasticVolatilitySP500Small',
    'SyntheticLogGaussianCoxProcess',
    'SyntheticItemResponseTheory',
    'SyntheticPlasmaSpectroscopy',
)


class Target:
    """A target, as TFP's variational inference takes it.

    Args:
        model: Of the gym.
    """

    def __init__(self, model: Any) -> None:
        self.event_shape, self.bijector, self.dtype = model.event_shape, model.default_event_space_bijector, model.dtype
        self.prior = model.prior_distribution() if hasattr(model, 'prior_distribution') else None
        self._model = model

    def log_density(self, *parts: Any, **named_parts: Any) -> tf.Tensor:
        """Returns the unnormalised log-density of events, whose parts come as TFP passes them."""
        flat = tf.nest.flatten((list(parts), named_parts))
        return self._model.unnormalized_log_prob(tf.nest.pack_sequence_as(self.dtype, flat))

    @functools.cached_property
    def size(self) -> int:
        """Number of entries of an event."""
        return sum(shape.num_elements() for shape in tf.nest.flatten(self.event_shape))

    def errors(self, samples: Any) -> dict[str, float]:
        """Returns by how much moments are wrong, as root mean squares over entries, in units of the true deviations.

        Long runs of MCMC give the truth, or a closed form does. What the gym does not know is NaN.
        """
        known = self._model.sample_transformations['identity']
        if known.ground_truth_mean is None or known.ground_truth_standard_deviation is None:
            return {'mean_error': np.nan, 'deviation_error': np.nan}
        mean, deviation = (
            np.concatenate([np.ravel(part) for part in tf.nest.flatten(truth)])
            for truth in (known.ground_truth_mean, known.ground_truth_standard_deviation)
        )
        parts = [np.asarray(part) for part in tf.nest.flatten(known(samples))]
        flat = np.concatenate([np.reshape(part, [len(part), -1]) for part in parts], axis=1)
        return {
            'mean_error': float(np.sqrt(np.mean(((flat.mean(axis=0) - mean) / deviation) ** 2))),
            'deviation_error': float(np.sqrt(np.mean((flat.std(axis=0) / deviation - 1) ** 2))),
        }


@functools.cache
def load(name: str) -> Target:
    """Returns a target, or ends the program with what to install."""
    try:
        from inference_gym import using_tensorflow
    except ImportError:
        sys.exit('This experiment needs the Inference Gym: pip install --no-deps inference-gym immutabledict')
    return Target(getattr(using_tensorflow.targets, name)())
