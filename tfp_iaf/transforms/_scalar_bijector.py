"""Any scalar bijector of TFP as the transform of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._checks import checked_size
from tfp_iaf._numerics import nan_unless
from tfp_iaf.transforms._base import Transform

__all__ = ['ScalarBijector']

BijectorFn = Callable[[tf.Tensor], tfp.bijectors.Bijector]


class ScalarBijector(Transform):
    r"""The scalar bijector that a function makes of the parameters, as the `bijector_fn` of TFP's own flows.

    $$y = t_p(x), \qquad t_p = \mathrm{bijector\_fn}(p)$$

    Two instances are equal if their functions are the same object and they take as many parameters, so define the
    function once, at the top of a module. Keras then also finds it when it loads a model, by its name if it is
    registered with `keras.saving.register_keras_serializable` (or that of tf_keras for a tf_keras model). The function
    should depend on the parameters alone: variables and tensors that it closes over get gradients from
    `inverse='fixed_point'` only, and caches do not see them change.

    Args:
        bijector_fn: Takes the parameters `[..., D, P]` and returns a `tfb.Bijector` of scalars (an event of no
            dimensions) with batch shape `[..., D]`, such as `tfb.Chain` of `tfb.Shift`, `tfb.Scale` and
            `tfb.SinhArcsinh`. It must be increasing, and should be near the identity where the parameters are small.
        params: Number of parameters per entry, P.

    Raises:
        ValueError: If `params` is below 1 or, at a call, the bijector acts on more than scalars, decreases, or has
            another batch shape. If only the values tell that it decreases at an entry, that entry is NaN.
        TypeError: If `bijector_fn` is not a callable, or does not return a bijector.

    >>> tfb = tfp.bijectors
    >>> def affine(params):
    ...     m, log_scale = tf.unstack(params, axis=-1)
    ...     return tfb.Shift(m)(tfb.Scale(log_scale=log_scale))
    >>> y, log_derivative = ScalarBijector(affine, params=2).forward(tf.constant([3.]), tf.constant([[1., 0.]]))
    >>> y.numpy().tolist(), log_derivative.numpy().tolist()
    ([4.0], [0.0])
    """

    def __init__(self, bijector_fn: BijectorFn, params: int) -> None:
        if not callable(bijector_fn) or isinstance(bijector_fn, tfp.bijectors.Bijector):
            raise TypeError(
                f'bijector_fn: got {bijector_fn!r}, expected a function of the parameters [..., D, P] that returns a '
                f'bijector, such as lambda params: tfb.Shift(params[..., 0]).'
            )
        self._bijector_fn = bijector_fn
        self._params = checked_size('params', params)

    @property
    def bijector_fn(self) -> BijectorFn:
        """The function that makes the bijector."""
        return self._bijector_fn

    @property
    def params(self) -> int:
        return self._params

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {'bijector_fn': self._bijector_fn, 'params': self._params}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScalarBijector:
        """Makes the transform from what `get_config` returned, or from what Keras made of that."""
        bijector_fn = config['bijector_fn']
        if isinstance(bijector_fn, dict):
            # Keras has written a function as a dict, and leaves it to the classes to read it.
            import keras

            bijector_fn = keras.saving.deserialize_keras_object(bijector_fn)
        return cls(**{**config, 'bijector_fn': bijector_fn})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalarBijector) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self._bijector_fn, self._params))

    def __repr__(self) -> str:
        name = getattr(self._bijector_fn, '__name__', repr(self._bijector_fn))
        return f'{type(self).__name__}(bijector_fn={name}, params={self._params})'

    def forward(self, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        bijector, x = self._bijector(params), tf.identity(x)
        y = self._checked(bijector.forward(x), x, params)
        return y, self._log_derivative(bijector, bijector.forward_log_det_jacobian(x, event_ndims=0), y)

    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        bijector, y = self._bijector(params), tf.identity(y)
        x = self._checked(bijector.inverse(y), y, params)
        return x, self._log_derivative(bijector, -bijector.inverse_log_det_jacobian(y, event_ndims=0), x)

    # TFP caches a value for its log-derivative, by the tensor it is of, and shares the cache between equal bijectors.
    # A tensor of its own keeps each call apart: a gradient tape may have seen one of them and not the other.

    def _bijector(self, params: tf.Tensor) -> tfp.bijectors.Bijector:
        bijector = self._bijector_fn(params)
        if not isinstance(bijector, tfp.bijectors.Bijector):
            raise TypeError(f'bijector_fn: returned {bijector!r}, expected a tfp.bijectors.Bijector.')
        if (bijector.forward_min_event_ndims, bijector.inverse_min_event_ndims) != (0, 0) or not _compat.is_injective(
            bijector
        ):
            raise ValueError(
                f'bijector_fn: returned {bijector!r}, expected a one-to-one bijector of scalars, with '
                f'forward_min_event_ndims=0: each entry goes through its own.'
            )
        return bijector

    def _checked(self, value: tf.Tensor, argument: tf.Tensor, params: tf.Tensor) -> tf.Tensor:
        """Returns a result of the bijector, which has the shape of its argument broadcast to the parameters'."""
        expected = tf.broadcast_static_shape(argument.shape, params.shape[:-1])
        if not value.shape.is_compatible_with(expected):
            raise ValueError(
                f'bijector_fn: returned a bijector that takes shape {argument.shape} to {value.shape}, expected '
                f'{expected}. Its batch shape must be that of the parameters, {params.shape}, without the last axis: '
                f'use params[..., 0] and so on.'
            )
        return value

    def _log_derivative(
        self, bijector: tfp.bijectors.Bijector, log_derivative: tf.Tensor, value: tf.Tensor
    ) -> tf.Tensor:
        """Returns the log-derivative in the shape of the value, and NaN for the entries that decrease."""
        try:
            is_increasing = _compat.is_increasing(bijector)
        except NotImplementedError:
            raise ValueError(
                f'bijector_fn: returned {bijector!r}, which does not tell whether it increases, as it must. Where it '
                f'does, let its method _is_increasing return True (tfb.Inline takes is_increasing=).'
            ) from None
        log_derivative += tf.zeros_like(value)
        known = tf.get_static_value(is_increasing) if is_increasing.shape.rank == 0 else None
        if known is None:
            return nan_unless(is_increasing, log_derivative)
        if not known:
            raise ValueError(f'bijector_fn: returned {bijector!r}, which decreases, expected one that increases.')
        return log_derivative
