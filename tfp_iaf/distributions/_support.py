"""From unit-scale coordinates to the support of a model: a trained location and scale, and the model's bijector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._caching import CachedBijector, Dependencies
from tfp_iaf._numerics import are_in_range

__all__ = ['LocScale', 'support_of']


@tf.custom_gradient
def _without_lost_gradients(z: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns z, with a gradient of zero for the events, `[..., D]`, at which that of what follows is out of range.

    One sample that overflows a target would otherwise make NaN of all variables for good. The part of log q stays.
    """

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.where(are_in_range(upstream), upstream, tf.zeros([], upstream.dtype))

    return tf.identity(z), gradient


class LocScale(CachedBijector):
    """y = loc + scale * x; unlike `tfb.Shift` and `tfb.Scale` it keeps no results of variables that have changed."""

    def __init__(self, loc: tf.Variable, scale: tfp.util.TransformedVariable) -> None:
        parameters = dict(locals())
        self._loc, self._scale = loc, scale
        super().__init__(forward_min_event_ndims=1, dtype=loc.dtype, parameters=parameters, name='loc_scale')

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType | None) -> dict[str, Any]:
        return dict.fromkeys(['loc', 'scale'], _compat.parameter_properties(event_ndims=1))

    def _augmented_forward(self, x: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
        scale = tf.convert_to_tensor(self._scale)
        return _without_lost_gradients(self._loc + scale * x), self._attributes(scale)

    def _augmented_inverse(self, y: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
        scale = tf.convert_to_tensor(self._scale)
        return (y - self._loc) / scale, self._attributes(scale)

    def _attributes(self, scale: tf.Tensor) -> dict[str, Any]:
        log_scale = tf.math.log(scale)
        dependencies = Dependencies([self._loc, self._scale])
        return {'ildj': -tf.reduce_sum(log_scale), 'log_derivatives': log_scale, 'dependencies': dependencies}


class _FromSupport(_compat.Invert):
    """The inverse of a model's event-space bijector, which hides the model's variables and corrects the volume.

    The variables of the bijector are those of the model, such as of a prior that is a flow. A posterior must not train
    or save them.

    Args:
        bijector: Maps real numbers to the support.
        excess: By how much its log-det exceeds that of the coordinates in which the model's densities are given.
    """

    _TF_MODULE_IGNORED_PROPERTIES = _compat.Invert._TF_MODULE_IGNORED_PROPERTIES | {'_parameters', '_hidden'}

    def __init__(self, bijector: tfp.bijectors.Bijector, excess: float) -> None:
        parameters = dict(locals())
        # A closure hides the bijector from TensorFlow's tracking of variables.
        self._hidden: Callable[[], tfp.bijectors.Bijector] = lambda: bijector
        self._excess = excess
        tfp.bijectors.Bijector.__init__(
            self,
            forward_min_event_ndims=bijector.inverse_min_event_ndims,
            inverse_min_event_ndims=bijector.forward_min_event_ndims,
            dtype=bijector.dtype,
            is_constant_jacobian=bijector.is_constant_jacobian,
            parameters=parameters,
            name=f'from_{bijector.name}',
        )

    @property
    def bijector(self) -> tfp.bijectors.Bijector:
        return self._hidden()

    def forward_log_det_jacobian(self, x: Any, event_ndims: Any = None, **kwargs: Any) -> tf.Tensor:
        return super().forward_log_det_jacobian(x, event_ndims, **kwargs) + self._excess

    def inverse_log_det_jacobian(self, y: Any, event_ndims: Any = None, **kwargs: Any) -> tf.Tensor:
        return super().inverse_log_det_jacobian(y, event_ndims, **kwargs) - self._excess


def support_of(bijector: tfp.bijectors.Bijector, event_shapes: Any, dtype: tf.DType) -> tfp.bijectors.Bijector:
    """Returns a bijector to the support whose log-det fits the densities of TFP, and whose variables stay the model's.

    `tfb.SoftmaxCentered`, which TFP takes for a Dirichlet, measures volume on the simplex. The density of a Dirichlet
    is that of all entries but one. The two differ by sqrt(K + 1) for K + 1 entries, which would bias an estimate of the
    evidence.

    Args:
        bijector: Maps real numbers to the support.
        event_shapes: Structure of the shapes of an event.
        dtype: Dtype of all parts.
    """
    excess = _excess(bijector, event_shapes, dtype)
    return _compat.Invert(_FromSupport(bijector, excess), name=bijector.name)


def _excess(bijector: tfp.bijectors.Bijector, event_shapes: Any, dtype: tf.DType) -> float:
    return sum(
        shape[:-1].num_elements() * _excess_of_softmax(shape[-1] - 1, dtype)
        for shape, part in zip(tf.nest.flatten(event_shapes), _parts(bijector), strict=False)
        if _is_simplex(part)
    )


def _parts(bijector: tfp.bijectors.Bijector) -> list[tfp.bijectors.Bijector]:
    """Returns the bijector of each part of an event, or none if they are unknown."""
    model = _compat.model_of(bijector)
    if model is not None:
        parts = tf.nest.flatten(_compat.parts_of(model))
        return [part and part.experimental_default_event_space_bijector() for part in parts]
    return tf.nest.flatten(getattr(bijector, 'bijectors', bijector)) if _is_joint(bijector) else [bijector]


def _is_joint(bijector: tfp.bijectors.Bijector) -> bool:
    return tf.nest.is_nested(bijector.forward_min_event_ndims)


def _is_simplex(bijector: Any) -> bool:
    """Tells the bijector of a Dirichlet from that of a transformed distribution, whose density it gives, so they agree.

    The latter is a chain, of the bijector and of that of the base distribution.
    """
    if bijector is None:
        return False
    members = (bijector, *bijector.submodules)
    return any(isinstance(member, tfp.bijectors.SoftmaxCentered) for member in members) and not any(
        isinstance(member, _compat.Chain) for member in members
    )


def _excess_of_softmax(size: int, dtype: tf.DType) -> float:
    """Returns the log-det of `tfb.SoftmaxCentered` at zero, less the right one for its coordinates."""
    log_det = tfp.bijectors.SoftmaxCentered().forward_log_det_jacobian(tf.zeros([size], dtype), event_ndims=1)
    return float(log_det) + (size + 1) * float(np.log(size + 1))
