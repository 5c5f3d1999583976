"""The flow as one layer of a tf_keras (Keras 2) model, and a callback for its KL term.

For models made with Keras 3, take `tfp_iaf.keras`. A layer of one Keras does not fit into a model of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfp_iaf import transforms
from tfp_iaf.networks import random_generator
from tfp_iaf.sampling import SamplingLayer
from tfp_iaf.warmup import WarmupCallback

__all__ = ['IAFSampling', 'KLWarmup']

for _transform in transforms.CLASSES:
    tf_keras.saving.register_keras_serializable(package='tfp_iaf')(_transform)


@tf_keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFSampling(SamplingLayer, tf_keras.layers.Layer):
    """The sampling layer of a VAE, with an Inverse Autoregressive Flow behind the Gaussian, for tf_keras.

    Arguments, shapes, cost and errors are those of `tfp_iaf.keras.IAFSampling`. The state of its seed is a weight here,
    two numbers that are not trainable, so that every format saves it.

    `tfp.layers.DistributionLambda` takes `layer.posterior`, in a model that holds the layer.

    >>> layer = IAFSampling(num_flows=2, hidden_units=(16,), seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

    _keras = tf_keras

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
        # Trainable weights are made in build, which has a name scope. An .h5 file has no place for two equal names.
        return self.add_weight(
            name=name if trainable else f'{self.name}/{name}',
            shape=value.shape,
            dtype=self.variable_dtype,
            initializer=lambda shape, dtype: tf.constant(value, dtype),
            trainable=trainable,
            experimental_autocast=False,
        )

    def _variable_of(self, weight: tf.Variable) -> tf.Variable:
        return weight

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


class KLWarmup(WarmupCallback, tf_keras.callbacks.Callback):
    """Raises the weight of the KL term linearly, from `start` to the layers' `kl_loss_weight`, for tf_keras.

    Arguments and errors are those of `tfp_iaf.keras.KLWarmup`.
    """
