"""The Sylvester flow as a TFP bijector."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf

from tfp_iaf._checks import checked_tensor
from tfp_iaf.bijectors._base import Values, VectorFlow, common_dtype, last_size, positive
from tfp_iaf.bijectors._tanh_system import log_slopes, solved

__all__ = ['KINDS', 'SylvesterFlow', 'check_kind']

KINDS = ('orthogonal', 'householder', 'triangular')


class SylvesterFlow(VectorFlow):
    r"""A planar flow of M directions at once, with a triangular Jacobian between them.

    $$y = x + Q \hat R \tanh(\tilde R Q^\top x + b), \qquad \log\left|\det \frac{\partial y}{\partial x}\right| =
      \sum_{i=1}^M \log\left(1 + \hat R_{ii} \tilde R_{ii} \tanh'(\tilde R Q^\top x + b)_i\right)$$

    Q has orthonormal columns, and $R$ and $\tilde R$ are upper triangular. The step is invertible for
    $\hat R_{ii} \tilde R_{ii} > -1$. Any R is taken: $\hat R$ is R with the diagonal divided by
    $1 + \max(0, -R_{ii} \tilde R_{ii})$, and so R itself where no product is negative. R = 0 is the identity. The
    paper bounds both diagonals by tanh, whose products lie between -1 and 1.

    The kinds of Q:

    - `'orthogonal'`: Q of the QR decomposition of q `[..., D, M]`, M at most D, with a positive diagonal in its R, so
      that Q is a continuous function of q.
    - `'householder'`: a product of H reflections, q `[..., H, D]`; M = D.
    - `'triangular'`: the identity, or with `reverse` the reversal of the entries, without parameters; M = D. Alternate
      the two over the steps.

    Shapes: x, y `[..., D]`, r and r_tilde `[..., M, M]`, b `[..., M]`, leading shapes broadcast; log-det `[...]`.
    Dtype: that of the parameters, float32 or float64. An event with an entry or a parameter that is not finite, or
    beyond 2.6e15 in float32, comes out as NaN, and leaves no NaN in the gradients of others. A y whose
    x is lost to rounding comes out as NaN, too.

    Cost: O(D M + M^2), value and log-det together, and for Q O(D M^2) or O(D H). `inverse` solves a triangular system
    of monotone scalar equations by Newton's method, usually in ten to twenty-five iterations of O(M^2), and takes a
    product of O(M^3). Derivatives of the inverse are those of the implicit function, right up to the third order. XLA
    cannot compile `'orthogonal'` within `tf.vectorized_map`, where TensorFlow knows no QR decomposition; it raises an
    error.

    Caching: as of `tfp_iaf.InverseAutoregressiveFlow`.

    Args:
        r: R, before the constraint, `[..., M, M]`; what is below the diagonal is not used. As for all parameters: a
            tensor, such as an encoder's output, a `tf.Variable`, or what stands for one, such as a
            `tfp.util.DeferredTensor`.
        r_tilde: $\tilde R$, `[..., M, M]`; what is below the diagonal is not used.
        b: `[..., M]`.
        q: What Q is made of, or `None` for `'triangular'`.
        kind: `'orthogonal'`, `'householder'` or `'triangular'`.
        reverse: Whether a `'triangular'` step takes the entries in reverse order.
        validate_args: As of any TFP bijector.
        name: Name of the bijector.

    Raises:
        ValueError: If the kind is unknown, q does not fit it, or the shapes do not fit.
        TypeError: If the parameters differ in dtype, or it is neither float32 nor float64.

    References:
        van den Berg, Hasenclever, Tomczak and Welling 2018, "Sylvester Normalizing Flows for Variational Inference",
        https://arxiv.org/abs/1803.05649, Section 3.
        Eq. `sylvester`, `sylvester-inverse`, `tanh-system` and `positive` of the mathematics page.

    >>> r, q = tf.linalg.diag([0.5, -0.5]), [[1., 0.], [0., 2.], [0., 0.]]
    >>> flow = SylvesterFlow(r, r_tilde=tf.eye(2), b=[0., 0.], q=q)
    >>> flow.forward(tf.ones([7, 3])).shape, tf.exp(flow.forward_log_det_jacobian(tf.zeros([3]))).numpy().item()
    (TensorShape([7, 3]), 1.0)
    """

    _PARAMETERS: ClassVar = {'r': 2, 'r_tilde': 2, 'b': 1, 'q': 2}

    def __init__(
        self,
        r: Any,
        r_tilde: Any,
        b: Any,
        q: Any = None,
        *,
        kind: str = 'orthogonal',
        reverse: bool = False,
        validate_args: bool = False,
        name: str = 'sylvester_flow',
    ) -> None:
        parameters = dict(locals())
        check_kind(kind)
        if (q is None) != (kind == 'triangular'):
            given = 'None' if q is None else 'a q'
            expected = {'orthogonal': 'a tensor [..., D, M]', 'householder': 'a tensor [..., H, D]'}.get(kind, 'None')
            raise ValueError(f'q: got {given} for kind={kind!r}, expected {expected}.')
        if reverse and kind != 'triangular':
            raise ValueError(f"reverse: got True for kind={kind!r}, expected it for 'triangular' alone. Leave it out.")
        self._kind, self._reverse = kind, reverse
        dtype = common_dtype({'r': r, 'r_tilde': r_tilde, 'b': b, 'q': q})
        rank = last_size('r', r, dtype, name)
        size = rank
        tensors = {
            'r': checked_tensor('r', r, tf.TensorShape([rank, rank]), dtype, name),
            'r_tilde': checked_tensor('r_tilde', r_tilde, tf.TensorShape([rank, rank]), dtype, name),
            'b': checked_tensor('b', b, tf.TensorShape([rank]), dtype, name),
        }
        if q is not None:
            shape = tf.TensorShape([None, rank])
            tensors['q'] = checked_tensor('q', q, shape, dtype, name)
            if kind == 'orthogonal':
                size = tensors['q'].shape[-2] if tensors['q'].shape.rank else None
            if size is not None and rank is not None and size < rank:
                raise ValueError(
                    f'q: got shape {tensors["q"].shape}, expected [..., D, {rank}] with D of at least {rank}: so many '
                    f'columns cannot be orthogonal.'
                )
        super().__init__(tensors, size, dtype, parameters=parameters, validate_args=validate_args, name=name)

    @property
    def r(self) -> Any:
        """The first triangular matrix, before the constraint."""
        return self._tensors['r']

    @property
    def r_tilde(self) -> Any:
        """The second triangular matrix."""
        return self._tensors['r_tilde']

    @property
    def b(self) -> Any:
        """The offset."""
        return self._tensors['b']

    @property
    def q(self) -> Any:
        """What the orthogonal matrix is made of, or `None`."""
        return self._tensors.get('q')

    @property
    def kind(self) -> str:
        """How the orthogonal matrix is made."""
        return self._kind

    def _forward_and_log_det(self, x: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor]:
        r, r_tilde, steepness = _constrained(values['r'], values['r_tilde'])
        basis = self._basis(values.get('q'))
        v = tf.linalg.matvec(r_tilde, self._coordinates(basis, x)) + values['b']
        log_det = tf.reduce_sum(log_slopes(v, steepness), axis=-1)
        return x + self._vector(basis, tf.linalg.matvec(r, tf.tanh(v))), log_det

    def _inverse_and_log_det(self, y: tf.Tensor, values: Values) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        r, r_tilde, steepness = _constrained(values['r'], values['r_tilde'])
        basis = self._basis(values.get('q'))
        right_side = tf.linalg.matvec(r_tilde, self._coordinates(basis, y)) + values['b']
        products = tf.matmul(r_tilde, r)
        coupling = products - tf.linalg.band_part(products, 0, 0)
        v, is_solved = solved(right_side, steepness, coupling)
        log_det = tf.reduce_sum(log_slopes(v, steepness), axis=-1)
        return y - self._vector(basis, tf.linalg.matvec(r, tf.tanh(v))), log_det, is_solved

    def _basis(self, q: Any) -> Any:
        """Returns Q, or the unit vectors of the reflections that it is a product of."""
        if self._kind == 'householder':
            return tf.math.l2_normalize(q, axis=-1, epsilon=1e-30)
        if self._kind == 'triangular':
            return None
        basis, r = tf.linalg.qr(q)
        signs = tf.where(tf.linalg.diag_part(r) < 0, -tf.ones([], q.dtype), tf.ones([], q.dtype))
        return basis * signs[..., tf.newaxis, :]

    def _coordinates(self, basis: tf.Tensor | None, x: tf.Tensor) -> tf.Tensor:
        """Returns the product of the transposed Q and x."""
        if self._kind == 'orthogonal':
            return tf.linalg.matvec(basis, x, transpose_a=True)
        return self._reversed(x) if basis is None else _reflected(x, tf.unstack(basis, axis=-2))

    def _vector(self, basis: tf.Tensor | None, coordinates: tf.Tensor) -> tf.Tensor:
        """Returns the product of Q and coordinates."""
        if self._kind == 'orthogonal':
            return tf.linalg.matvec(basis, coordinates)
        if basis is None:
            return self._reversed(coordinates)
        return _reflected(coordinates, tf.unstack(basis, axis=-2)[::-1])

    def _reversed(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reverse(x, [-1]) if self._reverse else x


def check_kind(kind: object) -> None:
    """Raises an error if there is no such kind of Sylvester flow."""
    if kind not in KINDS:
        raise ValueError(f'kind: got {kind!r}, expected one of {KINDS}.')


def _constrained(r: tf.Tensor, r_tilde: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns both triangular matrices, and 1 plus the products of their diagonals, which is positive."""
    r, r_tilde = tf.linalg.band_part(r, 0, -1), tf.linalg.band_part(r_tilde, 0, -1)
    # Not by tf.linalg.diag_part: XLA cannot compile its gradient for a batch of unknown size.
    one = tf.eye(tf.shape(r)[-1], dtype=r.dtype)
    product = tf.reduce_sum(r * r_tilde * one, axis=-1)
    shrunk = 1 / (1 + tf.nn.relu(-product))
    return r * tf.where(one > 0, shrunk[..., tf.newaxis], tf.ones([], r.dtype)), r_tilde, positive(product)


def _reflected(x: tf.Tensor, units: list[tf.Tensor]) -> tf.Tensor:
    for unit in units:
        x -= 2 * unit * tf.reduce_sum(unit * x, axis=-1, keepdims=True)
    return x
