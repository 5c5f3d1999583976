"""What the callbacks for Keras 3 and for tf_keras have in common: all of the KL term's warm-up."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf.checks import checked_number, checked_size
from tfp_iaf.sampling import SamplingLayer

__all__ = ['WarmupCallback']


class WarmupCallback:
    """The callback `KLWarmup`, mixed into the callback class of either Keras; see `tfp_iaf.keras.KLWarmup`."""

    model: Any

    def __init__(self, steps: int, start: float = 0.0) -> None:
        super().__init__()
        self.steps = checked_size('steps', steps)
        self.start = checked_number('start', start)
        self._sampling_layers: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the layers."""
        self._sampling_layers = [
            layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, SamplingLayer) and layer.kl_loss_weight is not None
        ]
        if not self._sampling_layers:
            raise ValueError(
                f'KLWarmup: got the model {self.model.name!r} without an IAFSampling layer that has a kl_loss_weight. '
                f'Give the layer the weight that the warm-up shall reach.'
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the weights for the steps that follow."""
        # In TensorFlow, not Python: to read the step would make the host wait for the accelerator.
        for layer in self._sampling_layers:
            weight = layer.kl_loss_weight
            share = tf.minimum(tf.cast(self.model.optimizer.iterations, weight.dtype) / self.steps, 1.0)
            weight.assign(self.start + (layer._kl_target - self.start) * share)
