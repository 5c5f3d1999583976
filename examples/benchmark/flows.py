"""The flows in TensorFlow: ours, TFP's, and dense layers of the same shapes.

Each is a `tf.Module` that returns a distribution: of loc, scale and context, or of nothing for a surrogate posterior.
"""

import functools
import itertools
import types
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from benchmark.cases import Size
from benchmark.packages import PACKAGES

tfb, tfd = tfp.bijectors, tfp.distributions


class Surrogate(tf.Module):
    """A surrogate posterior of this package."""

    def __init__(self, distribution: Any) -> None:
        super().__init__()
        self.distribution = distribution

    def __call__(self) -> Any:
        """Returns the distribution."""
        return self.distribution


class Tfp(tf.Module):
    """The same with TFP's own bijectors: affine steps, and a permutation between them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        settings: dict[str, Any] = {'hidden_units': [size.hidden, size.hidden], 'activation': 'elu'}
        if not size.is_surrogate:
            settings |= {'conditional': True, 'conditional_event_shape': [size.context]}
            settings |= {'conditional_input_layers': 'first_layer'}  # as ours: less work than its default
        self.networks = [tfb.AutoregressiveNetwork(2, [size.event], **settings) for _ in range(size.flows)]
        for network in self.networks:
            network.build([None, size.event])
            # As small an output as ours at the start, so that the scales stay moderate.
            network.weights[-2].assign(0.1 * network.weights[-2])
        self.reverse = list(range(size.event))[::-1]
        if size.is_surrogate:
            self.loc = tf.Variable(tf.zeros([size.event]))
            self.scale = tfp.util.TransformedVariable(tf.ones([size.event]), tfb.Softplus())
            noise = tfd.MultivariateNormalDiag(tf.zeros([size.event]), tf.ones([size.event]))
            chain = tfb.Chain([tfb.Shift(self.loc), tfb.Scale(self.scale), *self._steps()])
            self.distribution = tfd.TransformedDistribution(noise, chain)

    def _steps(self, **condition: tf.Tensor) -> list[Any]:
        """Returns the bijectors, the last step first, as in a `tfb.Chain`."""
        bijectors: list[Any] = []
        for network in self.networks:
            bijectors += [tfb.Permute(self.reverse)] if bijectors else []
            conditioned = functools.partial(network, **condition)
            bijectors += [tfb.Invert(tfb.MaskedAutoregressiveFlow(conditioned))]
        return bijectors[::-1]

    def __call__(self, *inputs: tf.Tensor) -> Any:
        """Returns the distribution."""
        if not inputs:
            return self.distribution
        loc, scale, context = inputs
        chain = tfb.Chain(self._steps(conditional_input=context))
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(loc, scale), chain)


class Dense(tf.Module):
    """Layers of the same shapes without masks: no flow, but the least work of a network that skips nothing."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths = [size.event, size.hidden, size.hidden, 2 * size.event]
        rng = np.random.default_rng(0)

        def kernel(rows: int, columns: int) -> tf.Variable:
            return tf.Variable(0.3 * rng.standard_normal([rows, columns]) / np.sqrt(rows), dtype=tf.float32)

        self.kernels = [[kernel(*shape) for shape in itertools.pairwise(widths)] for _ in range(size.flows)]
        self.biases = [[tf.Variable(tf.zeros([width])) for width in widths[1:]] for _ in range(size.flows)]
        self.contexts = [kernel(size.context, size.hidden) for _ in range(size.flows)]

    def __call__(self, *inputs: tf.Tensor) -> Any:
        """Returns what has the one method of a distribution that is timed."""
        return types.SimpleNamespace(experimental_sample_and_log_prob=functools.partial(self._sample, *inputs))

    def _sample(self, loc: tf.Tensor, scale: tf.Tensor, context: tf.Tensor, shape: Any) -> tuple[tf.Tensor, tf.Tensor]:
        z, log_q = tfd.MultivariateNormalDiag(loc, scale).experimental_sample_and_log_prob(shape)
        for (w1, w2, w3), (b1, b2, b3), u in zip(self.kernels, self.biases, self.contexts, strict=True):
            hidden = tf.nn.elu(tf.nn.elu(z @ w1 + (context @ u + b1)) @ w2 + b2)
            m, s = tf.split(hidden @ w3 + b3, 2, axis=-1)
            z = tf.sigmoid(s) * z + tf.sigmoid(-s) * m
            log_q -= tf.reduce_sum(tf.math.log_sigmoid(s), axis=-1)
        return z, log_q


def make(name: str, size: Size) -> tf.Module:
    """Returns the flow of this name."""
    if name == 'TFP':
        return Tfp(size)
    if name == 'dense':
        return Dense(size)
    package = PACKAGES.get(name, PACKAGES['tfp_iaf'])
    inverse = 'fixed_point' if name == 'fixed_point' else 'auto'
    settings: dict[str, Any] = {'hidden_units': (size.hidden, size.hidden), 'inverse': inverse, 'seed': 0}
    if size.is_surrogate:
        return Surrogate(package.build_iaf_surrogate_posterior([size.event], num_flows=size.flows, **settings))
    return package.IAFPosterior(size.event, size.flows, context_shape=size.context, **settings)
