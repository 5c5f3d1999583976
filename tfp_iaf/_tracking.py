"""Variables that a Keras 3 model would silently not train."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = ['check_keras_tracks']


def check_keras_tracks(variables: Iterable[tf.Variable]) -> None:
    """Raises an error if a Keras 3 model that is running holds these variables, but does not track them.

    Keras 3 finds variables in layers alone. If a model holds a network, a step, a distribution or a posterior in an
    attribute, or a function that uses one, `fit` would not train its variables, and no file would have them.

    Two uses are left alone: variables that are not trainable, and a global object that a method of the model uses
    without holding it. Outside the methods of a model, such as in a training loop of your own, the model is unknown.
    """
    model = _compat.outermost_keras_layer()
    if model is None:
        return
    tracked = {id(_compat.variable_of(variable)) for variable in model.variables}
    # While Keras infers the shapes of a model, weights have no variables yet, but tensors, which are not trainable.
    trainable = [_compat.variable_of(variable) for variable in variables if getattr(variable, 'trainable', False)]
    missing = {id(variable): variable for variable in trainable if id(variable) not in tracked}
    held = [value for layer in _compat.layers_of(model) for value in vars(layer).values()] if missing else []
    if _reaches(held, missing.keys(), set()):
        raise ValueError(
            f'{next(iter(missing.values())).name}: got a variable that the Keras model {model.name!r} holds and uses, '
            f'but would neither train nor save, since Keras 3 finds variables in layers alone. Give the model a '
            f'tfp_iaf.keras.IAFPosterior as an attribute, with the arguments of the tfp_iaf.IAFPosterior, or with '
            f'networks=[...] of your own, and trainable=False to keep it as it is; and make other variables with '
            f'add_weight.'
        )


def _reaches(value: Any, variables: Iterable[int], seen: set[int]) -> bool:
    """Tells whether an object leads to any of these variables: by containers, functions, modules and layers."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (list, tuple, set)):
        inner = value
    elif isinstance(value, functools.partial):
        inner = (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        inner = (value.__self__,)
    elif isinstance(value, types.FunctionType):
        inner = _used_by(value)
    elif hasattr(value, 'python_function'):  # a tf.function
        inner = (value.python_function,)
    elif hasattr(value, 'trainable_variables') and not isinstance(value, type):
        # A tf.Module, such as a distribution or a bijector, or a layer of either Keras.
        return any(id(_compat.variable_of(variable)) in variables for variable in value.trainable_variables)
    return any(_reaches(each, variables, seen) for each in list(inner))


def _used_by(function: types.FunctionType) -> list[Any]:
    """Returns the values of the variables that a function closes over, and of the globals that it names."""
    names = function.__code__.co_names
    used = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            used.append(cell.cell_contents)
        except ValueError:  # not assigned to yet
            continue
    return used
