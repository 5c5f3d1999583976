"""The KL term of the layer, in either Keras: its value, free bits, priors, and the warm-up of its weight."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import normal, raises, tfd
from tests.keras_models import K2, K3, LATENT, Kit, data, each_kit, fit, flow_of, log_laplace, point, train

STANDARD_NORMAL = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))


def kl_of(flow):
    """The batch's mean KL, as the metric reports it."""
    (metric,) = flow.metrics
    assert metric.name == f'{flow.name}_kl'
    return metric.result().numpy()


# Its value


@each_kit
def test_loss_and_metric(kit):
    flow = kit.layer(kl_loss_weight=0.25)
    z, log_q = flow(point()[:3])
    expected = tf.reduce_mean(log_q - STANDARD_NORMAL.log_prob(z))
    np.testing.assert_allclose(sum(flow.losses), 0.25 * expected, rtol=1e-5)
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-5)


@each_kit
def test_two_layers_report_a_kl_each(kit):
    inputs = kit.keras.Input([LATENT])
    first, _ = kit.layer(kl_loss_weight=1.0, name='first')([inputs, inputs])
    second, _ = kit.layer(kl_loss_weight=1.0, name='second')([first, 3.0 + first])
    model = kit.keras.Model(inputs, second)
    model.compile('sgd', loss=lambda _, z: 0.0 * z)
    x = normal([6, LATENT], tf.float32)
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    assert logs['first_kl'] != logs['second_kl']
    np.testing.assert_allclose(logs['loss'], logs['first_kl'] + logs['second_kl'], rtol=1e-5)


@each_kit
def test_without_a_weight_the_loss_is_the_models_own(kit):
    flow = kit.layer()
    flow(point()[:3])
    assert flow.losses == [] and flow.metrics == [] and flow.kl_loss_weight is None


@each_kit
def test_weight_of_zero_reports_the_metric(kit):
    flow = kit.layer(kl_loss_weight=0.0)
    flow(point()[:3])
    assert sum(flow.losses) == 0 and kl_of(flow) != 0


@each_kit
def test_without_flows_it_is_analytic(kit):
    flow = kit.layer(num_flows=0, kl_loss_weight=1.0)
    z_mean, z_log_var, *_ = point()
    flow([z_mean, z_log_var])
    q = tfd.MultivariateNormalDiag(z_mean, tf.exp(z_log_var / 2))
    expected = tf.reduce_mean(tfp.distributions.kl_divergence(q, STANDARD_NORMAL))
    np.testing.assert_allclose(sum(flow.losses), expected, rtol=1e-5)


# Free bits


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize('above', [False, True])
def test_free_bits(kit, num_flows, above):
    parameters = point()[:3]
    parameters[0] += 2.0
    flow = kit.layer(num_flows, kl_loss_weight=0.5, seed=1)
    flow(parameters)
    minimum = kl_of(flow) + (-0.1 if above else 0.1)
    flow = kit.layer(num_flows, kl_loss_weight=0.5, free_bits=minimum, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        flow(parameters)
        loss = sum(flow.losses)
    np.testing.assert_allclose(loss, 0.5 * (kl_of(flow) if above else minimum), rtol=1e-5)
    gradient = tape.gradient(loss, parameters[1])
    assert np.all(gradient != 0) if above else gradient is None or not np.any(gradient)


# Priors


def _learned_prior(kit):
    @kit.keras.saving.register_keras_serializable(package='tests')
    class LearnedPrior(kit.keras.layers.Layer):
        """Normal, with a mean that a sublayer holds, which is made when it is first called."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mean = kit.keras.layers.Dense(LATENT, bias_initializer='ones')

        def call(self, z):
            return -0.5 * tf.reduce_sum((z - self.mean(tf.ones_like(z))) ** 2, axis=-1)

    return LearnedPrior


LEARNED = {kit: _learned_prior(kit) for kit in (K2, K3)}


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize(
    ('prior', 'log_prob'),
    [
        (tfd.MultivariateNormalDiag([1.0, 2.0], [0.5, 3.0]), None),
        (tfd.Laplace(0.5, 2.0), lambda z: tf.reduce_sum(tfd.Laplace(0.5, 2.0).log_prob(z), axis=-1)),
        (tfd.Normal([1.0, 2.0], [3.0]), lambda z: tf.reduce_sum(tfd.Normal([1.0, 2.0], [3.0]).log_prob(z), axis=-1)),
        (log_laplace, log_laplace),
    ],
    ids=['event', 'scalar', 'entries', 'function'],
)
def test_prior(kit, num_flows, prior, log_prob):
    flow = kit.layer(num_flows, kl_loss_weight=2.0, prior=prior)
    z, log_q = flow(point()[:3])
    expected = tf.reduce_mean(log_q - (log_prob or prior.log_prob)(tf.identity(z)))
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)
    np.testing.assert_allclose(sum(flow.losses), 2 * expected, rtol=1e-4)


@each_kit
def test_layer_as_the_prior_is_trained_and_saved(kit, tmp_path):
    model = kit.functional_model(prior=LEARNED[kit]())
    kernel, bias = flow_of(model).prior.weights
    before = bias.numpy()
    train(model, epochs=1, kit=kit)
    assert np.all(bias.numpy() != before)
    assert {id(kernel), id(bias)} <= {id(weight) for weight in model.trainable_weights}
    model.save(tmp_path / 'model.keras')
    loaded = kit.keras.models.load_model(tmp_path / 'model.keras')
    for first, second in zip(flow_of(loaded).prior.weights, (kernel, bias), strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    fit(loaded, epochs=1)
    assert np.all(flow_of(loaded).prior.weights[1].numpy() != bias.numpy())


@each_kit
def test_function_as_the_prior_comes_back_from_a_file(kit, tmp_path):
    kit.functional_model(prior=log_laplace).save(tmp_path / 'model.keras')
    assert flow_of(kit.keras.models.load_model(tmp_path / 'model.keras')).prior is log_laplace


@each_kit
@pytest.mark.parametrize(
    ('prior', 'error', 'parts'),
    [
        (3.0, TypeError, ['3.0', 'tfd.Distribution', 'function or Keras layer']),
        (tfd.MultivariateNormalDiag(tf.zeros([3])), ValueError, ['MultivariateNormalDiag', 'event shape [2]']),
        (tfd.MultivariateNormalDiag(tf.zeros([4, 2])), ValueError, ['batch_shape=[4]', 'no batch shape']),
        (tfd.Normal(tf.zeros([3]), 1.0), ValueError, ['batch_shape=[3]', 'broadcasts to [2]']),
        (tfd.Normal(tf.zeros([4, 2]), 1.0), ValueError, ['batch_shape=[4, 2]', 'broadcasts to [2]']),
        (tfd.Normal(tf.zeros([], tf.float64), 1.0), TypeError, ['float64', 'float32']),
        (tfd.Normal(tf.Variable(0.0, name='loc'), 1.0), ValueError, ['loc:0', 'Keras layer']),
        (tf.Module(), TypeError, ['Module', 'does not track']),
        (lambda z: z, ValueError, ['(4, 2)', '(4,)', 'Sum over the entries']),
        (lambda z: tf.zeros([]), ValueError, ['()', '(4,)']),
    ],
    ids=['number', 'event', 'batch', 'entries', 'batch_of_entries', 'dtype', 'variables', 'module', 'matrix', 'scalar'],
)
def test_prior_that_does_not_fit(kit, prior, error, parts):
    with raises(error, 'prior', *parts):
        kit.layer(kl_loss_weight=1.0, prior=prior)(point()[:3])


@pytest.mark.parametrize(('kit', 'other'), [(K3, K2), (K2, K3)], ids=['keras', 'tf_keras'])
def test_layer_of_the_other_keras_as_the_prior(kit, other):
    with raises(TypeError, 'prior', 'LearnedPrior', 'does not track'):
        kit.layer(kl_loss_weight=1.0, prior=LEARNED[other]())


@pytest.mark.parametrize(('argument', 'value'), [('free_bits', 0.5), ('prior', log_laplace)])
def test_without_a_term_to_use_it_in(argument, value):
    with raises(ValueError, argument, 'without a KL term', 'kl_loss_weight'):
        K3.layer(**{argument: value})


# The warm-up


def recorder(kit: Kit, model):
    """A callback that keeps the weight of each execution."""

    class Recorder(kit.keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.weights = []

        def on_train_batch_end(self, batch, logs=None):
            self.weights.append(flow_of(model).kl_loss_weight.numpy())

    return Recorder()


@each_kit
def test_warmup_is_linear_in_the_step(kit):
    model = kit.functional_model()
    record = recorder(kit, model)
    train(model, epochs=2, kit=kit, callbacks=[kit.KLWarmup(4, start=0.1), record])
    np.testing.assert_allclose(record.weights, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], rtol=1e-6)
    assert flow_of(model).get_config()['kl_loss_weight'] == 0.5


@each_kit
def test_warmup_goes_on_in_a_resumed_training(kit, tmp_path):
    model = kit.functional_model()
    train(model, epochs=1, kit=kit, callbacks=[kit.KLWarmup(4)])
    model.save(tmp_path / 'model.keras')
    loaded = kit.keras.models.load_model(tmp_path / 'model.keras')
    assert flow_of(loaded).kl_loss_weight.numpy() == 0.25
    record = recorder(kit, loaded)
    fit(loaded, epochs=1, callbacks=[kit.KLWarmup(4), record])
    np.testing.assert_allclose(record.weights, [0.375, 0.5, 0.5], rtol=1e-6)


@each_kit
def test_weight_changes_the_loss_but_not_the_graph(kit):
    traces, traced = [], []

    def prior(z):
        traces.append(z)
        return log_laplace(z)

    model = kit.functional_model(prior=prior)
    model = kit.keras.Model(model.inputs, model.output['x'])
    model.compile(loss='mse', metrics=['mse'])
    for weight in (0.5, 0.0, 2.0):
        flow_of(model).kl_loss_weight.assign(weight)
        history = model.fit(data(), data(), verbose=0).history
        np.testing.assert_allclose(
            history['loss'], np.add(history['mse'], weight * np.array(history['flow_kl'])), rtol=1e-5
        )
        traced.append(len(traces))
    assert len(set(traced)) == 1


@each_kit
def test_warmup_under_xla_and_half_precision(kit):
    model = kit.functional_model(dtype='mixed_float16')
    record = recorder(kit, model)
    optimizer = kit.keras.mixed_precision.LossScaleOptimizer(kit.keras.optimizers.SGD(0.01))
    model.compile(optimizer, loss={'x': 'mse'}, jit_compile=True)
    fit(model, epochs=1, rows=10, callbacks=[kit.KLWarmup(4), record])
    np.testing.assert_allclose(record.weights, [0.0, 0.125], rtol=1e-6)


@each_kit
def test_executions_of_several_steps_share_a_weight(kit):
    model = kit.functional_model()
    record = recorder(kit, model)
    train(model, epochs=2, kit=kit, rows=10, callbacks=[kit.KLWarmup(4), record], steps_per_execution=2)
    np.testing.assert_allclose(record.weights, [0.0, 0.25], rtol=1e-6)


def warmed(model, kit):
    """The model, with the callback at the first step."""
    model.compile('sgd')
    callback = kit.KLWarmup(2, start=0.125)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_batch_begin(0)
    return model


@each_kit
def test_warmup_finds_nested_layers(kit):
    class Outer(kit.keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = {'flow': kit.layer(kl_loss_weight=0.25)}

    nested = [kit.layer(kl_loss_weight=2.0), Outer(), kit.layer()]
    warmed(kit.keras.Sequential([kit.keras.Sequential(nested)]), kit)
    assert nested[0].kl_loss_weight.numpy() == 0.125 == nested[1].parts['flow'].kl_loss_weight.numpy()
    assert nested[2].kl_loss_weight is None


@each_kit
def test_warmup_of_a_model_without_the_layer(kit):
    with raises(ValueError, 'KLWarmup', "'plain'", 'kl_loss_weight'):
        warmed(kit.keras.Sequential([kit.keras.layers.Dense(2), kit.layer()], name='plain'), kit)


@each_kit
@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'steps': 0}, ValueError, ['steps', '0', 'at least 1']),
        ({'steps': 2.5}, TypeError, ['steps', '2.5', 'int']),
        ({'steps': 3, 'start': 'low'}, TypeError, ['start', "'low'", 'number']),
    ],
    ids=['zero', 'fraction', 'start'],
)
def test_bad_arguments_of_the_warmup(kit, arguments, error, parts):
    with raises(error, *parts):
        kit.KLWarmup(**arguments)


def test_warmup_without_an_optimizer():
    model = K3.keras.Sequential([K3.layer(kl_loss_weight=1.0)], name='mine')
    model.compile(optimizer=None)
    callback = K3.KLWarmup(4)
    callback.set_model(model)
    with raises(ValueError, 'KLWarmup', "'mine'", 'without an optimizer', 'compile'):
        callback.on_train_begin()


@each_kit
def test_warmup_tells_of_an_optimizer_that_makes_no_step(kit):
    class OwnOptimizer(kit.keras.Model):
        def __init__(self):
            super().__init__(name='own')
            self.flow = kit.layer(1, kl_loss_weight=1.0)

        def call(self, x):
            return self.flow([x, x])[0]

        def train_step(self, x):
            self(x)
            return {'loss': tf.constant(0.0)}

    model = OwnOptimizer()
    model.compile('sgd')
    with raises(ValueError, 'KLWarmup', "'own'", 'no step in 10 batches', 'compile'):
        model.fit(tf.zeros([10, 2]), batch_size=1, epochs=1, callbacks=[kit.KLWarmup(4)], verbose=0)
