"""The flow in tf_keras (Keras 2) models: as a sampling layer, as a factory of distributions, and a callback.

For models made with Keras 3, take `tfp_iaf.keras`. A layer of one Keras does not fit into a model of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfp_iaf import transforms
from tfp_iaf._layers._flow_sampling import PlanarSamplingLayer, RadialSamplingLayer, SylvesterSamplingLayer
from tfp_iaf._layers._iaf_sampling import IAFSamplingLayer
from tfp_iaf._layers._posterior import PosteriorLayer
from tfp_iaf._layers._sampling import SamplingLayer
from tfp_iaf._layers._warmup import WarmupCallback
from tfp_iaf._layers._warmup_state import KLMean
from tfp_iaf._random import random_generator

__all__ = [
    'IAFPosterior',
    'IAFSampling',
    'KLWarmup',
    'PlanarSampling',
    'PosteriorSampling',
    'RadialSampling',
    'SylvesterSampling',
]

for _transform in transforms.CLASSES:
    tf_keras.saving.register_keras_serializable(package='tfp_iaf')(_transform)


class _Keras2:
    """What a layer of tf_keras does in its own way."""

    _keras = tf_keras
    # Of the same name as Keras's own, by which files know it.
    _KLMean = type('Mean', (KLMean, tf_keras.metrics.Mean), {})

    # In the older of tf_keras's two ways, since it loads .h5 files and SavedModels in that way only.

    @staticmethod
    def _serialize(value: Any) -> Any:
        plain = value is None or isinstance(value, str)
        return value if plain else tf_keras.utils.legacy.serialize_keras_object(value)

    @staticmethod
    def _deserialize(value: Any) -> Any:
        if isinstance(value, str):  # of an activation, or of a registered function
            return tf_keras.saving.get_registered_object(value) or value
        return tf_keras.layers.deserialize(value, use_legacy_format=True) if isinstance(value, dict) else value

    def _new_weight(self, name: str, value: np.ndarray, trainable: bool) -> tf.Variable:
        # Trainable weights have a name scope, or its name, already. An .h5 file has no place for two equal names.
        return self.add_weight(  # type: ignore[attr-defined]
            name=name if trainable else f'{self.name}/{name}',  # type: ignore[attr-defined]
            shape=value.shape,
            dtype=self.variable_dtype,  # type: ignore[attr-defined]
            initializer=lambda shape, dtype: tf.constant(value, dtype),
            trainable=trainable,
            experimental_autocast=False,
        )

    def _variable_of(self, weight: tf.Variable) -> tf.Variable:
        return weight


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class PosteriorSampling(SamplingLayer, _Keras2, tf_keras.layers.Layer):
    """The sampling layer of a VAE for a posterior of your own, for tf_keras; see `tfp_iaf.keras.PosteriorSampling`.

    The state of the seed is a weight here, two numbers that are not trainable, so that every format saves it.

    >>> import tensorflow_probability as tfp
    >>> class StudentSampling(PosteriorSampling):
    ...     def posterior(self, z_mean, z_log_var, context=None):
    ...         t = tfp.distributions.StudentT(5.0, z_mean, tf.exp(0.5 * z_log_var))
    ...         return tfp.distributions.Independent(t, 1)
    >>> z, log_q = StudentSampling()([tf.zeros([5, 2]), tf.zeros([5, 2])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

    def _make_seeds(self) -> None:
        seed = int(random_generator(None).integers(2**31)) if self.seed is None else self.seed
        self._seed_state = self.add_weight(
            name=f'{self.name}/seed_state',
            shape=[2],
            dtype=tf.int64,
            initializer=lambda shape, dtype: tf.constant([seed, 0], dtype),
            trainable=False,
            # Each replica counts its calls, and all make as many.
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def _next_seed(self) -> tf.Tensor:
        seed = self._seed_state.read_value()
        self._seed_state.assign_add(tf.constant([0, 1], tf.int64))
        return seed

    def _reason_against_time_distributed(self) -> str | None:
        return (
            None if self.kl_weight is None else 'calls it in a loop that no KL term gets out of (kl_weight=None would)'
        )


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFSampling(IAFSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with an Inverse Autoregressive Flow behind the Gaussian, for tf_keras.

    See `tfp_iaf.keras.IAFSampling`. The state of the seed is a weight here, as in `PosteriorSampling`.

    `tfp.layers.DistributionLambda` takes `layer.posterior`, in a model that holds the layer.

    >>> layer = IAFSampling(num_flows=2, hidden_units=(16,), seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class PlanarSampling(PlanarSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with planar flows behind the Gaussian, for tf_keras.

    See `tfp_iaf.keras.PlanarSampling`.

    >>> z, log_q = PlanarSampling(num_flows=2)([tf.zeros([5, 2]), tf.zeros([5, 2])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class RadialSampling(RadialSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with radial flows behind the Gaussian, for tf_keras.

    See `tfp_iaf.keras.RadialSampling`.

    >>> z, log_q = RadialSampling(num_flows=2)([tf.zeros([5, 2]), tf.zeros([5, 2])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class SylvesterSampling(SylvesterSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with Sylvester flows behind the Gaussian, for tf_keras.

    See `tfp_iaf.keras.SylvesterSampling`.

    >>> z, log_q = SylvesterSampling(num_flows=2)([tf.zeros([5, 2]), tf.zeros([5, 2])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFPosterior(PosteriorLayer, _Keras2, tf_keras.layers.Layer):
    """A `tfp_iaf.IAFPosterior` whose variables every format of tf_keras saves; see `tfp_iaf.keras.IAFPosterior`.

    tf_keras trains those of a plain `tfp_iaf.IAFPosterior` too, but no .h5 file has them.

    >>> flow = IAFPosterior(2, num_flows=2, hidden_units=(16,), seed=0)
    >>> flow(tf.zeros([5, 2]), tf.ones([5, 2])).log_prob(tf.zeros([5, 2])).shape, len(flow.trainable_weights)
    (TensorShape([5]), 8)
    """

    def _is_symbolic(self, value: Any) -> bool:
        try:
            return bool(tf_keras.backend.is_keras_tensor(value))
        except ValueError:  # which is no tensor at all
            return False

    def _adopt(self, variables: Iterable[tf.Variable]) -> None:
        self._adopted = list(variables)


class KLWarmup(WarmupCallback, tf_keras.callbacks.Callback):
    """Raises the weight of the KL term linearly in training, for tf_keras; see `tfp_iaf.keras.KLWarmup`."""

    def __init__(self, steps: int, start: float = 0.0) -> None:
        super().__init__(steps, start)
        # Or else tf_keras waits for the accelerator after every batch, to make numbers of the logs.
        self._supports_tf_logs = True
