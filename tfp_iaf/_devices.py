"""Where a tensor lives: what is fast on a CPU is not on a GPU."""

from __future__ import annotations

import tensorflow as tf

__all__ = ['runs_on_cpu']


def runs_on_cpu(value: tf.Tensor) -> bool:
    """Tells whether operations on a tensor run on a CPU.

    >>> runs_on_cpu(tf.zeros([]))
    True
    """
    if value.device:
        return 'CPU' in value.device
    # In a graph that leaves the choice to TensorFlow, which takes an accelerator if there is one.
    return all(device.device_type == 'CPU' for device in tf.config.list_logical_devices())
