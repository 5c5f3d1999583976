"""What the layers for Keras 3 and for tf_keras have in common: all but how a weight is made and where seeds come from.

Either Keras is a class attribute, `_keras`, and this module imports neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import objectives, priors, transforms
from tfp_iaf.bijectors import checked_inverse
from tfp_iaf.caching import UncachedChain
from tfp_iaf.checks import (
    Activation,
    checked_activation,
    checked_dtype,
    checked_hidden_units,
    checked_number,
    checked_size,
)
from tfp_iaf.inputs import check_call, check_inputs, checked_shapes, flattened
from tfp_iaf.networks import VariableFactory, random_generator
from tfp_iaf.posteriors import IAFPosterior
from tfp_iaf.priors import Prior
from tfp_iaf.transforms import Transform

__all__ = ['SamplingLayer']

LayerT = TypeVar('LayerT', bound='SamplingLayer')


class SamplingLayer:
    """The layer `IAFSampling`, mixed into the layer class of either Keras; see `tfp_iaf.keras.IAFSampling`.

    Its KL term is Eq. (25), (26) of the mathematics page.
    """

    # What the other base class brings.
    _keras: ClassVar[Any]
    name: str
    variable_dtype: Any
    add_loss: Any

    def __init__(
        self,
        num_flows: int = 4,
        hidden_units: Sequence[int] = (320, 320),
        *,
        transform: str | Transform = 'gated',
        kl_loss_weight: float | None = None,
        free_bits: float | None = None,
        prior: Prior | None = None,
        alternate_order: bool = True,
        inverse: str = 'auto',
        activation: str | Activation = 'elu',
        num_blocks: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Without Keras's autocast, which would round the encoder's float32 outputs to half precision.
        super().__init__(**{'autocast': False, **kwargs})
        self._flow_dtype = checked_dtype(self.variable_dtype)
        self.num_flows = checked_size('num_flows', num_flows, minimum=0)
        self.hidden_units = checked_hidden_units(hidden_units)
        self.transform = transforms.get(transform)
        self.alternate_order = alternate_order
        checked_inverse(inverse, None)
        self.inverse = inverse
        self.activation = activation
        self._activation_function = self._checked_activation(activation)
        self.num_blocks = None if num_blocks is None else checked_size('num_blocks', num_blocks)
        if seed is not None:
            random_generator(seed)  # which checks it
            seed = int(seed)
        self.seed = seed
        self._make_seeds()
        self._set_kl_term(kl_loss_weight, free_bits, prior)
        self._event_shape: tuple[int, ...] | None = None
        self._context_shape: tuple[int, ...] | None = None
        self._flow_weights: dict[str, Any] = {}
        self._posterior: IAFPosterior | None = None

    @staticmethod
    def _serialize(value: Any) -> Any:
        """Returns what a config may hold of `value`, an object, a function, a name, or `None`."""
        raise NotImplementedError

    @staticmethod
    def _deserialize(value: Any) -> Any:
        """Undoes `_serialize`."""
        raise NotImplementedError

    def _new_weight(self, name: str, value: np.ndarray, trainable: bool) -> Any:
        """Makes a weight that Keras tracks, trains and saves, and leaves in the flow's dtype."""
        raise NotImplementedError

    def _variable_of(self, weight: Any) -> tf.Variable:
        """Returns the variable in a weight, which is what TFP finds in the flow."""
        raise NotImplementedError

    def _make_seeds(self) -> None:
        """Makes what `_next_seed` reads, from `self.seed`."""
        raise NotImplementedError

    def _next_seed(self) -> tf.Tensor:
        """Returns a stateless seed, another one at each call."""
        raise NotImplementedError

    def _checked_activation(self, activation: Any) -> Activation:
        try:
            return checked_activation(activation, self._flow_dtype)
        except ValueError:
            if not isinstance(activation, str):
                raise
            try:
                function = self._keras.activations.get(activation)
            except ValueError:
                function = None
            if function is None:
                raise
        return checked_activation(function, self._flow_dtype)

    def _set_kl_term(self, kl_loss_weight: Any, free_bits: Any, prior: Any) -> None:
        self._kl_target = None if kl_loss_weight is None else checked_number('kl_loss_weight', kl_loss_weight)
        self.free_bits = None if free_bits is None else checked_number('free_bits', free_bits, minimum=0)
        self.prior = priors.checked_prior(prior, self._keras.layers.Layer)
        self._kl_weight: Any = None
        self._kl_metric: Any = None
        if self._kl_target is not None:
            self._kl_weight = self._new_weight('kl_loss_weight', np.asarray(self._kl_target), trainable=False)
            # With the layer's name: of metrics with one name Keras would report the last alone.
            self._kl_metric = self._keras.metrics.Mean(name=f'{self.name}_kl')
            return
        for argument, value in (('free_bits', free_bits), ('prior', prior)):
            if value is not None:
                raise ValueError(
                    f'{argument}: got {value!r} without a KL term to use it in. Give kl_loss_weight, 1.0 for the ELBO.'
                )

    @property
    def kl_loss_weight(self) -> Any:
        """The weight of the KL term in force, a variable that may be assigned to while training, or `None`."""
        return self._kl_weight

    def build(self, input_shape: Any) -> None:
        """Makes the networks, from the shapes of the inputs."""
        shapes = checked_shapes(input_shape)
        priors.check_shape(self.prior, shapes[0][1:], self._flow_dtype)
        self._event_shape = shapes[0][1:]
        self._context_shape = shapes[2][1:] if len(shapes) == 3 else None
        posterior = self._keep(self._make_posterior(self._make_flow_weight))
        if posterior.networks:
            # From now on part of the config: the weights that a file has are those of so many blocks.
            self.num_blocks = posterior.networks[0].num_blocks
        if isinstance(self.prior, self._keras.layers.Layer):
            # Which makes its weights, and those of the layers in it, before an optimizer or a file asks for them.
            self.prior(self._keras.Input(self._event_shape, dtype=self.variable_dtype))
        super().build(input_shape)  # type: ignore[misc]

    def _make_posterior(self, variable_factory: VariableFactory) -> IAFPosterior:
        if self._event_shape is None:
            raise ValueError(
                f'{self.name}: not built yet. Call the layer on its inputs, or build it with their shapes, first.'
            )
        return IAFPosterior(
            math.prod(self._event_shape),
            self.num_flows,
            self.hidden_units,
            context_size=None if self._context_shape is None else math.prod(self._context_shape),
            transform=self.transform,
            alternate_order=self.alternate_order,
            inverse=self.inverse,
            activation=self._activation_function,
            seed=self.seed,
            dtype=self._flow_dtype,
            num_blocks=self.num_blocks,
            variable_factory=variable_factory,
            name=self.name,
        )

    def _make_flow_weight(self, name: str, value: np.ndarray) -> tf.Variable:
        self._flow_weights[name] = self._new_weight(name.replace('/', '_'), value, trainable=True)
        return self._variable_of(self._flow_weights[name])

    def _keep(self, posterior: IAFPosterior) -> IAFPosterior:
        # While Keras works out the shapes of a model, weights are promises, and their values tensors of that moment.
        if all(isinstance(variable, tf.Variable) for network in posterior.networks for variable in network.variables):
            self._posterior = posterior
        return posterior

    def _flow(self) -> IAFPosterior:
        if self._posterior is not None:
            return self._posterior
        return self._keep(self._make_posterior(lambda name, value: self._variable_of(self._flow_weights[name])))

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; a context of `None` is none, which not every version of Keras lets pass."""
        check_call(inputs, args, self._keras.__name__, self.name)
        if isinstance(inputs, (list, tuple)) and len(inputs) == 3 and inputs[2] is None:
            inputs = inputs[:2]
        return super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]

    def _check_inputs(self, inputs: Any) -> None:
        check_inputs(inputs, self._event_shape, self._context_shape, self.name)

    def call(self, inputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a sample for each row, and its log-density."""
        self._check_inputs(inputs)
        z, log_q = self.posterior(*inputs).experimental_sample_and_log_prob(seed=self._seed_of_replica())
        if self._kl_weight is not None:
            kl = self._kl(z, log_q, *inputs[:2])
            if not tf.distribute.in_cross_replica_context():  # where tf_keras works out shapes, and no replica counts
                self._kl_metric.update_state(kl)
            term = tf.reduce_mean(kl) if self.free_bits is None else objectives.free_bits(kl, self.free_bits)
            # In Keras's own dtype, in which it adds up the losses of a model.
            self.add_loss(tf.cast(tf.convert_to_tensor(self._kl_weight) * term, self._keras.backend.floatx()))
        return z, log_q

    def _seed_of_replica(self) -> tf.Tensor:
        seed = tf.cast(self._next_seed(), tf.int32)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return seed
        # The replicas of a strategy count alike, and would all draw the same noise.
        return tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)

    def compute_output_shape(self, input_shape: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Returns the shapes of the sample and of its log-density."""
        return tuple(input_shape[0]), tuple(input_shape[0])[:1]

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
        flow, shape = self._flow(), self._event_shape
        assert shape is not None
        z_mean = flattened('z_mean', z_mean, shape, flow.dtype, self.name)
        z_log_var = flattened('z_log_var', z_log_var, shape, flow.dtype, self.name)
        if context is not None and self._context_shape is not None:
            context = flattened('context', context, self._context_shape, flow.dtype, self.name)
        q = flow(z_mean, tf.exp(0.5 * z_log_var), context)
        if len(shape) == 1:
            return q
        restore = tfp.bijectors.Reshape(event_shape_out=shape, event_shape_in=[math.prod(shape)])
        chain = UncachedChain([restore, *q.bijector.bijectors], name=f'{flow.name}/')
        return tfp.distributions.TransformedDistribution(q.distribution, chain, name=q.name)

    def _kl(self, z: tf.Tensor, log_q: tf.Tensor, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
        if self.num_flows == 0 and self.prior is None:
            z_mean, z_log_var = tf.cast(z_mean, z.dtype), tf.cast(z_log_var, z.dtype)
            terms = tf.square(z_mean) + tf.exp(z_log_var) - 1.0 - z_log_var
            return 0.5 * tf.reduce_sum(terms, axis=range(1, z.shape.rank))
        return log_q - priors.log_prob(self.prior, z)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the layer anew."""
        if isinstance(self.prior, tfp.distributions.Distribution):
            raise NotImplementedError(
                f'prior: got {self.prior}, which Keras cannot save in a config. Pass a function z -> log p(z) that is '
                f'registered with {self._keras.__name__}.saving.register_keras_serializable, or a layer; or save the '
                f'weights alone.'
            )
        config = super().get_config()  # type: ignore[misc]
        return {
            **config,
            'num_flows': self.num_flows,
            'hidden_units': list(self.hidden_units),
            'transform': self._serialize(self.transform),
            'kl_loss_weight': self._kl_target,
            'free_bits': self.free_bits,
            'prior': self._serialize(self.prior),
            'alternate_order': self.alternate_order,
            'inverse': self.inverse,
            'activation': self._serialize(self.activation),
            'num_blocks': self.num_blocks,
            'seed': self.seed,
        }

    @classmethod
    def from_config(cls: type[LayerT], config: dict[str, Any]) -> LayerT:
        """Makes the layer from what `get_config` returned."""
        made: dict[str, Any] = {
            key: cls._deserialize(config[key]) for key in ('activation', 'prior', 'transform') if key in config
        }
        return cls(**{**config, **made})
