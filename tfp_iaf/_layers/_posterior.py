"""The layer `IAFPosterior`, for either Keras: the factory of distributions, with variables that Keras tracks."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import transforms
from tfp_iaf._checks import Activation, checked_dtype
from tfp_iaf._layers._base import LayerPart
from tfp_iaf._layers._iaf_sampling import NetworkFactory, checked_network, keras_activation
from tfp_iaf._layers._weights import FlowWeights
from tfp_iaf.distributions import IAFPosterior
from tfp_iaf.distributions._posterior import HIDDEN_UNITS
from tfp_iaf.networks import Network
from tfp_iaf.networks._common import VariableFactory
from tfp_iaf.transforms import Transform

__all__ = ['PosteriorLayer']


class PosteriorLayer(LayerPart):
    """The layer `IAFPosterior`, mixed into the layer class of either Keras; see `tfp_iaf.keras`."""

    # What the other base classes bring.
    _is_symbolic: Any
    _adopt: Any

    def __init__(
        self,
        event_shape: int | Sequence[int] | None = None,
        num_flows: int = 4,
        hidden_units: Sequence[int] = HIDDEN_UNITS,
        *,
        context_shape: int | Sequence[int] | None = None,
        filters: Sequence[int] | None = None,
        network: NetworkFactory | None = None,
        networks: Sequence[Network] | None = None,
        transform: str | Transform = 'gated',
        alternate_order: bool = True,
        inverse: str = 'auto',
        validate_args: bool = False,
        activation: str | Activation = 'elu',
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{'autocast': False, **kwargs})
        # Not a dict, for which Keras would substitute one of its own.
        self._arguments = types.SimpleNamespace(
            event_shape=event_shape,
            num_flows=num_flows,
            hidden_units=hidden_units,
            context_shape=context_shape,
            filters=filters,
            network=checked_network(network),
            transform=transform if transform == 'gated' else transforms.get(transform),
            alternate_order=alternate_order,
            inverse=inverse,
            validate_args=validate_args,
            activation=activation,
            seed=seed,
        )
        self._flow: FlowWeights | None = None
        self._fixed: IAFPosterior | None = None
        if networks is None:
            self._flow = FlowWeights(self._make_posterior, self._new_flow_weight, self._variable_of)
        else:
            self._fixed = IAFPosterior(networks=networks, **vars(self._arguments), name=self.name)
            self._adopt(self._fixed.variables)
        self.built = True

    def _make_posterior(self, variable_factory: VariableFactory) -> IAFPosterior:
        dtype = checked_dtype(self.variable_dtype)
        activation = keras_activation(self._arguments.activation, self._keras, dtype)
        return IAFPosterior(
            **{**vars(self._arguments), 'activation': activation},
            dtype=dtype,
            variable_factory=variable_factory,
            name=self.name,
        )

    def _new_flow_weight(self, name: str, value: np.ndarray) -> Any:
        return self._new_weight(f'{self.name}/{name}', value, trainable=True)

    @property
    def flow(self) -> IAFPosterior:
        """The `tfp_iaf.IAFPosterior` whose variables are the weights of this layer."""
        if self._fixed is not None:
            return self._fixed
        assert self._flow is not None
        return self._flow.posterior()

    @property
    def event_shape(self) -> tf.TensorShape:
        """Shape of z."""
        return self.flow.event_shape

    @property
    def context_shape(self) -> tf.TensorShape | None:
        """Shape of the context, or `None`."""
        return self.flow.context_shape

    @property
    def num_flows(self) -> int:
        """Number of steps."""
        return self.flow.num_flows

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks, in the order in which a sample passes them."""
        return self.flow.networks

    @property
    def transform(self) -> Transform:
        """The transform of each entry in a step."""
        return self.flow.transform

    # Not Keras's own call, which takes and returns only tensors.

    def __call__(self, loc: Any, scale_diag: Any, context: Any = None) -> tfp.distributions.TransformedDistribution:
        """Returns the distribution; see `tfp_iaf.IAFPosterior`."""
        return self.flow(
            self._tensor('loc', loc), self._tensor('scale_diag', scale_diag), self._tensor('context', context)
        )

    def bijector(self, context: Any = None) -> tfp.bijectors.Bijector:
        """Returns the steps alone as one bijector; see `tfp_iaf.IAFPosterior.bijector`."""
        return self.flow.bijector(self._tensor('context', context))

    def _tensor(self, argument: str, value: Any) -> Any:
        """Returns a tensor of another precision, such as one of mixed precision, in that of the flow."""
        if self._is_symbolic(value):
            raise TypeError(
                f'{argument}: got the symbolic tensor {value!r} for {self.name}, expected a tensor: the result is a '
                f'distribution, which cannot be in a functional model. Make it in the call or the train_step of a '
                f'model or layer that has {self.name} as an attribute; or take IAFSampling, which returns tensors.'
            )
        if tf.is_tensor(value) and not isinstance(value, tf.Variable) and value.dtype.is_floating:
            return tf.cast(value, self.flow.dtype)
        return value

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        if self._fixed is not None:
            raise NotImplementedError(
                f'networks: {self.name} was made with networks, which Keras cannot save in a config. Make it in the '
                f'constructor of a model; or save the weights alone.'
            )
        config = dict(vars(self._arguments))
        for name in ('event_shape', 'hidden_units', 'context_shape', 'filters'):
            value = config[name]
            config[name] = value if value is None or isinstance(value, int) else [int(size) for size in value]
        for name in ('activation', 'network', 'transform'):
            config[name] = self._serialize(config[name])
        return {**super().get_config(), **config}  # type: ignore[misc]
