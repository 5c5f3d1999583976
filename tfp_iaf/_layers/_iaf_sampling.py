"""The layer `IAFSampling`, for either Keras: a `PosteriorSampling` whose posterior is the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import transforms
from tfp_iaf._checks import Activation, checked_activation, checked_hidden_units, checked_size
from tfp_iaf._layers._kl import Prior
from tfp_iaf._layers._sampling import SamplingLayer
from tfp_iaf._layers._weights import FlowWeights
from tfp_iaf.bijectors._inverse_autoregressive_flow import check_inverse
from tfp_iaf.distributions import IAFPosterior
from tfp_iaf.distributions._posterior import HIDDEN_UNITS, network_and_units
from tfp_iaf.networks import Network
from tfp_iaf.networks._common import VariableFactory
from tfp_iaf.transforms import Transform

__all__ = ['IAFSamplingLayer', 'NetworkFactory', 'checked_network', 'keras_activation']

NetworkFactory: TypeAlias = Callable[..., Network]


class IAFSamplingLayer(SamplingLayer):
    """The layer `IAFSampling`, mixed into the layer `PosteriorSampling` of either Keras; see `tfp_iaf.keras`."""

    def __init__(
        self,
        num_flows: int = 4,
        hidden_units: Sequence[int] = HIDDEN_UNITS,
        *,
        filters: Sequence[int] | None = None,
        network: NetworkFactory | None = None,
        transform: str | Transform = 'gated',
        kl_weight: float | None = 1.0,
        free_bits: float | None = None,
        free_bits_axis: int | Sequence[int] | None = None,
        prior: Prior | None = None,
        alternate_order: bool = True,
        inverse: str = 'auto',
        activation: str | Activation = 'elu',
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kl_weight=kl_weight, free_bits=free_bits, free_bits_axis=free_bits_axis, prior=prior, seed=seed, **kwargs
        )
        self.num_flows = checked_size('num_flows', num_flows, minimum=0)
        self.hidden_units = checked_hidden_units(hidden_units)
        self.network = checked_network(network)
        self.filters = None if filters is None else network_and_units(network, hidden_units, filters)[1]
        # Kept as a name: the gate's bias then depends on the number of steps.
        self.transform = transform if transform == 'gated' else transforms.get(transform)
        self.alternate_order = alternate_order
        check_inverse(inverse)
        self.inverse = inverse
        self.activation = activation
        self._activation_function = keras_activation(activation, self._keras, self._flow_dtype)
        self._flow: Any = None

    def build(self, input_shape: Any) -> None:
        """Makes the networks, from the shapes of the inputs."""
        self._set_shapes(input_shape)
        self._flow = FlowWeights(self._make_posterior, self._new_flow_weight, self._variable_of)
        super().build(input_shape)

    def _new_flow_weight(self, name: str, value: Any) -> Any:
        return self._new_weight(name, value, trainable=True)

    def _make_posterior(self, variable_factory: VariableFactory) -> IAFPosterior:
        return IAFPosterior(
            self._event_shape,
            self.num_flows,
            self.hidden_units,
            context_shape=self._context_shape,
            filters=self.filters,
            network=self.network,
            transform=self.transform,
            alternate_order=self.alternate_order,
            inverse=self.inverse,
            activation=self._activation_function,
            seed=self.seed,
            dtype=self._flow_dtype,
            variable_factory=variable_factory,
            name=self.name,
        )

    def posterior(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None
    ) -> tfp.distributions.TransformedDistribution:
        """Returns q(z|x), for importance weighting, plots, or more than one sample.

        In a trained model, what the layer takes comes from its encoder:
        `encoder = keras.Model(model.input, layer.input); q = layer.posterior(*encoder(x))`.

        >>> import tfp_iaf
        >>> layer = tfp_iaf.keras.IAFSampling(num_flows=1, hidden_units=(16,))
        >>> layer.build([(None, 2), (None, 2)])
        >>> layer.posterior(tf.zeros([5, 2]), tf.zeros([5, 2])).sample(7).shape
        TensorShape([7, 5, 2])
        """
        z_mean, z_log_var, context = self._checked_inputs(z_mean, z_log_var, context)
        return self._flow.posterior()(z_mean, tf.exp(0.5 * z_log_var), context)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {
            **super().get_config(),
            'num_flows': self.num_flows,
            'hidden_units': list(self.hidden_units),
            'filters': None if self.filters is None else list(self.filters),
            'network': self._serialize(self.network),
            'transform': self._serialize(self.transform),
            'alternate_order': self.alternate_order,
            'inverse': self.inverse,
            'activation': self._serialize(self.activation),
        }


def checked_network(network: Any) -> NetworkFactory | None:
    """Returns a factory of networks, or `None`."""
    if network is not None and not callable(network):
        raise TypeError(f'network: got {network!r}, expected None, or a function that makes a network.')
    if hasattr(network, 'variables') and not isinstance(network, type):
        raise TypeError(
            f'network: got the network {network!r}, expected a function that makes one for each step; see IAFPosterior '
            f'for networks that are made already.'
        )
    return network


def keras_activation(activation: Any, keras: Any, dtype: tf.DType) -> Activation:
    """Returns the function of a name in `tf.nn` or in `keras.activations`, or a function itself."""
    try:
        return checked_activation(activation, dtype)
    except ValueError:
        if not isinstance(activation, str):
            raise
        try:
            function = keras.activations.get(activation)
        except ValueError:
            function = None
        if function is None:
            raise
    return checked_activation(function, dtype)
