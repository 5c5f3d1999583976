"""The VAEs: their loss, their parts, their schedule, their averages, and a training that is killed."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from experiments import architectures, evaluation, posteriors, runs, vae
from experiments.likelihoods import LIKELIHOODS

from tests.experiments import small
from tests.flows import raises

tfd = tfp.distributions


def compiled(settings, image_shape=(8, 8, 1), steps_per_epoch=1):
    model = vae.make(settings, image_shape)
    vae.compile_model(model, settings, steps_per_epoch)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ('posterior', 'sampled_kl'),
    [('diagonal', True), ('full covariance', False), ('IAF', False), ('blog', True)],
)
def test_its_loss_is_neg_elbo(posterior, sampled_kl):
    images = np.random.default_rng(0).integers(0, 2, [40, 8, 8, 1]).astype(np.float32)
    model = compiled(small.settings(posterior, sampled_kl=sampled_kl, ema=0.0))
    mean = model.get_layer('z_mean')
    mean.kernel.assign(5 * mean.kernel)  # or else the KL would be too small to be missed
    estimates = evaluation.estimate(vae.parts(model), LIKELIHOODS['bernoulli'].neg_log_prob, images, 500)
    many = np.repeat(images, 100, axis=0)
    losses = model.evaluate(many, many, batch_size=2000, verbose=0, return_dict=True)
    assert losses['loss'] == pytest.approx((estimates.reconstruction + estimates.kl).mean(), abs=0.7)
    assert losses['sampling_kl'] == pytest.approx(estimates.kl.mean(), abs=0.6) and estimates.kl.mean() > 10


@pytest.mark.parametrize('size', [1, 3])
def test_full_covariance(size):
    rng = np.random.default_rng(size)
    mean, log_var, lower = (rng.normal(size=[4, n]).astype(np.float32) for n in (size, size, size * size))
    layer = posteriors.FullCovarianceSampling(seed=0)
    z, log_q = layer([mean, log_var, lower])
    scale = np.tril(lower.reshape(-1, size, size), -1) + np.exp(0.5 * log_var)[:, :, None] * np.eye(size)
    reference = tfd.MultivariateNormalTriL(mean, scale.astype(np.float32))
    np.testing.assert_allclose(log_q, reference.log_prob(z), rtol=1e-4, atol=1e-3)
    exact = tfd.kl_divergence(reference, tfd.MultivariateNormalDiag(tf.zeros([4, size])))
    layer([np.repeat(value, 20000, axis=0) for value in (mean, log_var, lower)])
    assert float(layer.losses[0]) == pytest.approx(float(tf.reduce_mean(exact)), rel=0.03)


def test_the_flow_is_as_asked_for():
    layer = vae.make(small.settings(flows=3, flow_units=(8, 9), gate_start=0.5), [8, 8, 1]).get_layer('sampling')
    assert (layer.num_flows, layer.hidden_units, layer.transform.gate_bias) == (3, (8, 9), 0.5)
    layer = vae.make(small.settings(transform='affine'), [8, 8, 1]).get_layer('sampling')
    assert type(layer.transform).__name__ == 'Affine'


@pytest.mark.parametrize(
    ('name', 'image_shape', 'size', 'parameters'),
    [('conv-mnist', (28, 28, 1), 32, 2558017), ('conv-cifar10', (32, 32, 3), 128, 2015427)],
)
def test_as_many_parameters_as_in_the_blog(name, image_shape, size, parameters):
    model = vae.make(small.settings('diagonal', network=name, latent_size=size), image_shape)
    of_sampling = sum(int(np.prod(weight.shape)) for weight in model.get_layer('sampling').weights)
    assert model.count_params() - of_sampling == parameters


@pytest.mark.parametrize('warm_up', [0, 5])
def test_learning_rate(warm_up):
    settings = small.settings('diagonal', learning_rate=0.1, rate_warm_up_steps=warm_up, epochs=5)
    rate = compiled(settings, steps_per_epoch=5).optimizer._learning_rate
    values = np.array([float(rate(step)) for step in range(26)])
    np.testing.assert_allclose(values[:warm_up], 0.1 * np.arange(warm_up) / 5, rtol=1e-5)
    x = np.linspace(0, 1, 26 - warm_up)
    np.testing.assert_allclose(values[warm_up:], 0.1 * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * x))), rtol=1e-4)


class TestAverages:
    def model(self):
        inner = keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
        inputs = keras.Input([4])
        model = keras.Model(inputs, inner(keras.layers.Dense(3, name='first')(inputs)))
        model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), 'mse')
        return model, inner.layers[0]

    def batches(self):
        return np.random.default_rng(0).normal(size=[6, 50, 4]).astype(np.float32)

    def test_statistics_are_means_over_batches(self):
        model, layer = self.model()
        vae.estimate_statistics(model, self.batches())
        hidden = np.array([model.get_layer('first')(batch) for batch in self.batches()])
        np.testing.assert_allclose(layer.moving_mean, hidden.mean(axis=1).mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, hidden.var(axis=1).mean(axis=0), rtol=1e-4)
        assert layer.momentum == 0.99

    def test_validation_has_the_averages_and_training_does_not(self):
        model, layer = self.model()
        x, seen = self.batches().reshape(-1, 4), []

        class Watch(keras.callbacks.Callback):
            def on_test_batch_end(self, batch, logs=None):
                seen.append((layer.moving_variance.numpy(), model.get_layer('first').get_weights()[0]))

            def on_epoch_end(self, epoch, logs=None):
                self.on_test_batch_end(0)

        callbacks = [vae.AveragedWeights(self.batches()), Watch()]
        model.fit(x, x[:, :2], batch_size=100, validation_data=(x, x[:, :2]), callbacks=callbacks, verbose=0)
        (statistics, weights), (trained_statistics, trained_weights) = seen[0], seen[-1]
        expected = np.array([batch @ weights for batch in self.batches()]).var(axis=1).mean(axis=0)
        np.testing.assert_allclose(statistics, expected, rtol=1e-3)
        assert np.all(np.abs(trained_statistics - statistics) > 1e-3) and np.any(weights != trained_weights)
        # At its end, fit leaves the averages.
        np.testing.assert_allclose(model.get_layer('first').get_weights()[0], weights, atol=1e-5)


class KilledError(Exception):
    """What ends a training within an epoch."""


def tiny_convolutions(name, image_shape, outputs, latent_size, hidden_units):
    """An encoder and a decoder with batch normalisation, for 8x8 images."""
    layers = keras.layers
    encoder = [layers.Conv2D(3, 3, 2), layers.BatchNormalization(), layers.Flatten(), layers.Dense(6, 'elu')]
    decoder = [layers.Dense(64, 'elu'), layers.BatchNormalization(), layers.Reshape([8, 8, 1])]
    decoder = [keras.Input([latent_size]), *decoder, layers.Conv2D(outputs, 1)]
    return keras.Sequential([keras.Input(image_shape), *encoder]), keras.Sequential(decoder, name='decoder')


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    data, fingerprint = small.write_mnist(tmp_path)
    settings = small.settings('IAF', data=data, fingerprint=fingerprint)
    settings = vae.Settings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(vae.Settings)})
    monkeypatch.setattr(vae, '_SECONDS_BETWEEN_BACKUPS', 0.0)
    monkeypatch.setattr(vae, '_MOST_STEPS_PER_CALL', 5)
    monkeypatch.setattr(architectures, 'make', tiny_convolutions)
    whole = runs.Store(tmp_path / 'whole').get(vae.train, settings)

    store, end = runs.Store(tmp_path / 'killed'), vae.Watch.on_train_batch_end

    def killed(self, batch, logs=None):
        if self._epoch == 2:
            raise KilledError
        end(self, batch, logs)

    monkeypatch.setattr(vae.Watch, 'on_train_batch_end', killed)
    with pytest.raises(KilledError):
        store.get(vae.train, settings)
    monkeypatch.setattr(vae.Watch, 'on_train_batch_end', end)
    (curves,) = store.folder.glob('checkpoints/*/curves.csv')
    curves.write_text(curves.read_text() + '1')  # a row that was torn
    resumed = store.get(vae.train, settings)
    assert len(whole.weights) == len(resumed.weights) > 20
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for key in ('epoch', 'loss', 'val_neg_elbo'):
        assert list(whole.curves[key]) == list(resumed.curves[key]) and len(whole.curves) == 3
    assert not list(store.folder.glob('checkpoints/*'))
    # Once it has ended it is read.
    monkeypatch.setattr(vae, 'make', None)
    assert np.array_equal(store.get(vae.train, settings).weights[0], whole.weights[0])


def test_what_cannot_be_trained(tmp_path):
    data, fingerprint = small.write_mnist(tmp_path)
    store = runs.Store(tmp_path)
    with raises(ValueError, 'batch_size: got 206', 'expected at most 205'):
        vae.train(store, small.settings(data=data, fingerprint=fingerprint, batch_size=206))
    with raises(ValueError, f'data: got images {fingerprint}', 'expected other'):
        vae.train(store, small.settings(data=data, fingerprint='other'))
    with raises(FloatingPointError, 'the loss became nan within'):
        vae.train(store, small.settings(data=data, fingerprint=fingerprint, learning_rate=float('nan')))
