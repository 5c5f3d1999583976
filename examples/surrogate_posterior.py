r"""Variational inference in one call
=================================

``tfp_iaf.build_iaf_surrogate_posterior`` turns a TFP joint distribution into a trainable posterior: a flow over all of
its parts, on their supports. Here are two models that a mean field fits badly, the eight schools and Neal's funnel,
with a posterior whose evidence :math:`\log Z` is known.

To run it::

    python surrogate_posterior.py           # about a minute on two cores
    python surrogate_posterior.py --quick   # a few steps, to see that it runs
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Generator
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf

tfd = tfp.distributions

parser = argparse.ArgumentParser(description='Variational inference in one call.')
parser.add_argument('--quick', action='store_true', help='a few steps, to see that it runs')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/surrogate_posterior', help='where figures go')
parser.add_argument('--steps', type=int, default=2000, help='training steps of each posterior')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
num_steps = 50 if args.quick else args.steps
keras.utils.set_random_seed(0)

# %%
# Two models
# ----------
# How much does coaching help at eight schools? Each has an observed effect with a known error. The scale of the
# schools' effects, ``exp(log_spread)``, is unknown, and multiplies them: no Gaussian has that shape.

observed = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


@tfd.JointDistributionCoroutineAutoBatched
def eight_schools() -> Generator[Any, Any, None]:
    """Effects around a mean effect, in the parametrisation of TFP's tutorial."""
    mean = yield tfd.Normal(0.0, 10.0, name='mean')
    log_spread = yield tfd.Normal(5.0, 1.0, name='log_spread')
    schools = yield tfd.Sample(tfd.Normal(0.0, 1.0), 8, name='schools')
    yield tfd.Normal(mean + tf.exp(log_spread) * schools, errors, name='observed')


@tfd.JointDistributionCoroutineAutoBatched
def funnel() -> Generator[Any, Any, None]:
    """Neal's funnel: one entry sets the scale of nine others."""
    v = yield tfd.Normal(0.0, 3.0, name='v')
    yield tfd.Sample(tfd.Normal(0.0, tf.exp(v / 2)), 9, name='x')


# What is pinned is observed; the funnel has no data, and Z = 1.
# Add a model of your own here.
models = {'eight schools': eight_schools.experimental_pin(observed=observed), 'funnel': funnel}

# %%
# For the pictures, the exact density of two coordinates: the others are Gaussian given these, or independent of them,
# and integrate out. The integral over both is the evidence.


def log_normal(x: np.ndarray, variance: np.ndarray | float) -> np.ndarray:
    """Returns the log-density of a normal distribution with mean 0."""
    return -0.5 * (x**2 / variance + np.log(2 * np.pi * variance))


mean, log_spread = np.meshgrid(np.linspace(-30, 40, 500), np.linspace(-1, 6, 500))
log_marginal = log_normal(mean, 100.0) + log_normal(log_spread - 5, 1.0)
for value, error in zip(observed, errors, strict=True):
    log_marginal += log_normal(mean - value, error**2 + np.exp(2 * log_spread))
cell = (mean[0, 1] - mean[0, 0]) * (log_spread[1, 0] - log_spread[0, 0])
x1, v = np.meshgrid(np.linspace(-12, 12, 400), np.linspace(-9, 9, 400))
exact = {
    'eight schools': (mean, log_spread, log_marginal, np.log(cell * np.exp(log_marginal).sum())),
    'funnel': (x1, v, log_normal(v, 9.0) + log_normal(x1, np.exp(v)), 0.0),
}

# %%
# Two posteriors of each
# ----------------------
# Either builder takes the shapes and supports of the model's parts, and TFP's own loop fits either posterior. New
# samples of q judge it: the mean of log p - log q is the ELBO, the mean of the importance weights p/q is the evidence,
# and the shape of the tail of the weights, k-hat, says whether to trust that.

samples = {}
for name, model in models.items():
    builders: dict[str, Callable[..., Any]] = {
        'mean field': lambda *model: tfp.experimental.vi.build_affine_surrogate_posterior(model[0], 'diag', model[1]),
        'IAF': tfp_iaf.build_iaf_surrogate_posterior,
    }
    for posterior, build in builders.items():
        q = build(model.event_shape_tensor(), model.experimental_default_event_space_bijector())
        # In the neck of a funnel a gradient is thousands of times larger than elsewhere: hence the clipping.
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-2, num_steps), global_clipnorm=10.0)
        optimizer.build(q.trainable_variables)
        tfp.vi.fit_surrogate_posterior(
            model.unnormalized_log_prob,
            q,
            optimizer,
            num_steps,
            sample_size=64,
            jit_compile=not args.quick,  # to compile takes longer than a quick fit
            seed=[0, 0],
        )

        diagnosis = tfp_iaf.diagnostics.diagnose(model.unnormalized_log_prob, q, 20000, seed=[0, 1])
        samples[name, posterior] = diagnosis.samples
        truth = f'; true log evidence {exact[name][3]:.3f}' if name in exact else ''
        print(f'\n{name}, {posterior}{truth}\n{diagnosis}', flush=True)
        for part, value in diagnosis.samples._asdict().items():
            center, spread = (np.round(f(value, axis=0, dtype=float), 2) for f in (np.mean, np.std))
            print(f'{part}: mean {center}, deviation {spread}')

# %%
# The pictures
# ------------
# Dots are samples of q, lines the exact density. The mean field leaves out the neck of the funnel and most of the
# mouth; the flow has both.

figure, axes = plt.subplots(2, 2, figsize=(9, 8), layout='constrained')
for row, name in zip(axes, exact, strict=True):
    across, up, log_density, _ = exact[name]
    levels = log_density.max() - np.array([6.0, 4.0, 2.0, 1.0, 0.25])
    for axis, posterior in zip(row, builders, strict=True):
        z = samples[name, posterior]
        points = (z.x[:, 0], z.v) if name == 'funnel' else (z.mean, z.log_spread)
        axis.plot(*points, '.', color='C0', markersize=1, alpha=0.3)
        axis.contour(across, up, log_density, levels, colors='black', linewidths=0.8, linestyles='solid')
        axis.set(title=f'{name}, {posterior}', xlim=(across.min(), across.max()), ylim=(up.min(), up.max()))
    row[0].set(xlabel='x₁' if name == 'funnel' else 'mean', ylabel='v' if name == 'funnel' else 'log_spread')
args.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(args.output_dir / 'samples.png', dpi=120)
print(f'The picture is in {args.output_dir}.')
