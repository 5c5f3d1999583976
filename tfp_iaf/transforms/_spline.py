"""Monotone splines: transforms with as many parameters per entry as their flexibility takes."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import tensorflow as tf

from tfp_iaf._checks import checked_number, checked_size
from tfp_iaf.transforms._base import Transform

__all__ = ['RationalQuadraticSpline']


class _Bin(NamedTuple):
    """The bin of a value: its lower corner, its width and height, its mean slope, and the slopes at both ends."""

    x: tf.Tensor
    y: tf.Tensor
    width: tf.Tensor
    height: tf.Tensor
    slope: tf.Tensor
    lower: tf.Tensor
    upper: tf.Tensor


@dataclasses.dataclass(frozen=True)
class RationalQuadraticSpline(Transform):
    r"""A monotone spline of rational quadratics on [-B, B], and the identity outside.

    $$y = y_k + \frac{h_k\,(s_k \xi^2 + d_k\, \xi (1 - \xi))}
      {s_k + (d_{k+1} + d_k - 2 s_k)\, \xi (1 - \xi)}, \quad \xi = \frac{x - x_k}{w_k}, \quad s_k = \frac{h_k}{w_k}$$

    for x in the bin of width $w_k$ and height $h_k$ that starts at $(x_k, y_k)$, with slopes $d_k$ and $d_{k+1}$ at its
    ends; the slopes at -B and B are 1. The parameters are the logits of the K widths, the logits of the K heights, and
    the bounded log-slopes of the K - 1 inner knots. Zeros give the identity. A step can bend a density and give it
    several modes, but points outside the bounds stay where they are: scale the base distribution to lie within.

    Args:
        num_bins: K, at least 2. A network needs `3 * K - 1` parameters per entry.
        bound: B, half the width of the interval.
        min_bin_size: Smallest width and height of a bin, as a share of the interval.
        min_slope: Smallest slope at a knot; the largest is its reciprocal. Both minima keep the map from becoming so
            flat that rounding makes its inverse meaningless, first in float32.

    Raises:
        ValueError: If `num_bins` is below 2, `bound` is not positive, `min_bin_size` is not positive or too large for
            so many bins, or `min_slope` does not lie between 0 and 1.

    References:
        Durkan, Bekasov, Murray and Papamakarios 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032, Eq. 4, 5 and Appendix A.1 to A.3.
        Eq. `spline`, `spline-parameters` and `spline-inverse` of the mathematics page.

    >>> spline = RationalQuadraticSpline(num_bins=4, bound=3.)
    >>> y, log_derivative = spline.forward(tf.constant([-1., 2., 9.]), tf.zeros([3, spline.params]))
    >>> bool(tf.reduce_all(tf.abs(y - [-1., 2., 9.]) + tf.abs(log_derivative) < 1e-6))
    True
    """

    num_bins: int = 8
    bound: float = 5.0
    min_bin_size: float = 1e-2
    min_slope: float = 1e-2

    def __post_init__(self) -> None:
        checked_size('num_bins', self.num_bins, minimum=2)
        for name in ('bound', 'min_bin_size', 'min_slope'):
            checked_number(name, getattr(self, name))
        if not self.bound > 0:
            raise ValueError(f'bound: got {self.bound}, expected a positive number.')
        if not 0 < self.num_bins * self.min_bin_size < 1:
            raise ValueError(
                f'min_bin_size: got {self.min_bin_size}, expected a positive share of the interval, below 1 / num_bins '
                f'= {1 / self.num_bins:.4g}.'
            )
        if not 0 < self.min_slope < 1:
            raise ValueError(f'min_slope: got {self.min_slope}, expected a number between 0 and 1.')

    @property
    def params(self) -> int:
        return 3 * self.num_bins - 1

    # Not tfb.RationalQuadraticSpline (0.25): in float32 its inverse can cancel to NaN or to another preimage, its
    # gradients far outside of the bounds are NaN, it needs to know the rank, and it evaluates the knots twice, for the
    # value and for the log-derivative.

    def forward(self, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outside = self._is_outside(x)
        inner = tf.where(outside, tf.zeros([], x.dtype), x)
        here = self._bin_of(inner, params, of_y=False)
        xi = (inner - here.x) / here.width
        rest = 1 - xi
        denominator = _denominator(here, xi, rest)
        y = here.y + here.height * xi * (here.slope * xi + here.lower * rest) / denominator
        return _joined(outside, x, y, _log_derivative(here, xi, rest, denominator))

    def inverse(self, y: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outside = self._is_outside(y)
        inner = tf.where(outside, tf.zeros([], y.dtype), y)
        here = self._bin_of(inner, params, of_y=True)
        eta = (inner - here.y) / here.height
        # The quadratic of Appendix A.3, sorted so that nothing cancels: every term of the root is positive, and of the
        # two forms of the solution, one for each end of the bin, the one is taken whose terms are.
        tilt = here.lower * (1 - eta) - here.upper * eta
        root = tf.sqrt(tilt**2 + 4 * here.slope**2 * eta * (1 - eta))
        size = tf.abs(tilt) + root
        near, far = 2 * here.slope * eta, 2 * here.slope * (1 - eta)
        xi = tf.where(tilt >= 0, near / (size + near), size / (size + far))
        rest = tf.where(tilt >= 0, size / (size + near), far / (size + far))
        x = here.x + here.width * xi
        return _joined(outside, y, x, _log_derivative(here, xi, rest, _denominator(here, xi, rest)))

    def _is_outside(self, value: tf.Tensor) -> tf.Tensor:
        return tf.abs(value) >= tf.constant(self.bound, value.dtype)

    def _bin_of(self, value: tf.Tensor, params: tf.Tensor, of_y: bool) -> _Bin:
        """Returns the bin of each value, which is an x, or a y."""
        size = self.num_bins
        widths, heights, slopes = tf.split(params, [size, size, size - 1], axis=-1)
        sizes = tf.nn.softmax(tf.stack([widths, heights], axis=-2))
        sizes = self.min_bin_size + (1 - size * self.min_bin_size) * sizes
        knots = _between(-self.bound, self.bound * (2 * tf.cumsum(sizes[..., :-1], axis=-1) - 1), self.bound)
        max_log_slope = tf.constant(-math.log(self.min_slope), params.dtype)
        slopes = _between(1.0, tf.exp(max_log_slope * tf.tanh(slopes / max_log_slope)), 1.0)
        x, y = tf.unstack(knots, num=2, axis=-2)
        value, ends = value[..., tf.newaxis], y if of_y else x
        is_here = (value >= ends[..., :-1]) & (value < ends[..., 1:])

        # A sum over the bins, of which one counts: to gather it would take a known rank, and about as long.
        def of_bin(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.where(is_here, values, tf.zeros([], values.dtype)), axis=-1)

        width, height = of_bin(x[..., 1:] - x[..., :-1]), of_bin(y[..., 1:] - y[..., :-1])
        return _Bin(
            x=of_bin(x[..., :-1]),
            y=of_bin(y[..., :-1]),
            width=width,
            height=height,
            slope=height / width,
            lower=of_bin(slopes[..., :-1]),
            upper=of_bin(slopes[..., 1:]),
        )


def _between(first: float, values: tf.Tensor, last: float) -> tf.Tensor:
    end = tf.ones_like(values[..., :1])
    return tf.concat([first * end, values, last * end], axis=-1)


# The formulas of the paper, sorted so that all terms are positive.


def _denominator(here: _Bin, xi: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
    return here.slope * (xi**2 + rest**2) + (here.lower + here.upper) * xi * rest


def _log_derivative(here: _Bin, xi: tf.Tensor, rest: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    numerator = here.upper * xi**2 + 2 * here.slope * xi * rest + here.lower * rest**2
    return 2 * tf.math.log(here.slope) + tf.math.log(numerator) - 2 * tf.math.log(denominator)


def _joined(
    outside: tf.Tensor, value: tf.Tensor, image: tf.Tensor, log_derivative: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.where(outside, value, image), tf.where(outside, tf.zeros([], value.dtype), log_derivative)
