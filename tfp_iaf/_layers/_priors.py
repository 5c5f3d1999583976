"""The prior p(z) of a Keras layer: a distribution, a function, a layer that is trained, or tensors at the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_iaf._layers._kl import Prior, entries_of

__all__ = ['check_shape', 'checked_prior', 'gaussian', 'is_factorised']


def gaussian(mean: Any, log_var: Any, dtype: tf.DType) -> tfd.Normal:
    """Returns the prior of every entry: a Gaussian with this mean and log-variance.

    >>> gaussian(0.0, 0.0, tf.float32).batch_shape
    TensorShape([])
    """
    mean, log_var = (tf.cast(tf.convert_to_tensor(value), dtype) for value in (mean, log_var))
    return tfd.Normal(mean, tf.exp(0.5 * log_var))


def is_factorised(prior: Any) -> bool:
    """Tells whether the entries are independent under a prior of the constructor."""
    return prior is None or (isinstance(prior, tfd.Distribution) and entries_of(prior) is not None)


def checked_prior(prior: Any, layer_class: type) -> Prior | None:
    """Returns `prior`, or raises an error if its variables would be lost: neither trained nor saved."""
    if isinstance(prior, tfd.Distribution):
        if prior.variables:
            raise ValueError(
                f'prior: got {prior} with the variables {[variable.name for variable in prior.variables]}, which Keras '
                f'would not save. Pass a Keras layer that maps z to log p(z), with these as its weights.'
            )
        return prior
    if prior is None or isinstance(prior, layer_class):
        return prior
    if hasattr(prior, 'trainable_variables'):
        raise TypeError(
            f'prior: got {prior!r}, whose variables {layer_class.__module__}.{layer_class.__name__} does not track. '
            f'Pass a layer of that kind, a function z -> log p(z), or a tfd.Distribution.'
        )
    if not callable(prior):
        raise TypeError(
            f'prior: got {prior!r}, expected None for the standard normal, a tfd.Distribution, or a function or Keras '
            f'layer z -> log p(z). Tensors [mean, log_var] go to the call of the layer.'
        )
    return prior


def check_shape(prior: Prior | None, event_shape: Sequence[int], dtype: tf.DType) -> None:
    """Raises an error if a distribution is not one of z."""
    if not isinstance(prior, tfd.Distribution):
        return
    if prior.dtype != dtype:
        raise TypeError(f'prior: got {prior}, expected dtype {dtype.name}, that of z. Make it, or the layer, with it.')
    if prior.event_shape.rank == 0:
        fits = _broadcasts_to(prior.batch_shape, tf.TensorShape(event_shape))
    else:
        fits = prior.event_shape.is_compatible_with(event_shape) and prior.batch_shape.is_compatible_with([])
    if not fits:
        raise ValueError(
            f'prior: got {prior}, expected event shape {list(event_shape)}, that of z, and no batch shape; or a scalar '
            f'distribution of the entries, whose batch shape broadcasts to {list(event_shape)}.'
        )


def _broadcasts_to(shape: tf.TensorShape, target: tf.TensorShape) -> bool:
    try:
        return bool(tf.broadcast_static_shape(shape, target) == target)
    except ValueError:
        return False
