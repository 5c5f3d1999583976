"""The prior p(z) of a Keras layer: a distribution, a function, or a layer that is trained with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_probability as tfp

__all__ = ['Prior', 'check_shape', 'checked_prior', 'log_prob']

Prior: TypeAlias = Callable[[tf.Tensor], tf.Tensor] | tfp.distributions.Distribution


def checked_prior(prior: Any, layer_class: type) -> Prior | None:
    """Returns `prior`, or raises if its variables would be lost: neither trained nor saved."""
    if isinstance(prior, tfp.distributions.Distribution):
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
            f'layer z -> log p(z).'
        )
    return prior


def check_shape(prior: Prior | None, event_shape: Sequence[int], dtype: tf.DType) -> None:
    """Raises an error if a distribution is none of one z."""
    if not isinstance(prior, tfp.distributions.Distribution):
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


def log_prob(prior: Prior | None, z: tf.Tensor) -> tf.Tensor:
    """Returns log p(z), `[batch]`, for z `[batch, ...]`; `None` is the standard normal."""
    if prior is None:
        prior = tfp.distributions.Normal(tf.zeros([], z.dtype), 1.0)
    if isinstance(prior, tfp.distributions.Distribution):
        log_p = prior.log_prob(z)
        return tf.reduce_sum(log_p, axis=range(1, z.shape.rank)) if prior.event_shape.rank == 0 else log_p
    log_p = tf.convert_to_tensor(prior(z))
    if log_p.shape.rank not in (None, 1) or not log_p.shape.is_compatible_with(z.shape[:1]):
        raise ValueError(
            f'prior: returned shape {log_p.shape} for z of shape {z.shape}, expected {z.shape[:1]}: one log p(z) for '
            f'each row. Sum over the entries, and drop axes of size 1.'
        )
    return tf.cast(log_p, z.dtype)


def _broadcasts_to(shape: tf.TensorShape, target: tf.TensorShape) -> bool:
    try:
        return bool(tf.broadcast_static_shape(shape, target) == target)
    except ValueError:
        return False
