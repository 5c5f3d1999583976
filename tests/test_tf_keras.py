"""What tf_keras alone has: TFP's own layers.

What the layers for both Kerases share is tested in `test_keras` and in the files of each matter.
"""

import numpy as np
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


def test_distribution_lambda_holds_the_posterior():
    x, y = data(64), normal([64, LATENT], tf.float32)
    model = DensityModel()
    q = model(x)
    assert (q.batch_shape, q.event_shape) == ([64], [LATENT])
    model.compile(tf_keras.optimizers.Adam(0.05), loss=lambda y, q: -q.log_prob(y), run_eagerly=True)
    before, expected = values_of(flow_variables(model)), -tf.reduce_mean(q.log_prob(y))
    losses = model.fit(x, y, epochs=3, batch_size=64, verbose=0).history['loss']
    assert variables_of(flow_variables(model)) <= variables_of(model.trainable_weights)
    assert_all_changed(flow_variables(model), before)
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert losses[2] < losses[1] < losses[0]
