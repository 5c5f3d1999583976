"""The flow as one layer of a Keras 3 model.

Keras must run on TensorFlow. For models made with tf_keras (Keras 2) this layer does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import transforms
from tfp_iaf.checks import checked_hidden_units, checked_size
from tfp_iaf.networks import VariableFactory, checked_activation
from tfp_iaf.posteriors import IAFPosterior
from tfp_iaf.transforms import Transform

__all__ = ['IAFSampling']

if keras.backend.backend() != 'tensorflow':
    raise ImportError(
        f'tfp_iaf.keras: got the Keras backend {keras.backend.backend()!r}, expected "tensorflow", which TensorFlow '
        f'Probability needs. Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported.'
    )

_INPUTS = 'a list of [z_mean, z_log_var] or [z_mean, z_log_var, context]'


for _transform in (transforms.Affine, transforms.Gated):
    keras.saving.register_keras_serializable(package='tfp_iaf')(_transform)


@keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFSampling(keras.layers.Layer):
    r"""The sampling layer of a VAE, with an Inverse Autoregressive Flow behind the Gaussian.

    $$z_0 = \mu + \sigma \epsilon, \quad z_t = f_t(z_{t-1}, h), \quad
      \log q(z_T \mid x) = \log q(z_0 \mid x) - \sum_t \log\left|\det \frac{\partial z_t}{\partial z_{t-1}}\right|$$

    It takes the place of the `Sampling` layer of the standard Keras VAE:
    `z, log_q = IAFSampling()([z_mean, z_log_var])`, or, with a context h made by the encoder,
    `IAFSampling()([z_mean, z_log_var, h])`. `layer.posterior(...)` gives the distribution itself.

    Shapes: z_mean, z_log_var and z `[batch, D]`, context `[batch, C]`, log_q `[batch]`. Dtype: the layer's variable
    dtype, also under a mixed precision policy, since a log-det is a sum that half precision would spoil.

    Cost: one pass of each step's network per call.

    Args:
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        hidden_units: Units of the hidden layers of each step's network.
        transform: `'gated'` (only contracts), `'affine'` (expands too), or an object of `tfp_iaf.transforms`.
        kl_loss_weight: With a number, the layer adds this times the batch's mean KL(q(z|x) || N(0, I)) to the model's
            loss, and reports the KL as the metric `kl`. It is the log-ratio at the samples, or, with `num_flows=0`,
            analytic. `None` leaves the loss to the model.
        alternate_order: Whether every second step takes the entries from right to left.
        activation: Activation of the networks: a name of `tf.nn`, or a callable.
        seed: Seed of the initial weights and of the samples. `None` follows `keras.utils.set_random_seed`.
        **kwargs: `name`, `dtype` and `trainable`, as of any Keras layer.

    Raises:
        ValueError: If there are not two or three inputs, or their sizes do not fit.
        TypeError: If the variable dtype is neither float32 nor float64.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Algorithm 1.

    >>> layer = IAFSampling(num_flows=2, hidden_units=(16,), seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

    def __init__(
        self,
        num_flows: int = 4,
        hidden_units: Sequence[int] = (320, 320),
        transform: str | Transform = 'gated',
        kl_loss_weight: float | None = None,
        *,
        alternate_order: bool = True,
        activation: Any = 'elu',
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Without Keras's autocast, which would round the encoder's float32 outputs to half precision.
        super().__init__(**{'autocast': False, **kwargs})
        self.num_flows = checked_size('num_flows', num_flows, minimum=0)
        self.hidden_units = checked_hidden_units(hidden_units)
        self.transform = transforms.get(transform)
        self._kl_loss_weight = _checked_weight(kl_loss_weight)
        self.alternate_order = alternate_order
        checked_activation(activation)
        self.activation = activation
        self.seed = seed
        self._seed_generator = keras.random.SeedGenerator(seed)
        self._kl_metric = None if kl_loss_weight is None else keras.metrics.Mean(name='kl')
        self._sizes: tuple[int, int | None] | None = None
        self._flow_weights: dict[str, Any] = {}
        self._posterior: IAFPosterior | None = None

    @property
    def kl_loss_weight(self) -> float | None:
        """Weight of the KL term in the model's loss, or `None`."""
        return self._kl_loss_weight

    def build(self, input_shape: Any) -> None:
        """Makes the networks, from the shapes of the inputs."""
        if (
            not isinstance(input_shape, (list, tuple))
            or len(input_shape) not in (2, 3)
            or not all(isinstance(shape, (list, tuple)) for shape in input_shape)
        ):
            raise ValueError(f'inputs: got the shape(s) {input_shape}, expected {_INPUTS}.')
        sizes = [shape[-1] for shape in input_shape]
        if None in sizes or sizes[0] != sizes[1]:
            raise ValueError(
                f'inputs: got the shapes {input_shape}, expected known last dimensions, and equal ones for z_mean and '
                f'z_log_var.'
            )
        self._sizes = (sizes[0], sizes[2] if len(sizes) == 3 else None)
        self._keep(self._make_posterior(self._sizes, self._make_weight))
        self.built = True

    def _make_posterior(self, sizes: tuple[int, int | None], variable_factory: VariableFactory) -> IAFPosterior:
        return IAFPosterior(
            sizes[0],
            self.num_flows,
            self.hidden_units,
            context_size=sizes[1],
            transform=self.transform,
            alternate_order=self.alternate_order,
            activation=self.activation,
            seed=self.seed,
            dtype=tf.as_dtype(self.variable_dtype),
            variable_factory=variable_factory,
            name=self.name,
        )

    def _make_weight(self, name: str, value: np.ndarray) -> tf.Variable:
        # Keras tracks, trains and saves the weight; its raw variable is what TFP finds in the flow. With autocast, it
        # would be a cast tensor under mixed precision.
        weight = self.add_weight(
            name=name.replace('/', '_'),
            shape=value.shape,
            initializer=lambda shape, dtype: tf.constant(value, dtype),
            dtype=self.variable_dtype,
            autocast=False,
        )
        self._flow_weights[name] = weight
        return weight.value

    def _keep(self, posterior: IAFPosterior) -> IAFPosterior:
        # While Keras works out the shapes of a model, weights are promises, and their values tensors of that moment.
        if all(isinstance(variable, tf.Variable) for network in posterior.networks for variable in network.variables):
            self._posterior = posterior
        return posterior

    def _flow(self) -> IAFPosterior:
        if self._posterior is not None:
            return self._posterior
        if self._sizes is None:
            raise ValueError(
                f'{self.name}: not built yet. Call the layer on its inputs, or build it with their shapes, first.'
            )
        return self._keep(self._make_posterior(self._sizes, lambda name, value: self._flow_weights[name].value))

    def call(self, inputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a sample for each row, and its log-density."""
        seed = tf.cast(self._seed_generator.next(), tf.int32)
        z, log_q = self.posterior(*inputs).experimental_sample_and_log_prob(seed=seed)
        if self._kl_metric is not None:
            kl = self._kl(z, log_q, *inputs[:2])
            self._kl_metric.update_state(kl)
            # In Keras's own dtype, in which it adds up the losses of a model.
            self.add_loss(tf.cast(self._kl_loss_weight * tf.reduce_mean(kl), keras.config.floatx()))
        return z, log_q

    def compute_output_shape(self, input_shape: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Returns the shapes of the sample and of its log-density."""
        return tuple(input_shape[0]), tuple(input_shape[0][:-1])

    def posterior(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None
    ) -> tfp.distributions.TransformedDistribution:
        """Returns q(z|x), for importance weighting, plots, or more than one sample.

        In a trained model, what the layer takes comes from its encoder:
        `encoder = keras.Model(model.input, layer.input); q = layer.posterior(*encoder(x))`.

        >>> layer = IAFSampling(num_flows=1, hidden_units=(16,))
        >>> layer.build([(None, 2), (None, 2)])
        >>> layer.posterior(tf.zeros([5, 2]), tf.zeros([5, 2])).sample(7).shape
        TensorShape([7, 5, 2])
        """
        flow = self._flow()
        dtype = flow.dtype
        z_mean, z_log_var = (tf.cast(value, dtype) for value in (z_mean, z_log_var))
        context = None if context is None else tf.cast(context, dtype)
        return flow(z_mean, tf.exp(0.5 * z_log_var), context)

    def _kl(self, z: tf.Tensor, log_q: tf.Tensor, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
        if self.num_flows == 0:
            z_mean, z_log_var = tf.cast(z_mean, z.dtype), tf.cast(z_log_var, z.dtype)
            return 0.5 * tf.reduce_sum(tf.square(z_mean) + tf.exp(z_log_var) - 1.0 - z_log_var, axis=-1)
        prior = tfp.distributions.Normal(tf.zeros([], z.dtype), 1.0)
        return log_q - tf.reduce_sum(prior.log_prob(z), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the layer anew."""
        named = isinstance(self.activation, str)
        activation = self.activation if named else keras.saving.serialize_keras_object(self.activation)
        return {
            **super().get_config(),
            'num_flows': self.num_flows,
            'hidden_units': list(self.hidden_units),
            'transform': keras.saving.serialize_keras_object(self.transform),
            'kl_loss_weight': self._kl_loss_weight,
            'alternate_order': self.alternate_order,
            'activation': activation,
            'seed': self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> IAFSampling:
        """Makes the layer from what `get_config` returned."""
        made = {
            key: keras.saving.deserialize_keras_object(config[key])
            if isinstance(config.get(key), dict)
            else config[key]
            for key in config
            if key in ('activation', 'transform')
        }
        return cls(**{**config, **made})


def _checked_weight(kl_loss_weight: Any) -> float | None:
    if kl_loss_weight is None:
        return None
    if isinstance(kl_loss_weight, bool) or not isinstance(kl_loss_weight, (int, float, np.number)):
        raise TypeError(f'kl_loss_weight: got {kl_loss_weight!r}, expected a number, or None for no KL term.')
    return float(kl_loss_weight)
