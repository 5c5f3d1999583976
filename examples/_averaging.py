"""Averaged weights, with the statistics of batch normalisation that belong to them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def normalisations(model: Any) -> list[Any]:
    """Returns the batch normalisations in a model."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def estimate_statistics(model: Any, batches: np.ndarray) -> None:
    """Makes the moving statistics of all batch normalisations the means over batches, `[count, batch, ...]`.

    Those that training leaves belong to the weights of single steps. Averaged weights have narrower activations, and
    would be evaluated with statistics that are far from theirs.
    """
    layers = normalisations(model)
    if not layers:
        return
    moving = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    totals = [np.zeros(variable.shape) for variable in moving]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # so that they become those of the last batch
    for batch in batches:
        model.distribute_strategy.run(lambda batch=batch: model(batch, training=True))
        for total, variable in zip(totals, moving, strict=True):
            total += variable.numpy()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for variable, total in zip(moving, totals, strict=True):
        variable.assign(total / len(batches))


class AveragedWeights(keras.callbacks.SwapEMAWeights):
    """Validates with the optimizer's averages in place of the weights, and with statistics that belong to them.

    Args:
        batches: To estimate the statistics with, `[count, batch, ...]`.
    """

    def __init__(self, batches: np.ndarray) -> None:
        super().__init__()
        self._batches = batches
        self._kept: list[np.ndarray] = []

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        self._kept = [variable.numpy() for variable in self._moving()]
        estimate_statistics(self.model, self._batches)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        for variable, value in zip(self._moving(), self._kept, strict=True):
            variable.assign(value)
        super().on_test_end(logs)

    def _moving(self) -> list[Any]:
        return [variable for layer in normalisations(self.model) for variable in layer.non_trainable_variables]
