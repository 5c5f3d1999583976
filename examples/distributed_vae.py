"""A VAE on several devices
========================

Keras's ``fit`` under ``tf.distribute.MirroredStrategy``: every device holds a copy of the weights, and takes its share
of each batch. The model is built within the strategy's scope; nothing else changes for the flow.

.. code-block:: bash

    python distributed_vae.py  # a minute on two CPU cores; --quick takes half a minute

It uses all GPUs of the machine. With fewer than two, it splits the CPU into two devices, which shows that it works, and
saves no time.
"""

import argparse
import pathlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import tensorflow as tf
from keras import layers

import tfp_iaf.keras

parser = argparse.ArgumentParser(description='Trains a VAE with a flow on several devices.')
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--seed', type=int, default=0, help='of weights, batches and samples')
parser.add_argument('--quick', action='store_true', help='two short epochs, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/distributed_vae', help='for model and picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
args.output_dir.mkdir(parents=True, exist_ok=True)

# %%
# Devices
# -------
# A CPU must be split before TensorFlow does anything else.
if len(tf.config.list_physical_devices('GPU')) > 1:
    strategy = tf.distribute.MirroredStrategy()
else:
    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
print('Devices:', ', '.join(strategy.extended.worker_devices))

# %%
# Data
# ----
# The 8x8 digits of scikit-learn, each drawn about ten times for training: pixels are Bernoulli variables whose
# probabilities are the intensities.
rng = np.random.default_rng(0)
digits = rng.permutation(sklearn.datasets.load_digits().data) / 16
x_train, x_test = (rng.binomial(1, x).astype('float32') for x in (rng.choice(digits[400:], 14000), digits[:400]))
batch_size, epochs = 100, args.epochs  # 100 images over all devices
if args.quick:
    x_train, epochs = x_train[:2000], 2


# %%
# Training
# --------
# XLA cannot compile a distributed step: ``jit_compile=False``. ``KLWarmup`` counts the steps of the optimizer, not the
# batches of each device, so its number of steps does not depend on the number of devices.
@keras.saving.register_keras_serializable()
def reconstruction(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, in nats."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits), axis=-1)


keras.utils.set_random_seed(args.seed)
with strategy.scope():
    pixels = keras.Input([64])
    h = layers.Dense(200, activation='elu')(layers.Dense(200, activation='elu')(pixels))
    parameters = [layers.Dense(10)(h), layers.Dense(10)(h), layers.Dense(64, activation='elu')(h)]
    sampling = tfp_iaf.keras.IAFSampling(num_flows=4, hidden_units=(64, 64), name='sampling')
    z, _ = sampling(parameters)  # of mean, log-variance and context
    decoder = [keras.Input([10]), layers.Dense(200, 'elu'), layers.Dense(200, 'elu'), layers.Dense(64)]
    vae = keras.Model(pixels, keras.Sequential(decoder, name='decoder')(z))
    vae.compile(keras.optimizers.Adam(2e-3), loss=reconstruction, jit_compile=False)

warm_up = tfp_iaf.keras.KLWarmup(steps=epochs * len(x_train) // batch_size // 4)
callbacks = [warm_up, keras.callbacks.TerminateOnNaN(), keras.callbacks.BackupAndRestore(args.output_dir / 'backup')]
vae.fit(x_train, x_train, batch_size, epochs, validation_data=(x_test, x_test), callbacks=callbacks, verbose=2)
vae.save(args.output_dir / 'vae.keras')

# %%
# What every device has
# ---------------------
# The same weights, and noise of its own: for the same z_mean and z_log_var, no two devices draw the same z.
encoder = keras.Model(pixels, parameters)
for variable in vae.trainable_variables:
    first, *others = strategy.experimental_local_results(variable.value)
    assert all(np.array_equal(first, other) for other in others), variable.path
draws = strategy.experimental_local_results(strategy.run(tf.function(lambda: sampling(encoder(x_test[:1]))[0])))
for device, z in zip(strategy.extended.worker_devices, draws, strict=True):
    print(f'{device[-5:]} draws z = {np.array_str(z.numpy()[0, :4], precision=2)} ...')
assert not np.any(draws[0] == draws[1])

# %%
# Samples of the model
# --------------------
# Outside of the strategy, the saved model is like any other.
model = keras.saving.load_model(args.output_dir / 'vae.keras')
images = tf.sigmoid(model.get_layer('decoder')(tf.random.normal([12, 10]))).numpy()
figure, axis = plt.subplots(figsize=(8, 0.9), layout='constrained')
axis.imshow(np.hstack(images.reshape(12, 8, 8)), cmap='gray_r', vmin=0, vmax=1)
axis.set(xticks=[], yticks=[])
figure.savefig(args.output_dir / 'samples.png', dpi=130)
print(f'Wrote vae.keras and samples.png to {args.output_dir}')
