"""Inverse Autoregressive Flows for TensorFlow Probability and Keras."""

import importlib
import types

import tensorflow_probability

from tfp_iaf import _requirements

_requirements.check(tensorflow_probability.__version__)

from tfp_iaf import masks, objectives, transforms  # noqa: E402
from tfp_iaf._version import __version__  # noqa: E402
from tfp_iaf.bijectors import InverseAutoregressiveFlow  # noqa: E402
from tfp_iaf.networks import MaskedAutoregressiveNetwork  # noqa: E402
from tfp_iaf.posteriors import IAFPosterior  # noqa: E402
from tfp_iaf.surrogates import build_iaf_surrogate_posterior  # noqa: E402

__all__ = [
    'IAFPosterior',
    'InverseAutoregressiveFlow',
    'MaskedAutoregressiveNetwork',
    '__version__',
    'build_iaf_surrogate_posterior',
    'keras',
    'masks',
    'objectives',
    'transforms',
]


def __getattr__(name: str) -> types.ModuleType:
    # Keras layers are imported when they are asked for, so that plain TFP code does not pay for them.
    if name == 'keras':
        return importlib.import_module('tfp_iaf.keras')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__
