"""Objectives of variational inference beyond the ELBO."""

from __future__ import annotations

import tensorflow as tf

__all__ = ['importance_weighted_log_likelihood']


def importance_weighted_log_likelihood(log_weights: tf.Tensor, axis: int = 0) -> tf.Tensor:
    r"""Returns the importance-weighted estimate of log p(x), a lower bound that tightens with the number of samples K.

    $$\log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)$$

    With K = 1 this is the ELBO's one-sample estimate.

    Args:
        log_weights: $\log p(x, z_k) - \log q(z_k \mid x)$, a floating tensor of any shape.
        axis: The axis of the samples.

    Returns:
        `log_weights.shape` without `axis`, in the dtype of `log_weights`.

    Raises:
        TypeError: If `log_weights` is not floating.

    Cost: no network pass; the K samples and their log-densities are the caller's.

    References:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", Eq. 8.

    >>> log_likelihood = importance_weighted_log_likelihood(tf.math.log([[1., 2.], [3., 2.]]))
    >>> tf.exp(log_likelihood).numpy().round().tolist()
    [2.0, 2.0]
    """
    log_weights = tf.convert_to_tensor(log_weights, name='log_weights')
    if not log_weights.dtype.is_floating:
        raise TypeError(
            f'log_weights: got dtype {log_weights.dtype.name}, expected a floating one: log p(x, z) - log q(z|x).'
        )
    count = tf.cast(tf.shape(log_weights)[axis], log_weights.dtype)
    return tf.reduce_logsumexp(log_weights, axis=axis) - tf.math.log(count)
