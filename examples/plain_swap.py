"""The plain swap
==============

The standard Keras VAE with its ``Sampling`` layer, and with ``IAFSampling`` in its place. Nothing else differs: the
same encoder and decoder, no context for the flow, the same optimizer, the same number of epochs, no warm-up of the KL
term, the same seeds. A swap should never be a loss.

.. code-block:: bash

    python plain_swap.py  # 5 to 10 minutes on two CPU cores; --quick takes a minute
    python plain_swap.py --network=conv --transform=affine
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

parser = argparse.ArgumentParser(description='Replaces the sampling layer of a VAE, and changes nothing else.')
parser.add_argument('--network', default='dense', choices=['dense', 'conv'], help='of encoder and decoder')
parser.add_argument('--transform', default='gated', choices=['gated', 'affine', 'spline'], help='of each step')
parser.add_argument('--epochs', type=int, default=60)
parser.add_argument('--seeds', type=int, default=5, help='number of seeds, from 0; at least 2')
parser.add_argument('--quick', action='store_true', help='two seeds, three epochs and few samples, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/plain_swap', help='for the picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
args.output_dir.mkdir(parents=True, exist_ok=True)
epochs, num_samples, seeds = (3, 20, 2) if args.quick else (args.epochs, 500, args.seeds)
tf.config.threading.set_intra_op_parallelism_threads(1)  # the networks are small

# %%
# Data
# ----
# The 8x8 digits of scikit-learn, each pixel black or white.
images = sklearn.datasets.load_digits().images[..., np.newaxis]
images = (images[np.random.default_rng(0).permutation(len(images))] >= 8).astype(np.float32)
x_train, x_test = images[400:], tf.constant(images[:400])
latent_size, batch_size = 10, 64

# %%
# The model
# ---------
# ``Sampling`` is the layer of the Keras documentation; it adds the KL of a Gaussian to the loss in closed form.
# ``IAFSampling`` adds the KL of the flow.


class Sampling(layers.Layer):
    """Draws z from the Gaussian, and adds its KL to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator()

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Returns a sample for each row."""
        z_mean, z_log_var = inputs
        kl = 0.5 * tf.reduce_sum(tf.square(z_mean) + tf.exp(z_log_var) - z_log_var - 1.0, axis=-1)
        self.add_loss(tf.reduce_mean(kl))
        return z_mean + tf.exp(0.5 * z_log_var) * keras.random.normal(tf.shape(z_mean), seed=self.seeds)


def make_networks() -> tuple[keras.Model, keras.Model]:
    """Returns an encoder, from images to z_mean and z_log_var, and a decoder, from z to logits."""
    images, z = keras.Input([8, 8, 1]), keras.Input([latent_size])
    if args.network == 'conv':
        hidden = layers.Conv2D(32, 3, strides=2, padding='same', activation='relu')(images)
        hidden = layers.Conv2D(64, 3, strides=2, padding='same', activation='relu')(hidden)
        hidden = layers.Dense(64, activation='relu')(layers.Flatten()(hidden))
        out = layers.Reshape([2, 2, 64])(layers.Dense(256, activation='relu')(z))
        out = layers.Conv2DTranspose(64, 3, strides=2, padding='same', activation='relu')(out)
        out = layers.Conv2DTranspose(32, 3, strides=2, padding='same', activation='relu')(out)
        logits = layers.Conv2DTranspose(1, 3, padding='same')(out)
    else:
        hidden = layers.Dense(200, activation='relu')(layers.Flatten()(images))
        hidden = layers.Dense(200, activation='relu')(hidden)
        out = layers.Dense(200, activation='relu')(layers.Dense(200, activation='relu')(z))
        logits = layers.Reshape([8, 8, 1])(layers.Dense(64)(out))
    parameters = [layers.Dense(latent_size)(hidden), layers.Dense(latent_size)(hidden)]
    return keras.Model(images, parameters), keras.Model(z, logits)


def reconstruction(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, in nats."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, logits), axis=[-3, -2, -1])


# %%
# Training and evaluation
# -----------------------
# -ELBO is the mean of log q(z|x) - log p(z) - log p(x|z) over test images and samples of q(z|x).


def train_and_evaluate(sampling: layers.Layer) -> float:
    """Returns -ELBO of the test images for a VAE with this sampling layer."""
    encoder, decoder = make_networks()
    inputs = keras.Input([8, 8, 1])
    z = sampling(encoder(inputs))
    has_flow = isinstance(sampling, tfp_iaf.keras.IAFSampling)
    vae = keras.Model(inputs, decoder(z[0] if has_flow else z))  # IAFSampling returns z and log q(z|x)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(x_train) // batch_size))
    vae.compile(keras.optimizers.Adam(rate), loss=reconstruction)
    vae.fit(x_train, x_train, batch_size=batch_size, epochs=epochs, verbose=0)

    @tf.function
    def neg_elbo(count: int) -> tf.Tensor:
        z_mean, z_log_var = encoder(x_test)
        if has_flow:
            z, log_q = sampling.posterior(z_mean, z_log_var).experimental_sample_and_log_prob(count)
        else:
            noise = tf.random.normal([count, *z_mean.shape])
            z = z_mean + tf.exp(0.5 * z_log_var) * noise
            log_q = -0.5 * tf.reduce_sum(noise**2 + z_log_var + np.log(2 * np.pi), axis=-1)
        log_p = -0.5 * tf.reduce_sum(z**2 + np.log(2 * np.pi), axis=-1)
        logits = tf.reshape(decoder(tf.reshape(z, [-1, latent_size])), [count, *x_test.shape])
        return tf.reduce_mean(log_q - log_p + reconstruction(tf.broadcast_to(x_test, logits.shape), logits))

    return float(np.mean([neg_elbo(10) for _ in range(num_samples // 10)]))


print(f'-ELBO of {len(x_test)} test digits in nats, {args.network} networks, {epochs} epochs, {num_samples} samples')
print(f'{"seed":<6}{"Sampling":>16}{"IAFSampling":>16}{"difference":>16}')
rows = []
for seed in range(seeds):
    keras.utils.set_random_seed(seed)
    gaussian = train_and_evaluate(Sampling())
    keras.utils.set_random_seed(seed)
    flow = train_and_evaluate(tfp_iaf.keras.IAFSampling(transform=args.transform))
    rows.append([gaussian, flow, flow - gaussian])
    print(f'{seed:<6}' + ''.join(f'{value:16.3f}' for value in rows[-1]), flush=True)
means, errors = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(seeds)
print(f'{"mean":<6}' + ''.join(f'{f"{mean:.3f} ± {error:.3f}":>16}' for mean, error in zip(means, errors, strict=True)))

figure, axis = plt.subplots(figsize=(5, 3), layout='constrained')
axis.plot(['Sampling', 'IAFSampling'], np.array(rows)[:, :2].T, 'o-')
axis.set(ylabel='-ELBO (nats)', title='One line for each seed')
figure.savefig(args.output_dir / 'plain_swap.png', dpi=130)
