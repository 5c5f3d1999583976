"""A VAE in Keras
==============

The convolutional VAE of the Keras documentation, with a Gaussian posterior and with an inverse autoregressive flow. The
flow is one layer: ``IAFSampling`` takes the place of ``Sampling``, and adds the KL term to the loss.

.. code-block:: bash

    python keras_vae.py  # 3 minutes on two CPU cores; --quick takes half a minute
    python keras_vae.py --data=path/to/mnist.npz  # half an hour

The images are MNIST, from ``--data`` or the cache of Keras, or else the digits of scikit-learn. A training that is
killed goes on after its last epoch when the same command is given again.
"""

import argparse
import os
import pathlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers
from keras.callbacks import BackupAndRestore, CSVLogger, TerminateOnNaN

import tfp_iaf.keras

parser = argparse.ArgumentParser(description='Trains a convolutional VAE without a flow, and one with it.')
parser.add_argument('--data', type=pathlib.Path, help='mnist.npz; otherwise that in the cache of Keras, or the digits')
parser.add_argument('--epochs', type=int, default=20)
parser.add_argument('--seed', type=int, default=0, help='of weights, batches and samples')
parser.add_argument('--quick', action='store_true', help='two short epochs, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/keras_vae', help='for models and the picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
latent_size, batch_size, epochs = 10, 100, 2 if args.quick else args.epochs
print('Running on', (tf.config.list_physical_devices('GPU') or tf.config.list_physical_devices('CPU'))[0].name)

# %%
# Data
# ----
# Pixels are Bernoulli variables whose probabilities are the intensities. The few digits are drawn about ten times each.
cache = pathlib.Path(os.environ.get('KERAS_HOME', '~/.keras')).expanduser() / 'datasets' / 'mnist.npz'
rng = np.random.default_rng(0)
if args.data or cache.is_file():
    with np.load(args.data or cache) as arrays:
        x_train, x_test = arrays['x_train'] / 255, arrays['x_test'][:1000] / 255
else:
    digits = rng.permutation(sklearn.datasets.load_digits().images) / 16
    x_train, x_test = rng.choice(digits[400:], 14000), digits[:400]
if args.quick:
    x_train, x_test = x_train[:1000], x_test[:100]
x_train, x_test = (rng.binomial(1, x)[..., np.newaxis].astype('float32') for x in (x_train, x_test))
height, width, _ = x_train.shape[1:]
print(f'{len(x_train)} training images and {len(x_test)} test images of {height} x {width} pixels')

# %%
# The model
# ---------
# With ``num_flows=0``, the layer is the ``Sampling`` of the Keras documentation. A flow gets a context too: features of
# the image that each of its steps can use.


@keras.saving.register_keras_serializable()
def reconstruction(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, in nats: a sum over pixels."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits), axis=[-3, -2, -1])


def make_vae(num_flows: int) -> keras.Model:
    """Returns a model from images to logits."""
    images = keras.Input([height, width, 1])
    h = layers.Conv2D(32, 3, strides=2, padding='same', activation='relu')(images)
    h = layers.Conv2D(64, 3, strides=2, padding='same', activation='relu')(h)
    h = layers.Flatten()(h)
    inputs = [layers.Dense(latent_size, name='z_mean')(h), layers.Dense(latent_size, name='z_log_var')(h)]
    if num_flows:
        inputs.append(layers.Dense(64, activation='elu', name='context')(h))
    z, _ = tfp_iaf.keras.IAFSampling(num_flows, hidden_units=(64, 64), name='sampling')(inputs)
    decoder = keras.Sequential([keras.Input([latent_size])], name='decoder')
    decoder.add(layers.Dense(height // 4 * (width // 4) * 64, activation='relu'))
    decoder.add(layers.Reshape([height // 4, width // 4, 64]))
    decoder.add(layers.Conv2DTranspose(64, 3, strides=2, padding='same', activation='relu'))
    decoder.add(layers.Conv2DTranspose(32, 3, strides=2, padding='same', activation='relu'))
    decoder.add(layers.Conv2DTranspose(1, 3, padding='same'))
    return keras.Model(images, decoder(z))


# %%
# Training
# --------
# The loss is -ELBO. ``KLWarmup`` raises the weight of the KL term over the first quarter of the steps; in validation it
# has its full weight all the time. Both VAEs have the same schedule and the same seed.
vaes, steps = {}, epochs * len(x_train) // batch_size
for name, num_flows in {'Gaussian': 0, 'IAF, 4 steps': 4}.items():
    run = args.output_dir / f'{height}x{width}-{num_flows}_flows-{epochs}_epochs-seed{args.seed}'
    run.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    vae = make_vae(num_flows)
    print(f'\nTraining: {name}, {vae.count_params():,} parameters')
    vae.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss=reconstruction)
    callbacks = [TerminateOnNaN(), CSVLogger(run / 'log.csv', append=True), BackupAndRestore(run / 'backup')]
    callbacks.append(tfp_iaf.keras.KLWarmup(steps // 4))
    vae.fit(x_train, x_train, batch_size, epochs, validation_data=(x_test, x_test), callbacks=callbacks)
    vae.save(run / 'vae.keras')
    vaes[name] = keras.saving.load_model(run / 'vae.keras')
    np.testing.assert_array_equal(vae(x_test), vaes[name](x_test))  # the same samples: the state of the seed is saved

# %%
# Evaluation
# ----------
# -ELBO is an upper bound on the negative log-likelihood (NLL). Importance weighting of 100 samples is a tighter one.


@tf.function
def log_weights(vae: keras.Model, x: tf.Tensor, num_samples: int = 100) -> tf.Tensor:
    """Returns log p(x, z) - log q(z|x) at samples z of q(z|x): their mean is the ELBO."""
    sampling, decoder = vae.get_layer('sampling'), vae.get_layer('decoder')
    q = sampling.posterior(*keras.Model(vae.input, sampling.input)(x))
    z, log_q = q.experimental_sample_and_log_prob(num_samples)
    logits = tf.reshape(decoder(tf.reshape(z, [-1, latent_size])), [num_samples, *x.shape])
    log_p_z = tf.reduce_sum(tfp.distributions.Normal(0.0, 1.0).log_prob(z), axis=-1)
    return log_p_z - reconstruction(tf.broadcast_to(x, logits.shape), logits) - log_q


rows = {}
for name, vae in vaes.items():
    weights = tf.concat([log_weights(vae, x) for x in tf.split(x_test, len(x_test) // 20)], axis=1)
    rows[name] = np.array([-tf.reduce_mean(weights, axis=0), -tfp.math.reduce_logmeanexp(weights, axis=0)])
rows['difference'] = rows['IAF, 4 steps'] - rows['Gaussian']
print(f'\nNats per image, means over test images ± standard errors\n{"":14}{"-ELBO":>16}{"NLL":>16}')
for name, bounds in rows.items():
    print(f'{name:14}' + ''.join(f'{bound.mean():9.2f} ± {bound.std() / len(bound) ** 0.5:.2f}' for bound in bounds))

# %%
# Reconstructions and samples
# ---------------------------
pictures = {'test images': x_test[:12]}
pictures |= {f'reconstructed, {name}': tf.sigmoid(vae(x_test[:12])) for name, vae in vaes.items()}
z = rng.normal(size=[12, latent_size])
pictures |= {f'sampled, {name}': tf.sigmoid(vae.get_layer('decoder')(z)) for name, vae in vaes.items()}
figure, axes = plt.subplots(len(pictures), figsize=(8, 3.6), layout='constrained')
for axis, (label, images) in zip(axes, pictures.items(), strict=True):
    axis.imshow(np.hstack(images)[..., 0], cmap='gray_r', vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(label, rotation=0, ha='right', va='center')
figure.savefig(args.output_dir / 'reconstructions_and_samples.png', dpi=130)
