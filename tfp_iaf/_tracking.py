"""Variables that a Keras 3 model would silently not train."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_iaf import _compat

__all__ = ['check_keras_tracks']


def check_keras_tracks(module: tf.Module) -> None:
    """Raises an error if a Keras 3 model is being called that has the module as an attribute, but not its variables.

    Keras 3 looks for variables in its own layers alone: `fit` would not train those of a plain module, and no file
    would have them. A module that the model does not hold, such as one that a function closes over, is left alone.
    Outside the call of a model or layer nobody can tell.
    """
    model = _compat.calling_keras_layer()
    if model is None:
        return
    layers = model._flatten_layers()
    if not any(_holds(value, module) for layer in layers for value in vars(layer).values()):
        return
    tracked = {id(getattr(variable, '_value', variable)) for variable in model.variables}
    missing = [variable.name for variable in module.variables if id(variable) not in tracked]
    if missing:
        raise ValueError(
            f'{module.name}: got a call within the Keras model {model.name!r}, which has it as an attribute, but would '
            f'neither train nor save its variables, such as {missing[0]!r}, since Keras 3 finds them in layers alone. '
            f'Make it as a tfp_iaf.keras.IAFPosterior with the same arguments, and trainable=False to keep it as it is.'
        )


def _holds(value: Any, module: tf.Module) -> bool:
    if isinstance(value, dict):
        return any(_holds(each, module) for each in value.values())
    return value is module or (isinstance(value, (list, tuple)) and any(_holds(each, module) for each in value))
