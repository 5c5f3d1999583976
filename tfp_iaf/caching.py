"""TFP's cache of a bijector's results, without its stale entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow_probability.python.bijectors.chain import _Chain
from tensorflow_probability.python.internal import cache_util

__all__ = ['Dependencies', 'StepCache', 'UncachedChain']


class Dependencies(NamedTuple):
    """What an eager result depends on beside its arguments."""

    variables: tuple[tf.Variable, ...]
    # They share the variables' memory for as long as those are not assigned to.
    values: tuple[tf.Tensor, ...]
    recorded: bool

    @classmethod
    def now(cls, variables: Iterable[tf.Variable]) -> Dependencies | None:
        """Returns the variables as they are, and whether a gradient tape is recording; `None` in a graph."""
        if not tf.executing_eagerly():
            return None
        variables = tuple(variables)
        return cls(variables, tuple(v.read_value() for v in variables), record.could_possibly_record())

    def hold(self) -> bool:
        """Tells whether a new result would be the same, and have the same gradient."""
        if record.could_possibly_record() and not self.recorded:
            return False
        return all(map(_is_value_of, self.values, self.variables))


def _is_value_of(value: tf.Tensor, variable: tf.Variable) -> bool:
    now = variable.read_value()
    # A tensor is never written to while someone holds it: the same memory is the same value.
    return _address(value) == _address(now) or bool(tf.reduce_all(tf.equal(value, now)))


def _address(tensor: tf.Tensor) -> int | None:
    if 'CPU' not in tensor.device:
        return None
    return np.frombuffer(memoryview(tensor), np.uint8).__array_interface__['data'][0]


class StepCache(cache_util.BijectorCacheWithGreedyAttrs):
    """A cache in which value and log-det come together, and are dropped when they no longer hold.

    TFP finds a result by the identity of its tensor, for as long as that lives. Eagerly it may then be wrong: the
    variables were assigned to since, or no gradient tape recorded how it was made while one is recording now. Results
    carry their `Dependencies` as the attribute `'dependencies'`.
    """

    def _get_or_create_edge(self, input: Any, forward_name: str, kwargs: dict[str, Any]) -> Any:
        edge = super()._get_or_create_edge(input, forward_name, kwargs)
        dependencies = edge.attributes.get('dependencies')
        if dependencies is not None and not (edge.output_ref and dependencies.hold()):
            edge = edge._replace(output_ref=None, attributes={}, dependencies=None)
            self.storage[edge.input_ref] = edge
        return edge


class _NoCache(cache_util.BijectorCache):
    """Calls the bijector every time."""

    def _lookup(self, input: Any, forward_name: str, inverse_name: str, **kwargs: Any) -> Any:
        return self._invoke(input, forward_name, kwargs, attributes={})


class UncachedChain(_Chain):
    """A `tfb.Chain` that leaves the caching to its bijectors, whose entries do not go stale."""

    _cache = _NoCache('_forward', '_inverse')
