"""A sample of a posterior, its log-density, and its KL divergence from a prior, from one pass of the networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

from tfp_iaf import _compat

__all__ = ['Draw', 'Prior', 'draw', 'entries_of', 'is_by_entry', 'kl_divergence', 'log_prob']

# A scalar distribution is the prior of every entry. A function maps z to log p(z).
Prior: TypeAlias = Callable[[tf.Tensor], tf.Tensor] | tfd.Distribution


class Draw(NamedTuple):
    r"""One sample for each row of a posterior.

    Attributes:
        q: The posterior.
        z: The sample, `[batch, *event_shape]`.
        log_q: Its log-density, `[batch]`.
        base: Where q is a transformed distribution: its base $q_0$.
        z_0: The sample of the base that became z.
        log_det: The log-det of the bijector at $z_0$, `[batch]`.
        log_derivatives: Its summands by entry, `[batch, *event_shape]`, where the bijector has
            `forward_log_derivatives`.
    """

    q: tfd.Distribution
    z: tf.Tensor
    log_q: tf.Tensor
    base: tfd.Distribution | None = None
    z_0: tf.Tensor | None = None
    log_det: tf.Tensor | None = None
    log_derivatives: tf.Tensor | None = None


def draw(q: tfd.Distribution, seed: tf.Tensor) -> Draw:
    """Samples a posterior once for each row; every network is evaluated once.

    Where the number of rows is not known, the base, if it has rows, must have all rows of q.

    >>> q = tfd.MultivariateNormalDiag(tf.zeros([5, 3]), tf.ones([5, 3]))
    >>> sample = draw(q, seed=[0, 1])
    >>> sample.z.shape, sample.log_q.shape
    (TensorShape([5, 3]), TensorShape([5]))
    """
    base = _base_of(q)
    if base is None:
        return Draw(q, *q.experimental_sample_and_log_prob(seed=seed))
    z_0 = _sample_of_every_row(base, q, seed)
    z = q.bijector.forward(z_0)
    log_derivatives, rank = None, q.event_shape.rank
    if hasattr(q.bijector, 'forward_log_derivatives'):
        log_derivatives = q.bijector.forward_log_derivatives(z_0)
        log_det = _sum_of_events(log_derivatives, rank)
    else:
        log_det = q.bijector.forward_log_det_jacobian(z_0, event_ndims=rank)
    return Draw(q, z, base.log_prob(z_0) - log_det, base, z_0, log_det, log_derivatives)


def is_by_entry(q: tfd.Distribution, prior: Prior) -> bool:
    """Tells whether `kl_divergence` gives the summands of the KL by entry."""
    if entries_of(prior) is None:
        return False
    base = _base_of(q)
    if base is None:
        return entries_of(q) is not None
    return entries_of(base) is not None and hasattr(q.bijector, 'forward_log_derivatives')


def kl_divergence(sample: Draw, prior: Prior) -> tf.Tensor:
    r"""Returns KL(q || p) of each row, `[batch]`, or, if `is_by_entry`, its summands, `[batch, *event_shape]`.

    $$\mathrm{KL}(q \,\|\, p) = \mathbb{E}\left[-H(q_0) - \log\left|\det \frac{\partial z}{\partial z_0}\right| - \log
      p(z) + c\,\big(\log p(z_0) + H(q_0) + \mathrm{KL}(q_0 \,\|\, p)\big)\right], \quad c = \overline{\min(1, \partial
      z / \partial z_0)^2}$$

    for a bijector that takes z_0 of a base q_0 to z. The last term has mean zero, and takes away the noise that z has
    from z_0: at the identity, where c is 1, all of it, so that the KL is exact. c is a mean over the other rows, so it
    does not depend on a row's own noise; for a single row it is 1. Without a bijector there is only KL(q_0 || p). Where
    TFP does not know that, log q(z) - log p(z) estimates the whole KL.

    References:
        Eq. `kl-gaussian`, `kl-control-variate` and `kl-by-entry` of the mathematics page.

    >>> q = tfd.Independent(tfd.Normal(tf.zeros([5, 3]), 1.0), 1)
    >>> kl_divergence(draw(q, seed=[0, 1]), tfd.Normal(1.0, 1.0)).numpy()[0].tolist()
    [0.5, 0.5, 0.5]
    """
    return _by_entry(sample, prior) if is_by_entry(sample.q, prior) else _by_row(sample, prior)


def _by_entry(sample: Draw, prior: Prior) -> tf.Tensor:
    base, p = entries_of(sample.q if sample.base is None else sample.base), entries_of(prior)
    assert base is not None and p is not None
    z_0 = sample.z if sample.z_0 is None else sample.z_0
    exact = _registered(base, p)
    if sample.base is None:
        kl = base.log_prob(z_0) - p.log_prob(z_0) if exact is None else exact
    elif exact is None:
        kl = base.log_prob(z_0) - p.log_prob(sample.z) - sample.log_derivatives
    else:
        kl = _with_control_variate(sample, exact, base, p.log_prob, sample.log_derivatives)
    return tf.broadcast_to(kl, tf.shape(sample.z))


def _by_row(sample: Draw, prior: Prior) -> tf.Tensor:
    kl = None
    if isinstance(prior, tfd.Distribution):
        shape = sample.q.event_shape
        kl = _registered_by_row(sample.q, prior, shape)
        if kl is None and sample.base is not None:
            exact = _registered_by_row(sample.base, prior, shape)
            if exact is not None:
                log_p = functools.partial(log_prob, prior)
                kl = _with_control_variate(sample, exact, sample.base, log_p, sample.log_det, shape.num_elements())
    if kl is None:
        kl = sample.log_q - log_prob(prior, sample.z)
    return tf.broadcast_to(kl, tf.shape(sample.z)[:1])


def _with_control_variate(
    sample: Draw,
    exact: tf.Tensor,
    base: tfd.Distribution,
    log_prior: Callable[[tf.Tensor], tf.Tensor],
    log_det: tf.Tensor,
    size: int = 1,
) -> tf.Tensor:
    """Returns the KL of what a flow makes of `size` entries of a base, whose own KL is known, for each row.

    Where the flow contracts by g, the part of log p(z) that varies with z_0 is g squared times that of log p(z_0). With
    c = 1 for every flow, the noise of a wide base would enter, though the flow has taken it away, and end some
    trainings.
    """
    log_p_0, log_p = log_prior(sample.z_0), log_prior(sample.z)
    log_det = tf.broadcast_to(log_det, tf.shape(log_p))
    squares = tf.exp(2.0 * tf.minimum(log_det / tf.cast(size, log_det.dtype), 0.0))
    squares = tf.where(tf.math.is_finite(squares), squares, tf.zeros([], squares.dtype))  # NaN stays in its row
    others = tf.cast(tf.shape(squares)[0] - 1, squares.dtype)
    mean = (tf.reduce_sum(squares, axis=0, keepdims=True) - squares) / tf.maximum(others, 1.0)
    lack = tf.stop_gradient(tf.where(others > 0.0, 1.0 - mean, tf.zeros([], squares.dtype)))
    try:
        entropy = base.entropy()
    except NotImplementedError:
        entropy = -base.log_prob(sample.z_0)
    return exact + (log_p_0 - log_p - log_det) - lack * (exact + entropy + log_p_0)


def log_prob(prior: Prior, z: tf.Tensor) -> tf.Tensor:
    """Returns log p(z), `[batch]`, for z `[batch, *event_shape]`."""
    if isinstance(prior, tfd.Distribution):
        log_p = prior.log_prob(z)
        return _sum_of_events(log_p, z.shape.rank - 1) if prior.event_shape.rank == 0 else log_p
    log_p = tf.convert_to_tensor(prior(z))
    if log_p.shape.rank not in (None, 1) or not log_p.shape.is_compatible_with(z.shape[:1]):
        raise ValueError(
            f'prior: returned shape {log_p.shape} for z of shape {z.shape}, expected {z.shape[:1]}: one log p(z) for '
            f'each row. Sum over the entries, and drop axes of size 1.'
        )
    return tf.cast(log_p, z.dtype)


def entries_of(distribution: Prior) -> tfd.Distribution | None:
    """Returns the scalar distributions of the entries of a distribution if these are independent, or `None`.

    >>> entries_of(tfd.MultivariateNormalDiag(tf.zeros([3]), tf.ones([3]))).batch_shape
    TensorShape([3])
    """
    if not isinstance(distribution, tfd.Distribution):
        return None
    if distribution.event_shape.rank == 0:
        return distribution
    if isinstance(distribution, tfd.MultivariateNormalDiag):
        return tfd.Normal(distribution.mean(), distribution.stddev())
    # Of a distribution that is no CompositeTensor, TFP makes an object of another class than tfd.Independent or
    # tfd.Sample, so the class cannot be asked for.
    if hasattr(distribution, 'reinterpreted_batch_ndims'):
        return entries_of(distribution.distribution)
    return _entries_of_sample(distribution) if hasattr(distribution, 'sample_shape') else None


def _entries_of_sample(distribution: tfd.Distribution) -> tfd.Distribution | None:
    entries, inner = entries_of(distribution.distribution), distribution.distribution.event_shape.rank
    if entries is None or entries.batch_shape.rank == 0:
        return entries
    outer = distribution.event_shape.rank - inner
    return entries[(..., *[tf.newaxis] * outer, *[slice(None)] * inner)]


def _base_of(q: tfd.Distribution) -> tfd.Distribution | None:
    """Returns the base of a transformed distribution if its points are z at the identity, or `None`.

    A `tfd.MultivariateNormalDiag` is one too, but its entries give the KL without a base.
    """
    bijector, base = getattr(q, 'bijector', None), getattr(q, 'distribution', None)
    if not isinstance(bijector, tfp.bijectors.Bijector) or not isinstance(base, tfd.Distribution):
        return None
    if entries_of(q) is not None or base.event_shape != q.event_shape:
        return None
    return base if _compat.is_injective(bijector) else None


def _sample_of_every_row(base: tfd.Distribution, q: tfd.Distribution, seed: tf.Tensor) -> tf.Tensor:
    # Rows of q that the base does not have would all get the same noise.
    if base.batch_shape.rank == 0:
        return base.sample(q.batch_shape_tensor(), seed=seed)
    if base.batch_shape.as_list() == q.batch_shape.as_list():
        return base.sample(seed=seed)
    return _compat.BatchBroadcast(base, q.batch_shape_tensor()).sample(seed=seed)


def _sum_of_events(values: tf.Tensor, event_rank: int) -> tf.Tensor:
    return tf.reduce_sum(values, axis=list(range(-event_rank, 0)))


def _registered(a: tfd.Distribution, b: tfd.Distribution) -> tf.Tensor | None:
    try:
        return tfd.kl_divergence(a, b)
    except NotImplementedError:
        return None


def _registered_by_row(a: tfd.Distribution, b: tfd.Distribution, event_shape: tf.TensorShape) -> tf.Tensor | None:
    entries = entries_of(a), entries_of(b)
    if entries[0] is not None and entries[1] is not None:
        kl = _registered(*entries)
        # Entries that are equal may share a parameter.
        return None if kl is None else _sum_of_events(kl + tf.zeros(event_shape, kl.dtype), event_shape.rank)
    kl = _registered(a, b)
    return _registered(_as_gaussian(a, event_shape), _as_gaussian(b, event_shape)) if kl is None else kl


def _as_gaussian(distribution: tfd.Distribution, event_shape: tf.TensorShape) -> tfd.Distribution:
    """Returns a vector of independent Gaussians as the kind of distribution that TFP compares with a correlated one."""
    entries = entries_of(distribution)
    if isinstance(entries, tfd.Normal) and event_shape.rank == 1:
        zeros = tf.zeros(event_shape, entries.dtype)
        return tfd.MultivariateNormalDiag(zeros + entries.loc, zeros + entries.scale)
    return distribution
