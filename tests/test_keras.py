"""The layer in standard Keras 3 models: training, saving, dtype policies, bad input."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import normal, perturb, raises, tfd
from tfp_iaf import transforms
from tfp_iaf.keras import IAFSampling

ROWS, FEATURES, LATENT, CONTEXT = 12, 6, 2, 3


def data(rows=ROWS):
    return normal([rows, FEATURES], tf.float32, seed=1).numpy()


def layer(num_flows=2, hidden_units=(8,), **kwargs):
    return IAFSampling(num_flows, hidden_units, **kwargs)


def functional_model(**kwargs):
    """A VAE with a context; the outputs are the reconstruction, the sample and its log-density."""
    inputs = keras.Input([FEATURES])
    hidden = keras.layers.Dense(8, activation='relu')(inputs)
    parameters = [keras.layers.Dense(size)(hidden) for size in (LATENT, LATENT, CONTEXT)]
    z, log_q = layer(name='flow', **{'kl_loss_weight': 0.5, **kwargs})(parameters)
    return keras.Model(inputs, {'x': keras.layers.Dense(FEATURES)(z), 'z': z, 'log_q': log_q})


@keras.saving.register_keras_serializable(package='tests')
class SubclassedModel(keras.Model):
    """The same as a class, built when it is first called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation='relu')
        self.heads = [keras.layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
        self.flow = layer(name='flow', kl_loss_weight=0.5)
        self.decoder = keras.layers.Dense(FEATURES)

    def call(self, inputs):
        hidden = self.hidden(inputs)
        z, log_q = self.flow([head(hidden) for head in self.heads])
        return {'x': self.decoder(z), 'z': z, 'log_q': log_q}


def built(model):
    model(data())
    return model


def flow_of(model):
    return model.get_layer('flow')


def flow_variables(model):
    return flow_of(model).posterior(*point()[:3]).trainable_variables


def train(model, epochs=2, jit_compile=False, rows=ROWS):
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss={'x': 'mse'}, jit_compile=jit_compile)
    # The last batch is smaller than the others.
    return model.fit(data(rows), {'x': data(rows)}, batch_size=5, epochs=epochs, verbose=0)


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


each_model = pytest.mark.parametrize('make', [functional_model, SubclassedModel], ids=['functional', 'subclassed'])


# Training


@each_model
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_fit_changes_every_flow_variable(make, jit_compile):
    model = built(make())
    before = [variable.numpy() for variable in flow_variables(model)]
    assert len(before) == 2 * (2 * 2 + 1)
    history = train(model, jit_compile=jit_compile)
    for variable, value in zip(flow_variables(model), before, strict=True):
        assert np.all(np.isfinite(variable)) and np.any(variable != value), variable.name
    assert np.all(np.isfinite(history.history['loss']))


def test_fit_builds_a_model_that_was_never_called():
    model = SubclassedModel()
    train(model, epochs=1)
    assert {id(v) for v in flow_variables(model)} <= {id(w.value) for w in model.trainable_weights}


def test_fit_minimizes_the_loss():
    losses = train(functional_model(), epochs=30).history['loss']
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@each_model
def test_model_tracks_every_flow_variable_by_identity(make):
    model = built(make())
    tracked = {id(weight.value) for weight in model.variables}
    variables = flow_variables(model)
    assert variables
    assert {id(variable) for variable in variables} <= tracked
    assert {id(variable) for variable in variables} == {id(weight.value) for weight in flow_of(model).trainable_weights}


def test_names_of_the_weights_are_unique():
    names = [weight.path for weight in built(functional_model()).weights]
    assert len(set(names)) == len(names)


def test_frozen_layer_does_not_train():
    model = functional_model(trainable=False)
    before = log_q_of_a_fixed_point(model)
    train(model)
    assert not flow_of(model).trainable_weights
    np.testing.assert_array_equal(log_q_of_a_fixed_point(model), before)


def test_one_layer_serves_two_models():
    shared = layer()
    models = []
    for _ in range(2):
        inputs = keras.Input([FEATURES])
        heads = [keras.layers.Dense(size)(inputs) for size in (LATENT, LATENT, CONTEXT)]
        models.append(keras.Model(inputs, shared(heads)[0]))
    shared_weights = {id(w) for w in models[0].weights} & {id(w) for w in models[1].weights}
    assert {id(w) for w in shared.trainable_weights} <= shared_weights


# Samples


def test_symbolic_shapes():
    z, log_q = layer()([keras.Input([size]) for size in (LATENT, LATENT, CONTEXT)])
    assert (z.shape, log_q.shape) == ((None, LATENT), (None,))


@each_model
def test_predict_takes_any_number_of_rows(make):
    model = make()
    for rows in (1, 7):
        result = model.predict(data(rows), batch_size=5, verbose=0)
        assert result['z'].shape == (rows, LATENT)
        assert result['log_q'].shape == (rows,)
        assert np.all(np.isfinite(result['log_q']))


@pytest.mark.parametrize('conditional', [False, True])
def test_log_q_is_that_of_the_posterior(conditional):
    flow = layer()
    parameters = point()[: 3 if conditional else 2]
    z, log_q = flow(parameters)
    perturb(flow.posterior(*parameters).bijector)
    z, log_q = flow(parameters)
    np.testing.assert_allclose(flow.posterior(*parameters).log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)


def test_posterior_has_the_mean_and_variance_given():
    flow = layer(num_flows=0)
    z_mean, z_log_var, *_ = point()
    flow([z_mean, z_log_var])
    expected = tfd.MultivariateNormalDiag(z_mean, tf.exp(z_log_var / 2)).log_prob(point()[3])
    np.testing.assert_allclose(flow.posterior(z_mean, z_log_var).log_prob(point()[3]), expected, rtol=1e-5)


def test_every_call_and_every_row_draws_anew():
    flow, zeros = layer(), tf.zeros([5, LATENT])
    samples = np.concatenate([flow([zeros, zeros])[0] for _ in range(2)])
    assert len(np.unique(samples[:, 0])) == 10


def test_set_random_seed_fixes_weights_samples_and_training():
    def result():
        keras.utils.set_random_seed(5)
        model = functional_model()
        train(model, epochs=1)
        return [*(w.numpy() for w in model.trainable_weights), *model.predict(data(), verbose=0).values()]

    for first, second in zip(result(), result(), strict=True):
        # Not to the last bit: threads add up in any order.
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_seed_of_the_layer_fixes_its_weights_and_samples():
    def sample(seed):
        return layer(seed=seed)(point()[:3])[0].numpy()

    np.testing.assert_array_equal(sample(1), sample(1))
    assert np.all(sample(1) != sample(2))


def test_one_evaluation_of_each_network_in_a_call(network_calls):
    flow = layer(num_flows=3)
    flow(point()[:3])
    network_calls.clear()
    flow(point()[:3])
    assert len(network_calls) == len(set(network_calls)) == 3


# The KL term


def test_kl_loss_and_metric():
    flow = layer(kl_loss_weight=0.25)
    z, log_q = flow(point()[:3])
    prior = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))
    expected = tf.reduce_mean(log_q - prior.log_prob(z))
    np.testing.assert_allclose(sum(flow.losses), 0.25 * expected, rtol=1e-5)
    (metric,) = flow.metrics
    assert metric.name == 'kl'
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-5)


def test_fit_reports_the_metric_and_its_share_of_the_loss():
    model = functional_model()
    model = keras.Model(model.inputs, model.output['x'])
    model.compile(loss='mse', metrics=['mse'])
    history = model.fit(data(), data(), verbose=0).history
    np.testing.assert_allclose(history['loss'], np.add(history['mse'], 0.5 * np.array(history['kl'])), rtol=1e-5)


def test_without_a_weight_the_loss_is_the_models_own():
    flow = layer()
    flow(point()[:3])
    assert flow.losses == [] and flow.metrics == []


def test_weight_of_zero_reports_the_metric():
    flow = layer(kl_loss_weight=0.0)
    flow(point()[:3])
    assert sum(flow.losses) == 0 and flow.metrics[0].result() != 0


def test_kl_without_flows_is_analytic():
    flow = layer(num_flows=0, kl_loss_weight=1.0)
    z_mean, z_log_var, *_ = point()
    flow([z_mean, z_log_var])
    q = tfd.MultivariateNormalDiag(z_mean, tf.exp(z_log_var / 2))
    prior = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))
    np.testing.assert_allclose(sum(flow.losses), tf.reduce_mean(tfp.distributions.kl_divergence(q, prior)), rtol=1e-5)


# Saving


@each_model
def test_keras_file_brings_everything_back(make, tmp_path):
    model = built(make())
    train(model, epochs=1)
    model.save(tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras')
    np.testing.assert_array_equal(log_q_of_a_fixed_point(loaded), log_q_of_a_fixed_point(model))
    for a, b in zip(loaded.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    before = flow_variables(loaded)[0].numpy()
    train(loaded, epochs=1)
    assert np.any(flow_variables(loaded)[0].numpy() != before), 'a loaded model goes on training'


@each_model
def test_weights_file_brings_everything_back(make, tmp_path):
    model, other = built(make()), built(make())
    assert np.all(log_q_of_a_fixed_point(other) != log_q_of_a_fixed_point(model))
    model.save_weights(tmp_path / 'model.weights.h5')
    other.load_weights(tmp_path / 'model.weights.h5')
    np.testing.assert_array_equal(log_q_of_a_fixed_point(other), log_q_of_a_fixed_point(model))


@each_model
def test_checkpoint_brings_everything_back(make, tmp_path):
    model, other = built(make()), built(make())
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    assert np.all(log_q_of_a_fixed_point(other) != log_q_of_a_fixed_point(model))
    tf.train.Checkpoint(model=other).read(path).expect_partial()
    np.testing.assert_array_equal(log_q_of_a_fixed_point(other), log_q_of_a_fixed_point(model))


@each_model
def test_exported_model_samples_from_the_same_posterior(make, tmp_path):
    model = built(make())
    model.export(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    result = loaded.serve(data())
    expected = flow_of(model).posterior(*parameters_of(model)).log_prob(tf.identity(result['z']))
    np.testing.assert_allclose(result['log_q'], expected, rtol=1e-4, atol=1e-4)


def test_exported_density_is_the_same(tmp_path):
    model = built(functional_model())
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        'log_q',
        lambda *tensors: flow_of(model).posterior(*tensors[:3]).log_prob(tensors[3]),
        input_signature=[tf.TensorSpec([None, size]) for size in (LATENT, LATENT, CONTEXT, LATENT)],
    )
    archive.write_out(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.log_q(*point()), log_q_of_a_fixed_point(model), rtol=1e-5)


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'num_flows': 3, 'hidden_units': [4, 5], 'transform': 'affine', 'seed': 3, 'kl_loss_weight': 0.1},
        {'transform': transforms.Affine(2.0), 'alternate_order': False, 'activation': 'tanh', 'name': 'mine'},
        {'transform': transforms.Gated(1.0), 'activation': keras.activations.silu, 'dtype': 'float64'},
    ],
    ids=['default', 'names', 'objects', 'callable'],
)
def test_config_makes_the_layer_anew(arguments):
    first = IAFSampling(**arguments)
    second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    assert second.get_config() == first.get_config()
    assert second.transform == first.transform
    for name, value in arguments.items():
        if name in ('num_flows', 'alternate_order', 'seed', 'kl_loss_weight', 'name', 'activation'):
            assert getattr(second, name) == value


def test_config_survives_json():
    config = IAFSampling(transform=transforms.Affine(2.0)).get_config()
    assert IAFSampling.from_config(json.loads(json.dumps(config))).transform == transforms.Affine(2.0)


# Dtype policies


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    floatx = keras.config.floatx()
    keras.config.set_dtype_policy(request.param)
    if request.param == 'float64':  # or Keras computes its own losses in float32, and cannot add them up
        keras.config.set_floatx('float64')
    yield request.param
    keras.config.set_dtype_policy(before)
    keras.config.set_floatx(floatx)


@pytest.mark.parametrize(
    ('policy', 'dtype'),
    [('mixed_float16', tf.float32), ('mixed_bfloat16', tf.float32), ('float64', tf.float64)],
    indirect=['policy'],
)
def test_flow_stays_in_the_dtype_of_its_variables(policy, dtype):
    model = functional_model()
    history = train(model, epochs=1).history
    z, log_q = flow_of(model)(point(dtype)[:3])
    assert z.dtype == log_q.dtype == dtype
    assert {variable.dtype for variable in flow_variables(model)} == {dtype}
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['kl']))


@pytest.mark.parametrize('policy', ['mixed_float16'], indirect=True)
def test_inputs_in_half_precision_are_computed_in_single(policy):
    flow = layer(seed=1)
    half = [tf.cast(value, tf.float16) for value in point()[:3]]
    z, log_q = flow(half)
    expected = flow.posterior(*(tf.cast(value, tf.float32) for value in half)).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)


def test_log_variance_in_single_precision_is_not_rounded_to_half():
    """Keras casts the inputs of a layer to its compute dtype, unless told not to."""
    flow = layer(num_flows=0, dtype='mixed_float16', kl_loss_weight=1.0)
    z_mean = tf.constant([[1.0001, 2.0003]])
    flow([z_mean, tf.zeros([1, LATENT])])
    np.testing.assert_allclose(sum(flow.losses), 0.5 * np.sum(np.square(z_mean)), rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'num_flows': -1}, ValueError, ['num_flows', '-1', 'at least 0']),
        ({'num_flows': 1.5}, TypeError, ['num_flows', '1.5', 'int']),
        ({'hidden_units': ()}, ValueError, ['hidden_units', 'at least one', '(320, 320)']),
        ({'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints']),
        ({'hidden_units': (0,)}, ValueError, ['hidden_units', '0', 'at least 1']),
        ({'transform': 'cubic'}, ValueError, ['transform', "'spline'", "'gated'", "'affine'"]),
        ({'activation': 'elou'}, ValueError, ['activation', "'elou'", "'elu'"]),
        ({'kl_loss_weight': 'much'}, TypeError, ['kl_loss_weight', "'much'", 'number']),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative']),
        ({'dtype': 'float16'}, TypeError, ['dtype', 'float16', 'float32', 'mixed precision']),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        IAFSampling(**{'num_flows': 1, 'hidden_units': (8,), **arguments})([tf.zeros([5, 2]), tf.zeros([5, 2])])


@pytest.mark.parametrize(
    'inputs',
    [
        tf.zeros([5, 2]),
        [tf.zeros([5, 2])],
        [tf.zeros([5, 2])] * 4,
        {'z_mean': tf.zeros([5, 2]), 'z_log_var': tf.zeros([5, 2])},
    ],
    ids=['tensor', 'one', 'four', 'dict'],
)
def test_wrong_number_of_inputs(inputs):
    with raises(ValueError, 'inputs', '(5, 2)', '[z_mean, z_log_var] or [z_mean, z_log_var, context]'):
        layer()(inputs)


def test_mean_and_log_variance_of_different_sizes():
    with raises(ValueError, 'inputs', '(5, 2)', '(5, 3)', 'z_mean', 'z_log_var'):
        layer()([tf.zeros([5, 2]), tf.zeros([5, 3])])


def test_unknown_latent_size():
    with raises(ValueError, 'inputs', 'None', 'known last dimensions'):
        layer()([keras.Input([None]), keras.Input([None])])


def test_posterior_before_the_layer_is_built():
    with raises(ValueError, 'mine', 'not built', 'Call the layer'):
        layer(name='mine').posterior(tf.zeros([5, 2]), tf.zeros([5, 2]))


def test_missing_context():
    flow = layer()
    flow(point()[:3])
    with raises(ValueError, 'context', 'None', '[..., 3]'):
        flow(point()[:2])


def test_unexpected_context():
    flow = layer()
    flow(point()[:2])
    with raises(ValueError, 'context', 'Pass'):
        flow(point()[:3])


@keras.saving.register_keras_serializable(package='tests')
@dataclasses.dataclass(frozen=True)
class Doubled(tfp_iaf.transforms.Affine):
    """A transform of a user's own."""

    factor: float = 2.0


def test_own_transform_comes_back_from_a_file(tmp_path):
    inputs = [keras.Input([3]), keras.Input([3])]
    layer = IAFSampling(1, (8,), transform=Doubled(factor=3.0))
    keras.Model(inputs, layer(inputs)).save(tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras')
    assert loaded.layers[-1].transform == Doubled(factor=3.0)


def test_output_shapes_without_a_call():
    assert IAFSampling().compute_output_shape([(None, 3), (None, 3)]) == ((None, 3), (None,))
