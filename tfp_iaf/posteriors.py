"""Flow posteriors: distributions made of steps and the networks that they own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import transforms
from tfp_iaf.bijectors import InverseAutoregressiveFlow, checked_inverse
from tfp_iaf.caching import UncachedChain
from tfp_iaf.checks import (
    Activation,
    check_batches,
    checked_activation,
    checked_context,
    checked_dtype,
    checked_hidden_units,
    checked_size,
    checked_tensor,
)
from tfp_iaf.networks import MaskedAutoregressiveNetwork, VariableFactory, random_generator
from tfp_iaf.transforms import Transform

__all__ = ['IAFPosterior']

_DEFAULT_NAME = 'iaf_posterior'


class IAFPosterior(tf.Module):
    r"""A diagonal Gaussian sent through steps of an Inverse Autoregressive Flow, with the networks of all steps.

    $$z_0 \sim \mathcal{N}(\mu, \mathrm{diag}(\sigma^2)), \quad z_t = f_t(z_{t-1}, h), \quad
      \log q(z_T) = \log q(z_0) - \sum_t \log\left|\det \frac{\partial z_t}{\partial z_{t-1}}\right|$$

    It makes distributions, and is none itself: `posterior(loc, scale_diag)` is one, and `posterior.bijector()`, with
    its brackets, the steps alone.

    Args:
        event_size: Number of latent dimensions D.
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        hidden_units: Units of the hidden layers of each step's network.
        context_size: Size C of the context h, or `None`.
        transform: `'gated'` (only contracts), `'affine'` (expands too), `'spline'` (bends, in an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars.
        alternate_order: Whether every second step takes the entries from right to left.
        inverse: How the steps invert what they did not make; see `InverseAutoregressiveFlow`.
        validate_args: Whether a scale that is not positive, or an inverse that is not finite, is an error.
        activation: Activation of the networks: a name of `tf.nn`, or a callable.
        seed: Seed of the initial weights. `None` follows TensorFlow's global seed.
        dtype: Dtype of the variables and of the distribution.
        num_blocks: In how many blocks the networks are cut; see `MaskedAutoregressiveNetwork`.
        variable_factory: See `MaskedAutoregressiveNetwork`.
        name: Name of the module, and, if given, of its distributions.

    Call arguments:
        loc, scale_diag: Mean and standard deviation of the base distribution, `[..., D]`; of a log-variance take
            `tf.exp(0.5 * z_log_var)`. To be trained with the flow, pass a `tf.Variable` and a
            `tfp.util.TransformedVariable`.
        context: `[..., C]`.

    Call returns:
        A `tfd.TransformedDistribution` with event shape `[D]` and the batch shape of `loc`, `scale_diag` and `context`.

    Cost: `sample` with `log_prob` of the sample, or `experimental_sample_and_log_prob`: one pass of each network.
    `log_prob` of another point inverts every step; see `InverseAutoregressiveFlow`. Another point is, to TFP's cache,
    what `tf.identity`, NumPy or another `tf.function` made of a sample, a sample under a context that is another
    tensor, and one that came through `tfd.Independent`, `tfd.Sample`, a mixture or a joint distribution: of the first
    two and the last take `experimental_sample_and_log_prob`, for one pass of each network there too.

    Raises:
        ValueError: If a size, the transform or the context does not fit; see `MaskedAutoregressiveNetwork`.
        TypeError: If a tensor has another dtype.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Algorithm 1, Eq. 11.
        Eq. (2), (20), (21) of the mathematics page.

    >>> posterior = IAFPosterior(2, num_flows=2, hidden_units=(16,), context_size=3, seed=0)
    >>> q = posterior(loc=tf.zeros([5, 2]), scale_diag=tf.ones([5, 2]), context=tf.ones([5, 3]))
    >>> z, log_q = q.experimental_sample_and_log_prob(7)
    >>> z.shape, log_q.shape
    (TensorShape([7, 5, 2]), TensorShape([7, 5]))
    """

    def __init__(
        self,
        event_size: int,
        num_flows: int = 4,
        hidden_units: Sequence[int] = (320, 320),
        *,
        context_size: int | None = None,
        transform: str | Transform = 'gated',
        alternate_order: bool = True,
        inverse: str = 'auto',
        validate_args: bool = False,
        activation: str | Activation = 'elu',
        seed: int | None = None,
        dtype: tf.DType = tf.float32,
        num_blocks: int | None = None,
        variable_factory: VariableFactory | None = None,
        name: str = _DEFAULT_NAME,
    ) -> None:
        super().__init__(name=name)
        self._event_size = checked_size('event_size', event_size)
        self._num_flows = checked_size('num_flows', num_flows, minimum=0)
        self._transform = transforms.get(transform)
        self._context_size = None if context_size is None else checked_size('context_size', context_size)
        self._dtype = checked_dtype(dtype)
        self._inverse = inverse
        self._validate_args = validate_args
        hidden_units = checked_hidden_units(hidden_units)
        rng = random_generator(seed)
        self._networks = tuple(
            MaskedAutoregressiveNetwork(
                event_size,
                hidden_units,
                context_size=context_size,
                params=self._transform.params,
                activation=activation,
                order='right-to-left' if alternate_order and t % 2 else 'left-to-right',
                seed=int(rng.integers(2**31)),
                dtype=dtype,
                num_blocks=num_blocks,
                variable_factory=_prefixed(variable_factory, f'flow_{t}'),
                name=f'flow_{t}',
            )
            for t in range(self._num_flows)
        )
        # With no step there is nothing that would check these.
        checked_activation(activation, self._dtype)
        checked_inverse(inverse, self._networks[0] if self._networks else None)

    @property
    def event_size(self) -> int:
        """Number of latent dimensions."""
        return self._event_size

    @property
    def num_flows(self) -> int:
        """Number of steps."""
        return self._num_flows

    @property
    def transform(self) -> Transform:
        """What each entry goes through in a step."""
        return self._transform

    @property
    def context_size(self) -> int | None:
        """Size of the context, or `None`."""
        return self._context_size

    @property
    def networks(self) -> tuple[MaskedAutoregressiveNetwork, ...]:
        """The networks, in the order in which a sample passes them."""
        return tuple(self._networks)

    @property
    def dtype(self) -> tf.DType:
        """Dtype of the variables and of the distribution."""
        return self._dtype

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} {self.name!r}: event_size={self._event_size}, num_flows={self._num_flows}, '
            f'context_size={self._context_size}, transform={self._transform!r}, dtype={self._dtype.name}>'
        )

    def __call__(self, loc: Any, scale_diag: Any, context: Any = None) -> tfp.distributions.TransformedDistribution:
        """Returns the distribution; see the class."""
        loc = checked_tensor('loc', loc, self._event_size, self._dtype, self)
        scale_diag = checked_tensor('scale_diag', scale_diag, self._event_size, self._dtype, self)
        context = checked_context(context, self._context_size, self._dtype, self)
        if context is not None:
            check_batches(context.shape, 'loc', loc.shape)
        # Not MultivariateNormalDiag, which is the same but takes four times as long eagerly.
        base = tfp.distributions.Independent(
            tfp.distributions.Normal(loc, scale_diag, validate_args=self._validate_args), reinterpreted_batch_ndims=1
        )
        # A joint distribution insists on a name that was given, but finds its own where none was.
        name = None if self.name == _DEFAULT_NAME else self.name
        return tfp.distributions.TransformedDistribution(base, self.bijector(context), name=name)

    def bijector(self, context: Any = None) -> tfp.bijectors.Bijector:
        """Returns the steps alone, one bijector as `tfb.Chain` makes it, each with `context` as its own.

        Without one, a call takes `context` by keyword, nested by the steps' names: `flow_0={'context': context}, ...`;
        within a `tfb.Chain` of a user's own, nested once more, by the name of the posterior.
        """
        if context is not None:
            context = checked_context(context, self._context_size, self._dtype, self)
        steps = [
            InverseAutoregressiveFlow(
                network,
                context=context,
                transform=self._transform,
                inverse=self._inverse,
                validate_args=self._validate_args,
                name=network.name,
            )
            for network in self._networks
        ]
        # A Chain applies its last bijector first.
        return UncachedChain(steps[::-1], name=f'{self.name}/')


def _prefixed(factory: VariableFactory | None, prefix: str) -> VariableFactory | None:
    if factory is None:
        return None

    def make_variable(name: str, value: np.ndarray) -> tf.Variable:
        return factory(f'{prefix}/{name}', value)

    return make_variable
