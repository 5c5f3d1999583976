"""The triangular system of tanh units that inverts planar and Sylvester flows, and the derivatives of its solution."""

from __future__ import annotations

import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf.inversion._iteration import round_off

__all__ = ['log_slopes', 'solved']


def slopes(v: tf.Tensor, steepness: tf.Tensor) -> tf.Tensor:
    """Returns the derivative of v + (s - 1) tanh(v) by v, a sum of two terms that are not negative."""
    return tf.square(tf.tanh(v)) + steepness * _sech_squared(v)


def log_slopes(v: tf.Tensor, steepness: tf.Tensor) -> tf.Tensor:
    """Returns the logarithms of `slopes`."""
    return tf.math.log(slopes(v, steepness))


def _sech_squared(v: tf.Tensor) -> tf.Tensor:
    # 1 - tanh(v)^2 would lose all digits in the tails.
    return 4 * tf.sigmoid(2 * v) * tf.sigmoid(-2 * v)


def solved(
    right_side: tf.Tensor, steepness: tf.Tensor, coupling: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Solves $v_i + (s_i - 1) \tanh v_i + \sum_{j > i} K_{ij} \tanh v_j = d_i$ for v.

    Given the later entries, each equation has a left side that is increasing, odd, and concave or convex on either side
    of 0, so that Newton's method from within bounds that are known converges to the only solution. All entries are
    iterated at once: the last one converges first, and each one once those after it have. The number of iterations is
    bounded; an event that is not solved in the end, as where rounding is amplified beyond all digits, comes out as
    zeros.

    Args:
        right_side: d, `[..., M]`.
        steepness: s, positive, `[..., M]`.
        coupling: K, zero on and below the diagonal, `[..., M, M]`, or `None` for zeros.

    Returns:
        v: `[..., M]`.
        is_solved: Which events are, `[...]`.

    The iteration has no gradient. Two steps of Newton's method on the whole system, which follow it, have one: at a
    solution, the first makes first derivatives right, and the second those of second and third order too, in reverse
    and in forward mode, wherever TensorFlow differentiates plain operations. From the fourth on they are not. The steps
    leave the value as it is, since with a matrix that is nearly singular they could spoil it.

    Cost: O(M^2) an iteration, usually ten to twenty-five; a gradient takes no memory for them.

    References:
        Eq. `tanh-system` of the mathematics page.

    >>> v, is_solved = solved(tf.constant([0.5, 2.0]), steepness=tf.constant([0.1, 3.0]))
    >>> tf.round(100 * (v + [-0.9, 2.0] * tf.tanh(v))).numpy().tolist(), bool(is_solved)
    ([50.0, 200.0], True)
    """
    right_side += tf.zeros_like(steepness)  # of the shape that v keeps
    v = tf.stop_gradient(_iterated(right_side, steepness, coupling))
    residual, _, size = _residual(v, right_side, steepness, coupling)
    is_solved = tf.reduce_all(tf.abs(residual) <= 4000 * round_off(v.dtype) * size, axis=-1)
    for _ in range(2):
        residual, *_ = _residual(v, right_side, steepness, coupling)
        v -= _newton_step(residual - tf.stop_gradient(residual), v, steepness, coupling)
    return tf.where(is_solved[..., tf.newaxis], v, tf.zeros([], v.dtype)), is_solved


def _residual(
    v: tf.Tensor, right_side: tf.Tensor, steepness: tf.Tensor, coupling: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns by how much each equation is missed, its right side c, and the size of the terms, which are rounded."""
    own, c = (steepness - 1) * tf.tanh(v), right_side
    size = tf.abs(v) + tf.abs(own) + tf.abs(c)
    if coupling is not None:
        c -= tf.linalg.matvec(coupling, tf.tanh(v))
        size += tf.linalg.matvec(tf.abs(coupling), tf.abs(tf.tanh(v)))
    return v + own - c, c, size


def _iterated(right_side: tf.Tensor, steepness: tf.Tensor, coupling: tf.Tensor | None) -> tf.Tensor:
    excess, count = steepness - 1, tf.shape(right_side)[-1]
    # A sum of M terms is not more exact.
    tolerance = round_off(right_side.dtype) * tf.cast(2 + count, right_side.dtype)

    def step(v: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        residual, c, size = _residual(v, right_side, steepness, coupling)
        is_open = tf.abs(residual) > tolerance * size
        # The bounds of v + (s - 1) tanh(v) = c, where |tanh| < 1 and both sides have one sign.
        lowest, highest = tf.abs(c) - tf.maximum(excess, 0), tf.abs(c) - tf.minimum(excess, 0)
        new = tf.sign(c) * tf.clip_by_value(tf.sign(c) * v, tf.maximum(lowest, 0), highest)
        new -= (new + excess * tf.tanh(new) - c) / slopes(new, steepness)
        # What is solved stands still: round-off in it, divided by small slopes, would keep those before it moving.
        return tf.where(is_open, new, v), tf.reduce_any(is_open)

    # A tape that might differentiate the loop would keep the values of every iteration.
    with _compat.stop_recording():
        start = (right_side, tf.constant(True))
        # At its slowest, where s is nearly 0, Newton's method takes off a third of the error: sixty times are enough.
        if not _compat.is_vectorizing():
            return tf.while_loop(lambda v, is_open: is_open, step, start, maximum_iterations=60 * count)[0]
        # XLA cannot compile a vectorised loop whose rows end at different times. Nearly all entries converge at once.
        return tf.while_loop(lambda v, is_open: True, step, start, maximum_iterations=60 + count)[0]


def _newton_step(residual: tf.Tensor, v: tf.Tensor, steepness: tf.Tensor, coupling: tf.Tensor | None) -> tf.Tensor:
    slope = slopes(v, steepness)
    if coupling is None:
        return residual / slope
    jacobian = tf.linalg.diag(slope) + coupling * _sech_squared(v)[..., tf.newaxis, :]
    return tf.linalg.triangular_solve(jacobian, residual[..., tf.newaxis], lower=False)[..., 0]
