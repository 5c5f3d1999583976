"""Surrogate posteriors that a user of TFP can choose between: TFP's own, and ours."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf

from .gym import Target

tfb, tfd = tfp.bijectors, tfp.distributions

OURS: dict[str, dict[str, Any]] = {
    'IAF affine': {'transform': 'affine'},
    'IAF affine (one order)': {'transform': 'affine', 'alternate_order': False},
    'IAF gated': {'transform': 'gated'},
    'IAF spline': {'transform': 'spline'},
    'IAF spline (one order)': {'transform': 'spline', 'alternate_order': False},
}
RIVALS = ('mean field', 'full rank', 'ASVI', "TFP's IAF", *OURS)


def applies(rival: str, target: Target) -> bool:
    """Tells whether a kind of q exists for a target.

    ASVI is made of the conditionals of a joint distribution, for which TFP has no substitute for a Gaussian process.
    """
    if rival != 'ASVI':
        return True
    if not isinstance(target.prior, tfd.JointDistribution):
        return False
    conditionals = tf.nest.flatten(target.prior.sample_distributions(seed=0)[0])
    return not any(isinstance(conditional, tfd.GaussianProcess) for conditional in conditionals)


def build(rival: str, target: Target, depth: int, seed: int) -> Any:
    """Returns a trainable q; flows have so many steps."""
    keras.utils.set_random_seed(seed)  # TFP's builders have no seed
    if rival in OURS:
        return tfp_iaf.build_iaf_surrogate_posterior(
            target.event_shape, target.bijector, depth, seed=seed, dtype=_dtype(target), **OURS[rival]
        )
    if rival == 'ASVI':
        return tfp.experimental.vi.build_asvi_surrogate_posterior(target.prior)
    if rival == "TFP's IAF":
        return _tutorial(target, depth)
    operators = {'mean field': 'diag', 'full rank': 'tril'}[rival]
    return tfp.experimental.vi.build_affine_surrogate_posterior(
        target.event_shape, operators, target.bijector, dtype=_dtype(target)
    )


def _dtype(target: Target) -> tf.DType:
    return tf.nest.flatten(target.dtype)[0]


def _tutorial(target: Target, depth: int) -> Any:
    """The surrogate of TFP's tutorial 'Variational Inference on Probabilistic Graphical Models with Joint
    Distributions', in the width of ours.
    """
    support = tfb.JointMap(target.bijector) if tf.nest.is_nested(target.bijector) else target.bijector
    shapes = support.inverse_event_shape(target.event_shape)
    sizes = [shape.num_elements() for shape in tf.nest.flatten(shapes)]
    width, dtype = max(sum(sizes), 32), _dtype(target)
    parts: list[Any]
    if not tf.nest.is_nested(shapes):
        parts = [tfb.Reshape(shapes, [sum(sizes)])]
    else:
        reshape = tf.nest.map_structure(lambda shape: tfb.Reshape(shape, [shape.num_elements()]), shapes)
        restructure = tfb.Restructure(tf.nest.pack_sequence_as(shapes, range(len(sizes))))
        parts = [tfb.JointMap(reshape), restructure, tfb.Split(sizes)]
    networks = [
        tfb.AutoregressiveNetwork(
            params=2,
            event_shape=[sum(sizes)],
            hidden_units=[width, width],
            activation='relu',
            dtype=dtype.name,
        )
        for _ in range(depth)
    ]
    for network in networks:
        network.build([None, sum(sizes)])  # otherwise it has no variables before the first sample
    steps = [tfb.Invert(tfb.MaskedAutoregressiveFlow(network)) for network in networks]
    base = tfd.Sample(tfd.Normal(tf.zeros([], dtype), 1.0), [sum(sizes)])
    return tfd.TransformedDistribution(base, tfb.Chain([support, *parts, *steps]))
