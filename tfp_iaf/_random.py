"""Seeds of initial weights."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

__all__ = ['random_generator']


def random_generator(seed: int | None) -> np.random.Generator:
    """Returns a NumPy generator; without a seed it follows `tf.random.set_seed` and `keras.utils.set_random_seed`."""
    if seed is None:
        with tf.init_scope():
            seed = int(tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32))
    elif isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(
            f'seed: got {seed!r}, expected a non-negative int or None. A stateless seed, as of tf.random, goes to '
            f'sample(seed=...).'
        )
    elif seed < 0:
        raise ValueError(f'seed: got {seed!r}, expected a non-negative int or None.')
    return np.random.default_rng(int(seed))
