"""The plain swap: the standard Keras VAE with its `Sampling` layer, and with `IAFSampling` in its place.

`python plain_swap.py` trains both on scikit-learn's 8x8 digits, from the same seeds, and prints the negative ELBO of
the test images, seed by seed, with the paired difference. Nothing else differs: same encoder and decoder, same
optimizer, same number of epochs, no warm-up. `--network=conv` takes convolutions, `--transform=affine` another
transform. 4 to 8 minutes on one core; `--quick` takes less than one, for a look at what it prints.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported

import keras
import numpy as np
import sklearn.datasets
import tensorflow as tf
from absl import app, flags
from keras.layers import Layer

import tfp_iaf.keras

LATENTS, BATCH, TEST_IMAGES = 10, 64, 400
LOG_2_PI = float(np.log(2 * np.pi))


class Sampling(Layer):
    """The layer of the Keras documentation; it adds the closed-form KL to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator()

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Returns a sample for each row."""
        z_mean, z_log_var = inputs
        kl = 0.5 * tf.reduce_sum(tf.square(z_mean) + tf.exp(z_log_var) - z_log_var - 1.0, axis=-1)
        self.add_loss(tf.reduce_mean(kl))
        return z_mean + tf.exp(0.5 * z_log_var) * keras.random.normal(tf.shape(z_mean), seed=self.seeds)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns training and test images, `[N, 8, 8, 1]`, each pixel black or white."""
    images = sklearn.datasets.load_digits().images[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] >= 8).astype(np.float32)
    return images[TEST_IMAGES:], images[:TEST_IMAGES]


def make_networks(kind: str) -> tuple[keras.Model, keras.Model]:
    """Returns an encoder, from images to z_mean and z_log_var, and a decoder, from z to logits."""
    layers = keras.layers
    images, z = keras.Input([8, 8, 1]), keras.Input([LATENTS])
    if kind == 'conv':
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
    return keras.Model(images, [layers.Dense(LATENTS)(hidden), layers.Dense(LATENTS)(hidden)]), keras.Model(z, logits)


def reconstruction_loss(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, logits), axis=[-3, -2, -1])


def train(sampling: Layer, images: np.ndarray, network: str, epochs: int) -> tuple[keras.Model, keras.Model]:
    """Trains a VAE with this sampling layer; returns its encoder and decoder."""
    encoder, decoder = make_networks(network)
    inputs = keras.Input([8, 8, 1])
    z = sampling(encoder(inputs))
    z = z[0] if isinstance(z, (list, tuple)) else z  # IAFSampling returns z and log q(z|x)
    model = keras.Model(inputs, decoder(z))
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(images) // BATCH))
    model.compile(keras.optimizers.Adam(schedule), loss=reconstruction_loss)
    model.fit(images, images, batch_size=BATCH, epochs=epochs, verbose=0)
    return encoder, decoder


def gaussian(z_mean: tf.Tensor, z_log_var: tf.Tensor, samples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns samples of the Gaussian posterior, `[samples, batch, D]`, and their log-density."""
    noise = tf.random.normal([samples, *z_mean.shape])
    return z_mean + tf.exp(0.5 * z_log_var) * noise, -0.5 * tf.reduce_sum(noise**2 + z_log_var + LOG_2_PI, axis=-1)


def neg_elbo(encoder: keras.Model, decoder: keras.Model, sampling: Layer, images: tf.Tensor, samples: int) -> float:
    """Returns the mean of log q(z|x) - log p(z) - log p(x|z) over images and samples."""

    @tf.function
    def estimate(count: int) -> tf.Tensor:
        z_mean, z_log_var = encoder(images)
        if isinstance(sampling, tfp_iaf.keras.IAFSampling):
            z, log_q = sampling.posterior(z_mean, z_log_var).experimental_sample_and_log_prob(count)
        else:
            z, log_q = gaussian(z_mean, z_log_var, count)
        log_p = -0.5 * tf.reduce_sum(z**2 + LOG_2_PI, axis=-1)
        logits = tf.reshape(decoder(tf.reshape(z, [-1, LATENTS])), [count, *images.shape])
        return tf.reduce_mean(log_q - log_p + reconstruction_loss(tf.broadcast_to(images, logits.shape), logits))

    return float(np.mean([estimate(10) for _ in range(samples // 10)]))


def run(make_sampling: Callable[[], Layer], seed: int, settings: dict[str, Any]) -> float:
    """Returns the negative ELBO of the test images for a VAE trained from a seed."""
    keras.utils.set_random_seed(seed)
    (training, test), sampling = load_digits(), make_sampling()
    encoder, decoder = train(sampling, training, settings['network'], settings['epochs'])
    return neg_elbo(encoder, decoder, sampling, tf.constant(test), settings['samples'])


def summary(values: Sequence[float]) -> str:
    """Returns a mean with its standard error."""
    return f'{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}'


def main(argv: list[str]) -> None:
    """Trains both VAEs from every seed, and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f'got the arguments {argv[1:]}, expected flags alone')
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the networks are small
    values = flags.FLAGS
    epochs, samples, seeds = (3, 20, 2) if values.quick else (values.epochs, 500, values.seeds)
    settings = {'network': values.network, 'epochs': epochs, 'samples': samples}
    print(f'-ELBO of {TEST_IMAGES} test digits in nats, {values.network} networks, {epochs} epochs, {samples} samples')
    print(f'{"seed":<6}{"Sampling":>16}{"IAFSampling":>16}{"difference":>16}')
    gaussians, flows = [], []
    for seed in range(seeds):
        gaussians.append(run(Sampling, seed, settings))
        flows.append(run(lambda: tfp_iaf.keras.IAFSampling(transform=values.transform), seed, settings))
        print(f'{seed:<6}{gaussians[-1]:>16.3f}{flows[-1]:>16.3f}{flows[-1] - gaussians[-1]:>16.3f}', flush=True)
    difference = np.subtract(flows, gaussians).tolist()
    print(f'{"mean":<6}{summary(gaussians):>16}{summary(flows):>16}{summary(difference):>16}')


if __name__ == '__main__':
    flags.DEFINE_enum('network', 'dense', ['dense', 'conv'], 'What encoder and decoder are made of.')
    flags.DEFINE_enum('transform', 'gated', ['gated', 'affine', 'spline'], 'What an entry goes through in a step.')
    flags.DEFINE_integer('epochs', 60, 'Epochs of training.', lower_bound=1)
    flags.DEFINE_integer('seeds', 5, 'Number of seeds, from 0.', lower_bound=2)
    flags.DEFINE_bool('quick', False, 'Two seeds, three epochs, and few samples.')
    app.run(main)
