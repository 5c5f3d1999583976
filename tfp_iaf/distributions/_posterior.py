"""The posterior: a diagonal Gaussian sent through steps of the flow, with the networks of all steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat, transforms
from tfp_iaf._checks import (
    Activation,
    check_batches,
    checked_activation,
    checked_context,
    checked_dtype,
    checked_hidden_units,
    checked_shape,
    checked_size,
    checked_tensor,
)
from tfp_iaf._random import random_generator
from tfp_iaf._shapes import lead_of
from tfp_iaf.bijectors import InverseAutoregressiveFlow
from tfp_iaf.bijectors._chain import FlowChain
from tfp_iaf.bijectors._inverse_autoregressive_flow import check_inverse
from tfp_iaf.distributions._gaussian import gaussian
from tfp_iaf.networks import MaskedAutoregressiveNetwork, MaskedConvolutionalNetwork, Network
from tfp_iaf.networks._base import signature_of
from tfp_iaf.networks._common import VariableFactory
from tfp_iaf.transforms import Gated, Transform

__all__ = ['HIDDEN_UNITS', 'IAFPosterior', 'check_defaults', 'network_and_units']

# Of a dense network, unless told otherwise.
HIDDEN_UNITS = (320, 320)
_DEFAULT_NAME = 'iaf_posterior'

# Arguments that do not make networks.
_BESIDE_NETWORKS = ('networks', 'transform', 'inverse', 'validate_args', 'name')


class IAFPosterior(tf.Module):
    r"""A diagonal Gaussian sent through steps of an Inverse Autoregressive Flow, with the networks of all steps.

    $$z_0 \sim \mathcal{N}(\mu, \mathrm{diag}(\sigma^2)), \quad z_t = f_t(z_{t-1}, h), \quad
      \log q(z_T) = \log q(z_0) - \sum_t \log\left|\det \frac{\partial z_t}{\partial z_{t-1}}\right|$$

    Not a distribution: call it to get one, `posterior(loc, scale_diag)`. `posterior.bijector()` gives the steps alone.

    Args:
        event_shape: Shape of z, an int or a sequence of ints. `[8, 8, 3]` is one event of 192 entries.
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        hidden_units: Units of the hidden layers of each step's network.
        context_shape: Shape of the context h, an int or a sequence of ints, or `None`.
        filters: For z of shape `[H, W, C]`, in the place of `hidden_units`: channels of the hidden layers of a
            `MaskedConvolutionalNetwork`. The context is then a feature map, `[H, W, K]`.
        network: Makes the network of a step. It is called with the arguments of a `MaskedAutoregressiveNetwork`, which
            is the default: `event_shape` and `hidden_units`, and `context_shape`, `params`, `activation`, `order`,
            `seed`, `dtype`, `variable_factory` and `name` as keywords.
        networks: One `tfp_iaf.networks.Network` per step, in sampling order. They replace the arguments that build
            networks.
        transform: `'gated'` (only contracts), `'affine'` (also expands), `'spline'` (bends within an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars. `'gated'`
            means `Gated.near_identity(T)`: T steps together start near the identity.
        alternate_order: Whether every second step takes the entries from right to left.
        inverse: How to invert a step at points it did not produce; see `InverseAutoregressiveFlow`.
        validate_args: Whether a scale that is not positive, or an inverse that is not finite, is an error.
        activation: Activation of the networks: a name of `tf.nn`, or a callable.
        seed: Seed of the initial weights. `None` follows TensorFlow's global seed.
        dtype: Dtype of the variables and of the distribution.
        variable_factory: See `MaskedAutoregressiveNetwork`.
        name: Name of the module, and, if given, of its distributions.

    Call arguments:
        loc, scale_diag: Mean and standard deviation of the base distribution, `[..., *event_shape]`; for a log-variance
            take `tf.exp(0.5 * z_log_var)`. To train them with the flow, pass a `tf.Variable` and a
            `tfp.util.TransformedVariable`.
        context: `[..., *context_shape]`.

    Call returns:
        A `tfd.TransformedDistribution` with the event shape, and the batch shape of `loc`, `scale_diag` and `context`.

    Cost: `sample` with `log_prob` of the sample, or `experimental_sample_and_log_prob`: one pass of each network.
    `log_prob` of another point inverts every step; see `InverseAutoregressiveFlow`. To TFP's cache, another point is
    also what `tf.identity`, NumPy or another `tf.function` made of a sample, a sample under a context that is another
    tensor, and a sample that came through `tfd.Independent`, `tfd.Sample`, a mixture or a joint distribution. With
    `tfd.Independent`, `tfd.Sample` and joint distributions, `experimental_sample_and_log_prob` takes one pass of each
    network too.

    Raises:
        ValueError: If a shape, the transform or the context does not fit; see `MaskedAutoregressiveNetwork`.
        TypeError: If a tensor has another dtype.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Algorithm 1, Eq. 11.
        Eq. `chain`, `base` and `posterior-density` of the mathematics page.

    >>> posterior = IAFPosterior(2, num_flows=2, hidden_units=(16,), context_shape=3, seed=0)
    >>> q = posterior(loc=tf.zeros([5, 2]), scale_diag=tf.ones([5, 2]), context=tf.ones([5, 3]))
    >>> z, log_q = q.experimental_sample_and_log_prob(7)
    >>> z.shape, log_q.shape
    (TensorShape([7, 5, 2]), TensorShape([7, 5]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int] | None = None,
        num_flows: int = 4,
        hidden_units: Sequence[int] = HIDDEN_UNITS,
        *,
        context_shape: int | Sequence[int] | None = None,
        filters: Sequence[int] | None = None,
        network: Callable[..., Network] | None = None,
        networks: Sequence[Network] | None = None,
        transform: str | Transform = 'gated',
        alternate_order: bool = True,
        inverse: str = 'auto',
        validate_args: bool = False,
        activation: str | Activation = 'elu',
        seed: int | None = None,
        dtype: tf.DType = tf.float32,
        variable_factory: VariableFactory | None = None,
        name: str = _DEFAULT_NAME,
    ) -> None:
        arguments = dict(locals())
        super().__init__(name=name)
        check_inverse(inverse)
        self._inverse, self._validate_args = inverse, validate_args
        self._context_shape: Any = None
        if networks is not None:
            check_defaults(arguments, IAFPosterior, _BESIDE_NETWORKS)
            if not isinstance(networks, (list, tuple)) or not networks:
                raise ValueError(f'networks: got {networks!r}, expected a list of networks, one per step.')
            self._transform = _transform_of(transform, len(networks))
            self._networks = tuple(networks)
            self._event_shape, self._context_shape, self._dtype = _checked_signature(networks, self._transform)
            return
        if event_shape is None:
            raise ValueError('event_shape: got None without networks, expected an int or a sequence of ints.')
        self._event_shape = checked_shape('event_shape', event_shape)
        if context_shape is not None:
            self._context_shape = checked_shape('context_shape', context_shape)
        self._dtype = checked_dtype(dtype)
        num_flows = checked_size('num_flows', num_flows, minimum=0)
        self._transform = _transform_of(transform, num_flows)
        # Checked here for a posterior without steps, in which nothing else would.
        make, units = network_and_units(network, hidden_units, filters)
        activation, rng = checked_activation(activation, self._dtype), random_generator(seed)
        self._networks = tuple(
            make(
                self._event_shape,
                units,
                context_shape=self._context_shape,
                params=self._transform.params,
                activation=activation,
                order='right-to-left' if alternate_order and t % 2 else 'left-to-right',
                seed=int(rng.integers(2**31)),
                dtype=self._dtype,
                variable_factory=_prefixed(variable_factory, f'flow_{t}'),
                name=f'flow_{t}',
            )
            for t in range(num_flows)
        )
        if network is not None and num_flows:
            made, _, made_dtype = _checked_signature(self._networks, self._transform)
            if (made, made_dtype) != (self._event_shape, self._dtype):
                raise ValueError(
                    f'network: made networks of event_shape {made} in {made_dtype.name}, expected '
                    f'{self._event_shape} in {self._dtype.name}. Pass on all arguments that it is called with.'
                )

    @property
    def event_shape(self) -> tf.TensorShape:
        """Shape of z."""
        return self._event_shape

    @property
    def num_flows(self) -> int:
        """Number of steps."""
        return len(self._networks)

    @property
    def transform(self) -> Transform:
        """The elementwise transform of a step."""
        return self._transform

    @property
    def context_shape(self) -> tf.TensorShape | None:
        """Shape of the context, or `None`."""
        return self._context_shape

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks, in the order in which a sample passes them."""
        return tuple(self._networks)

    @property
    def dtype(self) -> tf.DType:
        """Dtype of the variables and of the distribution."""
        return self._dtype

    def __repr__(self) -> str:
        context = None if self._context_shape is None else self._context_shape.as_list()
        return (
            f'<{type(self).__name__} {self.name!r}: event_shape={self._event_shape.as_list()}, '
            f'num_flows={self.num_flows}, context_shape={context}, transform={self._transform!r}, '
            f'dtype={self._dtype.name}>'
        )

    def __call__(self, loc: Any, scale_diag: Any, context: Any = None) -> tfp.distributions.TransformedDistribution:
        """Returns the distribution; see the class."""
        loc = checked_tensor('loc', loc, self._event_shape, self._dtype, self)
        scale_diag = checked_tensor('scale_diag', scale_diag, self._event_shape, self._dtype, self)
        context = checked_context(context, self._context_shape, self._dtype, self)
        if context is not None:
            of_context = lead_of(context, self._context_shape.rank).static
            check_batches(of_context, 'loc', lead_of(loc, self._event_shape.rank).static)
        base = gaussian(loc, scale_diag, self._event_shape.rank, self._validate_args)
        # A joint distribution insists on a name that was given, but finds its own if none was.
        name = None if self.name == _DEFAULT_NAME else self.name
        return _compat.FlowDistribution(base, self._chain(context), name=name)

    def bijector(self, context: Any = None) -> tfp.bijectors.Bijector:
        """Returns the steps alone as one bijector, a `tfb.Chain`, each with `context` as its own.

        Without a context, a call takes it by keyword, nested by the names of the steps:
        `flow_0={'context': context}, ...`; within a `tfb.Chain` of your own, nested once more, by the name of the
        posterior. `forward_log_derivatives(x)` gives the log-derivatives by entry, from the same evaluation as
        `forward(x)`.
        """
        if context is not None:
            context = checked_context(context, self._context_shape, self._dtype, self)
        return self._chain(context)

    def _chain(self, context: Any) -> FlowChain:
        steps = [
            InverseAutoregressiveFlow(
                network,
                context=None if getattr(network, 'context_shape', None) is None else context,
                transform=self._transform,
                inverse=self._inverse,
                validate_args=self._validate_args,
                name=f'flow_{t}',
            )
            for t, network in enumerate(self._networks)
        ]
        # A Chain applies its last bijector first.
        return FlowChain(steps[::-1], name=f'{self.name}/')


def network_and_units(
    network: Callable[..., Network] | None, hidden_units: Sequence[int], filters: Sequence[int] | None
) -> tuple[Callable[..., Network], tuple[int, ...]]:
    """Returns what makes the network of a step, and the sizes of its hidden layers."""
    units = checked_hidden_units(hidden_units)
    if filters is None:
        return network or MaskedAutoregressiveNetwork, units
    for argument, given in (('hidden_units', units != HIDDEN_UNITS), ('network', network is not None)):
        if given:
            raise ValueError(
                f'filters: got {filters!r} beside {argument}, expected one of the two. Leave out {argument} for '
                f'convolutional networks, and filters for all others.'
            )
    return MaskedConvolutionalNetwork, checked_hidden_units(filters, 'filters')


def _transform_of(transform: str | Transform, num_flows: int) -> Transform:
    return Gated.near_identity(num_flows) if transform == 'gated' else transforms.get(transform)


def check_defaults(arguments: Mapping[str, Any], function: Callable[..., Any], others: Sequence[str]) -> None:
    """Raises an error for an argument, but for some others, that networks which are there already would ignore."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in others and arguments[name] is not parameter.default and arguments[name] != parameter.default:
            raise ValueError(
                f'{name}: got {arguments[name]!r} beside networks, which are made already. Leave it out, or leave out '
                f'networks.'
            )


def _checked_signature(networks: Any, transform: Transform) -> tuple[tf.TensorShape, tf.TensorShape | None, tf.DType]:
    """Returns the event shape, the context shape and the dtype that all networks have in common."""
    signatures = []
    for network in networks:
        signature = signature_of(network)
        known = (signature.event_shape, signature.params, signature.dtype)
        if None in known or not callable(network) or not hasattr(network, 'variables'):
            raise TypeError(
                f'networks: got {network!r}, expected a tfp_iaf.networks.Network, such as a '
                f'MaskedAutoregressiveNetwork: a callable with event_shape, context_shape, params, dtype and variables.'
            )
        if signature.params != transform.params:
            raise ValueError(
                f'networks: got one with {signature.params} parameters per entry, expected {transform.params} for '
                f'transform={transform!r}.'
            )
        signatures.append(signature)
    contexts = [
        signature.context_shape for signature in signatures if isinstance(signature.context_shape, tf.TensorShape)
    ]
    for name, values in (
        ('event_shape', [signature.event_shape for signature in signatures]),
        ('dtype', [signature.dtype for signature in signatures]),
        ('context_shape', contexts),
    ):
        if any(value != values[0] for value in values):
            raise ValueError(f'networks: got the values {values} of {name}, expected the same for all.')
    return signatures[0].event_shape, contexts[0] if contexts else None, signatures[0].dtype


def _prefixed(factory: VariableFactory | None, prefix: str) -> VariableFactory | None:
    if factory is None:
        return None

    def make_variable(name: str, value: np.ndarray) -> tf.Variable:
        return factory(f'{prefix}/{name}', value)

    return make_variable
