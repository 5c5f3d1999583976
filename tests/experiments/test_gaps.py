"""Gaps of a VAE whose true posterior is known."""

import keras
import numpy as np
import tensorflow as tf
from experiments import gaps, vae
from experiments.likelihoods import bernoulli

import tfp_iaf


def test_q_of_each_image_becomes_the_true_posterior_where_its_family_has_it():
    """A decoder that does not look at z leaves the prior as the posterior, and the ELBO equal to log p(x)."""
    images = np.random.default_rng(0).integers(0, 2, [30, 2, 2, 1]).astype(np.float32)
    inputs = [keras.Input([2]), keras.Input([2])]
    sampling = tfp_iaf.keras.IAFSampling(num_flows=0)
    sampling(inputs)
    x, z = keras.Input([2, 2, 1]), keras.Input([2])
    flat = keras.layers.Flatten()(x)
    outputs = [keras.layers.Dense(2, bias_initializer='ones')(flat), keras.layers.Dense(2)(flat)]
    decoded = keras.layers.Dense(4, kernel_initializer='zeros')(z)
    parts = vae.Parts(keras.Model(x, outputs), sampling, keras.Model(z, keras.layers.Reshape([2, 2, 1])(decoded)))
    nll = bernoulli(tf.constant(images), tf.zeros_like(images)).numpy()
    before, after = (gaps.local_neg_elbo(parts, bernoulli, images, steps, samples=400) for steps in (1, 1000))
    assert np.mean(before - nll) > 0.5
    np.testing.assert_allclose(after, nll, atol=0.02)
    # A last piece of images that is smaller.
    some = gaps.local_neg_elbo(parts, bernoulli, np.repeat(images, 14, axis=0), 1, samples=4)
    assert some.shape == (420,)
