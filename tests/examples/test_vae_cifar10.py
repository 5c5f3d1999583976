"""The VAEs on CIFAR-10: a tiny run of the script itself."""

import math

import _image_vae
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
import vae_cifar10
from _likelihoods import LIKELIHOODS

from tests.examples import scripts
from tests.examples.image_data import small_settings, write_cifar10

TINY = {'epochs': 1, 'batch_size': 45, 'flows': 1, 'flow_hidden_units': 8, 'context_size': 4, 'latent_size': 4}
TINY |= {'nll_samples': 4, 'nll_images': 10, 'warm_up_steps': 2, 'jobs': 1}


@pytest.mark.slow
def test_tiny_run(tmp_path):
    path, _ = write_cifar10(tmp_path)
    directory, output = scripts.run(vae_cifar10, tmp_path, data=path, posteriors='iaf', **TINY)
    assert 'Images: 90 train, 10 validation, 20 test.' in output
    (run,) = scripts.read_record(directory)['runs']
    assert math.isfinite(run['nll']) and run['neg_elbo'] > run['reconstruction'] > 0
    bits = run['neg_elbo'] / (32 * 32 * 3 * math.log(2))
    assert f'{bits:.3f}' in output and '-ELBO, bits/dim' in output and bits > 4
    height, width, _ = matplotlib.image.imread(directory / 'images.png').shape
    assert height > 100 and width > 600


def test_the_cross_entropy_of_the_blog():
    settings = small_settings('diagonal', network='conv-cifar10', likelihood='cross entropy', binarization=None)
    model = _image_vae.make_vae(settings, [32, 32, 3])
    images = np.random.default_rng(0).uniform(size=[2, 32, 32, 3]).astype(np.float32)
    logits = model(images)
    expected = -np.sum(images * np.log(tf.sigmoid(logits)) + (1 - images) * np.log(tf.sigmoid(-logits)), axis=(1, 2, 3))
    np.testing.assert_allclose(LIKELIHOODS['cross entropy'].neg_log_prob(images, logits), expected, rtol=1e-4)
    assert 'no likelihood' in LIKELIHOODS['cross entropy'].note
