"""A density from points, by maximum likelihood
============================================

The likelihood of a given point takes the inverse of the flow, which is exact here and costs about two passes of each
network. So the flow that gives samples in one pass can be fitted to data as well: here, to two moons in the plane.

To run it::

    python density.py           # about a minute on two cores
    python density.py --quick   # a few steps, to see that it runs
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

import tfp_iaf

tfb, tfd = tfp.bijectors, tfp.distributions

parser = argparse.ArgumentParser(description='A density from points, by maximum likelihood.')
parser.add_argument('--quick', action='store_true', help='a few steps, to see that it runs')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/density', help='where figures go')
parser.add_argument('--steps', type=int, default=4000, help='training steps')
parser.add_argument('--num_flows', type=int, default=8, help='steps of the flow')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
num_flows, num_steps, batch_size = (2, 100, 256) if args.quick else (args.num_flows, args.steps, 256)

# %%
# The data
# --------
# Half circles with noise. The test points are others.


def two_moons(count: int, seed: int) -> np.ndarray:
    """Returns points, ``[count, 2]``, in a random order."""
    return sklearn.datasets.make_moons(count, noise=0.1, random_state=seed)[0].astype(np.float32)


data, test = two_moons(50000, seed=0), two_moons(10000, seed=1)

# %%
# The flow
# --------
# Affine steps, since gated ones only narrow, and a bounded activation: points come from outside, and with an unbounded
# one a point far out gets an exponential scale. The data's mean and scale are not for the networks to learn. A Chain
# applies its last bijector first.

flow = tfp_iaf.IAFPosterior(2, num_flows, hidden_units=(32, 32), transform='affine', activation='tanh', seed=0)
chain = tfb.Chain([tfb.Shift(data.mean(axis=0)), tfb.Scale(data.std(axis=0)), flow.bijector()])
q = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), chain)

# %%
# The fit
# -------
# The loss is the negative log-likelihood (NLL) of a batch. It contains an inverse: always compile it.

variables = q.trainable_variables
optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, num_steps), global_clipnorm=10.0)
optimizer.build(variables)


@tf.function(jit_compile=True)
def train_step(points: tf.Tensor) -> tf.Tensor:
    """Takes one step, and returns the NLL."""
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(q.log_prob(points))
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss


batches = tf.data.Dataset.from_tensor_slices(data).shuffle(len(data), seed=0).repeat().batch(batch_size)
losses = []
for step, points in enumerate(batches.take(num_steps), start=1):
    losses.append(float(train_step(points)))
    if step % (num_steps // 5) == 0:
        print(f'step {step:5}: NLL {np.mean(losses[-num_steps // 5 :]):.3f}', flush=True)

# %%
# How good is it?
# ---------------
# The NLL of the test points, in nats. No density can have less than the entropy of the two moons, 1.008. The other
# direction says how exact the inverse is: a sample has its density from the forward pass, too.

log_prob = tf.function(q.log_prob)
gaussian = tfd.MultivariateNormalTriL(data.mean(axis=0), np.linalg.cholesky(np.cov(data.T)).astype(np.float32))
for name, log_q in {'Gaussian': gaussian.log_prob(test), 'IAF': log_prob(test)}.items():
    print(f'NLL of test points, {name:9}{-np.mean(log_q):.3f} ± {np.std(log_q) / np.sqrt(len(test)):.3f}')

samples, log_q = q.experimental_sample_and_log_prob(10000, seed=[0, 1])
difference = np.max(np.abs(log_prob(tf.identity(samples)) - log_q))
print(f'Largest difference between the densities of 10000 samples, by the inverse and as sampled: {difference:.0e}')

# %%
# The pictures
# ------------
# The density on a grid, by the inverse, has nothing where there are no points, and its integral is 1. A flow bends the
# plane but cannot tear it: what is left between the moons is a thin bridge.

x, y = np.meshgrid(np.linspace(-2, 3, 400, dtype=np.float32), np.linspace(-1.6, 2.1, 300, dtype=np.float32))
density = np.exp(log_prob(np.stack([x, y], axis=-1).reshape(-1, 2))).reshape(x.shape)
print(f'Integral of the density: {density.sum() * (x[0, 1] - x[0, 0]) * (y[1, 0] - y[0, 0]):.3f}')

figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), layout='constrained')
axes = axes.ravel()
axes[0].plot(*test.T, '.', markersize=1, alpha=0.5)
axes[0].set_title('data')
axes[1].pcolormesh(x, y, density, cmap='magma', rasterized=True)
axes[1].set_title('density, by the inverse')
axes[2].plot(*np.transpose(samples), '.', markersize=1, alpha=0.5)
axes[2].set_title('samples, by the forward pass')
for axis in axes[:3]:
    axis.set(xlim=(-2, 3), ylim=(-1.6, 2.1), aspect='equal')
axes[3].plot(np.convolve(losses, np.ones(50) / 50, 'valid'))
axes[3].axhline(1.008, color='black', linestyle='--', label='entropy')
axes[3].set(title='NLL', xlabel='step', ylim=(0.9, 2.0))
axes[3].legend()
args.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(args.output_dir / 'density.png', dpi=120)
print(f'The picture is in {args.output_dir}.')
