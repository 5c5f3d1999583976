"""A conditional VAE: p(x|y) with a learnt prior p(z|y)
====================================================

A model of images x given their class y. The prior of the latent variables depends on the class too, and is given at the
call of the layer: ``IAFSampling(...)([z_mean, z_log_var, context], prior=[prior_mean, prior_log_var])``. Then p(x|y) is
a density of images that can be sampled, and that says, by Bayes' rule, which class an image is of.

.. code-block:: bash

    python conditional_vae.py  # a minute on two CPU cores; --quick takes 20 seconds
"""

import argparse
import pathlib
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers

import tfp_iaf.keras

parser = argparse.ArgumentParser(description='Trains a conditional VAE with a flow, and samples digits by class.')
parser.add_argument('--epochs', type=int, default=15)
parser.add_argument('--seed', type=int, default=0, help='of weights, batches and samples')
parser.add_argument('--quick', action='store_true', help='two short epochs, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/conditional_vae', help='for model and picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
args.output_dir.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)
latent_size, batch_size, epochs = 10, 100, 2 if args.quick else args.epochs

# %%
# Data
# ----
# The 8x8 digits of scikit-learn, each drawn about ten times for training: pixels are Bernoulli variables whose
# probabilities are the intensities. Labels are one-hot vectors.
rng = np.random.default_rng(0)
digits = sklearn.datasets.load_digits()
order = rng.permutation(len(digits.data))
train, test = rng.choice(order[400:], 2000 if args.quick else 14000), order[:400]
x_train, x_test = (rng.binomial(1, digits.data[rows] / 16).astype('float32') for rows in (train, test))
y_train, y_test = (keras.utils.to_categorical(digits.target[rows], 10) for rows in (train, test))

# %%
# The model
# ---------
# The encoder and the decoder see the label as well. The prior is a Gaussian for each class: a mean and a log-variance,
# made by one dense layer each, and trained with all else.
pixels, label = keras.Input([64], name='pixels'), keras.Input([10], name='label')
h = layers.Concatenate()([pixels, label])
for _ in range(2):
    h = layers.Dense(200, activation='elu')(h)
z_mean, z_log_var = layers.Dense(latent_size)(h), layers.Dense(latent_size)(h)
context = layers.Dense(64, activation='elu')(h)
prior_mean, prior_log_var = layers.Dense(latent_size)(label), layers.Dense(latent_size)(label)

sampling = tfp_iaf.keras.IAFSampling(num_flows=4, hidden_units=(64, 64), name='sampling')
z, _ = sampling([z_mean, z_log_var, context], prior=[prior_mean, prior_log_var])

latents = keras.Input([latent_size])
h = layers.Concatenate()([latents, label])
for _ in range(2):
    h = layers.Dense(200, activation='elu')(h)
decoder = keras.Model([latents, label], layers.Dense(64)(h), name='decoder')
vae = keras.Model([pixels, label], decoder([z, label]))


@keras.saving.register_keras_serializable()
def reconstruction(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z, y) of each image, in nats."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits), axis=-1)


steps = epochs * len(x_train) // batch_size
vae.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss=reconstruction)
callbacks = [tfp_iaf.keras.KLWarmup(steps // 4), keras.callbacks.TerminateOnNaN()]
validation = (x_test, y_test), x_test
vae.fit((x_train, y_train), x_train, batch_size, epochs, validation_data=validation, callbacks=callbacks, verbose=2)
vae.save(args.output_dir / 'conditional_vae.keras')

# %%
# Which class is it?
# ------------------
# log p(x|y) under each of the ten labels, by importance weighting with samples of q(z|x, y). Classes are equally
# likely, so by Bayes' rule the largest names the class.
encoder = keras.Model([pixels, label], [z_mean, z_log_var, context])
prior = keras.Model(label, [prior_mean, prior_log_var])


@tf.function
def log_likelihood(x: tf.Tensor, y: tf.Tensor, num_samples: int = 100) -> tf.Tensor:
    """Returns an estimate of log p(x|y) for each row."""
    z, log_q = sampling.posterior(*encoder([x, y])).experimental_sample_and_log_prob(num_samples)
    mean, log_var = prior(y)
    log_prior = tf.reduce_sum(tfp.distributions.Normal(mean, tf.exp(0.5 * log_var)).log_prob(z), axis=-1)
    logits = decoder([tf.reshape(z, [-1, latent_size]), tf.tile(y, [num_samples, 1])])
    logits = tf.reshape(logits, [num_samples, *x.shape])
    weights = log_prior - reconstruction(tf.broadcast_to(x, logits.shape), logits) - log_q
    return tfp.math.reduce_logmeanexp(weights, axis=0)


columns = [log_likelihood(x_test, tf.tile(one_hot[tf.newaxis], [len(x_test), 1])) for one_hot in tf.eye(10)]
log_p_x = np.stack(columns, axis=1)  # [images, classes]
nll = -np.mean(log_p_x[y_test == 1])
print(f'-log p(x|y) of {len(x_test)} test images: {nll:.2f} nats per image, with their own labels')
accuracy = np.mean(log_p_x.argmax(axis=1) == y_test.argmax(axis=1))
print(f'The class with the largest p(x|y) is right for {accuracy:.1%} of them')

# %%
# Samples of each class
# ---------------------
# z from p(z|y), and pixel probabilities from the decoder. The flow takes no part: it belongs to q.
labels = tf.repeat(tf.eye(10), 10, axis=0)
mean, log_var = prior(labels)
samples = tf.sigmoid(decoder([mean + tf.exp(0.5 * log_var) * tf.random.normal(mean.shape), labels])).numpy()
by_class = np.pad(samples.reshape(10, 10, 8, 8), [(0, 0), (0, 0), (1, 1), (1, 1)])  # [classes, samples, ...]
figure, axis = plt.subplots(figsize=(6, 6.3), layout='constrained')
axis.imshow(by_class.transpose(1, 2, 0, 3).reshape(100, 100), cmap='gray_r')
axis.set(xticks=4.5 + 10 * np.arange(10), xticklabels=range(10), yticks=[], title='Samples from p(x|y)', xlabel='y')
figure.savefig(args.output_dir / 'samples_by_class.png', dpi=130)
print(f'Wrote the model and samples_by_class.png to {args.output_dir}')
