"""VAEs with the layers in them, for Keras 3 and for tf_keras, and helpers for their tests."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
import tfp_iaf.keras
import tfp_iaf.tf_keras
from tests.flows import normal, tfd

ROWS, FEATURES, LATENT, CONTEXT = 12, 6, 2, 3

STANDARD_NORMAL = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))


def kl_with_control_variate(base, prior, z_0, z, log_det, size=1):
    """The KL of what a flow makes of `size` entries of a base, for each row, by the equation `kl-control-variate`."""
    squares = np.minimum(np.exp(2 * np.asarray(log_det) / size), 1)
    c = (np.sum(squares, axis=0) - squares) / (len(squares) - 1)  # of the other rows
    kl = -base.entropy() - log_det - prior.log_prob(z)
    return (kl + c * (prior.log_prob(z_0) + base.entropy() + tfd.kl_divergence(base, prior))).numpy()


@dataclasses.dataclass(frozen=True)
class Kit:
    """One Keras, and the package's module for it."""

    keras: Any
    module: Any

    def __getattr__(self, name):
        """The package's classes for this Keras."""
        return getattr(self.module, name)

    def layer(self, num_flows=2, hidden_units=(8,), **kwargs):
        return self.IAFSampling(num_flows, hidden_units, **kwargs)

    def vae(self, flow, prior_at_the_call=False):
        """A functional VAE with a context; the outputs are the reconstruction, the sample and its log-density."""
        layers = self.keras.layers
        inputs = self.keras.Input([FEATURES])
        hidden = layers.Dense(8, activation='relu')(inputs)
        parameters = [layers.Dense(size)(hidden) for size in (LATENT, LATENT, CONTEXT)]
        prior = {'prior': [layers.Dense(LATENT, name=name)(inputs) for name in ('p_mean', 'p_log_var')]}
        z, log_q = flow(parameters, **(prior if prior_at_the_call else {}))
        return self.keras.Model(inputs, {'x': layers.Dense(FEATURES, name='x')(z), 'z': z, 'log_q': log_q})

    def functional_model(self, **kwargs):
        return self.vae(self.layer(name='flow', **{'kl_weight': 0.5, **kwargs}))

    def one_output_model(self, **kwargs):
        """The same with the reconstruction alone, for a loss of one output."""
        model = self.functional_model(**kwargs)
        return self.keras.Model(model.inputs, model.output['x'])

    def train(self, model):
        """Trains on one batch; eagerly, which takes less time than to trace a model."""
        model.compile(self.keras.optimizers.Adam(0.01), loss=LOSSES, run_eagerly=True)
        return fit(model)


K3 = Kit(keras, tfp_iaf.keras)
K2 = Kit(tf_keras, tfp_iaf.tf_keras)
each_kit = pytest.mark.parametrize('kit', [pytest.param(K3, id='keras'), pytest.param(K2, id='tf_keras')])


@functools.cache
def called_layer(kit, conditional=True, **arguments):
    """A layer that has been called; what it refuses leaves it as it is, so tests of errors can share it."""
    flow = kit.layer(1, **arguments)
    flow(point()[: 3 if conditional else 2])
    return flow


def registered(function):
    """Registers a function with both Kerases."""
    for each in (keras, tf_keras):
        each.saving.register_keras_serializable(package='tests')(function)
    return function


@registered
def no_loss(target, output):
    """A loss of zero for each row."""
    return 0.0 * tf.reduce_sum(target, axis=-1)


# Keras 3.6 cannot leave an output without a loss.
LOSSES = {'x': 'mse', 'z': no_loss, 'log_q': no_loss}


@registered
def log_laplace(z):
    """The log-density of a prior."""
    return tf.reduce_sum(tfd.Laplace(0.0, 1.0).log_prob(z), axis=-1)


@registered
def narrow_at_first(event_shape, hidden_units, **kwargs):
    """A factory of networks, the first of which has other hidden layers."""
    units = [5] if kwargs['name'] == 'flow_0' else hidden_units
    return tfp_iaf.MaskedAutoregressiveNetwork(event_shape, units, **kwargs)


def data(rows=ROWS):
    return normal([rows, FEATURES], tf.float32, seed=1).numpy()


def flow_of(model):
    return model.get_layer('flow')


def flow_variables(model):
    return flow_of(model).posterior(*point()[:3]).trainable_variables


def zeros(*shapes, dtype=tf.float32):
    return [tf.zeros(shape, dtype) for shape in shapes]


def values_of(weights):
    return [weight.numpy() for weight in weights]


def variables_of(weights):
    """Identities of the variables in weights of either Keras."""
    return {id(getattr(weight, '_value', weight)) for weight in weights}


def assert_all_changed(weights, before):
    for weight, value in zip(weights, before, strict=True):
        assert np.all(np.isfinite(weight)) and np.any(weight != value), weight.name


def fit(model, rows=5, **kwargs):
    """Trains a compiled model; the last batch is smaller than the others."""
    inputs = data(rows)
    return model.fit(inputs, dict.fromkeys(LOSSES, inputs), batch_size=5, verbose=0, **kwargs)


def point(dtype=tf.float32):
    """Arguments of a posterior, and a point z."""
    return [normal([4, size], dtype, seed=seed) for seed, size in enumerate((LATENT, LATENT, CONTEXT, LATENT))]


def assert_equal(outputs, expected):
    """Compares the outputs of two models, to the bit."""
    for a, b in zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(a, b)
