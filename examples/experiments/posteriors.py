"""The posteriors of VAEs, as layers of one interface: `z, log_q = layer(inputs)`, and `layer.posterior(*inputs)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
import tfp_iaf.keras

from .blog_flow import BlogSampling

if TYPE_CHECKING:
    from .vae import Settings

tfd = tfp.distributions

COLORS = {'diagonal': '#777777', 'full covariance': '#0072B2', 'IAF': '#D55E00'}


def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """Returns log p(z) of each row, for the standard normal prior."""
    return tfd.Sample(tfd.Normal(0.0, 1.0), z.shape[-1]).log_prob(z)


class FullCovarianceSampling(tfp_iaf.keras.PosteriorSampling):
    """Samples a Gaussian of any covariance, given a mean, log-variances, and D * D numbers for the lower triangle."""

    def posterior(self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None) -> Any:
        """Returns q(z|x); the context is the lower triangle."""
        size = z_mean.shape[-1]
        scale = tf.linalg.band_part(tf.reshape(context, [-1, size, size]), -1, 0)
        return tfd.MultivariateNormalTriL(z_mean, tf.linalg.set_diag(scale, tf.exp(0.5 * z_log_var)))


def sample(hidden: Any, settings: Settings) -> Any:
    """Returns z, sampled by a layer 'sampling', given an encoder's last hidden layer."""
    inputs = [keras.layers.Dense(settings.latent_size, name=name)(hidden) for name in ('z_mean', 'z_log_var')]
    options: dict[str, Any] = {'seed': settings.seed, 'name': 'sampling'}
    if settings.sampled_kl:
        options['prior'] = log_standard_normal  # for a function the KL has no closed form
    layer: Any
    if settings.posterior == 'diagonal':
        layer = tfp_iaf.keras.IAFSampling(num_flows=0, **options)
    elif settings.posterior == 'full covariance':
        inputs.append(keras.layers.Dense(settings.latent_size**2, name='lower')(hidden))
        layer = FullCovarianceSampling(**options)
    else:
        activation = 'sigmoid' if 'context' in settings.mistakes else 'elu'
        inputs.append(keras.layers.Dense(settings.context_size, activation, name='context')(hidden))
        if settings.posterior == 'IAF':
            gated = tfp_iaf.transforms.Gated(settings.gate_start)
            transform = gated if settings.transform == 'gated' else settings.transform
            layer = tfp_iaf.keras.IAFSampling(settings.flows, settings.flow_units, transform=transform, **options)
        else:
            layer = BlogSampling(settings.flows, settings.flow_units, settings.mistakes, **options)
    z, _ = layer(inputs)
    return z
