"""Chains of bijectors that leave caching to them, and one that adds up their log-derivatives."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = ['FlowChain', 'UncachedChain']


class _NoCache(_compat.UncachedLookup):
    """Calls the bijector every time."""

    def _lookup(self, input: Any, forward_name: str, inverse_name: str, **kwargs: Any) -> Any:
        return self._invoke(input, forward_name, kwargs, attributes={})


class UncachedChain(_compat.Chain):
    """A `tfb.Chain` without a cache of its own, whose entries would go stale.

    Shapes, dtype and cost are those of its bijectors. It raises a TypeError for keywords that no bijector takes, which
    a `tfb.Chain` ignores.
    """

    _cache = _NoCache('_forward', '_inverse')

    def _walk_forward(self, step_fn: Any, x: Any, **kwargs: Any) -> Any:
        self._check_keywords(kwargs)
        return super()._walk_forward(step_fn, x, **kwargs)

    def _walk_inverse(self, step_fn: Any, y: Any, **kwargs: Any) -> Any:
        self._check_keywords(kwargs)
        return super()._walk_inverse(step_fn, y, **kwargs)

    def _check_keywords(self, kwargs: dict[str, Any]) -> None:
        """Raises an error for keywords that a `tfb.Chain` would ignore."""
        names = [bijector.name for bijector in self.bijectors]
        unknown = sorted(set(kwargs) - set(names))
        if unknown:
            raise TypeError(
                f'{self.name}: got the keywords {unknown}, expected some of the names of its bijectors, {names}, each '
                f'with a dict: {names[-1] if names else "flow_0"}={{"context": ...}}.'
            )


class FlowChain(UncachedChain):
    """A chain of steps of a flow, with log-derivatives by entry."""

    def forward_log_derivatives(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Returns the sum over the steps of their log-derivatives, by entry; see `InverseAutoregressiveFlow`."""
        self._check_keywords(kwargs)
        x = self._converted(x)
        total = tf.zeros_like(x)
        for bijector in reversed(self.bijectors):  # a Chain applies its last bijector first
            keywords = kwargs.get(bijector.name, {})
            total += self._elementwise(bijector).forward_log_derivatives(x, **keywords)
            x = bijector.forward(x, **keywords)
        return total

    def inverse_log_derivatives(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Returns the log-derivatives of the inverse, by entry; see `forward_log_derivatives`."""
        self._check_keywords(kwargs)
        y = self._converted(y)
        total = tf.zeros_like(y)
        for bijector in self.bijectors:
            keywords = kwargs.get(bijector.name, {})
            total += self._elementwise(bijector).inverse_log_derivatives(y, **keywords)
            y = bijector.inverse(y, **keywords)
        return total

    def _converted(self, value: Any) -> tf.Tensor:
        dtypes = [bijector.dtype for bijector in self.bijectors if bijector.dtype is not None]
        return tf.convert_to_tensor(value, dtype_hint=dtypes[0] if dtypes else None)

    def _elementwise(self, bijector: Any) -> Any:
        if not hasattr(bijector, 'forward_log_derivatives'):
            raise ValueError(
                f'bijectors: got {bijector!r} in {self.name!r}, which has no log-derivatives by entry, expected steps '
                f'of a flow. Use forward_log_det_jacobian for the log-det of the chain.'
            )
        return bijector
