"""The same flow in other libraries, for the benchmark; each in a process of its own, where TensorFlow need not be.

Steps are gated where a library has that (Pyro), and affine elsewhere, which is no more work. All have a context, ELU
units and two hidden layers; the base distribution's mean and scale belong to the row, as a VAE's do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _benchmark_timing import Prepared, Size, make_inputs

# Package, what is imported, and how it runs: PyTorch without a compiler, as its users do; JAX with XLA.
PEERS = {
    'Pyro': ('pyro-ppl', 'pyro', 'eager'),
    'zuko': ('zuko', 'zuko', 'eager'),
    'flowjax': ('flowjax', 'flowjax', 'xla'),
}


def missing(name: str) -> str | None:
    """Returns what is not installed, if so."""
    package, module, _ = PEERS[name]
    return None if importlib.util.find_spec(module) else f'{package} is not installed'


def version(name: str) -> str:
    """Returns the version."""
    return importlib.metadata.version(PEERS[name][0])


def device(name: str) -> str:
    """Returns `gpu` or `cpu`: where the library computes."""
    if name == 'flowjax':
        import jax

        return str(jax.default_backend())
    import torch

    return 'gpu' if torch.cuda.is_available() else 'cpu'


def prepare(name: str, size: Size, work: str, mode: str) -> Prepared:
    """Returns the step, compiled where it is, with the seconds that this took."""
    if mode != PEERS[name][2]:
        raise ValueError(f'mode: got {mode!r}, expected {PEERS[name][2]!r} for {name}.')
    return (_prepare_jax if name == 'flowjax' else _prepare_torch)(name, size, work)


# PyTorch -------------------------------------------------------------------------------------------------------------


def _make_pyro(size: Size) -> tuple[Any, Callable[..., Any]]:
    import pyro.distributions as dist
    import torch
    from pyro.distributions.transforms import ConditionalAffineAutoregressive
    from pyro.nn import ConditionalAutoRegressiveNN

    left_to_right = torch.arange(size.event)
    networks = torch.nn.ModuleList(
        ConditionalAutoRegressiveNN(
            size.event,
            size.context,
            [size.hidden, size.hidden],
            permutation=left_to_right.flip(0) if t % 2 else left_to_right,
            nonlinearity=torch.nn.ELU(),
        )
        for t in range(size.flows)
    )

    def distribution(loc: Any, scale: Any, context: Any) -> Any:
        base = dist.Normal(loc, scale).to_event(1)
        steps = [ConditionalAffineAutoregressive(network, stable=True) for network in networks]
        return dist.ConditionalTransformedDistribution(base, steps).condition(context)

    return networks, distribution


def _make_zuko(size: Size) -> tuple[Any, Callable[..., Any]]:
    import torch
    import zuko

    left_to_right = torch.arange(size.event)
    layers = torch.nn.ModuleList(
        zuko.flows.MaskedAutoregressiveTransform(
            size.event,
            size.context,
            order=left_to_right.flip(0) if t % 2 else left_to_right,
            hidden_features=[size.hidden, size.hidden],
            activation=torch.nn.ELU,
        )
        for t in range(size.flows)
    )

    def distribution(loc: Any, scale: Any, context: Any) -> Any:
        # Inverted: its flows take a point to the base distribution in one pass, and a sample back in D.
        steps = zuko.transforms.ComposedTransform(*(layer(context) for layer in layers))
        return zuko.distributions.NormalizingFlow(steps.inv, zuko.distributions.DiagNormal(loc, scale))

    return layers, distribution


def _prepare_torch(name: str, size: Size, work: str) -> Prepared:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))
    place = 'cuda' if device(name) == 'gpu' else 'cpu'
    networks, distribution = {'Pyro': _make_pyro, 'zuko': _make_zuko}[name](size)
    networks.to(place)
    arrays, array, sample_shape = make_inputs(size)
    gradient = work.endswith('gradient')
    inputs = [torch.tensor(array, device=place, requires_grad=gradient) for array in arrays]
    point = torch.tensor(array, device=place)

    def forward() -> tuple[Any, Any]:
        q = distribution(*inputs)
        if work.startswith('log_prob'):
            return q.log_prob(point), point
        if hasattr(q, 'rsample_and_log_prob'):
            z, log_q = q.rsample_and_log_prob(torch.Size(sample_shape))
            return log_q, z
        z = q.rsample(torch.Size(sample_shape))
        return q.log_prob(z), z  # one pass in all: the transforms remember

    def step() -> np.ndarray:
        if gradient:
            log_q, z = forward()
            loss = torch.mean(log_q + 0.5 * torch.sum(torch.square(z), dim=-1))
            torch.autograd.grad(loss, [*networks.parameters(), *inputs], allow_unused=True)
            result = loss
        else:
            with torch.no_grad():
                result, _ = forward()
        if place == 'cuda':
            torch.cuda.synchronize()
        return np.asarray(result.detach().cpu())

    start = time.perf_counter()
    step()
    return step, {'first_call_s': time.perf_counter() - start, 'device': device(name)}


# JAX -----------------------------------------------------------------------------------------------------------------


def _prepare_jax(name: str, size: Size, work: str) -> Prepared:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from flowjax.distributions import StandardNormal
    from flowjax.flows import masked_autoregressive_flow
    from paramax import unwrap

    jax.config.update('jax_default_matmul_precision', 'float32')  # on a GPU, as PyTorch
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=StandardNormal((size.event,)),
        cond_dim=size.context,
        flow_layers=size.flows,
        nn_width=size.hidden,
        nn_depth=2,
        nn_activation=jax.nn.elu,
        invert=False,
    )
    weights, rest = eqx.partition(flow.bijection, eqx.is_inexact_array)
    arrays, point, sample_shape = make_inputs(size)

    def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = jax.vmap(function)
        return jax.vmap(rows, in_axes=(0, None)) if sample_shape else rows

    def forward(trained: Any, key: Any, y: Any) -> tuple[Any, Any]:
        weights, (loc, scale, context) = trained
        bijection = unwrap(eqx.combine(weights, rest))
        if work.startswith('log_prob'):
            noise, log_det = over_rows(bijection.inverse_and_log_det)(y, context)
            noise, z = (noise - loc) / scale, y
        else:
            noise = jax.random.normal(key, (*sample_shape, *loc.shape))
            z, log_det = over_rows(bijection.transform_and_log_det)(loc + scale * noise, context)
            log_det = -log_det
        log_base = jnp.sum(jax.scipy.stats.norm.logpdf(noise) - jnp.log(scale), axis=-1)
        return log_base + log_det, z

    def loss(trained: Any, key: Any, y: Any) -> Any:
        log_q, z = forward(trained, key, y)
        return jnp.mean(log_q + 0.5 * jnp.sum(jnp.square(z), axis=-1))

    def function(trained: Any, key: Any, y: Any) -> Any:
        # A new key each time, as a training loop needs.
        key, next_key = jax.random.split(key)
        if work.endswith('gradient'):
            return jax.value_and_grad(loss)(trained, key, y), next_key
        return forward(trained, key, y), next_key

    trained = weights, [jnp.asarray(array) for array in arrays]
    key, y = jax.random.key(1), jnp.asarray(point)
    start = time.perf_counter()
    lowered = jax.jit(function).lower(trained, key, y)
    tracing = time.perf_counter() - start
    start = time.perf_counter()
    compiled = lowered.compile()

    def step() -> np.ndarray:
        nonlocal key
        result, key = jax.block_until_ready(compiled(trained, key, y))
        return np.asarray(result[0])

    step()
    figures = {'tracing_s': tracing, 'first_call_s': time.perf_counter() - start, 'device': device(name)}
    return step, figures


def gpu_memory(name: str, step: Callable[[], Any]) -> float:
    """Returns how many MB of a GPU's memory a step needs at its peak, above what was held before it."""
    step()
    if name == 'flowjax':
        import jax

        # JAX cannot set its peak back: what compiling took counts too.
        before = jax.devices()[0].memory_stats()['bytes_in_use']
        step()
        return (jax.devices()[0].memory_stats()['peak_bytes_in_use'] - before) / 1e6
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
