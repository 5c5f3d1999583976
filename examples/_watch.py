"""How long training steps take, and whether losses stay finite."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np


def ms_per_step(seconds: Sequence[float], steps: int) -> float:
    """Returns the median over epochs, or calls, of so many steps: without the first, in which TensorFlow compiles."""
    return float(1e3 * np.median(seconds[1:] or seconds) / steps)


class TrainingWatch(keras.callbacks.Callback):
    """Times the training part of every epoch, and stops a run whose loss is not finite.

    The times, in seconds and in those of the processor, are added to the logs that the callbacks after this one get.

    Args:
        name: Of the run, for the error.
        steps_per_epoch: Number of steps in an epoch.
    """

    def __init__(self, name: str, steps_per_epoch: int) -> None:
        super().__init__()
        self._name = name
        self._steps_per_epoch = steps_per_epoch
        self._seconds: list[float] = []
        self._start = self._end = self._cpu_start = self._cpu_end = 0.0
        self._steps_done = 0

    @property
    def ms_per_step(self) -> float:
        """Of the epochs that were trained; 0 if none was left."""
        return ms_per_step(self._seconds, self._steps_per_epoch) if self._seconds else 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_done = epoch * self._steps_per_epoch
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(self._steps_done + batch + 1, {'loss': (logs or {}).get('loss', 0)})  # waits for an accelerator
        self._end, self._cpu_end = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._seconds.append(self._end - self._start)
        self._check(self._steps_done + self._steps_per_epoch, logs or {})
        if logs is not None:  # for the callbacks that follow
            logs |= {'seconds': self._seconds[-1], 'cpu_seconds': self._cpu_end - self._cpu_start}

    def _check(self, steps: int, logs: Mapping[str, Any]) -> None:
        for name, value in logs.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f'{self._name}: {name} became {value} within {steps} steps. Lower the learning rate, or look for '
                    f'what overflows.'
                )
