"""The weight of the KL term during a warm-up."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = ['KLMean', 'KLWarmupState']


class KLWarmupState(_compat.UnsavedState):
    """A weight that replaces the full one in training steps only.

    A warm-up does not change the variable of the full weight, which every file contains. It writes to a variable that
    no checkpoint contains.

    Args:
        dtype: Dtype of the weight.
    """

    def __init__(self, dtype: tf.DType) -> None:
        super().__init__()
        with tf.init_scope():
            # The weight in a training step is factor * full + offset.
            self._factor_and_offset = tf.Variable([1.0, 0.0], trainable=False, dtype=dtype, name='kl_warmup')

    def weight(self, full: tf.Tensor, training: Any) -> tf.Tensor:
        """Returns the current weight; `training` is the argument of a Keras layer, or `None` if it was not passed."""
        if training is not None and not tf.is_tensor(training) and not training:
            return full
        factor, offset = tf.unstack(self._factor_and_offset)
        return factor * full + offset

    def set(self, share: tf.Tensor, start: float) -> None:
        """Makes the weight in training steps `start` for a share of 0, and the full one for a share of 1."""
        share = tf.cast(share, self._factor_and_offset.dtype)
        self._factor_and_offset.assign(tf.stack([share, start * (1.0 - share)]))

    def restore(self) -> None:
        """Makes the weight the full one everywhere."""
        self._factor_and_offset.assign([1.0, 0.0])


class KLMean:
    """The metric of the KL, mixed into the metric `Mean` of either Keras: a reset of it also ends a warm-up.

    Every epoch of `fit`, and every `evaluate`, begins with a reset. A warm-up that was interrupted within a step, where
    no callback is told, therefore has no effect on what comes after it.
    """

    warmup: KLWarmupState | None = None

    def reset_state(self) -> None:
        """Forgets all values, and restores the full weight."""
        super().reset_state()  # type: ignore[misc]
        # Within a compiled step, the reset is that of the step itself, which may be one of a warm-up.
        if self.warmup is not None and not tf.inside_function():
            self.warmup.restore()
