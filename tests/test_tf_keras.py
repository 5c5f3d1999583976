"""The layer in models of tf_keras (Keras 2): training, saving in all its formats, dtype policies, TFP's own layers.

What it shares with the layer for Keras 3 is tested for both: see `test_keras_kl` and `test_keras_inputs`.
"""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tests.flows import Shift, normal, raises, tfd
from tests.keras_models import (
    CONTEXT,
    K2,
    K3,
    LATENT,
    SubclassedModel2,
    assert_equal,
    built,
    data,
    fit,
    flow_of,
    flow_variables,
    log_q_of_a_fixed_point,
    narrow_at_first,
    point,
    train,
)
from tfp_iaf import transforms
from tfp_iaf.tf_keras import IAFSampling

functional_model = K2.functional_model
each_model = pytest.mark.parametrize('make', [functional_model, SubclassedModel2], ids=['functional', 'subclassed'])

tf_keras.saving.register_keras_serializable(package='tests')(Shift)


@tf_keras.saving.register_keras_serializable(package='tests')
def cubed(x):
    return x**3


# Training


@pytest.mark.parametrize(
    ('make', 'jit_compile'),
    [(lambda: functional_model(num_flows=1), True), (SubclassedModel2, False)],
    ids=['functional_xla', 'subclassed_graph'],
)
def test_fit_changes_every_flow_variable(make, jit_compile):
    model = built(make())
    before = [variable.numpy() for variable in flow_variables(model)]
    assert len(before) in (5, 10)
    history = train(model, epochs=1, kit=K2, jit_compile=jit_compile)
    for variable, value in zip(flow_variables(model), before, strict=True):
        assert np.all(np.isfinite(variable)) and np.any(variable != value), variable.name
    assert np.all(np.isfinite(history.history['loss']))


def test_evaluate_and_predict():
    model = functional_model()
    model.compile(loss={'x': 'mse'}, run_eagerly=True)
    logs = model.evaluate(data(7), {'x': data(7)}, batch_size=5, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        logs['loss'] - logs['x_loss'], 0.5 * logs['flow_kl'], rtol=0.5
    )  # the batches differ in size
    results = model.predict(data(7), batch_size=5, verbose=0)
    assert {name: value.shape for name, value in results.items()} == {'x': (7, 6), 'z': (7, 2), 'log_q': (7,)}


@each_model
def test_model_tracks_every_flow_variable_by_identity(make):
    model = built(make())
    variables = {id(variable) for variable in flow_variables(model)}
    assert len(variables) == 10
    assert variables == {id(weight) for weight in flow_of(model).trainable_weights}
    assert variables <= {id(weight) for weight in model.trainable_weights}
    assert len({weight.name for weight in model.weights}) == len(model.weights)


def test_number_of_weights():
    flow = flow_of(functional_model(kl_weight=None))
    networks = sum(int(tf.size(variable)) for variable in flow.posterior(*point()[:3]).variables)
    assert flow.count_params() == networks + 2  # the state of the seed
    assert flow_of(functional_model()).count_params() == networks + 3


# Samples


def test_seed_of_the_layer_fixes_its_weights_and_samples():
    def samples(seed, kit=K2):
        flow = kit.layer(seed=seed)
        return [flow(point()[:3])[0].numpy() for _ in range(2)]

    np.testing.assert_array_equal(samples(1), samples(1))
    assert np.all(np.not_equal(*samples(1)))
    assert np.all(np.not_equal(samples(1), samples(2)))
    np.testing.assert_allclose(samples(1), samples(1, K3), rtol=1e-6)


def test_set_random_seed_fixes_weights_and_samples():
    def result():
        tf_keras.utils.set_random_seed(5)
        return {name: value.numpy() for name, value in functional_model()(data()).items()}

    assert_equal(result(), result())


REPLICAS = """
with tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']).scope():
    inputs = [k.Input([2]), k.Input([2])]
    flow = iaf.IAFSampling(1, (8,), seed=3)
    model = k.Model(inputs, flow(inputs)[0])
    model.compile('adam', 'mse', jit_compile=False)
x = np.zeros([8, 2], 'float32')
before = [weight.numpy() for weight in flow.trainable_weights]
weights = []
record = k.callbacks.LambdaCallback(
    on_train_batch_begin=lambda batch, logs=None: weights.append(float(flow.kl_weight_in_training))
)
model.fit([x, x], x, batch_size=4, verbose=0, callbacks=[iaf.KLWarmup(4), record])
assert weights == [0.0, 0.25] and float(flow.kl_weight_in_training) == 1.0
# In the last batch of one row, a replica gets none.
assert np.all(np.isfinite(model.evaluate([x[:5], x[:5]], x[:5], batch_size=4, verbose=0)))
assert all(np.any(a != b.numpy()) for a, b in zip(before, flow.trainable_weights))
assert len(np.unique(model.predict([x, x], batch_size=8, verbose=0)[:, 0])) == 8
"""


@pytest.mark.slow
def test_replicas():
    """Two replicas draw different noise, and train; in a process of its own, which has two devices."""
    code = f"""
import keras, numpy as np, tensorflow as tf, tf_keras, tfp_iaf.keras, tfp_iaf.tf_keras
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
for k, iaf in ((keras, tfp_iaf.keras), (tf_keras, tfp_iaf.tf_keras)):
    exec({REPLICAS!r})
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# Saving


@pytest.mark.parametrize('path', ['model.keras', 'model.h5', 'model'], ids=['keras', 'h5', 'saved_model'])
def test_model_comes_back(path, tmp_path):
    model = functional_model(
        num_flows=1, activation=cubed, transform=transforms.Affine(2.0), free_bits=0.1, network=narrow_at_first
    )
    train(model, epochs=1, rows=5, kit=K2)
    flow_of(model).kl_weight.assign(0.125)
    model.save(tmp_path / path)
    loaded = tf_keras.models.load_model(tmp_path / path)
    assert type(flow_of(loaded)) is IAFSampling
    assert flow_of(loaded).get_config() == flow_of(model).get_config()
    assert flow_of(loaded).kl_weight.numpy() == 0.125
    np.testing.assert_array_equal(log_q_of_a_fixed_point(loaded), log_q_of_a_fixed_point(model))
    for first, second in zip(flow_of(loaded).weights, flow_of(model).weights, strict=True):
        np.testing.assert_array_equal(first, second, first.name)
    before = flow_variables(loaded)[0].numpy()
    loaded.run_eagerly = True
    fit(loaded, epochs=1, rows=5)
    assert np.any(flow_variables(loaded)[0].numpy() != before), 'a loaded model continues training'


@each_model
@pytest.mark.parametrize('path', ['model.weights.h5', 'model.h5', 'checkpoint'])
def test_weights_come_back(make, path, tmp_path):
    model, other = built(make()), built(make())
    assert np.all(log_q_of_a_fixed_point(other) != log_q_of_a_fixed_point(model))
    flow_of(model).kl_weight.assign(0.125)
    if path == 'checkpoint':
        written = tf.train.Checkpoint(model=model).write(str(tmp_path / path))
        tf.train.Checkpoint(model=other).read(written).expect_partial()
    else:
        model.save_weights(tmp_path / path)
        other.load_weights(tmp_path / path)
    np.testing.assert_array_equal(log_q_of_a_fixed_point(other), log_q_of_a_fixed_point(model))
    assert flow_of(other).kl_weight.numpy() == 0.125
    assert_equal(other(data()), model(data()))


def test_two_layers_in_one_part_of_an_h5_file(tmp_path):
    def model():
        inputs = [tf_keras.Input([LATENT]) for _ in range(2)]
        z, _ = K2.layer(kl_weight=1.0)([K2.layer(kl_weight=1.0)(inputs)[0]] * 2)
        part = tf_keras.Model(inputs, z)
        return tf_keras.Model(inputs, part(inputs))

    first, second = model(), model()
    first.save_weights(tmp_path / 'model.h5')
    second.load_weights(tmp_path / 'model.h5')
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_served_model_samples_from_the_same_posterior(tmp_path):
    model = functional_model(num_flows=1)
    model.save(tmp_path / 'model')
    loaded = tf.saved_model.load(str(tmp_path / 'model'))
    first, second = (loaded.signatures['serving_default'](tf.constant(data())) for _ in range(2))
    names = {tuple(value.shape): name for name, value in first.items()}  # names are those of layers
    z, log_q = first[names[len(data()), LATENT]], first[names[len(data()),]]
    assert np.all(log_q != second[names[len(data()),]])
    encoder = tf_keras.Model(model.input, flow_of(model).input)
    expected = flow_of(model).posterior(*encoder(data())).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)


def test_clone():
    model = functional_model(activation=cubed, transform=Shift())
    clone = tf_keras.models.clone_model(model)
    assert flow_of(clone).get_config() == flow_of(model).get_config()
    assert flow_of(clone).transform == Shift()
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(log_q_of_a_fixed_point(clone), log_q_of_a_fixed_point(model))


def test_distribution_as_the_prior_has_no_config(tmp_path):
    with raises(NotImplementedError, 'prior', 'Laplace', 'tf_keras.saving.register_keras_serializable', 'layer'):
        functional_model(prior=tfd.Laplace(0.0, 1.0)).save(tmp_path / 'model.keras')


# Dtype policies


@pytest.fixture
def policy(request):
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf_keras.mixed_precision.set_global_policy(before)


@pytest.mark.parametrize(
    ('policy', 'dtype'),
    [('mixed_float16', tf.float32), ('mixed_bfloat16', tf.float32), ('float64', tf.float64)],
    indirect=['policy'],
)
def test_flow_stays_in_the_dtype_of_its_variables(policy, dtype):
    model = functional_model(num_flows=1)
    history = train(model, epochs=1, rows=5, kit=K2).history
    z, log_q = flow_of(model)(point(dtype)[:3])
    assert z.dtype == log_q.dtype == dtype
    assert {variable.dtype for variable in flow_variables(model)} == {dtype}
    assert np.all(np.isfinite(history['loss'])) and np.all(np.isfinite(history['flow_kl']))


# TFP's own layers


class DensityModel(tf_keras.Model):
    """y given x, as a distribution that the model puts out."""

    def __init__(self):
        super().__init__()
        self.heads = [tf_keras.layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
        self.flow = K2.layer(name='flow')
        self.flow.build([(None, LATENT), (None, LATENT), (None, CONTEXT)])
        self.distribution = tfp.layers.DistributionLambda(lambda parameters: self.flow.posterior(*parameters))

    def call(self, x):
        return self.distribution([head(x) for head in self.heads])


def test_distribution_lambda_holds_the_posterior():
    x, y = data(64), normal([64, LATENT], tf.float32)
    model = DensityModel()
    q = model(x)
    assert (q.batch_shape, q.event_shape) == ([64], [LATENT])
    model.compile(tf_keras.optimizers.Adam(0.02), loss=lambda y, q: -q.log_prob(y))
    before = [variable.numpy() for variable in flow_variables(model)]
    losses = model.fit(x, y, epochs=15, batch_size=32, verbose=0).history['loss']
    assert {id(variable) for variable in flow_variables(model)} <= {id(weight) for weight in model.trainable_weights}
    for variable, value in zip(flow_variables(model), before, strict=True):
        assert np.any(variable != value), variable.name
    np.testing.assert_allclose(losses[-1], -tf.reduce_mean(model(x).log_prob(y)), rtol=0.2)
    assert losses[-1] < 0.8 * losses[0]
