"""Hamiltonian Monte Carlo through a flow (NeuTra)
===============================================

No step size of Hamiltonian Monte Carlo (HMC) suits both the neck of Neal's funnel and its mouth. A flow that was fitted
to the posterior turns it into noise that is nearly standard normal: let HMC move there (NeuTra, `Hoffman et al. 2019
<https://arxiv.org/abs/1903.03704>`_). The chains converge to the exact posterior, however good the flow is; a good one
makes them quick. The model has several parts, for which ``tfp.mcmc.TransformedTransitionKernel`` would want a bijector
each: here is the recipe for one bijector of them all.

To run it::

    python neutra_hmc.py           # half a minute on two cores
    python neutra_hmc.py --quick   # a few steps, to see that it runs
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

parser = argparse.ArgumentParser(description='Hamiltonian Monte Carlo through a flow.')
parser.add_argument('--quick', action='store_true', help='a few steps, to see that it runs')
parser.add_argument('--output_dir', type=pathlib.Path, default='results/neutra_hmc', help='where figures go')
parser.add_argument('--gradients', type=int, default=320000, help='gradients for each sampler')
args = parser.parse_args([] if 'ipykernel' in sys.modules else None)
num_fit_steps, num_gradients = (50, 48000) if args.quick else (2000, args.gradients)
num_chains = 16
tf.config.experimental.enable_tensor_float_32_execution(False)  # on a GPU too coarse for MCMC, as TFP warns

# %%
# The model
# ---------
# Neal's funnel: v sets the scale of nine others. It has no data, so that the exact answer is known: v has mean 0 and
# standard deviation 3.


@tfd.JointDistributionCoroutineAutoBatched
def model() -> Generator[Any, Any, None]:
    """Yields v, then x given v."""
    v = yield tfd.Normal(0.0, 3.0, name='v')
    yield tfd.Sample(tfd.Normal(0.0, tf.exp(v / 2)), 9, name='x')


# %%
# The flow
# --------
# Fitted by variational inference. The parts stand in the model's order, causes before effects, and so every step takes
# them from left to right.

q = tfp_iaf.build_iaf_surrogate_posterior(
    model.event_shape_tensor(), model.experimental_default_event_space_bijector(), alternate_order=False, seed=0
)
optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-2, num_fit_steps), global_clipnorm=10.0)
optimizer.build(q.trainable_variables)
losses = tfp.vi.fit_surrogate_posterior(
    model.log_prob, q, optimizer, num_fit_steps, sample_size=64, jit_compile=True, seed=[0, 0]
)
print(f'The fit: {64 * num_fit_steps} gradients, KL(q ‖ p) about {np.mean(losses[-100:]):.3f} nats.')

# %%
# The density in the noise's coordinates
# --------------------------------------
# That of the point to which the flow takes the noise, and the log-determinant; both from one pass. (If the event were
# one tensor, ``tfp.mcmc.TransformedTransitionKernel(kernel, q.bijector)`` would do the same.)


def noise_log_prob(noise: tf.Tensor) -> tf.Tensor:
    """Returns the log-density of noise, ``[..., 10]``, that the flow turns into samples of the posterior."""
    log_det = q.bijector.forward_log_det_jacobian(noise, event_ndims=1)
    return model.log_prob(q.bijector.forward(noise)) + log_det


# %%
# Chains
# ------
# Plain HMC and NeuTra differ in the density and in the number of leapfrog steps, 30 and 4, which is what each does well
# with. Both start from samples of q, and both get as many gradients.


def sample_chains(log_prob: Callable[..., tf.Tensor], start: Any, num_leapfrog_steps: int) -> tuple[Any, tf.Tensor]:
    """Returns the states, with leading axes for transitions and chains, and the share of accepted proposals."""
    num_transitions = num_gradients // (num_chains * num_leapfrog_steps)
    kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size=0.1, num_leapfrog_steps=num_leapfrog_steps)
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, num_adaptation_steps=num_transitions // 5)

    @tf.function(jit_compile=True, autograph=False)
    def run() -> tuple[Any, tf.Tensor]:
        states, accepted = tfp.mcmc.sample_chain(
            num_transitions - num_transitions // 4,
            start,
            kernel=kernel,
            num_burnin_steps=num_transitions // 4,
            trace_fn=lambda _, results: results.inner_results.is_accepted,
            seed=[0, 1],
        )
        return states, tf.reduce_mean(tf.cast(accepted, tf.float32))

    return run()


noise = q.distribution.sample(num_chains, seed=[0, 2])
(v_plain, x_plain), accepted_plain = sample_chains(model.log_prob, list(q.bijector.forward(noise)), 30)
noises, accepted_neutra = sample_chains(noise_log_prob, noise, 4)
v_neutra, x_neutra = q.bijector.forward(noises)

# %%
# Check the chains
# ----------------
# R-hat compares the chains: above 1.01 they have not converged. The effective sample size (ESS) is the number of
# independent samples that would give as precise a mean. Both are for the worst of the ten entries. A chain that never
# reached the neck can have a good ESS, so v stands beside them.

chains = {'HMC': (v_plain, x_plain, accepted_plain), 'NeuTra': (v_neutra, x_neutra, accepted_neutra)}
print(f'{"sampler":10}{"accepted":>10}{"R-hat":>8}{"ESS":>9}{"mean of v":>12}{"sd of v":>10}')
for name, (v, x, accepted) in chains.items():
    states = tf.concat([v[..., tf.newaxis], x], axis=-1)
    r_hat = np.max(tfp.mcmc.potential_scale_reduction(states, independent_chain_ndims=1, split_chains=True))
    ess = np.min(tfp.mcmc.effective_sample_size(states, filter_beyond_positive_pairs=True, cross_chain_dims=1))
    print(f'{name:10}{accepted:10.2f}{r_hat:8.2f}{ess:9.0f}{np.mean(v):+12.2f}{np.std(v):10.2f}')
print(f'{"exact":10}{"":27}{0:+12.2f}{3:10.2f}')

# %%
# The pictures
# ------------
# The funnel as either sampler sees it, and v along one chain.

figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout='constrained', width_ratios=[1, 1, 1.5])
for (name, (v, x, _)), row in zip(chains.items(), axes, strict=True):
    across, up, reach = (x[..., 0], v, (12, 9)) if name == 'HMC' else (noises[..., 1], noises[..., 0], (4, 4))
    thin = slice(None, None, -(-v.shape[0] // 500))
    row[0].plot(np.ravel(across[thin]), np.ravel(up[thin]), '.', markersize=1, alpha=0.4)
    row[0].set(title=f'{name}: where it moves', xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    row[1].plot(np.ravel(x[thin, :, 0]), np.ravel(v[thin]), '.', markersize=1, alpha=0.4)
    row[1].set(title=f'{name}: samples', xlabel='x₁', ylabel='v', xlim=(-12, 12), ylim=(-9, 9))
    row[2].plot(v[:500, 0], linewidth=0.8)
    row[2].set(title=f'{name}: v along one chain', xlabel='transition', ylim=(-9, 9))
args.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(args.output_dir / 'neutra_hmc.png', dpi=120)
print(f'The picture is in {args.output_dir}.')
