"""Statistics of batch normalisation that belong to averaged weights."""

import _averaging
import keras
import numpy as np
import pytest


@pytest.fixture
def model():
    inner = keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization(), keras.layers.Dense(2)], name='inner')
    inputs = keras.Input([4])
    model = keras.Model(inputs, inner(keras.layers.Dense(3, name='first')(inputs)))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, 'mse')
    return model


def batches():
    return np.random.default_rng(0).normal(size=[6, 50, 4]).astype(np.float32)


def test_they_are_means_over_batches(model):
    (layer,) = _averaging.normalisations(model)
    _averaging.estimate_statistics(model, batches())
    hidden = np.array([model.get_layer('first')(batch) for batch in batches()])
    np.testing.assert_allclose(layer.moving_mean, hidden.mean(axis=1).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, hidden.var(axis=1).mean(axis=0), rtol=1e-4)
    assert layer.momentum == 0.99


def test_validation_has_the_averages_and_training_does_not(model):
    (layer,) = _averaging.normalisations(model)
    x = batches().reshape(-1, 4)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            seen.append((layer.moving_variance.numpy(), model.get_layer('first').get_weights()[0]))

        def on_epoch_end(self, epoch, logs=None):
            seen.append((layer.moving_variance.numpy(), model.get_layer('first').get_weights()[0]))

    callbacks = [_averaging.AveragedWeights(batches()), Watch()]
    model.fit(x, x[:, :2], epochs=1, batch_size=100, validation_data=(x, x[:, :2]), callbacks=callbacks, verbose=0)
    (statistics, weights), (trained_statistics, trained_weights) = seen[0], seen[-1]
    expected = np.array([batch @ weights for batch in batches()]).var(axis=1).mean(axis=0)
    np.testing.assert_allclose(statistics, expected, rtol=1e-3)
    assert np.all(np.abs(trained_statistics - statistics) > 1e-3)
    assert np.any(weights != trained_weights)
    # At its end, fit leaves the averages.
    np.testing.assert_allclose(model.get_layer('first').get_weights()[0], weights, atol=1e-5)


def test_models_without_any_are_left_alone():
    model = keras.Sequential([keras.Input([4]), keras.layers.Dropout(0.5, seed=0)])
    state = [variable.numpy() for variable in model.variables]
    _averaging.estimate_statistics(model, batches())
    for before, variable in zip(state, model.variables, strict=True):
        np.testing.assert_array_equal(before, variable)
