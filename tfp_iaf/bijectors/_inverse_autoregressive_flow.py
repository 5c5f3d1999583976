"""The Inverse Autoregressive Flow as a TFP bijector."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_iaf import _compat, transforms
from tfp_iaf._caching import Dependencies, ElementwiseBijector
from tfp_iaf._checks import check_batches, checked_context, checked_event, checked_size
from tfp_iaf._numerics import are_in_range, is_in_range, nan_unless
from tfp_iaf._shapes import lead_of, reshaped
from tfp_iaf.inversion import inverted
from tfp_iaf.networks import Network
from tfp_iaf.networks._base import ANY_CONTEXT, signature_of
from tfp_iaf.transforms import Transform

__all__ = ['InverseAutoregressiveFlow', 'check_inverse']

_DEFAULT_NAME = 'inverse_autoregressive_flow'


class InverseAutoregressiveFlow(ElementwiseBijector):
    r"""One step of an Inverse Autoregressive Flow: fast forward, with the log-det from the same network pass.

    $$y_i = t(x_i;\ \mathrm{params}_i(x_{<i}, h)), \qquad \log\left|\det \frac{\partial y}{\partial x}\right| =
      \sum_i \log t'(x_i;\ \mathrm{params}_i)$$

    With `transform='gated'`, $t(x) = g x + (1 - g) m$ with $g = \sigma(s)$, and the log-det is
    $\sum_i \log \sigma(s_i)$. With `'affine'`, $t(x) = e^a x + m$, and the log-det is $\sum_i a_i$. The gate only
    contracts; choose `'affine'` where the target has scales that must grow. The autoregressive transform, with a slow
    forward and a fast inverse direction, is `tfb.Invert` of a step.

    Shapes: x, y `[..., *event_shape]`, context `[..., *context_shape]`, leading shapes broadcast; log-det `[...]`. The
    event rank is that of the network's `event_shape`. Dtype: the network's. Entries that are not finite, or beyond
    2.6e15 in float32, where a network can overflow, come out as NaN, and so does the log-det of their event.

    Cost: `forward` and its log-det together take one network pass. `inverse` of a result of `forward` takes none, for
    as long as that result lives (TFP's cache). `inverse` of any other point and its log-det together take about twice
    as long as `forward` for a `MaskedAutoregressiveNetwork`, and at most D + 1 passes for other networks. These figures
    are for a `tf.function`; eagerly, the many small operations of an inverse take longer than their arithmetic.

    Caching: eagerly, a result is computed again once the variables of the network have been assigned to, and always for
    a tape that did not see how it was made. A `tfb.Chain` of your own notices neither: if a sample z is older than an
    assignment, or than the tape, use `q.log_prob(tf.identity(z))`. For the gradient of log q(z) with respect to a
    sample z, also take `z = tf.identity(z)` first: the density of a cached sample is a function of what made it, and
    not of z. The FAQ says what else the cache does not see.

    Args:
        network: `network(x)` or `network(x, context)` returns the parameters, `[..., *event_shape, P]`, autoregressive
            in `x`: a `MaskedAutoregressiveNetwork`, another `tfp_iaf.networks.Network`, a `tfb.AutoregressiveNetwork`,
            or a function.
        context: Used whenever a call passes none. A call takes `context=`, or `conditional_input=` as TFP's own
            autoregressive flow does; a `tfb.Chain` takes it nested by the name of the step, as in
            `chain.forward(x, flow_0={'context': h})`, and a distribution as `q.sample(bijector_kwargs={'context': h})`.
        transform: `'gated'` (only contracts), `'affine'` (also expands), `'spline'` (bends within an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars.
        inverse: `'auto'` uses the network's own inverse if it has one; for a `MaskedAutoregressiveNetwork` it solves
            one block of entries after the other. `'fixed_point'` iterates over all entries at once, with any network.
        event_ndims: Event rank, for a network that has no `event_shape`; 1 by default.
        validate_args: Whether an inverse that is not finite, or did not converge, is an error. Otherwise it is NaN;
            under XLA, which drops assertions, it always is.
        name: Name of the bijector.

    Raises:
        ValueError: If `transform` or `inverse` is unknown or does not fit, the network gives another number of
            parameters than the transform takes, or the context is missing, unexpected, given twice or of the wrong
            shape.
        TypeError: If `network` is not callable, or the context has another dtype than the network. (If x or y has,
            TFP raises a ValueError; arrays and lists are converted.)

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Eq. 10, 13, 14.
        Eq. `change-of-variables`, `step` and `log-det` of the mathematics page.

    >>> import tensorflow_probability as tfp
    >>> import tfp_iaf
    >>> network = tfp_iaf.MaskedAutoregressiveNetwork(3, hidden_units=(16,), context_shape=2, seed=0)
    >>> step = InverseAutoregressiveFlow(network, context=tf.ones([5, 2]))
    >>> base = tfp.distributions.MultivariateNormalDiag(tf.zeros([5, 3]))
    >>> q = tfp.distributions.TransformedDistribution(base, step)
    >>> z = q.sample(seed=0)
    >>> q.log_prob(z).shape
    TensorShape([5])
    """

    def __init__(
        self,
        network: Network | Callable[..., tf.Tensor],
        *,
        context: tf.Tensor | None = None,
        transform: str | Transform = 'gated',
        inverse: str = 'auto',
        event_ndims: int | None = None,
        validate_args: bool = False,
        name: str | None = _DEFAULT_NAME,
    ) -> None:
        parameters = dict(locals())
        if not callable(network):
            raise TypeError(
                f'network: got {network!r}, expected a callable such as MaskedAutoregressiveNetwork(event_shape).'
            )
        check_inverse(inverse)
        self._network, self._inverse_method = network, inverse
        self._transform = transforms.get(transform)
        self._signature = signature_of(network)
        self._context = parameters['context'] = self._checked_context(context)
        self._event_ndims = self._checked_event_ndims(event_ndims)
        params = self._signature.params
        if params is not None and params != self._transform.params:
            raise ValueError(
                f'network: got one with {params} parameters per entry, expected {self._transform.params} for transform='
                f'{self._transform!r}. Make it with params={self._transform.params}.'
            )
        super().__init__(
            forward_min_event_ndims=self._event_ndims,
            dtype=self._signature.dtype,
            validate_args=validate_args,
            parameters=parameters,
            # A name scope, so that the name stays as given when a step is constructed again in one graph: keyword
            # arguments of a Chain are nested by name.
            name=(name or _DEFAULT_NAME).rstrip('/') + '/',
        )

    @classmethod
    def _parameter_properties(cls, dtype: tf.DType | None) -> dict[str, Any]:
        def context_ndims(step: InverseAutoregressiveFlow, x_event_ndims: int | None = None) -> int:
            # If an event has more axes than the step needs, the outer ones are batch axes, for the context too.
            more = 0 if x_event_ndims is None else x_event_ndims - step._event_ndims
            return step._context_ndims + more

        return {'context': _compat.parameter_properties(event_ndims=context_ndims)}

    @property
    def network(self) -> Network | Callable[..., tf.Tensor]:
        """The autoregressive network."""
        return self._network

    @property
    def transform(self) -> Transform:
        """The elementwise transform."""
        return self._transform

    @property
    def context(self) -> tf.Tensor | None:
        """The context that is used when a call passes none."""
        return self._context

    @property
    def _knows_context(self) -> bool:
        """Whether the network tells the shape of its context, and so which axes are batch axes."""
        return isinstance(self._signature.context_shape, tf.TensorShape)

    @property
    def _context_ndims(self) -> int:
        shape = self._signature.context_shape
        return shape.rank if isinstance(shape, tf.TensorShape) else 1

    def _checked_event_ndims(self, event_ndims: int | None) -> int:
        known = None if self._signature.event_shape is None else self._signature.event_shape.rank
        if event_ndims is None:
            return 1 if known is None else known
        if known not in (None, checked_size('event_ndims', event_ndims, minimum=0)):
            raise ValueError(
                f'event_ndims: got {event_ndims}, expected {known}, the rank of the event_shape of {self._network!r}. '
                f'Leave it out.'
            )
        return event_ndims

    def _checked_context(self, context: Any) -> Any:
        """Returns a context as a tensor, or as the variable that it is; a list or an array might change."""
        shape, dtype = self._signature.context_shape, self._signature.dtype
        if context is None:
            return None
        if shape is not ANY_CONTEXT and dtype is not None:
            return checked_context(context, shape, dtype, self._network)
        if isinstance(context, (tf.Variable, tf.Module)):
            return context
        return tf.convert_to_tensor(context, name='context')

    def _checked_event(self, argument: str, value: tf.Tensor, context: Any) -> tf.Tensor:
        """Returns x or y, of the event shape of the network, and of leading axes that fit those of the context."""
        shape, dtype = self._signature.event_shape, self._signature.dtype
        if shape is None or dtype is None:
            return value
        value = checked_event(argument, value, shape, dtype, self._network)
        if context is not None:
            lead = lead_of(context, self._context_ndims).static
            check_batches(lead, argument, lead_of(value, self._event_ndims).static)
        return value

    def _augmented_forward(self, x: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict[str, Any]]:
        context = self._context_of(**kwargs)
        x = self._checked_event('x', x, context)
        # In the network, an entry out of range would reach the gradients of weights even if a mask keeps its event out
        # of the loss, since zero times NaN is NaN.
        is_known = is_in_range(x)
        finite = tf.where(is_known, x, tf.zeros([], x.dtype))
        finite_context, of_context = self._finite_context(context, self._event_ndims)
        is_known &= of_context
        with self._finding_variables() as tape:
            params = self._parameters_at(finite, finite_context)
        y, log_derivatives = self._transform.forward(finite, params)
        y, log_derivatives = (nan_unless(is_known, value) for value in (y, log_derivatives))
        return y, self._attributes(log_derivatives, context, tape)

    def _finite_context(self, context: Any, event_ndims: int) -> tuple[Any, tf.Tensor | bool]:
        """Returns the context with zeros for what is out of range, and which events it leaves known, `[..., 1, ...]`.

        A context whose event axes the network does not tell is left to the network.
        """
        if context is None or not self._knows_context:
            return context, True
        context = tf.convert_to_tensor(context)
        if not context.dtype.is_floating:
            return context, True
        is_known = are_in_range(context, self._context_ndims)
        finite = tf.where(is_known, context, tf.zeros([], context.dtype))
        if self._context_ndims != event_ndims:
            is_known = reshaped(is_known, lead_of(is_known, self._context_ndims), [1] * event_ndims)
        return finite, is_known

    def _finding_variables(self) -> Any:
        """Returns a tape that finds the variables of a network which does not tell them."""
        tells = hasattr(self._network, 'variables')
        return contextlib.nullcontext() if tells else tf.GradientTape()

    def _augmented_inverse(self, y: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict[str, Any]]:
        context = self._context_of(**kwargs)
        y = self._checked_event('y', y, context)
        finite_context, is_known = self._finite_context(context, 1)
        with self._finding_variables() as tape:
            x, log_derivatives = inverted(
                self._network,
                self._parameters_at,
                self._transform,
                y,
                finite_context,
                is_known,
                event_ndims=self._event_ndims,
                method=self._inverse_method,
            )
        if self.validate_args:
            message = f'{self.name}: the inverse did not converge: y is not finite, or the network not autoregressive.'
            with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(tf.math.is_nan(x)), [message])]):
                x = tf.identity(x)
        return x, self._attributes(log_derivatives, context, tape)

    def _attributes(
        self, log_derivatives: tf.Tensor, context: tf.Tensor | None, tape: tf.GradientTape | None
    ) -> dict[str, Any]:
        # Asked of the network: the search that tf.Module would make through the bijector, at every call, takes as long
        # as a small network.
        found = tape.watched_variables() if tape is not None else ()
        axes = list(range(-self._event_ndims, 0))
        return {
            'ildj': -tf.reduce_sum(log_derivatives, axis=axes) if axes else -log_derivatives,
            'log_derivatives': log_derivatives,
            'dependencies': Dependencies([self._network, *found, context]),
        }

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
        context = conditional_input if context is None else context
        if context is not None:
            return self._checked_context(context)
        expected = self._signature.context_shape
        if self._context is None and isinstance(expected, tf.TensorShape):
            shape = ', '.join(['...', *map(str, expected)])
            raise ValueError(
                f'context: got None, expected a tensor of shape [{shape}] for the step {self.name!r}. Pass context='
                f' to its constructor or its call, {self.name}={{"context": ...}} to a tfb.Chain around it, and '
                f'bijector_kwargs={{"{self.name}": {{"context": ...}}}} to a distribution of that chain; or make the '
                f'steps with it, as IAFPosterior.bijector(context) does.'
            )
        return self._context

    def _parameters_at(self, x: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        # The step has checked x and the context.
        evaluate = getattr(self._network, 'unchecked_call', self._network)
        params = evaluate(x) if context is None else evaluate(x, context)
        ndims = self._event_ndims
        event = x.shape[x.shape.rank - ndims :] if x.shape.rank is not None else tf.TensorShape([None] * ndims)
        expected = event.concatenate([self._transform.params])
        if not tf.is_tensor(params):
            raise TypeError(
                f'network: returned {type(params).__name__}, expected a tensor [..., {_sizes(expected)}]. Stack the '
                f'parameters: tf.stack([m, s], axis=-1).'
            )
        # Of another number of entries, or of one for all, they would broadcast, and the log-det be a wrong sum.
        rank = params.shape.rank
        if rank is not None and (rank <= ndims or not expected.is_compatible_with(params.shape[rank - ndims - 1 :])):
            raise ValueError(
                f'network: returned shape {params.shape}, expected [..., {_sizes(expected)}] for transform='
                f'{self._transform!r}.'
            )
        return params


def check_inverse(inverse: Any) -> None:
    """Raises an error if there is no such method of inverting a step."""
    if inverse not in ('auto', 'fixed_point'):
        raise ValueError(
            f"inverse: got {inverse!r}, expected 'auto' or 'fixed_point'. 'auto' solves block by block where it can."
        )


def _sizes(shape: tf.TensorShape) -> str:
    return ', '.join('?' if size is None else str(size) for size in shape)
