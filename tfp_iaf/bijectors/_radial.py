"""The radial flow as a TFP bijector."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf

from tfp_iaf._checks import checked_tensor
from tfp_iaf.bijectors._base import Values, VectorFlow, common_dtype, last_size, positive

__all__ = ['RadialFlow']


class RadialFlow(VectorFlow):
    r"""A step that moves every point away from a centre, or towards it.

    $$y = x + \frac{\hat\beta}{\hat\alpha + r} (x - c), \quad r = |x - c|, \qquad
      \log\left|\det \frac{\partial y}{\partial x}\right| =
      (D - 1) \log\left(1 + \frac{\hat\beta}{\hat\alpha + r}\right) +
      \log\left(1 + \frac{\hat\alpha \hat\beta}{(\hat\alpha + r)^2}\right)$$

    The step is invertible for $\hat\alpha > 0$ and $\hat\beta > -\hat\alpha$. Any alpha and beta are taken:
    $\hat\alpha = p(\alpha)$ and $\hat\beta = \hat\alpha\, (p(\beta) - 1)$, where p(a) is 1 + a for a above 0, and
    1 / (1 - a) below. So $p(\beta)$ is the scale at the centre, and beta = 0 is the identity. The paper's own choice,
    $\hat\beta = \log(1 + e^\beta) - \hat\alpha$, reaches the same maps.

    Shapes: x, y and the centre `[..., D]`, alpha and beta `[...]`, leading shapes broadcast; log-det `[...]`. Dtype:
    that of the parameters, float32 or float64. An event with an entry or a parameter that is not finite, or beyond
    2.6e15 in float32, comes out as NaN, and leaves no NaN in the gradients of others.

    Cost: O(D) in either direction, value and log-det together. The inverse is in closed form, a quadratic equation for
    r, and so are its derivatives of all orders.

    Caching: as of `tfp_iaf.InverseAutoregressiveFlow`.

    Args:
        center: c, `[..., D]`. As for all parameters: a tensor, such as an encoder's output, a `tf.Variable`, or what
            stands for one, such as a `tfp.util.DeferredTensor`.
        alpha: The width, before the constraint, `[...]`.
        beta: The strength, before the constraint, `[...]`.
        validate_args: As of any TFP bijector.
        name: Name of the bijector.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the parameters differ in dtype, or it is neither float32 nor float64.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", https://arxiv.org/abs/1505.05770,
        Eq. 14 and Appendix A.2.
        Eq. `radial`, `radial-inverse` and `positive` of the mathematics page.

    >>> flow = RadialFlow(center=[0., 0.], alpha=0., beta=[0., 1.])
    >>> flow.forward([[3., 4.], [3., 4.]]).numpy().tolist()
    [[3.0, 4.0], [3.5, 4.666666507720947]]
    """

    _PARAMETERS: ClassVar = {'center': 1, 'alpha': 0, 'beta': 0}

    def __init__(
        self, center: Any, alpha: Any, beta: Any, *, validate_args: bool = False, name: str = 'radial_flow'
    ) -> None:
        parameters = dict(locals())
        dtype = common_dtype({'center': center, 'alpha': alpha, 'beta': beta})
        size = last_size('center', center, dtype, name)
        tensors = {
            'center': checked_tensor('center', center, tf.TensorShape([size]), dtype, name),
            'alpha': checked_tensor('alpha', alpha, tf.TensorShape([]), dtype, name),
            'beta': checked_tensor('beta', beta, tf.TensorShape([]), dtype, name),
        }
        super().__init__(tensors, size, dtype, parameters=parameters, validate_args=validate_args, name=name)

    @property
    def center(self) -> Any:
        """The centre."""
        return self._tensors['center']

    @property
    def alpha(self) -> Any:
        """The width, before the constraint."""
        return self._tensors['alpha']

    @property
    def beta(self) -> Any:
        """The strength, before the constraint."""
        return self._tensors['beta']

    def _forward_and_log_det(self, x: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor]:
        width, at_center = positive(values['alpha']), positive(values['beta'])
        offset = x - values['center']
        radius = _norm(offset)
        scale = (width * at_center + radius) / (width + radius)
        return values['center'] + scale[..., tf.newaxis] * offset, _log_det(radius, width, at_center, x)

    def _inverse_and_log_det(self, y: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        width, at_center = positive(values['alpha']), positive(values['beta'])
        offset = y - values['center']
        image = _norm(offset)
        # The positive root of r^2 + B r - width * image = 0, whichever of its two forms does not cancel.
        linear = width * at_center - image
        root = 0.5 * (tf.abs(linear) + tf.sqrt(tf.square(linear) + 4 * width * image))
        radius = tf.where(linear > 0, width * image / root, root)
        scale = (width + radius) / (width * at_center + radius)
        x = values['center'] + scale[..., tf.newaxis] * offset
        return x, _log_det(radius, width, at_center, y), tf.constant(True)


def _log_det(radius: tf.Tensor, width: tf.Tensor, at_center: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Sums up logarithms of sums without a negative term."""
    size = tf.cast(tf.shape(x)[-1], x.dtype)
    across = tf.math.log((width * at_center + radius) / (width + radius))
    along = (radius * (radius + 2 * width) + tf.square(width) * at_center) / tf.square(width + radius)
    return (size - 1) * across + tf.math.log(along)


def _norm(offset: tf.Tensor) -> tf.Tensor:
    """Returns the length of a vector, whose gradient at 0 is 0, as it must be where it only scales the vector."""
    squared = tf.reduce_sum(tf.square(offset), axis=-1)
    is_zero = tf.equal(squared, 0)
    return tf.where(is_zero, tf.zeros([], offset.dtype), tf.sqrt(tf.where(is_zero, tf.ones([], offset.dtype), squared)))
