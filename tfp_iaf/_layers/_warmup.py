"""The callback `KLWarmup`, for either Keras."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._checks import checked_number, checked_size
from tfp_iaf._layers._sampling import SamplingLayer

__all__ = ['WarmupCallback']

_BATCHES_WITHOUT_A_STEP = 10


class WarmupCallback:
    """The callback `KLWarmup`, mixed into the callback class of either Keras; see `tfp_iaf.keras.KLWarmup`."""

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
            for layer in _compat.layers_of(self.model)
            if isinstance(layer, SamplingLayer) and layer.kl_weight is not None
        ]
        if not self._sampling_layers:
            raise ValueError(
                f'KLWarmup: got the model {self.model.name!r} without an IAFSampling or PosteriorSampling layer that '
                f'has a kl_weight. Give the layer the weight that the warm-up is to reach.'
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
        share = tf.minimum(tf.cast(self._optimizer().iterations, tf.float32) / self.steps, 1.0)
        for layer in self._sampling_layers:
            layer._kl_warmup.set(share, self.start)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Restores the full weights until the next step."""
        for layer in self._sampling_layers:
            layer._kl_warmup.restore()

    def on_test_begin(self, logs: Any = None) -> None:
        """Restores the full weights."""
        self.on_train_batch_end(0)

    def on_train_end(self, logs: Any = None) -> None:
        """Restores the full weights."""
        self.on_train_batch_end(0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Raises an error if the optimizer made no step in many batches."""
        # A loss scale that is still too large may cost the first few.
        batches_per_step = getattr(self._optimizer(), 'gradient_accumulation_steps', None) or 1
        if self._batches < _BATCHES_WITHOUT_A_STEP * batches_per_step or self._steps_made() != self._first_step:
            return
        raise ValueError(
            f'KLWarmup: the optimizer of the model {self.model.name!r} made no step in {self._batches} batches, and so '
            f'the weight of the KL term would not grow. Where train_step uses an optimizer of its own, pass that one '
            f'to compile.'
        )

    def _steps_made(self) -> int:
        # A tensor, since under a strategy the count is a variable on each device, and no int can be made of that.
        return int(tf.convert_to_tensor(self._optimizer().iterations))

    def _optimizer(self) -> Any:
        # In the oldest versions of Keras 3, an optimizer that scales the loss does not count on its own.
        return getattr(self.model.optimizer, 'inner_optimizer', self.model.optimizer)
