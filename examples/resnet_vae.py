"""A ResNet VAE with convolutional flows
=====================================

The image model of Kingma et al. 2016: a ladder of layers with feature maps as latent variables, and in each a posterior
that an inverse autoregressive flow with masked convolutions makes more flexible. On the way up, each layer takes
features from the image; on the way down, it makes its prior of what is above it, and its posterior of both.

.. code-block:: bash

    python resnet_vae.py --quick  # digits, two short epochs: a minute on two CPU cores
    python resnet_vae.py --data=path/to/cifar-10-batches-py  # hours on a CPU
    python resnet_vae.py --data=path/to/mnist.npz --num_flows=0  # without flows

Without ``--data``, images are those in the cache of Keras, or else the digits of scikit-learn. A training that is
killed goes on after its last epoch when the same command is given again.
"""

import argparse
import math
import os
import pathlib
import pickle
import sys
from collections.abc import Callable

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers, ops
from keras.callbacks import BackupAndRestore, CSVLogger, SwapEMAWeights, TerminateOnNaN

import tfp_iaf.keras

parser = argparse.ArgumentParser(description='Trains a ResNet VAE with a convolutional flow in every layer.')
parser.add_argument('--data', type=pathlib.Path, help='mnist.npz, or the folder cifar-10-batches-py')
parser.add_argument('--layers', default='2,3', help='of each scale, from the finest; each scale has half the size')
parser.add_argument('--filters', type=int, default=32, help='channels of hidden layers, in the flows too')
parser.add_argument('--latent_maps', type=int, default=8, help='channels of the latent variables of a layer')
parser.add_argument('--num_flows', type=int, default=1, help='steps in each layer; 0 for Gaussian posteriors')
parser.add_argument('--free_bits', type=float, default=0.1, help='nats for each feature map')
parser.add_argument('--epochs', type=int, default=20)
parser.add_argument('--batch_size', type=int, default=32, help='over all devices')
parser.add_argument('--train_images', type=int, help='how many images to train on; all by default')
parser.add_argument('--test_images', type=int, default=10000, help='how many images -ELBO is taken of')
parser.add_argument('--nll_images', type=int, default=500, help='how many images the NLL is taken of')
parser.add_argument('--num_samples', type=int, default=20, help='importance samples for the NLL')
parser.add_argument('--mixed_precision', action='store_true', help='bfloat16 in all but the flows, for a GPU')
parser.add_argument('--seed', type=int, default=0, help='of weights, batches and samples')
parser.add_argument('--quick', action='store_true', help='two short epochs, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/resnet_vae', help='for models and the picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
if args.mixed_precision:
    keras.mixed_precision.set_global_policy('mixed_bfloat16')
if args.quick:
    args.layers, args.epochs, args.train_images = '1,1', 2, 2000
    args.test_images, args.nll_images = 200, 100
keras.utils.set_random_seed(args.seed)

# %%
# Data
# ----
# CIFAR-10 has 256 intensities. Pixels of MNIST and of the digits are drawn from their intensities whenever an image
# comes, the test images once. The few digits come ten times in an epoch. The last of the training images are kept for
# validation.
cache = pathlib.Path(os.environ.get('KERAS_HOME', '~/.keras')).expanduser() / 'datasets'
in_cache = [path for path in (cache / 'cifar-10-batches-py', cache / 'mnist.npz') if path.exists()]
path, rng = args.data or next(iter(in_cache), None), np.random.default_rng(0)
if path is None:
    digits = rng.permutation(sklearn.datasets.load_digits().images)[..., np.newaxis] / 16
    x_train, x_test = np.tile(digits[400:], [10, 1, 1, 1]), digits[:400]
elif path.is_dir():
    parts = [pickle.loads(file.read_bytes(), encoding='bytes')[b'data'] for file in sorted(path.glob('*_batch*'))]
    x_train, x_test = (x.reshape([-1, 3, 32, 32]).transpose(0, 2, 3, 1) for x in (np.concatenate(parts[:5]), parts[5]))
else:
    with np.load(path) as arrays:
        x_train, x_test = (arrays[name][..., np.newaxis] / 255 for name in ('x_train', 'x_test'))
x_train, x_validation = np.split(x_train, [-len(x_train) // 10])
x_train, x_validation, x_test = x_train[: args.train_images], x_validation[:1000], x_test[: args.test_images]
height, width, channels = x_train.shape[1:]
is_binary = channels == 1
print(f'{len(x_train)} training and {len(x_test)} test images of {height} x {width} x {channels}')


def drawn(x: np.ndarray) -> np.ndarray:
    """Returns images as numbers from 0 to 1, binary ones drawn once."""
    return np.asarray(rng.binomial(1, x) if is_binary else x / 255, np.float32)


def batches(x: np.ndarray, repeated: bool = False) -> tf.data.Dataset:
    """Returns the batches of an epoch, as pairs of images in and images to be likely."""
    images = tf.data.Dataset.from_tensor_slices(x)
    if repeated:
        images = images.shuffle(len(x))
    images = images.batch(args.batch_size, drop_remainder=repeated)
    if repeated and is_binary:
        images = images.map(lambda x: tf.cast(tf.random.uniform(tf.shape(x), dtype=x.dtype) < x, tf.float32))
    elif repeated:
        images = images.map(lambda x: tf.cast(x, tf.float32) / 255)
    return images.map(lambda x: (x, x)).prefetch(2)


# %%
# The likelihood
# --------------
# Binary pixels are Bernoulli variables. One of 256 intensities has what a logistic distribution has around it; its mean
# comes from the decoder, and all pixels share one scale. Intensities go from -1 to 1 here.


@keras.saving.register_keras_serializable()
def reconstruction(images: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, in nats."""
    if outputs.shape[-1] == 1:
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(images, outputs), axis=[-3, -2, -1])
    mean, log_scale = outputs[..., :-1], outputs[..., -1:]
    log_scale = tf.clip_by_value(log_scale, -7.0, 2.0)
    center, half = (2 * images - 1 - mean) * tf.exp(-log_scale), tf.exp(-log_scale) / 255
    # log(sigmoid(center + half) - sigmoid(center - half)), with no difference of numbers that are nearly equal.
    below = tf.where(images < 0.999, tf.math.log_sigmoid(center + half), 0.0)
    above = tf.where(images > 0.001, tf.math.log_sigmoid(half - center), 0.0)
    within = tf.where((images > 0.001) & (images < 0.999), tf.math.log(-tf.math.expm1(-2 * half)), 0.0)
    return -tf.reduce_sum(below + above + within, axis=[-3, -2, -1])


# %%
# A layer of the ladder
# ---------------------
# The posterior's mean and log-variance are sums: what the image says on the way up, and what the layers above say on
# the way down. So is the context of the flow, a feature map that each of its steps sees. ``IAFSampling`` takes the
# prior at its call, and adds the KL term to the loss, with at least ``free_bits`` nats for each map.


def conv(size: int) -> layers.Layer:
    """Returns a convolution of 3 x 3 with small outputs, so that a residual layer starts near the identity."""
    start = keras.initializers.VarianceScaling(0.1, 'fan_in')
    return layers.Conv2D(size, 3, padding='same', kernel_initializer=start)


class LadderLayer:
    """The layers of Keras that a layer of the ladder consists of, on the way up and on the way down."""

    def __init__(self, name: str) -> None:
        z, h = args.latent_maps, args.filters
        context = [h] if args.num_flows else []
        # What the first convolution gives: mean, log-variance and context for the posterior (on the way down those of
        # the prior before), and what the last one takes.
        self.parts = {'up': [z, z, *context, h], 'down': [z, z, z, z, *context, h]}
        self.first = {way: conv(sum(sizes)) for way, sizes in self.parts.items()}
        self.last = {way: conv(h) for way in self.parts}
        self.sampling = tfp_iaf.keras.IAFSampling(
            args.num_flows,
            filters=(h, h),
            transform='affine',
            free_bits=args.free_bits,
            free_bits_axis=-1,
            name=name,  # and no seed: layers with the same one would draw the same noise
        )

    def _split(self, way: str, h: keras.KerasTensor) -> list[keras.KerasTensor]:
        return ops.split(self.first[way](ops.elu(h)), np.cumsum(self.parts[way])[:-1].tolist(), axis=-1)

    def up(self, h: keras.KerasTensor, is_top: bool) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
        """Returns h for the next layer, if there is one, and what the image says of mean, log-variance and context."""
        *features, inner = self._split('up', h)
        return h if is_top else h + 0.1 * self.last['up'](ops.elu(inner)), features

    def infer(
        self, h: keras.KerasTensor, features: list[keras.KerasTensor]
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns h for the next layer below, and log q(z|x) - log p(z), with a sample z of the posterior."""
        prior_mean, prior_log_var, *own, inner = self._split('down', h)
        parameters = [a + b for a, b in zip(own, features, strict=True)]
        z, log_q = self.sampling(parameters, prior=[prior_mean, prior_log_var])
        squares = prior_log_var + ops.square(z - prior_mean) * ops.exp(-prior_log_var)
        return self._below(h, z, inner), log_q + 0.5 * ops.sum(squares + math.log(2 * math.pi), axis=[1, 2, 3])

    def generate(self, h: keras.KerasTensor, noise: keras.KerasTensor) -> keras.KerasTensor:
        """Returns h for the next layer below, with a sample of the prior."""
        prior_mean, prior_log_var, *_, inner = self._split('down', h)
        return self._below(h, prior_mean + ops.exp(0.5 * prior_log_var) * noise, inner)

    def _below(self, h: keras.KerasTensor, z: keras.KerasTensor, inner: keras.KerasTensor) -> keras.KerasTensor:
        return h + 0.1 * self.last['down'](ops.elu(ops.concatenate([z, inner], axis=-1)))


# %%
# The model
# ---------
# Three models share their layers: ``vae`` is what ``fit`` trains, ``inference`` also gives log q(z|x) - log p(z), and
# ``generator`` makes images of noise. With several GPUs, each takes its share of every batch.
strategy = tf.distribute.get_strategy()
if len(tf.config.list_physical_devices('GPU')) > 1:
    strategy = tf.distribute.MirroredStrategy()
with strategy.scope():
    scales = [[LadderLayer(f'layer_{i}_{j}') for j in range(int(n))] for i, n in enumerate(args.layers.split(','))]
    h_up = images = keras.Input([height, width, channels])
    h_up, features = 2 * h_up - 1, {}
    for i, scale in enumerate(scales):
        h_up = layers.Conv2D(args.filters, 3 if i else 5, strides=2, padding='same')(ops.elu(h_up) if i else h_up)
        for layer in scale:
            h_up, features[layer] = layer.up(h_up, layer is scales[-1][-1])
    top = layers.Dense(args.filters, use_bias=False)  # of ones: a vector that is learnt, at every pixel
    ups = [layers.Conv2DTranspose(args.filters, 3, strides=2, padding='same') for _ in scales[1:]]
    pixels = layers.Conv2DTranspose(channels, 5, strides=2, padding='same', dtype='float32')
    log_scale = layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(-2.0), dtype='float32')

    def down(maps: keras.KerasTensor, through: Callable[..., keras.KerasTensor]) -> keras.KerasTensor:
        """Returns what the likelihood takes, from a function that leads through a layer, and maps of the top's size."""
        h = top(ops.ones_like(maps[..., :1]))
        for i, scale in reversed(list(enumerate(scales))):
            for layer in reversed(scale):
                h = through(layer, h)
            if i:  # where a size was odd, there is a row and a column too many
                _, rows, columns, _ = features[scales[i - 1][0]][0].shape
                h = ups[i - 1](ops.elu(h))[:, :rows, :columns]
        outputs = pixels(ops.elu(h))[:, :height, :width]
        return outputs if is_binary else ops.concatenate([outputs, log_scale(ops.ones_like(outputs[..., :1]))], axis=-1)

    log_ratios: list[keras.KerasTensor] = []

    def inferred(layer: LadderLayer, h: keras.KerasTensor) -> keras.KerasTensor:
        """Leads through a layer of the posterior, and keeps its log q(z|x) - log p(z)."""
        h, log_ratio = layer.infer(h, features[layer])
        log_ratios.append(log_ratio)
        return h

    outputs = down(h_up, inferred)
    vae, inference = keras.Model(images, outputs), keras.Model(images, [outputs, sum(log_ratios)])
    noises = {layer: keras.Input(features[layer][0].shape[1:]) for scale in scales for layer in scale}
    outputs_of_noise = down(noises[scales[-1][-1]], lambda layer, h: layer.generate(h, noises[layer]))
    generator = keras.Model(list(noises.values()), outputs_of_noise)
    # The weights that are evaluated are averages of the last thousand steps or so.
    steps = args.epochs * (len(x_train) // args.batch_size)
    optimizer = keras.optimizers.Adamax(2e-3, use_ema=True, ema_momentum=1 - max(0.001, 10 / steps))
    vae.compile(optimizer, loss=reconstruction, jit_compile=False)

# %%
# Training
# --------
# The loss is -ELBO in nats, with the free bits; that of validation is taken with the averaged weights.
name = f'{args.layers}x{args.filters}-{args.latent_maps}_maps-{args.num_flows}_flows-seed{args.seed}'
run = args.output_dir / f'{height}x{width}x{channels}-{len(x_train)}-{args.epochs}_epochs-{name}'
run.mkdir(parents=True, exist_ok=True)
print(f'{vae.count_params():,} parameters, {len(log_ratios)} layers; results go to {run}')
callbacks = [TerminateOnNaN(), CSVLogger(run / 'log.csv', append=True), BackupAndRestore(run / 'backup')]
callbacks.append(SwapEMAWeights())
validation, test = batches(drawn(x_validation)), drawn(x_test)
vae.fit(batches(x_train, True), epochs=args.epochs, validation_data=validation, callbacks=callbacks, verbose=2)
vae.save_weights(run / 'vae.weights.h5')

# %%
# Evaluation
# ----------
# -ELBO, with one sample for each image, is an upper bound on the negative log-likelihood (NLL). Importance weighting of
# several samples is a tighter one.


@tf.function
def log_weights(x: tf.Tensor) -> tf.Tensor:
    """Returns log p(x, z) - log q(z|x) for one sample z of each image: its mean is the ELBO."""
    outputs, log_ratio = inference(x)
    return -reconstruction(x, outputs) - log_ratio


elbo = np.concatenate([log_weights(x) for x, _ in batches(test)])
some = batches(test[: args.nll_images])
weights = np.concatenate([[log_weights(x) for _ in range(args.num_samples)] for x, _ in some], axis=1)
np.savez(run / 'log_weights.npz', one_sample=elbo, several_samples=weights)
unit, size = ('nats per image', 1) if is_binary else ('bits per dimension', math.log(2) * test[0].size)
print(f'\nOf test images, in {unit}, means ± standard errors')
for label, values in {
    f'-ELBO, {elbo.size} images': -elbo,
    f'-ELBO, {weights.shape[1]} images': -weights.mean(axis=0),
    f'NLL, {args.num_samples} samples, the same images': -tfp.math.reduce_logmeanexp(weights, axis=0).numpy(),
}.items():
    print(f'{label:40}{values.mean() / size:10.4f} ± {values.std() / len(values) ** 0.5 / size:.4f}')

# %%
# Reconstructions and samples
# ---------------------------
shown = test[:12]
samples = generator([rng.normal(size=[12, *noise.shape[1:]]).astype('float32') for noise in noises.values()])
means = [tf.sigmoid(o) if is_binary else tf.clip_by_value((1 + o[..., :-1]) / 2, 0, 1) for o in (vae(shown), samples)]
figure, axes = plt.subplots(3, figsize=(8, 2.4), layout='constrained')
for axis, label, row in zip(axes, ['test images', 'reconstructed', 'sampled'], [shown, *means], strict=True):
    axis.imshow(np.hstack(row), cmap='gray_r', vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(label, rotation=0, ha='right', va='center')
figure.savefig(run / 'reconstructions_and_samples.png', dpi=130)
