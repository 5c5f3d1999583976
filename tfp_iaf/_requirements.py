"""Tells, before anything fails in an obscure place, that the installed TensorFlow Probability does not fit."""

from __future__ import annotations

SUPPORTED = ('0.25',)


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
