"""`IAFPosterior` as an attribute of a model, in either Keras, and what Keras 3 would not train."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import normal, raises, tfb, tfd
from tests.keras_models import (
    K2,
    K3,
    LATENT,
    STANDARD_NORMAL,
    assert_all_changed,
    assert_equal,
    each_kit,
    values_of,
    variables_of,
)
from tfp_iaf import _compat

TARGETS = normal([64, LATENT], tf.float32, seed=3).numpy()


@pytest.mark.slow
@each_kit
def test_fit_trains_every_variable_and_a_file_brings_them_back(kit, tmp_path):
    class Model(kit.keras.Model):
        def __init__(self):
            super().__init__()
            networks = [tfp_iaf.MaskedAutoregressiveNetwork(LATENT, (8,), name=f'net_{t}') for t in range(2)]
            self.flow = kit.IAFPosterior(LATENT, 1, (8,), transform='affine')
            self.own = kit.IAFPosterior(networks=networks, transform='affine')

        def call(self, x):
            return -sum(flow(tf.ones_like(x), tf.ones_like(x)).log_prob(x) for flow in (self.flow, self.own))

    model, other = Model(), Model()
    model(TARGETS), other(TARGETS)
    variables = [*model.flow.flow.variables, *model.own.flow.variables]
    before = values_of(variables)
    assert len(variables) == 12 and variables_of(variables) == variables_of(model.trainable_variables)
    model.compile(kit.keras.optimizers.Adam(0.05), loss=lambda _, y: y, run_eagerly=True)
    losses = model.fit(TARGETS, np.zeros([64]), batch_size=64, epochs=5, verbose=0).history['loss']
    assert_all_changed(variables, before)
    assert losses[-1] < losses[0] - 0.1
    model.save_weights(tmp_path / 'model.weights.h5')
    other.load_weights(tmp_path / 'model.weights.h5')
    assert_equal([*other.flow.flow.variables, *other.own.flow.variables], variables)
    with raises(NotImplementedError, 'networks', 'config', 'weights alone'):
        model.own.get_config()


def test_it_is_the_plain_posterior():
    arguments = {'context_shape': [3], 'transform': 'affine', 'alternate_order': False, 'seed': 1}
    layer, plain = (make(LATENT, 2, (8,), **arguments) for make in (K3.IAFPosterior, tfp_iaf.IAFPosterior))
    inputs = normal([4, LATENT], tf.float32), tf.ones([4, LATENT]), normal([4, 3], tf.float32, 1)
    z = normal([4, LATENT], tf.float32, 2)
    np.testing.assert_array_equal(layer(*inputs).log_prob(z), plain(*inputs).log_prob(z))
    np.testing.assert_array_equal(layer.bijector(inputs[2]).forward(z), plain.bijector(inputs[2]).forward(z))
    assert (layer.event_shape, layer.context_shape, layer.num_flows) == ([LATENT], [3], 2)
    assert layer.transform == plain.transform and len(layer.networks) == 2
    frozen = K3.IAFPosterior([3, 2], 1, (7,), trainable=False)
    assert not frozen.trainable_variables and len(frozen.variables) == 4
    assert frozen(tf.zeros([3, 2]), tf.ones([3, 2])).event_shape == [3, 2]


@pytest.mark.parametrize(('policy', 'dtype'), [('mixed_float16', tf.float32), ('float64', tf.float64)])
def test_dtype_is_that_of_the_variables(policy, dtype):
    layer = K3.IAFPosterior(LATENT, 1, (8,), context_shape=2, dtype=policy)
    half = tf.ones([3, LATENT], tf.float16)
    q = layer(half, half, half)
    assert q.dtype == dtype == layer.bijector(half).forward(tf.zeros([3, 2], dtype)).dtype
    assert q.log_prob(tf.cast(half, layer.dtype)).dtype == dtype


def test_variables_as_the_base():
    """Cast, they would lose their gradient."""
    loc = tf.Variable(tf.zeros([LATENT]))
    q = K3.IAFPosterior(LATENT, 1, (8,))(loc, tf.ones([LATENT]))
    assert any(variable is loc for variable in q.trainable_variables)


@each_kit
def test_symbolic_arguments(kit):
    layer, symbolic = kit.IAFPosterior(LATENT, 1, (8,), context_shape=LATENT, name='mine'), kit.keras.Input([LATENT])
    for place, name in enumerate(('loc', 'scale_diag', 'context')):
        arguments = [tf.ones([3, LATENT])] * 3
        arguments[place] = symbolic
        with raises(TypeError, name, 'symbolic', 'mine', 'train_step', 'IAFSampling'):
            layer(*arguments)
    with raises(TypeError, 'context', 'symbolic'):
        layer.bijector(symbolic)


NETWORK = tfp_iaf.MaskedAutoregressiveNetwork(2, (8,))


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({}, ValueError, ['event_shape', 'None']),
        ({'event_shape': 2, 'num_flows': -1}, ValueError, ['num_flows', '-1']),
        ({'event_shape': 2, 'activation': 'elou'}, ValueError, ['activation', "'elou'"]),
        ({'event_shape': 2, 'transform': 'cubic'}, ValueError, ['transform', "'cubic'"]),
        ({'event_shape': 2, 'dtype': 'float16'}, TypeError, ['dtype', 'float16', 'float32']),
        ({'event_shape': 2, 'networks': [NETWORK]}, ValueError, ['event_shape', 'networks']),
        ({'event_shape': [2, 3, 2], 'filters': ()}, ValueError, ['filters', 'at least one']),
        ({'event_shape': [2, 3, 2], 'filters': 5}, TypeError, ['filters', '5', 'a sequence of ints']),
        ({'event_shape': 2, 'filters': (5,)}, ValueError, ['event_shape', '(2,)', '[height, width, channels]']),
        ({'event_shape': 2, 'filters': (5,), 'network': NETWORK.__class__}, ValueError, ['filters', '(5,)', 'network']),
        ({'networks': []}, ValueError, ['networks', '[]']),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        K3.IAFPosterior(**arguments)


# What Keras 3 would not train


def plain(**kwargs):
    return tfp_iaf.IAFPosterior(LATENT, 1, (8,), name='plain', **kwargs)


def density(made, x):
    return made(tf.zeros([LATENT]), tf.ones([LATENT])).log_prob(x)


def transformed(bijector):
    return tfd.TransformedDistribution(STANDARD_NORMAL, bijector)


def in_a_layer(made):
    layer = keras.layers.Dense(1)
    layer.flow = made
    return layer


# What a model holds of a posterior, and the density that it makes of that.
WAYS = {
    'attribute': (lambda made: made, density),
    'list': (lambda made: [made], lambda held, x: density(held[0], x)),
    'dict': (lambda made: {'first': made}, lambda held, x: density(held['first'], x)),
    'layer': (in_a_layer, lambda held, x: density(held.flow, x)),
    'closure': (lambda made: lambda: made, lambda held, x: density(held(), x)),
    'partial': (lambda made: functools.partial(density, made), lambda held, x: held(x)),
    'method': (lambda made: made.bijector, lambda held, x: transformed(held()).log_prob(x)),
    'compiled': (lambda made: tf.function(lambda x: density(made, x)), lambda held, x: held(x)),
    'distribution': (lambda made: transformed(made.bijector()), lambda held, x: held.log_prob(x)),
    'step': (lambda made: tfp_iaf.InverseAutoregressiveFlow(made.networks[0]), lambda held, x: held.forward(x)[:, 0]),
    'chain': (lambda made: made.bijector(), lambda held, x: transformed(held).log_prob(x)),
    'network': (
        lambda made: {'first': [made.networks[0]]},
        lambda held, x: transformed(tfb.MaskedAutoregressiveFlow(held['first'][0])).log_prob(x),
    ),
    'surrogate': (lambda made: tfp_iaf.build_iaf_surrogate_posterior([LATENT]), lambda held, x: held.log_prob(x)),
    'nothing': (lambda made: None, lambda held, x: density(PLAIN, x)),
}


class Holder(keras.Model):
    """A Keras 3 model that uses what it holds in its call, or in its training step alone."""

    def __init__(self, way, made, in_call=True):
        super().__init__()
        self.dense = keras.layers.Dense(LATENT)
        self.way, self.in_call = way, in_call
        self.held = WAYS[way][0](made)
        self.compile('sgd', run_eagerly=True)

    def density(self, x):
        return WAYS[self.way][1](self.held, x)

    def call(self, x):
        x = self.dense(x)
        return self.density(x)[:, None] if self.in_call else x

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.density(self.dense(batch[0])))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {'loss': loss}


REFUSED = (
    'got a variable',
    'Keras model',
    'neither train nor save',
    'tfp_iaf.keras.IAFPosterior',
    'networks=',
    'add_weight',
)


@pytest.mark.parametrize('way', [way for way in WAYS if way != 'nothing'])
def test_keras_3_refuses_what_it_would_not_train(way):
    with raises(ValueError, *REFUSED):
        Holder(way, plain())(TARGETS)


@pytest.mark.parametrize('way', ['attribute', 'closure', 'step'])
def test_keras_3_refuses_it_in_a_training_step_alone(way):
    model = Holder(way, plain(), in_call=False)
    model(TARGETS)
    with raises(ValueError, *REFUSED):
        model.fit(TARGETS, TARGETS, verbose=0)


@pytest.mark.slow
def test_keras_3_refuses_it_in_a_graph():
    model = Holder('attribute', plain())
    model.compile('sgd')
    with raises(ValueError, *REFUSED):
        model.fit(TARGETS, TARGETS, verbose=0)


@pytest.mark.parametrize('way', ['attribute', 'list', 'dict', 'layer'])
def test_keras_3_takes_the_layer_in_its_place(way):
    model = Holder(way, tfp_iaf.keras.IAFPosterior(LATENT, 1, (8,)))
    model.fit(TARGETS, TARGETS, verbose=0)
    assert len(model.trainable_variables) == 6


PLAIN = tfp_iaf.IAFPosterior(LATENT, 1, (8,), seed=0)


def global_log_prob(z):
    return density(PLAIN, z)


@pytest.mark.parametrize('function', [global_log_prob, lambda z: density(PLAIN, z)], ids=['def', 'lambda'])
def test_keras_3_refuses_what_a_function_that_it_holds_uses(function):
    """Of a Lambda layer, of a loss, and of a prior."""
    inputs = keras.Input([LATENT])
    with raises(ValueError, *REFUSED):
        keras.Model(inputs, keras.layers.Lambda(lambda z: function(z)[:, None], output_shape=(1,))(inputs))(TARGETS)
    model = keras.Model(inputs, keras.layers.Dense(LATENT)(inputs))
    model.compile('sgd', loss=lambda _, z: function(z), run_eagerly=True)
    with raises(ValueError, *REFUSED):
        model.fit(TARGETS, TARGETS, verbose=0)
    with raises(ValueError, *REFUSED):
        K3.layer(0, prior=function)([tf.zeros([4, LATENT])] * 2)


def test_keras_3_takes_what_it_does_not_hold_or_tracks_or_need_not_train():
    """Such as a global one, which was trained before."""
    # Keras traces the model twice with one tensor, first in a scratch graph, whose results are out of scope later.
    assert Holder('nothing', None).predict(TARGETS, verbose=0).shape == (64, 1)
    tracked = plain()
    model = Holder('attribute', tracked)
    model.tracked = [_compat.keras_variable(variable) for variable in tracked.variables]
    assert model(TARGETS).shape == (64, 1)
    fixed = plain(variable_factory=lambda name, value: tf.Variable(value, trainable=False, name=name))
    assert Holder('attribute', fixed)(TARGETS).shape == (64, 1)


def test_tf_keras_trains_a_plain_posterior():
    class Model(K2.keras.Model):
        def __init__(self):
            super().__init__()
            self.flow = tfp_iaf.IAFPosterior(LATENT, 1, (8,))

        def call(self, x):
            return self.flow(tf.zeros_like(x), tf.ones_like(x)).log_prob(x)

    model = Model()
    model(tf.ones([4, LATENT]))
    assert len(model.trainable_variables) == 4
