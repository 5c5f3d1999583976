"""The posteriors of VAEs, as layers of one interface: `z, log_q = layer(inputs)`, and `layer.posterior(*inputs)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
import tfp_iaf.keras

from .blog_flow import BlogSampling

if TYPE_CHECKING:
    from .vae import Settings

tfd = tfp.distributions


def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """Returns log p(z) of each row, for the standard normal prior."""
    return tfd.Sample(tfd.Normal(0.0, 1.0), z.shape[-1]).log_prob(z)


def _scale(z_log_var: tf.Tensor, lower: tf.Tensor) -> tf.Tensor:
    """Returns the Cholesky factor of a covariance, of which D * D numbers give the lower triangle."""
    size = z_log_var.shape[-1]
    scale = tf.linalg.band_part(tf.reshape(lower, [-1, size, size]), -1, 0)
    return tf.linalg.set_diag(scale, tf.exp(0.5 * z_log_var))


class FullCovarianceSampling(tfp_iaf.keras.PosteriorSampling):
    """Samples a Gaussian of any covariance, given a mean, log-variances, and D * D numbers for the lower triangle."""

    def posterior(self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None) -> Any:
        """Returns q(z|x); the context is the lower triangle."""
        assert context is not None
        return tfd.MultivariateNormalTriL(z_mean, _scale(z_log_var, context))


class FullCovarianceIAFSampling(tfp_iaf.keras.PosteriorSampling):
    """Sends such a Gaussian through an IAF, which sees the rest of the context."""

    def __init__(self, latent_size: int, flows: int, flow_units: Any, context_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow = tfp_iaf.keras.IAFPosterior(
            latent_size, flows, flow_units, context_shape=context_size, seed=self.seed, name='flow'
        )

    def posterior(self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None) -> Any:
        """Returns q(z|x); the context is the lower triangle, and then that of the flow."""
        assert context is not None
        size = z_mean.shape[-1] ** 2
        base = tfd.MultivariateNormalTriL(z_mean, _scale(z_log_var, context[..., :size]))
        return tfd.TransformedDistribution(base, self.flow.bijector(context[..., size:]))


class Family(NamedTuple):
    """A family of posteriors: its color, its layer, given settings and options, and the context that it takes."""

    color: str
    make: Callable[[Settings, dict[str, Any]], Any]
    context_size: Callable[[Settings], int]
    activation: str | None = 'elu'


def _iaf(settings: Settings, options: dict[str, Any], transform: str = '') -> Any:
    kind: Any = transform or settings.transform
    if kind == 'gated':
        kind = tfp_iaf.transforms.Gated(settings.gate_start)
    return tfp_iaf.keras.IAFSampling(settings.flows, settings.flow_units, transform=kind, **options)


def _steps(layer: Callable[..., Any], num_flows: int = 0, **kwargs: Any) -> Callable[[Settings, dict[str, Any]], Any]:
    return lambda settings, options: layer(num_flows or settings.flows, **kwargs, **options)


def _free(settings: Settings) -> int:
    return settings.context_size


def _triangle(settings: Settings) -> int:
    return settings.latent_size**2


def _full_covariance_iaf(settings: Settings, options: dict[str, Any]) -> Any:
    sizes = (settings.latent_size, settings.flows, settings.flow_units, settings.context_size)
    return FullCovarianceIAFSampling(*sizes, **options)


def _blog(settings: Settings, options: dict[str, Any]) -> Any:
    return BlogSampling(settings.flows, settings.flow_units, settings.mistakes, **options)


_PLANAR, _RADIAL = tfp_iaf.keras.PlanarSampling, tfp_iaf.keras.RadialSampling
_SYLVESTER = tfp_iaf.keras.SylvesterSampling
FAMILIES = {
    'diagonal': Family('#777777', lambda _, options: tfp_iaf.keras.IAFSampling(num_flows=0, **options), lambda _: 0),
    'full covariance': Family('#0072B2', lambda _, options: FullCovarianceSampling(**options), _triangle, None),
    'IAF': Family('#D55E00', _iaf, _free),
    'IAF affine': Family('#E69F00', functools.partial(_iaf, transform='affine'), _free),
    'IAF spline': Family('#A0522D', functools.partial(_iaf, transform='spline'), _free),
    'IAF full covariance': Family('#000000', _full_covariance_iaf, lambda s: _triangle(s) + _free(s), None),
    'planar 4': Family('#B2DF8A', _steps(_PLANAR, 4), _free),
    'planar 16': Family('#33A02C', _steps(_PLANAR, 16), _free),
    'planar 80': Family('#006400', _steps(_PLANAR, 80), _free),
    'radial 16': Family('#F0E442', _steps(_RADIAL, 16), _free),
    'Sylvester orthogonal': Family('#CC79A7', _steps(_SYLVESTER, kind='orthogonal'), _free),
    'Sylvester Householder': Family('#6A3D9A', _steps(_SYLVESTER, kind='householder'), _free),
    'Sylvester triangular': Family('#56B4E9', _steps(_SYLVESTER, kind='triangular'), _free),
}
_BLOG = Family('#999999', _blog, _free)
BASIC = ('diagonal', 'full covariance', 'IAF')


def sample(hidden: Any, settings: Settings) -> Any:
    """Returns z, sampled by a layer 'sampling', given an encoder's last hidden layer."""
    inputs = [keras.layers.Dense(settings.latent_size, name=name)(hidden) for name in ('z_mean', 'z_log_var')]
    options: dict[str, Any] = {'seed': settings.seed, 'name': 'sampling'}
    if settings.sampled_kl:
        options['prior'] = log_standard_normal  # for a function the KL has no closed form
    family = _BLOG if settings.posterior == 'blog' else FAMILIES[settings.posterior]
    size = family.context_size(settings)
    if size:
        activation = 'sigmoid' if 'context' in settings.mistakes else family.activation
        inputs.append(keras.layers.Dense(size, activation, name='context')(hidden))
    z, _ = family.make(settings, options)(inputs)
    return z
