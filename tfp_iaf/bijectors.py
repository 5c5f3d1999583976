"""The Inverse Autoregressive Flow as a TFP bijector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf
from tensorflow_probability.python.internal import parameter_properties

from tfp_iaf import blocks, inversion, transforms
from tfp_iaf.caching import CachedBijector, Dependencies
from tfp_iaf.checks import checked_context
from tfp_iaf.networks import MaskedAutoregressiveNetwork
from tfp_iaf.transforms import Transform

__all__ = ['InverseAutoregressiveFlow']

Network = Callable[..., tf.Tensor]

_DEFAULT_NAME = 'inverse_autoregressive_flow'


class InverseAutoregressiveFlow(CachedBijector):
    r"""One step of an Inverse Autoregressive Flow: fast forward, with the log-det from the same network pass.

    $$y_i = t(x_i;\ \mathrm{params}_i(x_{<i}, h)), \qquad \log\left|\det \frac{\partial y}{\partial x}\right| =
      \sum_i \log t'(x_i;\ \mathrm{params}_i)$$

    With `transform='gated'`, $t(x) = g x + (1 - g) m$ with $g = \sigma(s)$, and the log-det is
    $\sum_i \log \sigma(s_i)$; with `'affine'`, $t(x) = e^a x + m$, and the log-det is $\sum_i a_i$. The gate only
    contracts; take `'affine'` where the target has scales that must grow. The autoregressive transform, slow forward
    and fast inverse, is `tfb.Invert` of a step.

    Shapes: event `[D]`; x, y `[..., D]`, context `[..., C]`, leading shapes broadcast; log-det `[...]`. Dtype: the
    network's.

    Cost: `forward` and its log-det together take one network pass, and `inverse` of a result of `forward`, for as long
    as that lives, none (TFP's cache). `inverse` of any other point and its log-det together take two to three times as
    long as `forward` with `inverse='blockwise'`, and at most D + 1 passes with `'fixed_point'`. That holds in a
    `tf.function`; eagerly, its many small operations take longer than they compute. Each step adds seconds to the time
    that XLA takes to compile.

    The cache: eagerly, a result is computed anew once the variables of the network were assigned to, and always for a
    tape that did not see how it was made. A `tfb.Chain` of your own notices neither: there take
    `q.log_prob(tf.identity(z))` of a sample z that is older than an assignment, or than the tape. For the gradient of
    log q(z) with respect to a sample z take `z = tf.identity(z)` first: the density of a sample that is in the cache is
    a function of what made it, and not of z. The questions page says what else the cache does not see.

    Args:
        network: `network(x)` or `network(x, context)` gives the parameters, `[..., D, P]`, autoregressive in `x`: a
            `MaskedAutoregressiveNetwork`, a `tfb.AutoregressiveNetwork`, or a function.
        context: Used whenever a call passes none. A call takes `context=`, or `conditional_input=` as TFP's own
            autoregressive flow does; a `tfb.Chain` takes it nested by the name of the step, as in
            `chain.forward(x, flow_0={'context': h})`, and a distribution as `q.sample(bijector_kwargs={'context': h})`.
        transform: `'gated'` (only contracts), `'affine'` (expands too), `'spline'` (bends, in an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars.
        inverse: `'blockwise'` solves for block after block of entries, and needs a `MaskedAutoregressiveNetwork`;
            `'fixed_point'` sweeps over all entries at once, with any network. `'auto'` is blockwise where it can be: it
            was the faster one in every size measured.
        validate_args: Whether an inverse that is not finite, or did not converge, is an error; it is NaN otherwise, and
            under XLA, which drops assertions.
        name: Name of the bijector.

    Raises:
        ValueError: If `transform` or `inverse` is unknown or does not fit, the network gives another number of
            parameters than the transform takes, or the context is missing, unexpected, given twice or of the wrong
            size.
        TypeError: If `network` is no callable, or the context has another dtype than the network. (Where x or y has,
            TFP raises a ValueError; arrays and lists are converted.)

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Eq. 10, 13, 14.
        Eq. (1), (3), (4) of the mathematics page.

    >>> import tensorflow_probability as tfp
    >>> import tfp_iaf
    >>> net = tfp_iaf.MaskedAutoregressiveNetwork(2, hidden_units=(8,), seed=0)
    >>> step = tfp_iaf.InverseAutoregressiveFlow(net)
    >>> base = tfp.distributions.MultivariateNormalDiag(tf.zeros([2]))
    >>> q = tfp.distributions.TransformedDistribution(base, step)
    >>> z, log_q = q.experimental_sample_and_log_prob(5)
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

    def __init__(
        self,
        network: Network,
        *,
        context: tf.Tensor | None = None,
        transform: str | Transform = 'gated',
        inverse: str = 'auto',
        validate_args: bool = False,
        name: str | None = _DEFAULT_NAME,
    ) -> None:
        parameters = dict(locals())
        if not callable(network):
            raise TypeError(
                f'network: got {network!r}, expected a callable such as MaskedAutoregressiveNetwork(event_size).'
            )
        self._network = network
        self._transform = transforms.get(transform)
        self._context = parameters['context'] = _checked_context(context, network)
        self._inverse_method = checked_inverse(inverse, network)
        params = getattr(network, 'params', None)
        if isinstance(params, int) and params != self._transform.params:
            raise ValueError(
                f'network: got one with {params} parameters per entry, expected {self._transform.params} for transform='
                f'{self._transform!r}. Make it with params={self._transform.params}.'
            )
        dtype = getattr(network, 'dtype', None)
        super().__init__(
            forward_min_event_ndims=1,
            dtype=dtype if isinstance(dtype, tf.DType) else None,
            validate_args=validate_args,
            parameters=parameters,
            # A name scope, so that the name stays as given when a step is made again in one graph: keyword arguments
            # of a Chain are nested by name.
            name=(name or _DEFAULT_NAME).rstrip('/') + '/',
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType | None) -> dict[str, Any]:
        return {'context': parameter_properties.ParameterProperties(event_ndims=1)}

    @property
    def network(self) -> Network:
        """The autoregressive network."""
        return self._network

    @property
    def transform(self) -> Transform:
        """What each entry goes through."""
        return self._transform

    @property
    def context(self) -> tf.Tensor | None:
        """The context that is used when a call passes none."""
        return self._context

    def _augmented_forward(self, x: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        context = self._context_of(**kwargs)
        y, log_det = self._transform.forward(x, self._parameters_at(x, context))
        return y, self._attributes(log_det, context)

    def _augmented_inverse(self, y: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        context = self._context_of(**kwargs)
        if self._inverse_method == 'blockwise':
            x, log_det = blocks.blockwise(cast(MaskedAutoregressiveNetwork, self._network), self._transform, y, context)
        else:
            x, log_det = inversion.fixed_point(
                lambda x: self._parameters_at(x, context), self._transform, y, max_sweeps=tf.shape(y)[-1]
            )
        if self.validate_args:
            message = f'{self.name}: the inverse did not converge: y is not finite, or the network not autoregressive.'
            with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(tf.math.is_nan(x)), [message])]):
                x = tf.identity(x)
        return x, self._attributes(log_det, context)

    def _attributes(self, log_det: tf.Tensor, context: tf.Tensor | None) -> dict[str, Any]:
        # Asked of the network: the search that tf.Module would make through the bijector, at every call, takes as long
        # as a small network.
        variables = (*_variables_of(self._network), *_variables_of(context))
        tensors = [context] if tf.is_tensor(context) and not isinstance(context, tf.Variable) else []
        return {'ildj': -tf.reduce_sum(log_det, axis=-1), 'dependencies': Dependencies(variables, tensors)}

    def _context_of(
        self, context: tf.Tensor | None = None, conditional_input: tf.Tensor | None = None, **unknown: Any
    ) -> tf.Tensor | None:
        if context is not None and conditional_input is not None:
            raise ValueError('context: given twice, also as conditional_input, its other name. Pass one of them.')
        if unknown:
            raise TypeError(
                f'{self.name}: got the keywords {sorted(unknown)}, expected context, or its other name, '
                f'conditional_input.'
            )
        if context is None:
            context = self._context if conditional_input is None else conditional_input
        size = self._network.context_size if isinstance(self._network, MaskedAutoregressiveNetwork) else None
        if context is None and size is not None:
            raise ValueError(
                f'context: got None, expected a tensor of shape [..., {size}] for the step {self.name!r}. Pass context='
                f' to its constructor or its call, {self.name}={{"context": ...}} to a tfb.Chain around it, and '
                f'bijector_kwargs={{"{self.name}": {{"context": ...}}}} to a distribution of that chain; or make the '
                f'steps with it, as IAFPosterior.bijector(context) does.'
            )
        return context

    def _parameters_at(self, x: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        params = self._network(x) if context is None else self._network(x, context)
        if not tf.is_tensor(params):
            raise TypeError(
                f'network: returned {type(params).__name__}, expected a tensor [..., {x.shape[-1]}, '
                f'{self._transform.params}]. Stack the parameters: tf.stack([m, s], axis=-1).'
            )
        # Of another number of entries, or of one for all, they would broadcast, and the log-det be a wrong sum.
        expected = tf.TensorShape([x.shape[-1] if x.shape.rank else None, self._transform.params])
        shape = params.shape
        if shape.rank is not None and (shape.rank < 2 or not expected.is_compatible_with(shape[-2:])):
            raise ValueError(
                f'network: returned shape {shape}, expected [..., {expected[0]}, {expected[1]}] for '
                f'transform={self._transform!r}.'
            )
        return params


def checked_inverse(inverse: str, network: Network | None) -> str:
    """Returns the method by which the step with this network inverts, or would with some network."""
    ours = isinstance(network, MaskedAutoregressiveNetwork)
    if inverse not in ('auto', 'blockwise', 'fixed_point'):
        raise ValueError(f"inverse: got {inverse!r}, expected 'auto', 'blockwise' or 'fixed_point'.")
    if inverse == 'auto':
        return 'blockwise' if ours else 'fixed_point'
    if inverse == 'blockwise' and network is not None and not ours:
        raise ValueError(
            f"inverse: got 'blockwise', expected 'auto' or 'fixed_point' for {network!r}: solving by blocks needs the "
            f'sorted degrees of a MaskedAutoregressiveNetwork.'
        )
    return inverse


def _checked_context(context: Any, network: Network) -> Any:
    """Returns a context as a tensor, or as the variable that it is; a list or an array might change."""
    if context is None:
        return None
    if isinstance(network, MaskedAutoregressiveNetwork):
        return checked_context(context, network.context_size, network.dtype, network)
    return context if isinstance(context, (tf.Variable, tf.Module)) else tf.convert_to_tensor(context, name='context')


def _variables_of(source: Any) -> tuple[Any, ...]:
    if isinstance(source, tf.Variable):
        return (source,)
    variables = getattr(source, 'variables', ())
    return () if callable(variables) else tuple(variables)
