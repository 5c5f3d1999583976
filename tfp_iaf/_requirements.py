"""Tells, before anything fails in an obscure place, that the installed libraries do not fit."""

from __future__ import annotations

import importlib

SUPPORTED = ('0.25',)

# What the package takes from inside of TensorFlow, where no release has to keep it: a loop that tapes do not record,
# what tapes have seen, and the nested structures of TFP.
_INTERNAL = {
    'tensorflow.python.eager.record': ('could_possibly_record', 'stop_recording'),
    'tensorflow.python.ops.gradients_util': ('PossibleTapeGradientTypes',),
    'tensorflow.python.util.nest': ('get_traverse_shallow_structure', 'map_structure_up_to'),
}


def check(version: str) -> None:
    """Raises an ImportError unless `version` of TensorFlow Probability is one that this package was tested with.

    The flow uses the cache that TFP's own bijectors use, which is internal to TFP and may change with any release.

    >>> check('0.25.0')
    """
    if '.'.join(version.split('.')[:2]) not in SUPPORTED:
        raise ImportError(
            f'tensorflow_probability: got version {version}, expected one of {", ".join(SUPPORTED)}. Install it with: '
            f'pip install "tensorflow-probability=={SUPPORTED[-1]}.*"'
        )


def check_tensorflow(version: str) -> None:
    """Raises an ImportError if TensorFlow lacks what this package takes from inside of it; `version` is its version.

    >>> check_tensorflow('2.21.0')
    """
    for module, names in _INTERNAL.items():
        for name in names:
            try:
                getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError):
                raise ImportError(
                    f'tensorflow: got version {version}, which has no {module}.{name}, expected one that has '
                    f'it: 2.18 to 2.21 do. Install such a one with: pip install "tensorflow>=2.18,<2.22"'
                ) from None
