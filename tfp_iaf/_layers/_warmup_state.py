"""What a warm-up makes of the weight of the KL term for the time of a training step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = ['KLWarmupState']


class KLWarmupState(_compat.UnsavedState):
    """A weight that replaces the full one, in training steps alone.

    No warm-up touches the variable of the full weight, which is what every file has. A warm-up writes to a variable
    that is in no checkpoint.

    Args:
        dtype: Dtype of the weight.
    """

    def __init__(self, dtype: tf.DType) -> None:
        super().__init__()
        with tf.init_scope():
            # The weight in a training step is factor * full + offset.
            self._factor_and_offset = tf.Variable([1.0, 0.0], trainable=False, dtype=dtype, name='kl_warmup')

    def weight(self, full: tf.Tensor, training: Any) -> tf.Tensor:
        """Returns the weight in force; `training` is the argument of a Keras layer, `None` where nobody passed it."""
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
