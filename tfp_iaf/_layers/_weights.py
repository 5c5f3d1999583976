"""The posterior whose variables are the weights of a Keras layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf.distributions import IAFPosterior
from tfp_iaf.networks._common import VariableFactory

__all__ = ['FlowWeights']


class FlowWeights(_compat.AutoTrackable):
    """Makes the weights of a flow once, and returns the posterior that uses them.

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
        posterior = self._keep(make_posterior(self._make))
        made = {id(variable_of(weight)) for weight in self._weights.values()}
        for variable in (variable for network in posterior.networks for variable in network.variables):
            if isinstance(variable, tf.Variable) and id(variable) not in made:
                raise ValueError(
                    f'network: made the variable {variable.name!r}, which Keras would neither train nor save. Make all '
                    f'variables by variable_factory(name, initial_value), which the network is made with.'
                )

    def posterior(self) -> IAFPosterior:
        """Returns the posterior; as long as its weights are not variables yet, it is made at every call."""
        if self._posterior is not None:
            return self._posterior
        return self._keep(self._make_posterior(lambda name, value: self._variable_of(self._weights[name])))

    def _make(self, name: str, value: np.ndarray) -> tf.Variable:
        self._weights[name] = self._new_weight(name, value)
        return self._variable_of(self._weights[name])

    def _keep(self, posterior: IAFPosterior) -> IAFPosterior:
        # While Keras infers the shapes of a model, weights have no variables yet, and their values do not last.
        if all(isinstance(variable, tf.Variable) for network in posterior.networks for variable in network.variables):
            self._posterior = posterior
        return posterior
