"""The layers `PlanarSampling`, `RadialSampling` and `SylvesterSampling`, for either Keras."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._checks import checked_size
from tfp_iaf._layers._sampling import SamplingLayer
from tfp_iaf._random import random_generator
from tfp_iaf._shapes import lead_of, reshaped
from tfp_iaf.bijectors import PlanarFlow, RadialFlow, SylvesterFlow
from tfp_iaf.bijectors._chain import UncachedChain
from tfp_iaf.bijectors._sylvester import check_kind
from tfp_iaf.distributions._gaussian import gaussian

__all__ = ['FlowSamplingLayer', 'PlanarSamplingLayer', 'RadialSamplingLayer', 'SylvesterSamplingLayer']

# Of the parameters that a context of unit scale gives, so that training starts near the initial values.
_GAIN = 0.1


class FlowSamplingLayer(SamplingLayer):
    """A `PosteriorSampling` whose posterior is a chain of steps, with parameters linear in the context.

    A subclass defines `_initial_values`, the parameters of one step by name, and `_step`, which makes a step of them.
    """

    def __init__(self, num_flows: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_flows = checked_size('num_flows', num_flows, minimum=0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kernel: Any = None
        self._bias: Any = None
        # Where tf.train.Checkpoint finds the weights in Keras 3.
        self._variables = _compat.AutoTrackable()

    def _initial_values(self, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _step(self, index: int, parameters: dict[str, tf.Tensor]) -> tfp.bijectors.Bijector:
        raise NotImplementedError

    def build(self, input_shape: Any) -> None:
        """Makes the weights that map the context to the parameters of all steps."""
        self._set_shapes(input_shape)
        rng = random_generator(self.seed)
        steps = [self._initial_values(self._event_size, rng) for _ in range(self.num_flows)]
        if steps:
            self._shapes = {name: value.shape for name, value in steps[0].items()}
            bias = np.concatenate([np.ravel(value) for values in steps for value in values.values()])
            self._bias = self._new_weight('bias', bias, trainable=True)
            if self._context_shape is not None:
                size = self._context_size
                kernel = _GAIN / np.sqrt(size) * rng.standard_normal([size, len(bias)])
                self._kernel = self._new_weight('kernel', kernel, trainable=True)
        super().build(input_shape)

    @property
    def _event_size(self) -> int:
        return math.prod(self._event_shape or ())

    @property
    def _context_size(self) -> int:
        return math.prod(self._context_shape or ())

    def posterior(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None
    ) -> tfp.distributions.TransformedDistribution:
        """Returns q(z|x), as `IAFSampling.posterior` does."""
        z_mean, z_log_var, context = self._checked_inputs(z_mean, z_log_var, context)
        if context is not None:
            context = reshaped(context, lead_of(context, len(self._context_shape or ())), [self._context_size])
        bijectors = [self._step(t, values) for t, values in enumerate(self._parameters(context))][::-1]
        shape = self._event_shape or ()
        if len(shape) != 1:
            size = self._event_size
            bijectors = [tfp.bijectors.Reshape(shape, [size]), *bijectors, tfp.bijectors.Reshape([size], shape)]
        base = gaussian(z_mean, tf.exp(0.5 * z_log_var), len(shape))
        return _compat.FlowDistribution(base, UncachedChain(bijectors))

    def _parameters(self, context: tf.Tensor | None) -> list[dict[str, tf.Tensor]]:
        """Returns the parameters of each step by name, `[..., *shape]`."""
        if self.num_flows == 0:
            return []
        values = self._value_of('bias', self._bias)
        if context is not None:
            values += tf.tensordot(context, self._value_of('kernel', self._kernel), 1)
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = tf.split(values, self.num_flows * sizes, axis=-1)
        steps = []
        for t in range(self.num_flows):
            own = zip(self._shapes.items(), parts[t * len(sizes) : (t + 1) * len(sizes)], strict=True)
            steps.append({name: reshaped(part, lead_of(part, 1), shape) for (name, shape), part in own})
        return steps

    def _value_of(self, name: str, weight: Any) -> tf.Tensor:
        variable = self._variable_of(weight)
        # While Keras works out the shapes of a model, weights are promises, and their values tensors of that moment.
        if isinstance(variable, tf.Variable):
            setattr(self._variables, name, variable)
        return tf.convert_to_tensor(variable)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), 'num_flows': self.num_flows}


class PlanarSamplingLayer(FlowSamplingLayer):
    """The layer `PlanarSampling`, mixed into the layer `PosteriorSampling` of either Keras; see `tfp_iaf.keras`."""

    def _initial_values(self, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {'u': np.zeros(size), 'w': rng.standard_normal(size) / np.sqrt(size), 'b': np.zeros([])}

    def _step(self, index: int, parameters: dict[str, tf.Tensor]) -> PlanarFlow:
        return PlanarFlow(**parameters, name=f'flow_{index}')


class RadialSamplingLayer(FlowSamplingLayer):
    """The layer `RadialSampling`, mixed into the layer `PosteriorSampling` of either Keras; see `tfp_iaf.keras`."""

    def _initial_values(self, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {'center': rng.standard_normal(size), 'alpha': np.zeros([]), 'beta': np.zeros([])}

    def _step(self, index: int, parameters: dict[str, tf.Tensor]) -> RadialFlow:
        return RadialFlow(**parameters, name=f'flow_{index}')


class SylvesterSamplingLayer(FlowSamplingLayer):
    """The layer `SylvesterSampling`, mixed into the layer `PosteriorSampling` of either Keras; see `tfp_iaf.keras`."""

    def __init__(
        self, num_flows: int = 4, kind: str = 'orthogonal', num_vectors: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_flows, **kwargs)
        check_kind(kind)
        if num_vectors is not None and kind == 'triangular':
            raise ValueError(f"num_vectors: got {num_vectors!r} for kind='triangular', which has none. Leave it out.")
        self.kind = kind
        self.num_vectors = None if num_vectors is None else checked_size('num_vectors', num_vectors)

    def _initial_values(self, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        vectors = min(size, {'orthogonal': 16}.get(self.kind, 8)) if self.num_vectors is None else self.num_vectors
        rank = vectors if self.kind == 'orthogonal' else size
        if rank > size:
            raise ValueError(
                f"num_vectors: got {vectors}, expected at most {size}, the size of z, for kind='orthogonal'."
            )
        values = {'triangles': np.zeros([rank, rank]), 'diagonal': np.ones(rank), 'b': np.zeros(rank)}
        shapes = {'orthogonal': [size, rank], 'householder': [vectors, size]}
        return values if self.kind == 'triangular' else {**values, 'q': rng.standard_normal(shapes[self.kind])}

    def _step(self, index: int, parameters: dict[str, tf.Tensor]) -> SylvesterFlow:
        # The upper triangle of one matrix is R, and the lower one the rest of R-tilde.
        triangles, diagonal, b = (parameters[name] for name in ('triangles', 'diagonal', 'b'))
        one = tf.eye(triangles.shape[-1], dtype=triangles.dtype)
        r_tilde = tf.linalg.matrix_transpose(triangles) * (1 - one) + diagonal[..., tf.newaxis] * one
        reverse = self.kind == 'triangular' and index % 2 == 1
        q = parameters.get('q')
        return SylvesterFlow(triangles, r_tilde, b, q, kind=self.kind, reverse=reverse, name=f'flow_{index}')

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), 'kind': self.kind, 'num_vectors': self.num_vectors}
