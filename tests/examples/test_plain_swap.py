"""The plain swap: a short run of the script, and what it measures."""

import os
import subprocess
import sys

import keras
import numpy as np
import plain_swap
import pytest
import tensorflow as tf

import tfp_iaf.keras


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments', [['--network=dense'], ['--network=conv', '--transform=affine']], ids=['dense', 'conv']
)
def test_prints_a_table(arguments, tmp_path):
    command = [sys.executable, plain_swap.__file__, '--quick', *arguments]
    environment = {**os.environ, 'KERAS_HOME': str(tmp_path / 'keras')}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    title, head, *rows, mean = process.stdout.splitlines()
    assert '400 test digits' in title and head.split() == ['seed', 'Sampling', 'IAFSampling', 'difference']
    values = np.array([[float(value) for value in row.split()] for row in rows])
    assert values[:, 0].tolist() == [0, 1]
    np.testing.assert_allclose(values[:, 2] - values[:, 1], values[:, 3], atol=0.002)
    assert np.all(values[:, 1:3] < 64 * np.log(2))
    means = [float(part) for part in mean.split()[1::3]]
    np.testing.assert_allclose(means, np.mean(values[:, 1:], axis=0), atol=0.002)
    assert [path.name for path in tmp_path.iterdir()] == ['keras']


@pytest.mark.parametrize('network', ['dense', 'conv'])
@pytest.mark.parametrize(
    'make_sampling', [plain_swap.Sampling, lambda: tfp_iaf.keras.IAFSampling(2, (16,))], ids=['plain', 'iaf']
)
def test_a_decoder_that_ignores_z_has_a_known_elbo(network, make_sampling):
    images = plain_swap.load_digits()[1][:20]
    encoder, decoder = plain_swap.make_networks(network)
    decoder.set_weights([np.zeros_like(weight) for weight in decoder.get_weights()])
    sampling = make_sampling()
    parameters = encoder(images)
    sampling(parameters)
    kl = sum(sampling.losses).numpy()
    found = plain_swap.neg_elbo(encoder, decoder, sampling, tf.constant(images), 200)
    assert found == pytest.approx(64 * np.log(2) + kl, abs=0.2)


def test_the_layer_of_the_documentation_and_a_flow_without_steps_are_the_same():
    parameters = [tf.random.stateless_normal([5000, plain_swap.LATENTS], [0, seed]) for seed in range(2)]
    first, second = plain_swap.Sampling(), tfp_iaf.keras.IAFSampling(0)
    z = [first(parameters), second(parameters)[0]]
    np.testing.assert_allclose(sum(first.losses), sum(second.losses), rtol=1e-5)
    for statistic in (tf.math.reduce_mean, tf.math.reduce_std):
        np.testing.assert_allclose(*(statistic(value, axis=0) for value in z), atol=0.15)


def test_data_are_black_or_white_and_do_not_overlap():
    training, test = plain_swap.load_digits()
    assert training.shape == (1397, 8, 8, 1) and test.shape == (400, 8, 8, 1)
    assert set(np.unique(training)) == {0, 1}


def test_training_lowers_the_loss():
    keras.utils.set_random_seed(0)
    images = plain_swap.load_digits()[0][:256]
    sampling = tfp_iaf.keras.IAFSampling(1, (16,))
    encoder, decoder = plain_swap.train(sampling, images, 'dense', 15)
    assert plain_swap.neg_elbo(encoder, decoder, sampling, tf.constant(images), 20) < 0.7 * 64 * np.log(2)
