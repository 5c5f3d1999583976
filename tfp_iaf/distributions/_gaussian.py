"""The Gaussian at the base of a flow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat

__all__ = ['gaussian']


class _Normal(tfp.distributions.Normal):
    """A `tfd.Normal` whose parameters get no NaN gradient from an x that a mask keeps out of the loss."""

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        is_known = tf.abs(x) <= x.dtype.max
        log_prob = super()._log_prob(tf.where(is_known, x, tf.zeros([], x.dtype)))
        return tf.where(is_known, log_prob, -tf.abs(tf.stop_gradient(x)))


def gaussian(loc: Any, scale_diag: Any, event_ndims: int, validate_args: bool = False) -> tfp.distributions.Independent:
    """Returns a diagonal Gaussian with `event_ndims` event axes.

    >>> gaussian(tf.zeros([5, 2]), tf.ones([5, 2]), event_ndims=1).event_shape
    TensorShape([2])
    """
    # Not MultivariateNormalDiag, which is the same but takes four times as long eagerly.
    normal = _Normal(loc, scale_diag, validate_args=validate_args)
    return _compat.Independent(normal, reinterpreted_batch_ndims=event_ndims)
