"""The inverse autoregressive flow of a blog post, rebuilt, with a switch for each of its mistakes.

The post is "Variational Autoencoders with Inverse Autoregressive Flows" (bjlkeng, 2017). Its step has two networks, one
for m and one for s, with sigmoid units and direct connections from the entries to the outputs, and z is reversed before
every step but the first. All that is kept, but for the reversals: every second step takes the entries from right to
left, which gives the same z in another order. What is switched, by the names in `MISTAKES`:

- output activation: the activation of the hidden layers, a sigmoid, is applied to the outputs too, since the argument
  for another one is never read. So m and s lie in (0, 1), the gate sigmoid(s) in (0.5, 0.731), and every step must
  contract. Mended: the outputs are linear.
- degrees: those of the hidden units are drawn up to the number of units, not of entries. A unit of degree D or more
  reaches no output, which most units then are, and some outputs have no path through the hidden layers from an entry
  before them. Mended: spread evenly over the degrees that a path can use.
- penalty: 0.001 times the sum of squares of all the networks' weights and biases is added to the training loss. (The
  post's figures have it in the loss as well; here no reported one has.) Mended: none.
- schedule: a constant rate, halved when the loss on the test images has not improved for 15 evaluations, and no warm-up
  of the KL. Mended: the cosine decay, from the same rate, and the warm-up, of all others.
- gate start: the output layers start as wide as any (Glorot), and nothing is added to s, so that the first gates are
  not near 1. Mended: the output layers start a tenth as wide, and 2 is added to s: a step starts near the identity.
- context: it passes two sigmoids, one that makes it and one in each network, before it comes to the hidden units, and
  as no unit has degree 0, m and s of the first entry do not see it. Mended: an ELU makes it, it comes to the hidden
  units by a linear map, and degrees start at 0. Its size is the same.

Single mistakes can be made beside any others. In company they differ a little: with the outputs' sigmoid and the gates'
start mended, the gate lies in (0.881, 0.953); with degrees drawn as in the post, but from 0, the context may still
not come to the first entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
import tfp_iaf.keras
from tfp_iaf.networks import _masks

tfb, tfd = tfp.bijectors, tfp.distributions

MISTAKES = ('output activation', 'degrees', 'penalty', 'schedule', 'gate start', 'context')


def degrees(
    event_size: int, hidden_units: Sequence[int], mistakes: Collection[str], rng: np.random.Generator
) -> list[np.ndarray]:
    """Returns the degrees of a network's entries, hidden units and outputs, counted as `tfp_iaf` counts them."""
    sees_context = 'context' not in mistakes
    if 'degrees' not in mistakes:
        return _masks.degrees(event_size, hidden_units, params=1, conditional=sees_context)
    layers, lowest = [np.arange(1, event_size + 1)], 0 if sees_context else 1
    for units in hidden_units:
        layers.append(rng.integers(lowest, units, size=units))
        lowest = layers[-1].min()
    return [*layers, np.arange(event_size)]


def useful_units(layers: Sequence[np.ndarray]) -> int:
    """Returns how many of the last hidden layer's units reach an output, in a network with these degrees."""
    return int(np.sum(layers[-2] <= layers[-1].max()))


def pairs_without_path(layers: Sequence[np.ndarray]) -> int:
    """Returns how many pairs of an entry and an output after it have no path between them through the hidden layers."""
    paths = np.eye(layers[0].size, dtype=bool)
    for before, after in itertools.pairwise(layers):
        paths = paths @ _masks.mask(before, after)
    return int(np.sum(np.triu(~paths, 1)))


class MaskedNetwork(keras.layers.Layer):
    """One parameter of every entry, `[..., D]`, from x and the context; autoregressive, from left to right."""

    def __init__(
        self,
        event_size: int,
        hidden_units: Sequence[int],
        context_size: int,
        mistakes: Collection[str],
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self._mistakes = tuple(mistakes)
        layers = degrees(event_size, hidden_units, mistakes, rng)
        self._masks = [_masks.mask(*pair).astype(np.float32) for pair in itertools.pairwise(layers)]
        self._direct_mask = _masks.mask(layers[0], layers[-1]).astype(np.float32)
        output_scale = 1.0 if 'gate start' in mistakes else 0.1
        scales = [*[1.0] * len(hidden_units), output_scale]
        self._kernels = [
            self._kernel(mask.shape[0], mask.shape[1], scale) for mask, scale in zip(self._masks, scales, strict=True)
        ]
        self._biases = [self._bias(mask.shape[1]) for mask in self._masks]
        self._direct_kernel = self._kernel(event_size, event_size, output_scale)
        self._context_kernel = self._kernel(context_size, hidden_units[0])
        self._context_bias = self._bias(hidden_units[0])

    def _kernel(self, rows: int, columns: int, scale: float = 1.0) -> Any:
        # With a scale of 1, Glorot's initializer.
        initializer = keras.initializers.VarianceScaling(scale**2, mode='fan_avg', distribution='uniform')
        return self.add_weight(shape=(rows, columns), initializer=initializer, regularizer=self._regularizer())

    def _bias(self, size: int) -> Any:
        return self.add_weight(shape=(size,), initializer='zeros', regularizer=self._regularizer())

    def _regularizer(self) -> Any:
        return keras.regularizers.L2(0.001) if 'penalty' in self._mistakes else None

    def call(self, x: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        """Returns m or s."""
        share = tf.matmul(context, self._context_kernel) + self._context_bias
        if 'context' in self._mistakes:
            share = tf.sigmoid(share)
        values = x
        for kernel, mask, bias in zip(self._kernels, self._masks, self._biases, strict=True):
            sums = tf.matmul(values, kernel * mask) + (share + bias)
            values, share = tf.sigmoid(sums), 0.0  # the context comes to the first layer
        outputs = sums + tf.matmul(x, self._direct_kernel * self._direct_mask)
        return tf.sigmoid(outputs) if 'output activation' in self._mistakes else outputs


class StepNetwork(keras.layers.Layer):
    """The parameters m and s of every entry, `[..., D, 2]`, each from a network of its own, in either order."""

    params = 2

    def __init__(self, is_reversed: bool, *args: Any) -> None:
        super().__init__()
        self._axes = [-1] if is_reversed else []
        self.networks = [MaskedNetwork(*args) for _ in range(self.params)]

    def call(self, x: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        """Returns the parameters."""
        x = tf.reverse(x, self._axes)
        return tf.stack([tf.reverse(network(x, context), self._axes) for network in self.networks], axis=-1)


class BlogSampling(tfp_iaf.keras.PosteriorSampling):
    """The post's flow as a sampling layer: `z, log_q = layer([z_mean, z_log_var, context])`.

    Args:
        num_flows: Number of steps.
        hidden_units: Units of the hidden layers of each of a step's two networks.
        mistakes: Which to make, of `MISTAKES`; penalty and schedule only count for whoever trains.
        seed: Seed of the degrees, and of the samples.
        **kwargs: As of a `PosteriorSampling`.
    """

    def __init__(
        self, num_flows: int, hidden_units: Sequence[int], mistakes: Collection[str], *, seed: int, **kwargs: Any
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        self._num_flows, self._hidden_units, self._mistakes = num_flows, tuple(hidden_units), tuple(mistakes)
        self.steps: list[StepNetwork] = []

    def build(self, input_shape: Sequence[Sequence[int]]) -> None:
        """Makes the networks, from the shapes of mean, log-variance and context."""
        rng = np.random.default_rng(self.seed)
        sizes = input_shape[0][-1], self._hidden_units, input_shape[2][-1]
        self.steps = [StepNetwork(bool(t % 2), *sizes, self._mistakes, rng) for t in range(self._num_flows)]
        super().build(input_shape)

    def posterior(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None
    ) -> tfp.distributions.TransformedDistribution:
        """Returns q(z|x)."""
        base = tfd.Independent(tfd.Normal(z_mean, tf.exp(0.5 * z_log_var)), 1)
        return tfd.TransformedDistribution(base, self.bijector(context))

    def bijector(self, context: tf.Tensor) -> tfp.bijectors.Bijector:
        """Returns the chain of steps."""
        gated = tfp_iaf.transforms.Gated(gate_bias=0.0 if 'gate start' in self._mistakes else 2.0)
        steps = [tfp_iaf.InverseAutoregressiveFlow(net, context=context, transform=gated) for net in self.steps]
        return tfb.Chain(steps[::-1])  # a Chain applies its last bijector first
