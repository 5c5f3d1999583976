"""The posteriors of VAEs as layers of one interface: `z, log_q = layer(inputs)`, and `layer.posterior(*inputs)`."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
import tfp_iaf.keras

tfd = tfp.distributions

POSTERIORS = {'diagonal': '#777777', 'full covariance': '#0072B2', 'IAF': '#D55E00'}  # with their colours in plots


@dataclasses.dataclass(frozen=True)
class Flow:
    """The flow of the posterior 'IAF'."""

    num_flows: int = 4
    hidden_units: tuple[int, ...] = (320, 320)
    transform: str = 'gated'
    gate_start: float | None = 2.0  # the gate starts at its sigmoid; `None` with another transform
    context_size: int = 64


@keras.saving.register_keras_serializable(package='examples')
def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """Returns log p(z) of each row, for the standard normal prior."""
    return tfd.Sample(tfd.Normal(0.0, 1.0), z.shape[-1]).log_prob(z)


@keras.saving.register_keras_serializable(package='examples')
class FullCovarianceSampling(tfp_iaf.keras.PosteriorSampling):
    """Samples a Gaussian of any covariance, given a mean, log-variances, and D * D numbers for the lower triangle."""

    def __init__(self, kl_weight: float | None = 1.0, **kwargs: Any) -> None:
        # With a function as the prior, the KL is taken at the samples, as in the runs that were published.
        prior = None if kl_weight is None else log_standard_normal
        super().__init__(**{**kwargs, 'kl_weight': kl_weight, 'prior': prior})

    def posterior(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None
    ) -> tfp.distributions.Distribution:
        """Returns q(z|x); the context is the lower triangle."""
        size = z_mean.shape[-1]
        scale = tf.linalg.band_part(tf.reshape(context, [-1, size, size]), -1, 0)
        scale = tf.linalg.set_diag(scale, tf.exp(0.5 * z_log_var))
        return tfd.MultivariateNormalTriL(z_mean, scale)


def make_sampling(posterior: str, flow: Flow | None, *, kl_weight: float | None = 1.0, seed: int | None = None) -> Any:
    """Makes the layer of a posterior, named 'sampling'."""
    options: dict[str, Any] = {'kl_weight': kl_weight, 'seed': seed, 'name': 'sampling'}
    if posterior == 'diagonal':
        return tfp_iaf.keras.IAFSampling(num_flows=0, **options)
    if posterior == 'full covariance':
        return FullCovarianceSampling(**options)
    if flow is None:
        raise ValueError(f'flow: got None, expected a Flow for the posterior {posterior!r}.')
    transform = flow.transform if flow.gate_start is None else tfp_iaf.transforms.Gated(flow.gate_start)
    return tfp_iaf.keras.IAFSampling(flow.num_flows, flow.hidden_units, transform=transform, **options)


def posterior_inputs(hidden: Any, posterior: str, latent_size: int, flow: Flow | None) -> list[Any]:
    """Returns what the layer of a posterior takes, made from an encoder's last hidden layer."""
    inputs = [keras.layers.Dense(latent_size, name=name)(hidden) for name in ('z_mean', 'z_log_var')]
    if posterior == 'full covariance':
        inputs.append(keras.layers.Dense(latent_size * latent_size, name='lower')(hidden))
    elif flow is not None:
        inputs.append(keras.layers.Dense(flow.context_size, activation='elu', name='context')(hidden))
    return inputs
