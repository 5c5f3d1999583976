"""Every private symbol of TensorFlow, TensorFlow Probability and Keras that is used, and what to do without it.

No release has to keep these symbols. Where one is missing, a fallback is slower or caches less, but never wrong; only
what has no fallback is an error, which says so.
"""

from __future__ import annotations

import contextlib
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

__all__ = [
    'AutoTrackable',
    'BatchBroadcast',
    'Chain',
    'FlowDistribution',
    'GreedyCache',
    'Independent',
    'Invert',
    'TransformedDistribution',
    'UncachedLookup',
    'UnsavedState',
    'call_with_parts',
    'check_versions',
    'coerce_structure',
    'count_assignments',
    'enclosing_graphs',
    'is_increasing',
    'is_injective',
    'is_recording',
    'is_vectorizing',
    'keras_variable',
    'layers_of',
    'map_structure_up_to',
    'model_of',
    'outermost_keras_layer',
    'parameter_properties',
    'parts_of',
    'running_objects',
    'stop_recording',
    'tapes_have_seen',
    'traverse_shallow_structure',
    'variable_of',
]

_OLDEST_TFP, _NEWEST_TFP = (0, 25), (0, 26)


def check_versions(tensorflow_probability: str) -> None:
    """Raises an ImportError for a TFP that is too old, and warns of one that is newer than those tested.

    >>> check_versions('0.25.0')
    """
    match = re.match(r'(\d+)\.(\d+)', tensorflow_probability)
    version = tuple(map(int, match.groups())) if match else _NEWEST_TFP
    if version < _OLDEST_TFP:
        raise ImportError(
            f'tensorflow_probability: got version {tensorflow_probability}, expected 0.25 or newer. Install it with: '
            f'pip install "tensorflow-probability>=0.25"'
        )
    if version > _NEWEST_TFP:
        warnings.warn(
            f'tensorflow_probability: got version {tensorflow_probability}, with which tfp_iaf was not tested; '
            f'0.25 and 0.26 were. Most things should work. If one does not, install "tensorflow-probability<0.27".',
            stacklevel=3,
        )


# TensorFlow: gradient tapes.

try:
    from tensorflow.python.eager.record import could_possibly_record as is_recording
    from tensorflow.python.eager.record import stop_recording
except ImportError:  # A tape then keeps the values of every iteration of an inverse, and caches are not trusted.
    stop_recording = contextlib.nullcontext

    def is_recording() -> bool:
        """Tells whether a gradient tape may be recording."""
        return True


try:
    from tensorflow.python.ops.gradients_util import PossibleTapeGradientTypes
except ImportError:
    PossibleTapeGradientTypes = None


def tapes_have_seen(results: Sequence[tf.Tensor], sources: Sequence[tf.Tensor]) -> bool:
    """Tells whether the tapes that record now would give derivatives of results if they would of their sources."""
    # 0: no tape would give a derivative, 1: one would, of first order, 2: of higher order as well.
    return PossibleTapeGradientTypes is not None and bool(
        PossibleTapeGradientTypes(list(results)) >= PossibleTapeGradientTypes(list(sources))
    )


def enclosing_graphs() -> Iterator[tf.Graph]:
    """Yields the graph that operations made now go to, if any, and the graphs around it, from the inside out."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        yield graph
        graph = getattr(graph, 'outer_graph', None)


def is_vectorizing() -> bool:
    """Tells whether `tf.vectorized_map`, or a Jacobian by it, is tracing.

    It rewrites the operations that it traces, and loses custom gradients. It traces in a name scope of its own, which
    is all there is to tell it by. Where this fails, see `inversion._implicit.guarded`.
    """
    return any(
        part.startswith('loop_body') for graph in enclosing_graphs() for part in graph.get_name_scope().split('/')
    )


_READING = frozenset({'ReadVariableOp', 'ResourceGather', 'VariableShape', 'VarIsInitializedOp'})


def count_assignments(variables: Sequence[Any]) -> int:
    """Counts the operations in the graphs being built that may assign to variables, such as calls that take one."""
    total = 0
    for graph in enclosing_graphs():
        captured = {id(outer): inner for outer, inner in getattr(graph, 'captures', ())}
        for variable in variables:
            # That of Keras holds one; those of a strategy have one on each device.
            variable = variable if isinstance(variable, tf.Variable) else getattr(variable, 'value', None)
            for each in getattr(variable, 'values', [variable]):
                handle = captured.get(id(getattr(each, 'handle', None)))
                if handle is not None:
                    total += sum(operation.type not in _READING for operation in handle.consumers())
    return total


# TensorFlow: checkpoints.

AutoTrackable: Any = tf.__internal__.tracking.AutoTrackable


class UnsavedState(AutoTrackable):
    """An object whose variables no checkpoint has, while functions that are exported can still read them."""

    def _trackable_children(self, save_type: str = 'checkpoint', **kwargs: Any) -> Any:
        return super()._trackable_children(save_type, **kwargs) if save_type == 'savedmodel' else {}


# TensorFlow and TFP: nested structures.

try:
    from tensorflow.python.util.nest import get_traverse_shallow_structure as traverse_shallow_structure
    from tensorflow.python.util.nest import map_structure_up_to
except ImportError as error:
    raise ImportError(
        f'tensorflow: got version {tf.__version__}, which lacks the nested structures that tfp_iaf needs, expected one '
        f'that has them: 2.18 to 2.21 do. Install it with: pip install "tensorflow>=2.18,<2.22"'
    ) from error

try:
    from tensorflow_probability.python.internal.nest_util import coerce_structure
except ImportError:

    def coerce_structure(shallow: Any, value: Any) -> Any:
        """Returns `value` in the containers of `shallow`."""
        return tf.nest.pack_sequence_as(shallow, tf.nest.flatten(value))


try:
    from tensorflow_probability.python.internal.nest_util import call_fn as call_with_parts
except ImportError:

    def call_with_parts(function: Callable[..., Any], parts: Any) -> Any:
        """Calls a function with the parts of an event, by name or by position, as TFP calls a target."""
        if isinstance(parts, dict):
            return function(**parts)
        return function(*parts) if isinstance(parts, (list, tuple)) else function(parts)


# TFP: bijectors.

try:
    from tensorflow_probability.python.bijectors.chain import _Chain as Chain
    from tensorflow_probability.python.bijectors.invert import _Invert as Invert
except ImportError:
    Chain, Invert = tfp.bijectors.Chain, tfp.bijectors.Invert

parameter_properties: Callable[..., Any] = tfp.util.ParameterProperties

try:
    from tensorflow_probability.python.distributions.independent import _Independent as Independent
    from tensorflow_probability.python.distributions.transformed_distribution import (
        _TransformedDistribution as TransformedDistribution,
    )
except ImportError:  # copy.deepcopy then fails, as it does for TFP's own.
    Independent, TransformedDistribution = tfp.distributions.Independent, tfp.distributions.TransformedDistribution


class BatchBroadcast(tfp.distributions.BatchBroadcast):
    """A `tfd.BatchBroadcast` that may have no rows, where TFP's divides by zero in a graph."""

    def _augment_sample_shape(self, sample_shape: Any) -> tf.Tensor:
        rows = tf.reduce_prod(self.batch_shape_tensor())
        own_rows = tf.maximum(tf.reduce_prod(self.distribution.batch_shape_tensor()), 1)
        return tf.concat([sample_shape, [rows // own_rows]], axis=0)


class FlowDistribution(TransformedDistribution):
    """A transformed distribution that may have no rows."""

    def _maybe_broadcast_distribution_batch_shape(self) -> tfp.distributions.Distribution:
        base = super()._maybe_broadcast_distribution_batch_shape()
        return base if base is self.distribution else BatchBroadcast(self.distribution, self.batch_shape_tensor())


def model_of(bijector: Any) -> Any:
    """Returns the joint distribution whose default event-space bijector this is, or `None` if it is unknown."""
    return getattr(bijector, '_jd', None)


def parts_of(model: Any) -> Any:
    """Returns the distribution of each part of a joint distribution in the structure of its event, or `None`."""
    try:
        return model._model_unflatten(list(model._get_single_sample_distributions()))
    except AttributeError:
        return None


try:
    from tensorflow_probability.python.internal.cache_util import BijectorCache, BijectorCacheWithGreedyAttrs

    GreedyCache, UncachedLookup = BijectorCacheWithGreedyAttrs, BijectorCache
except ImportError as error:
    raise ImportError(
        f'tensorflow_probability: got version {tfp.__version__}, which lacks the cache that tfp_iaf needs, expected '
        f'one that has it: 0.25 and 0.26 do. Install it with: pip install "tensorflow-probability<0.27"'
    ) from error


def is_injective(bijector: tfp.bijectors.Bijector) -> bool:
    """Tells whether a bijector is one, since TFP also has maps such as the square."""
    return bool(getattr(bijector, '_is_injective', True))


def is_increasing(bijector: tfp.bijectors.Bijector) -> tf.Tensor:
    """Returns whether a bijector of scalars increases; raises NotImplementedError if it does not tell."""
    return bijector._internal_is_increasing()


# Keras 3.


def keras_variable(variable: tf.Variable) -> Any:
    """Returns a Keras 3 variable that holds a variable, and not a copy of it."""
    import keras

    adopted = keras.Variable(
        initializer=variable,
        shape=variable.shape,
        dtype=variable.dtype.name,
        trainable=variable.trainable,
        autocast=False,
        name=variable.name.split(':')[0].replace('/', '_'),
    )
    adopted._value = variable  # which older versions copy
    return adopted


def variable_of(weight: Any) -> Any:
    """Returns the TensorFlow variable in a Keras 3 variable, or a TensorFlow variable itself."""
    return getattr(weight, '_value', weight)


def layers_of(model: Any) -> list[Any]:
    """Returns a model or layer of either Keras, and all layers in it, nested ones too."""
    return list(model._flatten_layers())


def running_objects() -> Iterator[Any]:
    """Yields the objects whose methods are running, from the inside out."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        # Asked first, since to read the values of a frame makes copies, which it keeps.
        if 'self' in frame.f_code.co_varnames or 'self' in frame.f_code.co_freevars:
            yield frame.f_locals.get('self')
        frame = frame.f_back


def outermost_keras_layer() -> Any:
    """Returns the outermost Keras 3 layer, such as a model, one of whose methods is running, or `None`."""
    keras = sys.modules.get('keras')  # without it there is no layer
    layers = [] if keras is None else [each for each in running_objects() if isinstance(each, keras.layers.Layer)]
    return layers[-1] if layers else None
