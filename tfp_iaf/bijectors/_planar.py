"""The planar flow as a TFP bijector."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf

from tfp_iaf._checks import checked_tensor
from tfp_iaf.bijectors._base import Values, VectorFlow, common_dtype, last_size, positive
from tfp_iaf.bijectors._tanh_system import log_slopes, solved

__all__ = ['PlanarFlow']


class PlanarFlow(VectorFlow):
    r"""A step that moves every point along one direction, by an amount that changes across one plane.

    $$y = x + \hat u \tanh(w^\top x + b), \qquad \log\left|\det \frac{\partial y}{\partial x}\right| =
      \log\left(1 + w^\top \hat u\, \tanh'(w^\top x + b)\right)$$

    The step is invertible for $w^\top \hat u > -1$. Any u is taken; where it points against w, $\hat u$ is u with as
    much of w added as the condition needs. Where $w^\top u \ge 0$, $\hat u$ is u itself, and u = 0 is the identity. The
    paper's own choice, $w^\top \hat u = \log(1 + e^{w^\top u}) - 1$, reaches the same maps.

    Shapes: x, y, u and w `[..., D]`, b `[...]`, leading shapes broadcast; log-det `[...]`. Dtype: that of the
    parameters, float32 or float64. An event with an entry or a parameter that is not finite, or beyond 2.6e15 in
    float32, comes out as NaN, and leaves no NaN in the gradients of others.

    Cost: O(D), value and log-det together. `inverse` solves one monotone scalar equation by Newton's method, usually in
    less than ten iterations; D does not enter into them. Derivatives of the inverse are those of the implicit function,
    right up to the third order.

    Caching: as of `tfp_iaf.InverseAutoregressiveFlow`.

    Args:
        u: The direction, `[..., D]`. As for all parameters: a tensor, such as an encoder's output, a `tf.Variable`, or
            what stands for one, such as a `tfp.util.DeferredTensor`.
        w: The normal of the plane, `[..., D]`.
        b: The offset of the plane, `[...]`.
        validate_args: As of any TFP bijector.
        name: Name of the bijector.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the parameters differ in dtype, or it is neither float32 nor float64.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", https://arxiv.org/abs/1505.05770,
        Eq. 10 to 12 and Appendix A.1.
        Eq. `planar` and `positive` of the mathematics page.

    >>> flow = PlanarFlow(u=[[1., 0.], [-1., 0.]], w=[1., 1.], b=0.)
    >>> y = flow.forward(tf.zeros([7, 2, 2]))
    >>> y.shape, tf.exp(flow.forward_log_det_jacobian(tf.zeros([2]))).numpy().tolist()
    (TensorShape([7, 2, 2]), [2.0, 0.5])
    """

    _PARAMETERS: ClassVar = {'u': 1, 'w': 1, 'b': 0}

    def __init__(self, u: Any, w: Any, b: Any, *, validate_args: bool = False, name: str = 'planar_flow') -> None:
        parameters = dict(locals())
        dtype = common_dtype({'u': u, 'w': w, 'b': b})
        size = last_size('u', u, dtype, name)
        tensors = {
            'u': checked_tensor('u', u, tf.TensorShape([size]), dtype, name),
            'w': checked_tensor('w', w, tf.TensorShape([size]), dtype, name),
            'b': checked_tensor('b', b, tf.TensorShape([]), dtype, name),
        }
        super().__init__(tensors, size, dtype, parameters=parameters, validate_args=validate_args, name=name)

    @property
    def u(self) -> Any:
        """The direction, before the constraint."""
        return self._tensors['u']

    @property
    def w(self) -> Any:
        """The normal of the plane."""
        return self._tensors['w']

    @property
    def b(self) -> Any:
        """The offset of the plane."""
        return self._tensors['b']

    def _forward_and_log_det(self, x: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor]:
        direction, steepness = _constrained(values['u'], values['w'])
        v = _dot(values['w'], x) + values['b']
        return x + direction * tf.tanh(v)[..., tf.newaxis], log_slopes(v, steepness)

    def _inverse_and_log_det(self, y: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        direction, steepness = _constrained(values['u'], values['w'])
        right_side = _dot(values['w'], y) + values['b']
        v, is_solved = solved(right_side[..., tf.newaxis], steepness[..., tf.newaxis])
        return y - direction * tf.tanh(v), log_slopes(v[..., 0], steepness), is_solved


def _constrained(u: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the direction, and 1 plus its product with w, which is positive."""
    product = _dot(w, u)
    # Of u along w, where that is negative. By the direction of w: its square may underflow.
    against = tf.nn.relu(-_dot(tf.math.l2_normalize(w, axis=-1, epsilon=1e-30), u))
    added = tf.square(against) / (1 + tf.nn.relu(-product))
    return u + w * added[..., tf.newaxis], positive(product)


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(a * b, axis=-1)
