"""The posterior whose variables are the weights of a Keras layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf.distributions import IAFPosterior
from tfp_iaf.networks._masked import VariableFactory

__all__ = ['FlowWeights']


class FlowWeights(tf.__internal__.tracking.AutoTrackable):
    """Makes the weights of a flow once, and gives the posterior made of them.

    As an attribute of the layer it leads `tf.train.Checkpoint` to the weights, which Keras 3 alone does not.

    Args:
        make_posterior: Makes the posterior with a factory of variables.
        new_weight: `new_weight(name, value)` makes a weight that Keras tracks.
        variable_of: Returns the variable in a weight.
    """

    def __init__(
        self,
        make_posterior: Callable[[VariableFactory], IAFPosterior],
        new_weight: Callable[[str, np.ndarray], Any],
        variable_of: Callable[[Any], tf.Variable],
    ) -> None:
        super().__init__()
        self._make_posterior, self._new_weight, self._variable_of = make_posterior, new_weight, variable_of
        self._weights: dict[str, Any] = {}
        self._posterior: IAFPosterior | None = None
        self._keep(make_posterior(self._make))

    def posterior(self) -> IAFPosterior:
        """Returns the posterior; it is made again while its weights are not variables yet."""
        if self._posterior is not None:
            return self._posterior
        return self._keep(self._make_posterior(lambda name, value: self._variable_of(self._weights[name])))

    def _make(self, name: str, value: np.ndarray) -> tf.Variable:
        self._weights[name] = self._new_weight(name, value)
        return self._variable_of(self._weights[name])

    def _keep(self, posterior: IAFPosterior) -> IAFPosterior:
        # While Keras works out the shapes of a model, weights are promises, and their values tensors of that moment.
        if all(isinstance(variable, tf.Variable) for network in posterior.networks for variable in network.variables):
            self._posterior = posterior
        return posterior
