"""The contract of a transform, and the two transforms of the paper: `Gated` and `Affine`."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import tensorflow as tf

from tfp_iaf.checks import checked_number

__all__ = ['Affine', 'Gated', 'Transform']


class Transform(abc.ABC):
    """An increasing map of the real line, for each entry its own.

    A subclass gives `params` and both directions; each returns the log-derivative of `forward`, per entry, from the
    same evaluation. They depend on their arguments alone: what else shall be trained belongs into the parameters.
    Instances are immutable and compare by value, since TFP's caches compare the bijectors that hold them: a frozen
    dataclass does. Parameters near zero should mean a map near the identity.

    >>> import tfp_iaf
    >>> @dataclasses.dataclass(frozen=True)
    ... class Shift(Transform):
    ...     params = 1
    ...
    ...     def forward(self, x, params):
    ...         return x + params[..., 0], tf.zeros_like(x)
    ...
    ...     def inverse(self, y, params):
    ...         return y - params[..., 0], tf.zeros_like(y)
    >>> flow = tfp_iaf.IAFPosterior(3, num_flows=2, hidden_units=(8,), transform=Shift()).bijector()
    >>> flow.forward(tf.zeros([5, 3])).shape
    TensorShape([5, 3])
    """

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the transform anew: the fields of a dataclass."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transform:
        """Makes the transform from what `get_config` returned."""
        return cls(**config)

    @property
    @abc.abstractmethod
    def params(self) -> int:
        """Number of parameters per entry, P."""

    @abc.abstractmethod
    def forward(self, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y` and `log(dy/dx)`, both `[..., D]`, for `x` `[..., D]` and `params` `[..., D, P]`."""

    @abc.abstractmethod
    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x` and `log(dy/dx)` at `x`, both `[..., D]`, for `y` `[..., D]` and `params` `[..., D, P]`."""


@dataclasses.dataclass(frozen=True)
class Gated(Transform):
    r"""The gated step of the paper: numerically stable, since it only contracts.

    $$y = g x + (1 - g) m, \quad g = \sigma(s), \quad \log \frac{dy}{dx} = \log \sigma(s), \quad
      x = (y - (1 - g) m)\, e^{\mathrm{softplus}(-s)}$$

    with `m` the first parameter and `s` the second one plus `gate_bias`. The derivative lies in (0, 1): given
    the entries before it, a gated step narrows each entry and never widens it. Where scales must grow, as in a funnel,
    choose `Affine`.

    Args:
        gate_bias: Added to the second parameter, so that the gate starts at sigmoid(gate_bias), near 1.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Eq. 13, 14.
        Eq. (5) of the mathematics page.

    >>> y, log_derivative = Gated().forward(tf.ones([3]), tf.zeros([3, 2]))
    >>> bool(tf.reduce_all(tf.abs(tf.exp(log_derivative) - y) < 1e-6))
    True
    """

    gate_bias: float = 2.0

    def __post_init__(self) -> None:
        checked_number('gate_bias', self.gate_bias)

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

    with `m` the first parameter and $\tilde a$ the second. The bound A keeps an extreme context or entry from
    overflowing the exponential; near zero it changes nothing.

    Args:
        max_log_scale: A, the largest absolute log-scale. Where scales near its exponential follow on one another,
            rounding can leave an inverse meaningless, first in float32.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Eq. 10 and Section 3.
        Eq. (6) of the mathematics page.

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
