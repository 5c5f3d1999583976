"""What the callbacks for Keras 3 and for tf_keras have in common: all of the KL term's warm-up."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf.checks import checked_number, checked_size
from tfp_iaf.sampling import SamplingLayer

__all__ = ['WarmupCallback']

_BATCHES_WITHOUT_A_STEP = 10


class WarmupCallback:
    """The callback `KLWarmup`, mixed into the callback class of either Keras; see `tfp_iaf.keras.KLWarmup`.

    The weight is Eq. (27) of the mathematics page.
    """

    model: Any

    def __init__(self, steps: int, start: float = 0.0) -> None:
        super().__init__()
        self.steps = checked_size('steps', steps)
        self.start = checked_number('start', start)
        self._sampling_layers: list[Any] = []
        self._first_step = self._batches = 0

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
        if self.model.optimizer is None:
            raise ValueError(
                f'KLWarmup: got the model {self.model.name!r} without an optimizer, whose steps it counts. Where '
                f'train_step uses an optimizer of its own, pass that one to compile.'
            )
        self._first_step, self._batches = self._steps_made(), 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the weights for the steps that follow."""
        self._batches += 1
        # In TensorFlow, not Python: to read the step would make the host wait for the accelerator.
        for layer in self._sampling_layers:
            weight = layer.kl_loss_weight
            share = tf.minimum(tf.cast(self.model.optimizer.iterations, weight.dtype) / self.steps, 1.0)
            weight.assign(self.start + (layer._kl_target - self.start) * share)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Makes sure that the optimizer's steps are counted."""
        # A loss scale that is still too large may cost the first few.
        if self._batches < _BATCHES_WITHOUT_A_STEP or self._steps_made() != self._first_step:
            return
        raise ValueError(
            f'KLWarmup: the optimizer of the model {self.model.name!r} made no step in {self._batches} batches, and so '
            f'the weight of the KL term would not grow. Where train_step uses an optimizer of its own, pass that one '
            f'to compile.'
        )

    def _steps_made(self) -> int:
        # A tensor, since under a strategy the count is a variable on each device, and no int can be made of that.
        return int(tf.convert_to_tensor(self.model.optimizer.iterations))
