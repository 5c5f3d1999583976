"""`IAFPosterior` as an attribute of a model, in either Keras, and what Keras 3 would not train."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
from tests.flows import normal, raises, tfb, tfd
from tests.keras_models import K2, K3, LATENT, data, each_compiled_kit, each_kit
from tfp_iaf import _compat

FEATURES = 6


def targets(rows=64):
    return normal([rows, LATENT], tf.float32, seed=3).numpy()


def _density(kit):
    @kit.keras.saving.register_keras_serializable(package='tests')
    class Density(kit.keras.Model):
        """y given x; `fit` minimizes -log q(y|x)."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.heads = [kit.keras.layers.Dense(size) for size in (LATENT, LATENT, 3)]
            self.flow = kit.IAFPosterior(LATENT, 1, (8,), context_shape=3, name='flow')

        def distribution(self, x):
            loc, scale, context = (head(x) for head in self.heads)
            return self.flow(loc, tf.nn.softplus(scale) + 0.01, context)

        def call(self, x):
            return self.distribution(x).sample(seed=[0, 1])

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(self.distribution(x).log_prob(y))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {'nll': loss}

    return Density


DENSITY = {kit: _density(kit) for kit in (K2, K3)}


def trained(kit, jit_compile=None, epochs=1):
    """A model after some steps, which are run eagerly unless `jit_compile` says how to compile them."""
    model = DENSITY[kit]()
    model(data(2))
    how = {'run_eagerly': True} if jit_compile is None else {'jit_compile': jit_compile}
    model.compile(kit.keras.optimizers.Adam(0.02), **how)
    before = [variable.numpy() for variable in model.flow.flow.variables]
    losses = model.fit(data(64), targets(), batch_size=32, epochs=epochs, verbose=0).history['nll']
    return model, before, losses


def raw(variables):
    return {id(getattr(variable, '_value', variable)) for variable in variables}


@each_compiled_kit
def test_fit_trains_every_variable(kit, jit_compile):
    model, before, losses = trained(kit, jit_compile, epochs=20)
    variables = model.flow.flow.variables
    assert len(variables) == 5 and raw(variables) <= raw(model.trainable_variables)
    assert raw(model.distribution(data(2)).trainable_variables) == raw(variables)
    for variable, value in zip(variables, before, strict=True):
        assert np.all(np.isfinite(variable)) and np.any(variable != value), variable.name
    assert losses[-1] < losses[0] - 0.1


@each_kit
def test_it_is_the_plain_posterior(kit):
    layer = kit.IAFPosterior(LATENT, 2, (8,), context_shape=[3], transform='affine', alternate_order=False, seed=1)
    plain = tfp_iaf.IAFPosterior(LATENT, 2, (8,), context_shape=[3], transform='affine', alternate_order=False, seed=1)
    arguments = normal([4, LATENT], tf.float32), tf.ones([4, LATENT]), normal([4, 3], tf.float32, 1)
    z = normal([4, LATENT], tf.float32, 2)
    np.testing.assert_array_equal(layer(*arguments).log_prob(z), plain(*arguments).log_prob(z))
    np.testing.assert_array_equal(layer.bijector(arguments[2]).forward(z), plain.bijector(arguments[2]).forward(z))
    assert (layer.event_shape, layer.context_shape, layer.num_flows) == ([LATENT], [3], 2)
    assert layer.transform == plain.transform and len(layer.networks) == 2
    assert kit.IAFPosterior([3, 2], 1, (7,))(tf.zeros([3, 2]), tf.ones([3, 2])).event_shape == [3, 2]


@each_kit
@pytest.mark.parametrize('path', ['model.keras', 'model.weights.h5', 'model.h5', 'checkpoint'])
def test_every_format_has_the_variables(kit, path, tmp_path):
    if kit is K3 and path == 'model.h5':
        path = 'other.weights.h5'
    if path == 'model.keras':
        model, *_ = trained(kit)
        model.save(tmp_path / path)
        other = kit.keras.models.load_model(tmp_path / path)
    else:
        model, other = DENSITY[kit](), DENSITY[kit]()
        model(data(2)), other(data(2))
        if path == 'checkpoint':
            written = tf.train.Checkpoint(model=model).write(str(tmp_path / path))
            tf.train.Checkpoint(model=other).read(written).expect_partial()
        else:
            model.save_weights(tmp_path / path)
            other.load_weights(tmp_path / path)
    for first, second in zip(other.flow.flow.variables, model.flow.flow.variables, strict=True):
        np.testing.assert_array_equal(first, second)
    arguments = tf.zeros([2, LATENT]), tf.ones([2, LATENT]), tf.ones([2, 3])
    first, second = (each.flow(*arguments).log_prob(targets(2)) for each in (other, model))
    np.testing.assert_array_equal(first, second)
    if path == 'model.keras':
        other.run_eagerly = True
        other.fit(data(64), targets(), verbose=0)
        assert np.any(other.flow.flow.variables[0] != model.flow.flow.variables[0])


@each_kit
def test_saved_model(kit, tmp_path):
    model = DENSITY[kit]()
    model(data(2))
    tf.saved_model.save(
        model, str(tmp_path), signatures=tf.function(model.call).get_concrete_function(tf.TensorSpec([None, FEATURES]))
    )
    loaded = tf.saved_model.load(str(tmp_path))
    (sample,) = loaded.signatures['serving_default'](tf.constant(data())).values()
    np.testing.assert_allclose(sample, model(data()), rtol=1e-5, atol=1e-6)


@each_kit
@pytest.mark.parametrize(
    'arguments',
    [
        {'event_shape': 3},
        {'event_shape': [2, 3], 'num_flows': 1, 'hidden_units': (9,), 'context_shape': [4], 'seed': 2, 'name': 'mine'},
        {
            'event_shape': (4,),
            'transform': tfp_iaf.transforms.Affine(2.0),
            'activation': 'mish',
            'inverse': 'fixed_point',
            'alternate_order': False,
            'validate_args': True,
            'dtype': 'float64',
        },
    ],
    ids=['default', 'shapes', 'objects'],
)
def test_config_makes_an_equal_layer(kit, arguments):
    first = kit.IAFPosterior(**arguments)
    second = kit.IAFPosterior.from_config(first.get_config())
    assert second.get_config() == first.get_config()
    assert second.transform == first.transform
    assert [v.shape for v in second.flow.variables] == [v.shape for v in first.flow.variables]


@each_kit
def test_networks_of_ones_own(kit, tmp_path):
    def make():
        class Model(kit.keras.Model):
            def __init__(self):
                super().__init__()
                networks = [tfp_iaf.MaskedAutoregressiveNetwork(LATENT, (8,), name=f'net_{t}') for t in range(2)]
                self.flow = kit.IAFPosterior(networks=networks, transform='affine')

            def call(self, x):
                return -self.flow(tf.zeros_like(x), tf.ones_like(x)).log_prob(x)

        return Model()

    model, other = make(), make()
    model.compile('adam', loss=lambda _, y: y, run_eagerly=True)
    model.fit(targets(), np.zeros([64, 1]), verbose=0), other(targets())
    variables = model.flow.flow.variables
    assert len(variables) == 8 and raw(variables) == raw(model.trainable_variables)
    assert np.any(variables[0] != other.flow.flow.variables[0])
    model.save_weights(tmp_path / 'model.weights.h5')
    other.load_weights(tmp_path / 'model.weights.h5')
    for first, second in zip(other.flow.flow.variables, variables, strict=True):
        np.testing.assert_array_equal(first, second)
    with raises(NotImplementedError, 'networks', 'config', 'weights alone'):
        model.flow.get_config()


@each_kit
def test_frozen(kit):
    layer = kit.IAFPosterior(LATENT, 1, (8,), trainable=False)
    assert not layer.trainable_variables and len(layer.variables) == 4


@each_kit
@pytest.mark.parametrize('policy', ['mixed_float16', 'float64'])
def test_dtype_is_that_of_the_variables(kit, policy):
    layer = kit.IAFPosterior(LATENT, 1, (8,), context_shape=2, dtype=policy)
    half = tf.ones([3, LATENT], tf.float16)
    dtype = tf.float64 if policy == 'float64' else tf.float32
    q = layer(half, half, half)
    assert q.dtype == dtype == layer.bijector(half).forward(tf.zeros([3, 2], dtype)).dtype
    assert q.log_prob(tf.cast(half, layer.dtype)).dtype == dtype


@each_kit
def test_variables_as_the_base(kit):
    """Cast, they would lose their gradient."""
    loc = tf.Variable(tf.zeros([LATENT]))
    q = kit.IAFPosterior(LATENT, 1, (8,))(loc, tf.ones([LATENT]))
    assert any(variable is loc for variable in q.trainable_variables)


@each_kit
@pytest.mark.parametrize('place', range(3))
def test_symbolic_arguments(kit, place):
    layer = kit.IAFPosterior(LATENT, 1, (8,), context_shape=LATENT, name='mine')
    arguments = [tf.ones([3, LATENT])] * 3
    arguments[place] = kit.keras.Input([LATENT])
    name = ('loc', 'scale_diag', 'context')[place]
    with raises(TypeError, name, 'symbolic', 'mine', 'train_step', 'IAFSampling'):
        layer(*arguments)
    if name == 'context':
        with raises(TypeError, name, 'symbolic'):
            layer.bijector(arguments[place])


@each_kit
@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({}, ValueError, ['event_shape', 'None']),
        ({'event_shape': 2, 'num_flows': -1}, ValueError, ['num_flows', '-1']),
        ({'event_shape': 2, 'activation': 'elou'}, ValueError, ['activation', "'elou'"]),
        ({'event_shape': 2, 'transform': 'cubic'}, ValueError, ['transform', "'cubic'"]),
        ({'event_shape': 2, 'dtype': 'float16'}, TypeError, ['dtype', 'float16', 'float32']),
        (
            {'event_shape': 2, 'networks': [tfp_iaf.MaskedAutoregressiveNetwork(2, (8,))]},
            ValueError,
            ['event_shape', 'networks'],
        ),
        ({'networks': []}, ValueError, ['networks', '[]']),
    ],
    ids=['nothing', 'flows', 'activation', 'transform', 'dtype', 'both', 'empty'],
)
def test_bad_arguments(kit, arguments, error, parts):
    with raises(error, *parts):
        kit.IAFPosterior(**arguments)


# What Keras 3 would not train


class Holder(keras.Model):
    """A Keras 3 model that uses a log-density."""

    def __init__(self, uses='call'):
        super().__init__()
        self.dense = keras.layers.Dense(LATENT)
        self.uses = uses

    def call(self, x):
        values = self.dense(x)
        return self.log_prob(values)[:, None] if self.uses == 'call' else values

    def log_prob(self, x):
        return self.held().log_prob(x)

    def train_step(self, batch):
        x, _ = batch
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.log_prob(self.dense(x)) if self.uses == 'train_step' else self(x))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {'loss': loss}


def density(made):
    """A distribution made by a plain posterior, or by the layer in its place."""
    return made(tf.zeros([LATENT]), tf.ones([LATENT]))


def step(made):
    """A distribution made with a step, such as of a network of one's own."""
    base = tfd.MultivariateNormalDiag(tf.zeros([LATENT]))
    return tfd.TransformedDistribution(base, tfp_iaf.InverseAutoregressiveFlow(made.networks[0]))


def hold_in_a_layer(model, made):
    model.part = keras.layers.Dense(1)
    model.part.flow = made
    model.held = lambda: density(model.part.flow)


def hold_a_distribution(model, made):
    model.q = density(made)
    model.held = lambda: model.q


def hold_a_step(model, made):
    model.q = step(made)
    model.held = lambda: model.q


def hold_a_chain(model, made):
    model.chain = made.bijector()
    base = tfd.MultivariateNormalDiag(tf.zeros([LATENT]))
    model.held = lambda: tfd.TransformedDistribution(base, model.chain)


def hold_a_network(model, made):
    model.networks = {'first': [made.networks[0]]}
    base = tfd.MultivariateNormalDiag(tf.zeros([LATENT]))
    maf = tfb.MaskedAutoregressiveFlow(lambda x: model.networks['first'][0](x))
    model.held = lambda: tfd.TransformedDistribution(base, maf)


def hold_a_surrogate(model, _):
    model.q = tfp_iaf.build_iaf_surrogate_posterior([LATENT], num_flows=1, hidden_units=(8,), seed=0)
    model.held = lambda: model.q


def attribute(place):
    def hold(model, made):
        model.flow = place(made)
        model.held = lambda: density(made)

    return hold


HOLDS = {
    'attribute': attribute(lambda made: made),
    'list': attribute(lambda made: [made]),
    'dict': attribute(lambda made: {'first': made}),
    'layer': hold_in_a_layer,
    'closure': attribute(lambda made: lambda: made),
    'partial': attribute(lambda made: functools.partial(density, made)),
    'method': attribute(lambda made: made.bijector),
    'compiled': attribute(lambda made: tf.function(lambda: density(made).sample())),
    'distribution': hold_a_distribution,
    'step': hold_a_step,
    'chain': hold_a_chain,
    'network': hold_a_network,
    'surrogate': hold_a_surrogate,
}
REFUSED = (
    'got a variable',
    'Keras model',
    'neither train nor save',
    'tfp_iaf.keras.IAFPosterior',
    'networks=',
    'add_weight',
)


@pytest.mark.parametrize('hold', HOLDS.values(), ids=HOLDS)
@pytest.mark.parametrize('uses', ['call', 'train_step'])
def test_keras_3_refuses_what_it_would_not_train(hold, uses):
    model = Holder(uses)
    hold(model, tfp_iaf.IAFPosterior(LATENT, 1, (8,), name='plain'))
    model.compile('sgd', run_eagerly=True)
    with raises(ValueError, *REFUSED):
        model.fit(targets(), np.zeros([64, 1]), verbose=0)
    if uses == 'call':
        with raises(ValueError, *REFUSED):
            model(targets())
    else:
        model(targets())


@pytest.mark.parametrize('how', ['predict', 'fit'])
def test_keras_3_refuses_it_in_a_graph(how):
    model = Holder()
    HOLDS['attribute'](model, tfp_iaf.IAFPosterior(LATENT, 1, (8,), name='plain'))
    model.compile('sgd')
    with raises(ValueError, *REFUSED):
        getattr(model, how)(targets(), *([np.zeros([64, 1])] if how == 'fit' else []), verbose=0)


@pytest.mark.parametrize('hold', ['attribute', 'list', 'dict', 'layer'])
@pytest.mark.parametrize('uses', ['call', 'train_step'])
def test_keras_3_takes_the_layer_in_its_place(hold, uses):
    model = Holder(uses)
    HOLDS[hold](model, tfp_iaf.keras.IAFPosterior(LATENT, 1, (8,)))
    model(targets())
    model.compile('sgd', run_eagerly=True)
    model.fit(targets(), np.zeros([64, 1]), verbose=0)
    assert len(model.trainable_variables) == 6


PLAIN = tfp_iaf.IAFPosterior(LATENT, 1, (8,), seed=0)


def global_log_prob(z):
    return density(PLAIN).log_prob(z)


@pytest.mark.parametrize('function', [global_log_prob, lambda z: density(PLAIN).log_prob(z)], ids=['def', 'lambda'])
def test_keras_3_refuses_what_a_function_that_it_holds_uses(function):
    """Of a Lambda layer, of a loss, and of a prior."""
    inputs = keras.Input([LATENT])
    with raises(ValueError, *REFUSED):
        keras.Model(inputs, keras.layers.Lambda(lambda z: function(z)[:, None], output_shape=(1,))(inputs))(targets())
    model = keras.Model(inputs, keras.layers.Dense(LATENT)(inputs))
    model.compile('sgd', loss=lambda _, z: function(z), run_eagerly=True)
    with raises(ValueError, *REFUSED):
        model.fit(targets(), targets(), verbose=0)
    with raises(ValueError, *REFUSED):
        K3.layer(0, prior=function)([tf.zeros([4, LATENT])] * 2)


def test_what_a_model_does_not_hold_is_left_alone():
    """Such as a global one, which was trained before."""

    class Model(Holder):
        def log_prob(self, x):
            return density(PLAIN).log_prob(x)

    model = Model()
    model.compile('sgd', run_eagerly=True)
    model.fit(targets(), np.zeros([64, 1]), verbose=0)
    # Keras traces the model twice with one tensor, first in a scratch graph, whose results are out of scope later.
    assert model.predict(targets(), verbose=0).shape == (64, 1)


def test_variables_that_are_not_trainable_are_left_alone():
    fixed = tfp_iaf.IAFPosterior(
        LATENT, 1, (8,), variable_factory=lambda name, value: tf.Variable(value, trainable=False, name=name)
    )
    model = Holder()
    HOLDS['attribute'](model, fixed)
    assert model(targets()).shape == (64, 1)


def test_keras_3_takes_a_plain_posterior_whose_variables_it_tracks():
    plain = tfp_iaf.IAFPosterior(LATENT, 1, (8,))
    model = Holder()
    HOLDS['attribute'](model, plain)
    model.tracked = [_compat.keras_variable(variable) for variable in plain.variables]
    assert model(targets()).shape == (64, 1)


def test_tf_keras_trains_a_plain_posterior():
    class Model(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.flow = tfp_iaf.IAFPosterior(LATENT, 1, (8,))

        def call(self, x):
            return self.flow(tf.zeros_like(x), tf.ones_like(x)).log_prob(x)

    model = Model()
    model(targets())
    assert len(model.trainable_variables) == 4


@each_kit
def test_density_network_in_a_functional_model_by_way_of_a_layer(kit):
    """The layer that a TypeError of a symbolic argument leads to."""

    class NegLogProb(kit.keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.flow = kit.IAFPosterior(LATENT, 1, (8,))

        def call(self, inputs):
            loc, y = inputs
            return -self.flow(loc, tf.ones_like(loc)).log_prob(y)

    x, y = kit.keras.Input([FEATURES]), kit.keras.Input([LATENT])
    model = kit.keras.Model([x, y], NegLogProb()([kit.keras.layers.Dense(LATENT)(x), y]))
    model.compile('adam', loss=lambda _, value: value, run_eagerly=True)
    model.fit([data(64), targets()], np.zeros([64]), verbose=0)
    assert len(model.trainable_variables) == 6
