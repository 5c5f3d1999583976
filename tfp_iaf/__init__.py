"""Inverse Autoregressive Flows for TensorFlow Probability and Keras."""

import importlib
import types

import tensorflow_probability

from tfp_iaf import _compat

_compat.check_versions(tensorflow_probability.__version__)

from tfp_iaf import diagnostics, networks, objectives, transforms  # noqa: E402
from tfp_iaf._version import __version__  # noqa: E402
from tfp_iaf.bijectors import InverseAutoregressiveFlow, PlanarFlow, RadialFlow, SylvesterFlow  # noqa: E402
from tfp_iaf.distributions import IAFPosterior, build_iaf_surrogate_posterior  # noqa: E402
from tfp_iaf.networks import MaskedAutoregressiveNetwork, MaskedConvolutionalNetwork  # noqa: E402

__all__ = [
    'IAFPosterior',
    'InverseAutoregressiveFlow',
    'MaskedAutoregressiveNetwork',
    'MaskedConvolutionalNetwork',
    'PlanarFlow',
    'RadialFlow',
    'SylvesterFlow',
    '__version__',
    'build_iaf_surrogate_posterior',
    'diagnostics',
    'keras',
    'networks',
    'objectives',
    'tf_keras',
    'transforms',
]


def __getattr__(name: str) -> types.ModuleType:
    # Keras layers are imported when they are asked for, so that plain TFP code does not pay for them.
    if name in ('keras', 'tf_keras'):
        return importlib.import_module(f'tfp_iaf.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__
