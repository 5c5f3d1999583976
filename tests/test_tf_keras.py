"""What tf_keras alone has: TFP's own layers; and replicas, in either Keras, in a process of their own.

What the layers for both Kerases share is tested in `test_keras` and in the files of each matter.
"""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tests.flows import normal
from tests.keras_models import (
    CONTEXT,
    K2,
    LATENT,
    assert_all_changed,
    data,
    flow_variables,
    values_of,
    variables_of,
)

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
    """Two replicas draw different noise, and train."""
    code = f"""
import keras, numpy as np, tensorflow as tf, tf_keras, tfp_iaf.keras, tfp_iaf.tf_keras
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
for k, iaf in ((keras, tfp_iaf.keras), (tf_keras, tfp_iaf.tf_keras)):
    exec({REPLICAS!r})
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class DensityModel(tf_keras.Model):
    """y given x, as a distribution that the model puts out."""

    def __init__(self):
        super().__init__()
        self.heads = [tf_keras.layers.Dense(size) for size in (LATENT, LATENT, CONTEXT)]
        self.flow = K2.layer(1, name='flow')
        self.flow.build([(None, LATENT), (None, LATENT), (None, CONTEXT)])
        self.distribution = tfp.layers.DistributionLambda(lambda parameters: self.flow.posterior(*parameters))

    def call(self, x):
        return self.distribution([head(x) for head in self.heads])


@pytest.mark.slow
def test_distribution_lambda_holds_the_posterior():
    x, y = data(64), normal([64, LATENT], tf.float32)
    model = DensityModel()
    q = model(x)
    assert (q.batch_shape, q.event_shape) == ([64], [LATENT])
    model.compile(tf_keras.optimizers.Adam(0.05), loss=lambda y, q: -q.log_prob(y))
    before = values_of(flow_variables(model))
    losses = model.fit(x, y, epochs=8, batch_size=32, verbose=0).history['loss']
    assert variables_of(flow_variables(model)) <= variables_of(model.trainable_weights)
    assert_all_changed(flow_variables(model), before)
    np.testing.assert_allclose(losses[-1], -tf.reduce_mean(model(x).log_prob(y)), rtol=0.2)
    assert losses[-1] < 0.8 * losses[0]
