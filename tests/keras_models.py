"""VAEs with the layer in them, for Keras 3 and for tf_keras, and helpers for their tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_iaf
import tfp_iaf.keras
import tfp_iaf.tf_keras
from tests.flows import normal

ROWS, FEATURES, LATENT, CONTEXT = 12, 6, 2, 3


@dataclasses.dataclass(frozen=True)
class Kit:
    """One Keras, and the package's names for it."""

    keras: Any
    IAFPosterior: type
    IAFSampling: type
    KLWarmup: type
    PosteriorSampling: type

    @classmethod
    def of(cls, keras, module):
        return cls(keras, *(getattr(module, field.name) for field in dataclasses.fields(cls)[1:]))

    def layer(self, num_flows=2, hidden_units=(8,), **kwargs):
        return self.IAFSampling(num_flows, hidden_units, **kwargs)

    def functional_model(self, **kwargs):
        """A VAE with a context; the outputs are the reconstruction, the sample and its log-density."""
        layers = self.keras.layers
        inputs = self.keras.Input([FEATURES])
        hidden = layers.Dense(8, activation='relu')(inputs)
        parameters = [layers.Dense(size)(hidden) for size in (LATENT, LATENT, CONTEXT)]
        z, log_q = self.layer(name='flow', **{'kl_weight': 0.5, **kwargs})(parameters)
        return self.keras.Model(inputs, {'x': layers.Dense(FEATURES, name='x')(z), 'z': z, 'log_q': log_q})

    def one_output_model(self, **kwargs):
        """The same with the reconstruction alone; the oldest versions of Keras cannot leave outputs without a loss."""
        model = self.functional_model(**kwargs)
        return self.keras.Model(model.inputs, model.output['x'])


K3 = Kit.of(keras, tfp_iaf.keras)
K2 = Kit.of(tf_keras, tfp_iaf.tf_keras)
each_kit = pytest.mark.parametrize('kit', [pytest.param(K3, id='keras'), pytest.param(K2, id='tf_keras')])
# The flow is the same in either, and XLA takes its time.
each_compiled_kit = pytest.mark.parametrize(
    ('kit', 'jit_compile'), [pytest.param(K3, True, id='keras_xla'), pytest.param(K2, False, id='tf_keras_graph')]
)


def _subclassed(kit):
    layers = kit.keras.layers

    @kit.keras.saving.register_keras_serializable(package='tests')
    class SubclassedModel(kit.keras.Model):
        """The same as a class, built when it is first called."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = layers.Dense(8, activation='relu')
            self.heads = [layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
            self.flow = kit.layer(name='flow', kl_weight=0.5)
            self.decoder = layers.Dense(FEATURES)

        def call(self, inputs):
            hidden = self.hidden(inputs)
            z, log_q = self.flow([head(hidden) for head in self.heads])
            return {'x': self.decoder(z), 'z': z, 'log_q': log_q}

    return SubclassedModel


SubclassedModel = _subclassed(K3)
SubclassedModel2 = _subclassed(K2)


@keras.saving.register_keras_serializable(package='tests')
@tf_keras.saving.register_keras_serializable(package='tests')
def log_laplace(z):
    """The log-density of a prior."""
    return tf.reduce_sum(tfp.distributions.Laplace(0.0, 1.0).log_prob(z), axis=-1)


@keras.saving.register_keras_serializable(package='tests')
@tf_keras.saving.register_keras_serializable(package='tests')
def narrow_at_first(event_shape, hidden_units, **kwargs):
    """A factory of networks, the first of which has other hidden layers."""
    units = [5] if kwargs['name'] == 'flow_0' else hidden_units
    return tfp_iaf.MaskedAutoregressiveNetwork(event_shape, units, **kwargs)


def data(rows=ROWS):
    return normal([rows, FEATURES], tf.float32, seed=1).numpy()


def built(model):
    model(data())
    return model


def flow_of(model):
    return model.get_layer('flow')


def flow_variables(model):
    return flow_of(model).posterior(*point()[:3]).trainable_variables


def train(model, epochs=2, jit_compile=None, rows=ROWS, kit=K3, callbacks=None):
    """Trains a model; eagerly, which takes less time than to trace it, unless `jit_compile` says how to compile."""
    how = {'run_eagerly': True} if jit_compile is None else {'jit_compile': jit_compile}
    model.compile(kit.keras.optimizers.Adam(0.01), loss={'x': 'mse'}, **how)
    return fit(model, epochs, rows, callbacks)


def fit(model, epochs=2, rows=ROWS, callbacks=None, **kwargs):
    """Trains a compiled model; the last batch is smaller than the others."""
    inputs = data(rows)
    return model.fit(inputs, {'x': inputs}, batch_size=5, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs)


def point(dtype=tf.float32):
    """Arguments of a posterior, and a point z."""
    return [normal([4, size], dtype, seed=seed) for seed, size in enumerate((LATENT, LATENT, CONTEXT, LATENT))]


def parameters_of(model):
    """What the encoder gives the layer for the data."""
    dense = [each for each in model.layers if isinstance(each, keras.layers.Dense)]
    heads = getattr(model, 'heads', None) or dense[1:4]
    hidden = dense[0](data())
    return [head(hidden) for head in heads]


def log_q_of_a_fixed_point(model):
    *parameters, z = point()
    return flow_of(model).posterior(*parameters).log_prob(z).numpy()


def assert_equal(outputs, expected):
    """Compares the outputs of two models, to the bit."""
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value, err_msg=name)
