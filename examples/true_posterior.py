"""What a flow is for: q(z|x) beside the true posterior
====================================================

A variational autoencoder with two latent dimensions has a true posterior p(z|x) that can be computed on a grid, and
drawn. A Gaussian q(z|x) cannot follow its bends and corners; one with an inverse autoregressive flow comes closer.

.. code-block:: bash

    python true_posterior.py  # two minutes on two CPU cores; --quick takes half a minute
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

parser = argparse.ArgumentParser(description='Draws the true posterior of VAEs beside their approximations.')
parser.add_argument('--epochs', type=int, default=15)
parser.add_argument('--seed', type=int, default=0, help='of weights, batches and samples')
parser.add_argument('--quick', action='store_true', help='two short epochs, to see what it does')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/true_posterior', help='for the picture')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
args.output_dir.mkdir(parents=True, exist_ok=True)
draws, epochs = (2000, 2) if args.quick else (28000, args.epochs)

# %%
# Data
# ----
# The 8x8 digits of scikit-learn, each drawn about twenty times for training: pixels are Bernoulli variables whose
# probabilities are the intensities.
rng = np.random.default_rng(0)
digits = rng.permutation(sklearn.datasets.load_digits().data) / 16
x_train, x_test = (rng.binomial(1, x).astype('float32') for x in (rng.choice(digits[400:], draws), digits[:400]))

# %%
# Two VAEs
# --------
# They differ in the number of flow steps and in the context, which tells the flow about the image.


def reconstruction(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p(x|z) of each image, in nats."""
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, logits), axis=-1)


def make_vae(num_flows: int) -> keras.Model:
    """Returns a model from pixels to logits; with `num_flows=0`, q(z|x) is the diagonal Gaussian."""
    pixels = keras.Input([64])
    h = layers.Dense(200, activation='elu')(layers.Dense(200, activation='elu')(pixels))
    posterior = [layers.Dense(2)(h), layers.Dense(2)(h)]  # mean and log-variance
    if num_flows:
        posterior.append(layers.Dense(64, activation='elu')(h))  # context
    z, _ = tfp_iaf.keras.IAFSampling(num_flows, hidden_units=(64, 64), name='sampling')(posterior)
    decoder = [keras.Input([2]), *(layers.Dense(200, activation='elu') for _ in range(2)), layers.Dense(64)]
    return keras.Model(pixels, keras.Sequential(decoder, name='decoder')(z))


vaes, steps = {}, epochs * len(x_train) // 100
for name, num_flows in {'Gaussian': 0, 'IAF, 4 steps': 4}.items():
    keras.utils.set_random_seed(args.seed)
    vae = vaes[name] = make_vae(num_flows)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    vae.compile(keras.optimizers.Adam(rate), loss=reconstruction)
    print(f'Training: {name}')
    warm_up = tfp_iaf.keras.KLWarmup(steps // 6)
    vae.fit(x_train, x_train, batch_size=100, epochs=epochs, callbacks=[warm_up], verbose=2)

# %%
# Exact by quadrature
# -------------------
# On a grid of points z, p(x, z) = p(z) p(x|z) needs one pass of the decoder. Its integral over z is p(x), which gives
# the exact negative log-likelihood (NLL); divided by it, p(x, z) is the true posterior. What -ELBO has above the NLL is
# KL(q(z|x) || p(z|x)).


def make_grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the points of a grid on a rectangle, `[points, 2]`, and the logarithm of a cell's area."""
    axes = np.linspace(low, high, 200, dtype=np.float32).T
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2), float(np.sum(np.log((high - low) / 199)))


def log_joint(vae: keras.Model, x: np.ndarray, z: tf.Tensor) -> tf.Tensor:
    """Returns log p(x, z) of each image, `[images, 64]`, at points, `[points, 2]` or `[images, points, 2]`."""
    logits = tf.reshape(vae.get_layer('decoder')(tf.reshape(z, [-1, 2])), [*z.shape[:-1], 64])
    log_prior = -0.5 * tf.reduce_sum(z**2, axis=-1) - np.log(2 * np.pi)
    return tf.linalg.matvec(logits, x) - tf.reduce_sum(tf.math.softplus(logits), axis=-1) + log_prior


def approximation(vae: keras.Model, x: np.ndarray) -> tfp.distributions.Distribution:
    """Returns q(z|x) of all images."""
    sampling = vae.get_layer('sampling')
    return sampling.posterior(*keras.Model(vae.input, sampling.input)(x))


grid, log_cell = make_grid(np.array([-6, -6]), np.array([6, 6]))
log_p_x, non_gaussianity = {}, np.zeros(len(x_test))
print(f'\nNats per image, means over {len(x_test)} test images')
print(f'{"":20}{"-ELBO":>10}{"exact NLL":>12}{"KL(q || p(z|x))":>18}')
for name, vae in vaes.items():
    log_p = log_joint(vae, x_test, grid).numpy()
    log_p_x[name] = tf.reduce_logsumexp(log_p, axis=-1).numpy() + log_cell
    z, log_q = approximation(vae, x_test).experimental_sample_and_log_prob(200)
    log_weights = log_joint(vae, x_test, tf.transpose(z, [1, 0, 2])) - tf.transpose(log_q)
    neg_elbo, nll = -tf.reduce_mean(log_weights), -log_p_x[name].mean()
    print(f'{name:20}{neg_elbo:10.3f}{nll:12.3f}{neg_elbo - nll:18.3f}')
    # By how much the entropy of p(z|x) is below that of a Gaussian of the same covariance.
    log_p -= log_p_x[name][:, np.newaxis]
    mass = np.exp(log_p + log_cell)
    mean = mass @ grid
    covariance = np.einsum('np,pi,pj->nij', mass, grid, grid) - np.einsum('ni,nj->nij', mean, mean)
    non_gaussianity += 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] + np.sum(mass * log_p, axis=-1)

# %%
# The picture
# -----------
# Images are ranked by how far from Gaussian their true posteriors are; these are nos. 10, 20, 40 and 80. Left in each
# pair is p(z|x), right q(z|x); the lines hold 50 % and 90 % of the mass of p(z|x). Each VAE has its own latent space.
chosen = np.argsort(-non_gaussianity)[[9, 19, 39, 79]]
figure, axes = plt.subplots(len(chosen), 5, figsize=(10, 8.4), layout='constrained')
for row, i in zip(axes, chosen, strict=True):
    x = x_test[i : i + 1]
    row[0].imshow(x.reshape(8, 8), cmap='gray_r')
    for pair, (name, vae) in zip((row[1:3], row[3:5]), vaes.items(), strict=True):
        q, log_p = approximation(vae, x), log_joint(vae, x, grid)[0].numpy()
        points = np.concatenate([grid[log_p > log_p.max() - 5], q.sample(200)[:, 0]])
        center, half_width = (points.max(axis=0) + points.min(axis=0)) / 2, np.max(np.ptp(points, axis=0)) / 2
        window, log_area = make_grid(center - half_width, center + half_width)
        log_p = log_joint(vae, x, window)[0].numpy() - log_p_x[name][i]
        log_q = q.log_prob(window[:, np.newaxis])[:, 0].numpy()
        kl = np.sum(np.exp(log_q + log_area) * (log_q - log_p))
        heights = np.sort(np.exp(log_p))[::-1]
        levels = heights[np.searchsorted(np.cumsum(heights) / heights.sum(), [0.9, 0.5])]
        for axis, log_density in zip(pair, (log_p, log_q), strict=True):
            axis.imshow(np.exp(log_density).reshape(200, 200), cmap='Oranges', origin='lower', vmin=0)
            axis.contour(np.exp(log_p).reshape(200, 200), levels, colors='black', linewidths=0.8)
        pair[0].set_title('p(z|x)')
        pair[1].set_title(f'{name}, KL {kl:.2f}')
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
figure.savefig(args.output_dir / 'true_posterior.png', dpi=130)
