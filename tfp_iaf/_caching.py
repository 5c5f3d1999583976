"""TFP's cache of a bijector's results, without its stale entries."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._tracking import check_keras_tracks

__all__ = ['CachedBijector', 'Dependencies', 'ElementwiseBijector']

_POINTER_OF = ctypes.pythonapi.PyCapsule_GetPointer
_POINTER_OF.restype, _POINTER_OF.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Dependencies:
    """The variables that a result depends on, their values at that moment, and other tensors that it depends on.

    Variables that a Keras 3 model holds, but would not train, are an error.

    The values share memory with the variables until those are assigned to, which copies them if they are still needed.

    Args:
        sources: Variables, objects that have variables, and tensors. Anything else counts as constant.
    """

    def __init__(self, sources: Iterable[Any]) -> None:
        self._variables: list[Any] = []
        self._tensors: list[tf.Tensor] = []
        for source in sources:
            if isinstance(source, tf.Variable):
                self._variables.append(source)
            elif hasattr(source, 'variables'):  # before tensors: a tfp.util.DeferredTensor counts as one
                self._variables.extend(() if callable(source.variables) else source.variables)
            elif tf.is_tensor(source):
                self._tensors.append(source)
        check_keras_tracks(self._variables)
        # In a graph there are no values, but the operations that assign to the variables can be counted.
        self._values = self._read() if tf.executing_eagerly() else None
        self._assignments = _compat.count_assignments(self._variables)

    def _read(self) -> list[tf.Tensor]:
        # A Keras variable can be converted, but not read.
        return [tf.convert_to_tensor(variable) for variable in self._variables]

    def are_unchanged(self) -> bool:
        """Tells whether the variables still have their values."""
        if self._values is None or not tf.executing_eagerly():
            return _compat.count_assignments(self._variables) == self._assignments
        return all(map(_are_equal, self._values, self._read()))

    def are_recorded_in(self, results: list[tf.Tensor], argument: tf.Tensor) -> bool:
        """Tells whether the gradient tapes that record now have seen how the results were made."""
        # To read a variable outside a tape is cheap, but not free.
        return not _compat.is_recording() or _compat.tapes_have_seen(results, [*self._read(), *self._tensors, argument])


def _are_equal(value: tf.Tensor, now: tf.Tensor) -> bool:
    # A tensor is never written to while someone holds it: the same memory is the same value.
    return _address(value) == _address(now) or bool(tf.reduce_all(tf.equal(value, now)))


def _address(tensor: tf.Tensor) -> object:
    """Returns where the entries of an eager tensor are, on any device."""
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):  # TensorFlow may crash on others
        return object()
    # The first member of what DLPack shares is the address; it lives as long as the capsule.
    capsule = tf.experimental.dlpack.to_dlpack(tensor)
    return ctypes.c_void_p.from_address(_POINTER_OF(capsule, b'dltensor')).value


def _is_in_scope(tensor: tf.Tensor) -> bool:
    """Tells whether operations made now may use a tensor: not one of a branch, a loop or a scratch graph of Keras."""
    own = getattr(tensor, 'graph', None)  # an eager tensor has none
    return own is None or any(graph is own for graph in _compat.enclosing_graphs())


class _StepCache(_compat.GreedyCache):
    """A cache in which value and log-det come together, and are dropped when they no longer hold.

    TFP finds a result by the identity of its tensor, for as long as that tensor lives. By then the result may be out of
    scope, since it was made in the graph of a branch or a loop, or wrong: the variables were assigned to (which can be
    seen eagerly), or a gradient tape that records now has not seen how the result was made. Results carry their
    `Dependencies` as the attribute `'dependencies'`.
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
        if output is None or dependencies is None or not _is_in_scope(output):
            return False
        results = [output, edge.attributes['ildj']]
        return dependencies.are_recorded_in(results, argument) and dependencies.are_unchanged()


class CachedBijector(tfp.bijectors.Bijector):
    """A bijector whose value and log-det come from one evaluation, and are kept for as long as they hold.

    A subclass defines `_augmented_forward` and `_augmented_inverse`, which return a value and its attributes: `'ildj'`,
    the log-det of the inverse, and `'dependencies'`.
    """

    _cache = _StepCache('_augmented_forward', '_augmented_inverse')

    # These go through the public directions, so that the value computed with a log-det is in the cache as well.

    def _forward_attributes(self, x: Any, **kwargs: Any) -> dict[str, Any]:
        y = self.forward(x, **kwargs)
        attributes = self._cache.inverse_attributes(y, **kwargs)
        if 'dependencies' in attributes:
            return attributes
        # Not kept, since no tape has seen a way from the variables to the result; there may be none.
        return self._augmented_forward(tf.convert_to_tensor(x, dtype=y.dtype), **kwargs)[1]

    def _inverse_attributes(self, y: Any, **kwargs: Any) -> dict[str, Any]:
        x = self.inverse(y, **kwargs)
        attributes = self._cache.forward_attributes(x, **kwargs)
        if 'dependencies' in attributes:
            return attributes
        return self._augmented_inverse(tf.convert_to_tensor(y, dtype=x.dtype), **kwargs)[1]

    def _forward_log_det_jacobian(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return -self._forward_attributes(x, **kwargs)['ildj']

    def _inverse_log_det_jacobian(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._inverse_attributes(y, **kwargs)['ildj']


class ElementwiseBijector(CachedBijector):
    """A cached bijector whose log-det is a sum over the entries.

    The attributes include `'log_derivatives'`, those of the forward direction by entry.
    """

    def forward_log_derivatives(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Returns the log-derivative of each entry of y by its own entry of x: the summands of the log-det.

        They come from the evaluation that `forward(x)` made, if its result still lives.

        >>> import tfp_iaf
        >>> flow = tfp_iaf.IAFPosterior(3, num_flows=2, hidden_units=(8,), seed=0).bijector()
        >>> x = tf.zeros([5, 3])
        >>> y, log_derivatives = flow.forward(x), flow.forward_log_derivatives(x)
        >>> log_det = flow.forward_log_det_jacobian(x)
        >>> bool(tf.reduce_all(tf.abs(tf.reduce_sum(log_derivatives, axis=-1) - log_det) < 1e-5))
        True
        """
        return self._forward_attributes(x, **kwargs)['log_derivatives']

    def inverse_log_derivatives(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Returns the log-derivative of each entry of x by its own entry of y, like `forward_log_derivatives`."""
        return -self._inverse_attributes(y, **kwargs)['log_derivatives']
