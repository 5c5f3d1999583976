"""What the scripts write down: whole files, and in them the flags, the versions of the libraries, and the runs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import flags

import tfp_iaf


def versions(*others: ModuleType) -> dict[str, str]:
    """Returns the versions of the libraries that figures depend on, and of others."""
    return {module.__name__: module.__version__ for module in (tfp_iaf, tf, tfp, keras, np, *others)}


def digest(settings: Any, *others: ModuleType) -> str:
    """Returns letters for a file name that other settings, or other versions of the libraries, do not have."""
    key = json.dumps([dataclasses.asdict(settings), versions(*others)], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:10]


def used_flags() -> dict[str, Any]:
    """Returns the values of the script's own flags."""
    return {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}


def of_runs(results: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns for every run its settings, a dataclass, and its figures."""
    return [{**dataclasses.asdict(run), **figures} for run, figures in results.items()]


def without_lists(results: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Returns the runs' figures but those that are lists, such as learning curves."""
    return {run: {k: v for k, v in figures.items() if not isinstance(v, list)} for run, figures in results.items()}


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path that becomes `path` at the end: a reader never sees half a file, whoever is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}-{path.name}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` to `path` at once; NaN and infinities, which are no JSON, raise ValueError."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + '\n', encoding='utf-8')
