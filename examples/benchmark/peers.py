"""The same flow in PyTorch (Pyro, zuko) and in JAX (flowjax, NumPyro). Each is optional.

Steps are gated where a library has that (Pyro), and affine elsewhere, which is no more work. All have ELU units and two
hidden layers; the base distribution's mean and scale belong to the row, as a VAE's do. NumPyro has the flow as a
surrogate posterior, and its own loop.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmark.cases import LEARNING_RATE, Size
from benchmark.timing import Step

# What is imported, and the package on PyPI.
PEERS = {
    'Pyro': ('pyro', 'pyro-ppl'),
    'zuko': ('zuko', 'zuko'),
    'flowjax': ('flowjax', 'flowjax'),
    'NumPyro': ('numpyro', 'numpyro'),
}


def prepare(name: str, size: Size, work: str, mode: str, fit_steps: int) -> Step:
    """Returns the step of a peer."""
    if name == 'NumPyro':
        return _numpyro_step(size, work, mode, fit_steps)
    return _flowjax_step(size, work, mode) if name == 'flowjax' else _torch_step(name, size, work)


def _pyro_flow(size: Size, orders: Any) -> tuple[Any, Callable[..., Any]]:
    import pyro.distributions as dist
    import torch
    from pyro.distributions.transforms import ConditionalAffineAutoregressive
    from pyro.nn import ConditionalAutoRegressiveNN

    widths, activation = [size.hidden, size.hidden], torch.nn.ELU()
    networks = [
        ConditionalAutoRegressiveNN(size.event, size.context, widths, permutation=order, nonlinearity=activation)
        for order in orders
    ]

    def distribution(loc: Any, scale: Any, context: Any) -> Any:
        steps = [ConditionalAffineAutoregressive(network, stable=True) for network in networks]
        base = dist.Normal(loc, scale).to_event(1)
        return dist.ConditionalTransformedDistribution(base, steps).condition(context)

    return torch.nn.ModuleList(networks), distribution


def _zuko_flow(size: Size, orders: Any) -> tuple[Any, Callable[..., Any]]:
    import torch
    import zuko

    settings = {'hidden_features': [size.hidden, size.hidden], 'activation': torch.nn.ELU}
    layers = [
        zuko.flows.MaskedAutoregressiveTransform(size.event, size.context, order=order, **settings) for order in orders
    ]

    def distribution(loc: Any, scale: Any, context: Any) -> Any:
        # Inverted: its flows take a point to the base distribution in one pass, and a sample back in D.
        steps = zuko.transforms.ComposedTransform(*(layer(context) for layer in layers))
        return zuko.distributions.NormalizingFlow(steps.inv, zuko.distributions.DiagNormal(loc, scale))

    return torch.nn.ModuleList(layers), distribution


def _torch_step(name: str, size: Size, work: str) -> Step:
    import torch

    torch.manual_seed(0)
    torch.set_default_device('cuda' if torch.cuda.is_available() else 'cpu')
    left_to_right = torch.arange(size.event)
    orders = [left_to_right.flip(0) if t % 2 else left_to_right for t in range(size.flows)]
    networks, distribution = (_pyro_flow if name == 'Pyro' else _zuko_flow)(size, orders)
    optimizer = torch.optim.Adam(networks.parameters(), LEARNING_RATE)
    arrays, array, _ = size.inputs()
    with_gradient = work not in ('sample', 'log_prob')
    inputs, point = [torch.tensor(array, requires_grad=with_gradient) for array in arrays], torch.tensor(array)

    def forward() -> tuple[Any, Any]:
        q = distribution(*inputs)
        if work.startswith('log_prob'):
            return point, q.log_prob(point)
        if hasattr(q, 'rsample_and_log_prob'):
            return q.rsample_and_log_prob()
        z = q.rsample()
        return z, q.log_prob(z)  # one pass in all: the transforms remember

    def step() -> np.ndarray:
        with torch.set_grad_enabled(with_gradient):
            z, result = forward()
        if with_gradient:
            result = torch.mean(result + 0.5 * torch.sum(torch.square(z), dim=-1))
            for tensor in (*networks.parameters(), *inputs):
                tensor.grad = None
            result.backward()
        if work == 'sample_adam':
            optimizer.step()
        return np.asarray(result.detach().cpu())

    return step


def _jitted(function: Callable[..., Any], state: Any, mode: str) -> Step:
    """Returns a step from a function that takes a state and returns the next one and results, a small one first."""
    import jax

    jitted = jax.jit(function)

    def step() -> np.ndarray:
        nonlocal state
        # A new function is one that JAX has not compiled.
        call = jax.jit(lambda state: function(state)) if mode == 'compile' else jitted
        state, results = jax.block_until_ready(call(state))
        return np.asarray(results[0])

    return step


def _flowjax_step(size: Size, work: str, mode: str) -> Step:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.distributions import StandardNormal
    from flowjax.flows import masked_autoregressive_flow
    from paramax import unwrap

    networks = {'nn_width': size.hidden, 'nn_depth': 2, 'nn_activation': jax.nn.elu, 'cond_dim': size.context}
    settings = {'base_dist': StandardNormal((size.event,)), 'flow_layers': size.flows, 'invert': False, **networks}
    flow = masked_autoregressive_flow(jax.random.key(0), **settings)
    weights, rest = eqx.partition(flow.bijection, eqx.is_inexact_array)
    arrays, array, _ = size.inputs()
    optimizer = optax.adam(LEARNING_RATE)

    def forward(trained: Any, key: Any, y: Any) -> tuple[Any, Any]:
        weights, (loc, scale, context) = trained
        bijection = unwrap(eqx.combine(weights, rest))
        if work.startswith('log_prob'):
            x, log_det = jax.vmap(bijection.inverse_and_log_det)(y, context)
        else:
            x = loc + scale * jax.random.normal(key, loc.shape)
            y, log_det = jax.vmap(bijection.transform_and_log_det)(x, context)
            log_det = -log_det
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, loc, scale), axis=-1) + log_det, y

    def loss(trained: Any, key: Any, y: Any) -> Any:
        log_q, z = forward(trained, key, y)
        return jnp.mean(log_q + 0.5 * jnp.sum(jnp.square(z), axis=-1))

    def step(state: Any) -> tuple[Any, Any]:
        key, (weights, inputs), moments, y = state
        key, next_key = jax.random.split(key)  # a new key each time, as a training loop needs
        if work in ('sample', 'log_prob'):
            return (next_key, *state[1:]), forward((weights, inputs), key, y)
        results = jax.value_and_grad(loss)((weights, inputs), key, y)
        if work == 'sample_adam':
            updates, moments = optimizer.update(results[1][0], moments)
            weights = optax.apply_updates(weights, updates)
        return (next_key, (weights, inputs), moments, y), results

    inputs = [jnp.asarray(array) for array in arrays]
    return _jitted(step, (jax.random.key(1), (weights, inputs), optimizer.init(weights), jnp.asarray(array)), mode)


def _numpyro_step(size: Size, work: str, mode: str, fit_steps: int) -> Step:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoIAFNormal

    def model() -> None:
        numpyro.sample('z', numpyro.distributions.Normal().expand([size.event]).to_event(1))

    guide = AutoIAFNormal(model, num_flows=size.flows, hidden_dims=[size.hidden, size.hidden])
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO(num_particles=size.batch))
    key = jax.random.key(0)
    if work == 'fit':
        num_steps = 1 if mode == 'compile' else fit_steps
        return lambda: np.asarray(svi.run(key, num_steps, progress_bar=False).losses)

    def step(state: Any) -> tuple[Any, Any]:
        state, loss = svi.update(state)
        return state, (loss,)

    return _jitted(step, svi.init(key), mode)
