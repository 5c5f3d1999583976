"""A step of `fit` for a VAE of MNIST's shape."""

import keras
import numpy as np
import tensorflow as tf

from benchmark.cases import Size
from benchmark.packages import PACKAGES
from benchmark.timing import Step


def make_step(name: str, size: Size, mode: str) -> Step:
    """Returns the step, with the flows of a package or, for `no_flow`, with a diagonal Gaussian."""
    package = PACKAGES.get(name, PACKAGES['tfp_iaf'])
    images = hidden = keras.Input([784])
    for _ in range(2):
        hidden = keras.layers.Dense(300, activation='elu')(hidden)
    inputs = [keras.layers.Dense(size.event)(hidden) for _ in range(2)]
    if name != 'no_flow':
        inputs.append(keras.layers.Dense(size.context, activation='elu')(hidden))
    hidden, _ = package.keras.IAFSampling(0 if name == 'no_flow' else size.flows, [size.hidden] * 2, seed=0)(inputs)
    for _ in range(2):
        hidden = keras.layers.Dense(300, activation='elu')(hidden)
    model = keras.Model(images, keras.layers.Dense(784)(hidden))

    def negative_log_likelihood(pixels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(pixels, logits), axis=-1)

    model.compile('adam', negative_log_likelihood, jit_compile=mode == 'xla', run_eagerly=mode == 'eager')
    model.optimizer.build(model.trainable_variables)  # otherwise the step is traced twice
    pixels = np.random.default_rng(0).integers(0, 2, [size.batch, 784]).astype(np.float32)
    batches = iter(tf.data.Dataset.from_tensors((pixels, pixels)).cache().repeat())
    model.make_train_function()
    return lambda: np.asarray(model.train_function(batches)['loss'])
