"""A VAE of 8x8 images that is quick to make and to train."""

import dataclasses

import keras
import keras_vae
from _keras_vae import Settings

SMALL = Settings(
    2, '', 2, batch_size=50, latent_size=3, filters=(4, 4), hidden_units=(8,), context_size=4, evaluation_samples=200
)


def small_model(num_flows=2):
    keras.utils.set_random_seed(0)
    return keras_vae.make_vae(dataclasses.replace(SMALL, num_flows=num_flows), [8, 8, 1])
