"""TFP's cache of a bijector's results, without its stale entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow.python.eager import record
from tensorflow.python.ops.gradients_util import PossibleTapeGradientTypes
from tensorflow_probability.python.bijectors.chain import _Chain
from tensorflow_probability.python.internal import cache_util

__all__ = ['CachedBijector', 'Dependencies', 'StepCache', 'UncachedChain']


class Dependencies:
    """The variables that a result depends on, their values at that moment, and other tensors that it depends on.

    The values share the variables' memory until those are assigned to: that copies them, unless the result is gone.
    """

    def __init__(self, variables: Iterable[Any], tensors: Iterable[tf.Tensor] = ()) -> None:
        self._variables, self._tensors = tuple(variables), tuple(tensors)
        # In a graph there is no telling.
        self._values = self._read() if tf.executing_eagerly() else None

    def _read(self) -> list[tf.Tensor]:
        # What Keras calls a variable can be converted, but not read.
        return [tf.convert_to_tensor(variable) for variable in self._variables]

    def are_unchanged(self) -> bool:
        """Tells whether the variables still have their values."""
        if self._values is None or not tf.executing_eagerly():
            return True
        return all(map(_are_equal, self._values, self._read()))

    def are_recorded_in(self, results: list[tf.Tensor], argument: tf.Tensor) -> bool:
        """Tells whether the gradient tapes that record now have seen how the results were made."""
        if not record.could_possibly_record():
            return True
        # 0: no tape would give a derivative, 1: one, of first order, 2: of higher order as well.
        sources = [*self._read(), *self._tensors, argument]
        return bool(PossibleTapeGradientTypes(results) >= PossibleTapeGradientTypes(sources))


def _are_equal(value: tf.Tensor, now: tf.Tensor) -> bool:
    # A tensor is never written to while someone holds it: the same memory is the same value.
    return _address(value) == _address(now) or bool(tf.reduce_all(tf.equal(value, now)))


def _address(tensor: tf.Tensor) -> object:
    if 'CPU' not in tensor.device:
        return object()
    try:
        return np.frombuffer(memoryview(tensor), np.uint8).__array_interface__['data'][0]
    except ValueError:  # of a dtype that Python's buffers do not know, such as bfloat16
        return object()


class StepCache(cache_util.BijectorCacheWithGreedyAttrs):
    """A cache in which value and log-det come together, and are dropped when they no longer hold.

    TFP finds a result by the identity of its tensor, for as long as that lives. It may then be wrong: the variables
    were assigned to since (which is seen eagerly), or a gradient tape that records now has not seen how it was made.
    Results carry their `Dependencies` as the attribute `'dependencies'`.
    """

    def _get_or_create_edge(self, input: Any, forward_name: str, kwargs: dict[str, Any]) -> Any:
        edge = super()._get_or_create_edge(input, forward_name, kwargs)
        if edge.attributes and not self._holds(edge, input):
            edge = edge._replace(output_ref=None, attributes={}, dependencies=None)
            self.storage[edge.input_ref] = edge
        return edge

    def _holds(self, edge: Any, argument: tf.Tensor) -> bool:
        output = edge.output_ref() if edge.output_ref else None
        dependencies = edge.attributes.get('dependencies')
        if output is None or dependencies is None:
            return False
        results = [output, edge.attributes['ildj']]
        return dependencies.are_recorded_in(results, argument) and dependencies.are_unchanged()


class CachedBijector(tfp.bijectors.Bijector):
    """A bijector whose value and log-det come from one evaluation, and are kept for as long as they hold.

    A subclass gives `_augmented_forward` and `_augmented_inverse`, which return a value and its attributes: `'ildj'`,
    the log-det of the inverse, and the `'dependencies'`.
    """

    _cache = StepCache('_augmented_forward', '_augmented_inverse')

    # Through the public directions, so that the value computed with a log-det is in the cache as well.

    def _forward_log_det_jacobian(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        y = self.forward(x, **kwargs)
        return -self._cache.inverse_attributes(y, **kwargs)['ildj']

    def _inverse_log_det_jacobian(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        x = self.inverse(y, **kwargs)
        return self._cache.forward_attributes(x, **kwargs)['ildj']


class _NoCache(cache_util.BijectorCache):
    """Calls the bijector every time."""

    def _lookup(self, input: Any, forward_name: str, inverse_name: str, **kwargs: Any) -> Any:
        return self._invoke(input, forward_name, kwargs, attributes={})


class UncachedChain(_Chain):
    """A `tfb.Chain` that leaves the caching to its bijectors, whose entries do not go stale."""

    _cache = _NoCache('_forward', '_inverse')
