"""The two transforms of the paper, `Gated` and `Affine`."""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from tfp_iaf._checks import checked_number, checked_size
from tfp_iaf.transforms._base import Transform

__all__ = ['Affine', 'Gated']


@dataclasses.dataclass(frozen=True)
class Gated(Transform):
    r"""The gated step of the paper: numerically stable, since it only contracts.

    $$y = g x + (1 - g) m, \quad g = \sigma(s), \quad \log \frac{dy}{dx} = \log \sigma(s), \quad
      x = (y - (1 - g) m)\, e^{\mathrm{softplus}(-s)}$$

    where m is the first parameter and s is the second one plus `gate_bias`. The gate only contracts: its derivative
    lies in (0, 1), so given the entries before it, a gated step narrows each entry and never widens it. `Affine` also
    expands; choose it where scales must grow, as in a funnel.

    Shapes: x and y `[..., *event_shape]`, parameters `[..., *event_shape, 2]`. Dtype: that of x. Cost: three
    exponentials per entry.

    Args:
        gate_bias: Added to the second parameter, so that the gate starts at sigmoid(gate_bias), near 1.

    Raises:
        TypeError: If `gate_bias` is not a number.
        ValueError: If it is not finite.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Eq. 13, 14.
        Eq. `gated` of the mathematics page.

    >>> y, log_derivative = Gated().forward(tf.ones([3]), tf.zeros([3, 2]))
    >>> bool(tf.reduce_all(tf.abs(tf.exp(log_derivative) - y) < 1e-6))
    True
    """

    gate_bias: float = 2.0

    def __post_init__(self) -> None:
        checked_number('gate_bias', self.gate_bias)

    @classmethod
    def near_identity(cls, num_flows: int) -> Gated:
        r"""Returns the gate with which a chain of T steps starts near the identity, however many there are.

        $$\sigma(b)^T \approx 1 - T e^{-b} = 0.93 \quad \text{for} \quad b = 2.6 + \log T$$

        See Eq. `near-identity` of the mathematics page.

        >>> round(Gated.near_identity(4).gate_bias, 2)
        3.99
        """
        return cls(gate_bias=2.6 + math.log(max(checked_size('num_flows', num_flows, minimum=0), 1)))

    @property
    def params(self) -> int:
        return 2

    def forward(self, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, s = self._unpacked(params)
        return tf.sigmoid(s) * x + tf.sigmoid(-s) * m, tf.math.log_sigmoid(s)

    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, s = self._unpacked(params)
        return (y - tf.sigmoid(-s) * m) * tf.exp(tf.math.softplus(-s)), tf.math.log_sigmoid(s)

    def _unpacked(self, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, s = tf.unstack(params, num=2, axis=-1)
        return m, s + tf.constant(self.gate_bias, s.dtype)


@dataclasses.dataclass(frozen=True)
class Affine(Transform):
    r"""A shift and a scale that may contract and expand.

    $$y = e^{a} x + m, \quad a = A \tanh(\tilde a / A), \quad \log \frac{dy}{dx} = a, \quad x = (y - m)\, e^{-a}$$

    where m is the first parameter and $\tilde a$ is the second. The bound A keeps an extreme context or entry from
    overflowing the exponential; near zero it changes nothing.

    Shapes: x and y `[..., *event_shape]`, parameters `[..., *event_shape, 2]`. Dtype: that of x. Cost: one exponential
    and one hyperbolic tangent per entry.

    Args:
        max_log_scale: A, the largest absolute log-scale. Several scales close to its exponential in a row can leave an
            inverse meaningless through rounding, first in float32.

    Raises:
        TypeError: If `max_log_scale` is not a number.
        ValueError: If it is not positive and finite.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Eq. 10 and Section 3.
        Eq. `affine` of the mathematics page.

    >>> y, log_derivative = Affine().forward(tf.ones([3]), tf.zeros([3, 2]))
    >>> y.numpy().tolist(), log_derivative.numpy().tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """

    max_log_scale: float = 8.0

    def __post_init__(self) -> None:
        checked_number('max_log_scale', self.max_log_scale)
        if not self.max_log_scale > 0:
            raise ValueError(f'max_log_scale: got {self.max_log_scale}, expected a positive number.')

    @property
    def params(self) -> int:
        return 2

    def forward(self, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, log_scale = self._unpacked(params)
        return tf.exp(log_scale) * x + m, log_scale

    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, log_scale = self._unpacked(params)
        return (y - m) * tf.exp(-log_scale), log_scale

    def _unpacked(self, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        m, log_scale = tf.unstack(params, num=2, axis=-1)
        bound = tf.constant(self.max_log_scale, log_scale.dtype)
        return m, bound * tf.tanh(log_scale / bound)
