"""Elementwise transforms, whose parameters a network computes from the entries before.

A transform is increasing in x and acts on each entry by itself, so the sum of its log-derivatives is the log-det of a
step. Parameters near zero give a map near the identity (`Affine`, `RationalQuadraticSpline`) or one that contracts a
little (`Gated`), so a network with small outputs starts its step there.
"""

from __future__ import annotations

from tfp_iaf.transforms._affine import Affine, Gated
from tfp_iaf.transforms._base import Transform
from tfp_iaf.transforms._scalar_bijector import ScalarBijector
from tfp_iaf.transforms._spline import RationalQuadraticSpline

__all__ = ['Affine', 'Gated', 'RationalQuadraticSpline', 'ScalarBijector', 'Transform', 'get']

# Those that a Keras model may hold.
CLASSES = (Affine, Gated, RationalQuadraticSpline, ScalarBijector)

_NAMED = {'gated': Gated, 'affine': Affine, 'spline': RationalQuadraticSpline}


def get(transform: str | Transform) -> Transform:
    """Returns the transform of a name, or the transform itself.

    >>> get('gated')
    Gated(gate_bias=2.0)
    """
    if isinstance(transform, Transform):
        return transform
    if isinstance(transform, str) and transform in _NAMED:
        return _NAMED[transform]()
    raise ValueError(
        f'transform: got {transform!r}, expected one of {tuple(_NAMED)} or an object of tfp_iaf.transforms, such as '
        f'tfp_iaf.transforms.Affine(max_log_scale=4.).'
    )
