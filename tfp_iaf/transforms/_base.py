"""The contract of an elementwise transform."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

__all__ = ['Transform']


class Transform(abc.ABC):
    r"""An increasing map of the real line, applied to each entry with parameters of its own.

    $$y_i = t(x_i;\ p_i), \qquad \log t'(x_i;\ p_i)$$

    Shapes: x, y and log-derivatives `[..., *event_shape]`, parameters `[..., *event_shape, P]`. Dtype: that of x.

    A subclass defines `params` and both directions. Each direction returns the log-derivative of `forward`, per entry,
    from the same evaluation, and depends on its arguments alone: anything else that is to be trained should be a
    parameter. Instances are immutable and compare by value, since TFP's caches compare the bijectors that hold them; a
    frozen dataclass does both. Parameters near zero should mean a map near the identity.

    Raises:
        ValueError: From `InverseAutoregressiveFlow`, if a network gives another number of parameters than `params`.

    References:
        Eq. `step` and `log-det` of the mathematics page.

    >>> import dataclasses
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
        """Returns the arguments of the constructor: the fields of a dataclass."""
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
        """Returns `y` and `log(dy/dx)`, both `[..., *event_shape]`, for `params` `[..., *event_shape, P]`."""

    @abc.abstractmethod
    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x` and `log(dy/dx)` at `x`, both `[..., *event_shape]`, for `params` `[..., *event_shape, P]`."""
