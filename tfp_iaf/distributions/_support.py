"""From unit-scale coordinates to the support of a model: a trained location and scale, and the model's bijector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._caching import CachedBijector, Dependencies

__all__ = ['LocScale', 'support_of']


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
        return self._loc + scale * x, self._attributes(scale)

    def _augmented_inverse(self, y: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
        scale = tf.convert_to_tensor(self._scale)
        return (y - self._loc) / scale, self._attributes(scale)

    def _attributes(self, scale: tf.Tensor) -> dict[str, Any]:
        log_scale = tf.math.log(scale)
        dependencies = Dependencies([self._loc, self._scale.pretransformed_input])
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
        # Behind a function, TensorFlow looks for variables neither to train nor to save.
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


def support_of(
    bijector: tfp.bijectors.Bijector, event_shapes: Any, unconstrained_shapes: Any, dtype: tf.DType
) -> tfp.bijectors.Bijector:
    """Returns a bijector to the support whose log-det fits the densities of TFP, and whose variables stay the model's.

    `tfb.SoftmaxCentered`, which TFP takes for a Dirichlet, measures volume on the simplex. The density of a Dirichlet
    is that of all entries but one. The two differ by sqrt(K + 1) for K + 1 entries, which would bias an estimate of the
    evidence.

    Args:
        bijector: Maps real numbers to the support.
        event_shapes: Structure of the shapes of an event.
        unconstrained_shapes: Structure of the shapes that the bijector takes to these.
        dtype: Dtype of all parts.
    """
    excess = _excess(bijector, event_shapes, unconstrained_shapes, dtype)
    return _compat.Invert(_FromSupport(bijector, excess), name=bijector.name)


def _excess(bijector: tfp.bijectors.Bijector, event_shapes: Any, unconstrained_shapes: Any, dtype: tf.DType) -> float:
    shapes, unconstrained = tf.nest.flatten(event_shapes), tf.nest.flatten(unconstrained_shapes)
    measures_coordinates = any(
        isinstance(part, tfp.bijectors.IteratedSigmoidCentered) for part in (bijector, *bijector.submodules)
    )
    if len(shapes) != len(unconstrained) or measures_coordinates:
        return 0.0
    candidates = [
        before.rank == after.rank and before.rank > 0 and before[:-1] == after[:-1] and before[-1] + 1 == after[-1]
        for before, after in zip(unconstrained, shapes, strict=True)
    ]
    model = _compat.model_of(bijector)
    if any(candidates) and model is not None:
        # A transformed distribution has its density from the bijector itself, so the two agree.
        parts = tf.nest.flatten(_compat.parts_of(model))
        candidates = [is_one and not _is_transformed(part) for is_one, part in zip(candidates, parts, strict=True)]
    if not any(candidates):
        return 0.0
    with tf.init_scope():
        zeros = tf.nest.map_structure(lambda shape: tf.zeros(shape, dtype), unconstrained_shapes)
        parts = [np.asarray(part) for part in tf.nest.flatten(bijector.forward(zeros))]
        simplices = [
            part
            for part, is_one in zip(parts, candidates, strict=True)
            if is_one and np.all(part >= 0) and np.allclose(part.sum(axis=-1), 1, atol=1e-3)
        ]
        return sum(part[..., 0].size * _excess_of_softmax(part.shape[-1] - 1, dtype) for part in simplices)


def _is_transformed(distribution: Any) -> bool:
    while distribution is not None:
        if isinstance(distribution, _compat.TransformedDistribution):
            return True
        distribution = getattr(distribution, 'distribution', None)  # of tfd.Sample, tfd.Independent and the like
    return False


def _excess_of_softmax(size: int, dtype: tf.DType) -> float:
    """Returns the log-det of `tfb.SoftmaxCentered` at zero, less the right one for its coordinates."""
    log_det = tfp.bijectors.SoftmaxCentered().forward_log_det_jacobian(tf.zeros([size], dtype), event_ndims=1)
    return float(log_det) + (size + 1) * float(np.log(size + 1))
