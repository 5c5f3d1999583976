"""The warm-up of the weight of the KL term, in either Keras."""

import numpy as np
import pytest
import tensorflow as tf

from tests.flows import raises
from tests.keras_models import FEATURES, K2, K3, LATENT, Kit, data, each_kit, flow_of


def recorder(kit: Kit, layer):
    """A callback that keeps the weight of every training step."""
    weights = []
    callback = kit.keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs=None: weights.append(layer.kl_weight_in_training.numpy())
    )
    callback.weights = weights
    return callback


def one_output(kit, optimizer=None, **kwargs):
    """A model that is run eagerly: a test of callbacks needs no flow, and nothing compiled."""
    model = kit.one_output_model(num_flows=0)
    optimizer = optimizer or kit.keras.optimizers.SGD(0.0)
    model.compile(optimizer, loss='mse', metrics=['mse'], run_eagerly=True, **kwargs)
    return model


def fit(model, rows=12, **kwargs):
    return model.fit(data(rows), data(rows), batch_size=5, verbose=0, **kwargs).history


def weights_in(logs, prefix=''):
    """The weight that each epoch took."""
    loss, mse, kl = (np.array(logs[prefix + name]) for name in ('loss', 'mse', 'flow_kl'))
    return (loss - mse) / kl


def evaluated_weight(model):
    return weights_in(model.evaluate(data(5), data(5), verbose=0, return_dict=True))


# Training


@pytest.mark.slow
@each_kit
def test_it_is_linear_in_the_step_in_training_alone_and_continues_in_a_resumed_training(kit, tmp_path):
    model = one_output(kit)
    for expected in ([0.1, 0.18, 0.26], [0.34, 0.42, 0.5]):
        record, warmup = recorder(kit, flow_of(model)), kit.KLWarmup(5, start=0.1)
        logs = fit(model, epochs=3, rows=5, callbacks=[warmup, record], validation_data=(data(), data()))
        np.testing.assert_allclose(record.weights, expected, rtol=1e-6)
        np.testing.assert_allclose(weights_in(logs), expected, rtol=1e-3)
        np.testing.assert_allclose(weights_in(logs, 'val_'), [0.5] * 3, rtol=1e-3)
        assert flow_of(model).get_config()['kl_weight'] == 0.5
        model.save(tmp_path / 'model.keras')
        model = kit.keras.models.load_model(tmp_path / 'model.keras')
        model.run_eagerly = True
        assert flow_of(model).kl_weight.numpy() == 0.5


@pytest.mark.slow
def test_gradients_that_are_accumulated():
    """With one optimizer step in 11 batches, an epoch may end without any."""
    model = one_output(K3, K3.keras.optimizers.SGD(0.0, gradient_accumulation_steps=11))
    record = recorder(K3, flow_of(model))
    model.fit(data(10), data(10), batch_size=1, epochs=2, verbose=0, callbacks=[K3.KLWarmup(2), record])
    assert record.weights == [0.0] * 11 + [0.25] * 9


def test_full_weight_may_change_in_the_warmup():
    model = one_output(K3)
    flow = flow_of(model)
    record = recorder(K3, flow)

    class Change(K3.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            flow.kl_weight.assign(2.0 * (1 + epoch))

    fit(model, epochs=2, rows=5, callbacks=[K3.KLWarmup(4, start=1.0), Change(), record])
    np.testing.assert_allclose(record.weights, [1.0, 1.75], rtol=1e-6)
    assert flow.kl_weight_in_training.numpy() == 4.0, 'training has ended'


@each_kit
def test_under_half_precision(kit):
    model = kit.one_output_model(num_flows=0, dtype='mixed_float16')
    record = recorder(kit, flow_of(model))
    optimizer = kit.keras.mixed_precision.LossScaleOptimizer(kit.keras.optimizers.SGD(0.01), initial_scale=1.0)
    model.compile(optimizer, loss='mse', run_eagerly=True)
    fit(model, rows=10, callbacks=[kit.KLWarmup(4), record])
    np.testing.assert_allclose(record.weights, [0.0, 0.125], rtol=1e-6)


def test_executions_of_several_steps_share_a_weight():
    model = one_output(K3, steps_per_execution=2)
    record = recorder(K3, flow_of(model))
    fit(model, epochs=2, rows=10, callbacks=[K3.KLWarmup(4), record])
    np.testing.assert_allclose(record.weights, [0.0, 0.25], rtol=1e-6)


def test_no_wait_for_the_results_of_a_batch():
    """tf_keras makes numbers of the logs of every batch, unless all callbacks say that they need none."""
    callbacks = K2.keras.callbacks.CallbackList([K2.KLWarmup(4)], model=one_output(K2))
    assert callbacks._batch_hooks_support_tf_logs


@each_kit
def test_it_finds_nested_layers(kit):
    class Outer(kit.keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = {'flow': kit.layer(kl_weight=0.25)}

    nested = [kit.layer(kl_weight=2.0), Outer(), kit.layer(kl_weight=None)]
    model, callback = kit.keras.Sequential([kit.keras.Sequential(nested)]), kit.KLWarmup(2, start=0.125)
    model.compile('sgd')
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_batch_begin(0)
    assert nested[0].kl_weight_in_training.numpy() == 0.125 == nested[1].parts['flow'].kl_weight_in_training.numpy()
    assert nested[2].kl_weight is None


# Evaluation


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kit', 'files'), [(K3, ['model.weights.h5']), (K2, ['model.h5', 'model'])], ids=['keras', 'tf_keras']
)
def test_evaluation_and_files_have_the_full_weight(kit, files, tmp_path):
    """In the warm-up too, whatever the order of the callbacks, at every hook of a callback."""
    model, other = one_output(kit), one_output(kit)
    evaluated, saved = [], []

    class Probe(kit.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            evaluated.append(evaluated_weight(model))
            for file in files:
                model.save_weights(str(tmp_path / file))
                other.load_weights(str(tmp_path / file))
                saved.extend(
                    weight.numpy() for weight in (flow_of(other).kl_weight, flow_of(other).kl_weight_in_training)
                )

        on_epoch_end = on_train_batch_end

    model.fit(data(), data(), batch_size=12, verbose=0, callbacks=[Probe(), kit.KLWarmup(100), Probe()])
    np.testing.assert_allclose(evaluated, [0.5] * 4, rtol=1e-3)
    assert saved == [0.5] * 8 * len(files)


@each_kit
def test_checkpoint_in_the_warmup_has_the_full_weight(kit, tmp_path):
    model, other = kit.functional_model(num_flows=0), kit.functional_model(num_flows=0)
    flow_of(model)._kl_warmup.set(tf.constant(0.1), 0.0)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'checkpoint'))
    assert not any('warmup' in name for name, _ in tf.train.list_variables(path))
    tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    assert flow_of(other).kl_weight_in_training.numpy() == 0.5


def test_a_call_that_does_not_train_has_the_full_weight():
    flow, inputs = K3.layer(0, seed=1), [tf.ones([4, LATENT])] * 2
    flow(inputs)
    flow._kl_warmup.set(tf.constant(0.0), 0.25)
    losses = {}
    for training in (True, None, False):
        flow(inputs, training=training)
        losses[training] = sum(flow.losses)
    np.testing.assert_allclose([losses[True], losses[None]], 0.25 * losses[False], rtol=1e-6)


def own_steps(kit, run_eagerly=False):
    """A VAE whose steps reset the metrics, call the model, and pass no `training`."""

    class Own(kit.keras.Model):
        def __init__(self):
            super().__init__()
            self.heads = [kit.keras.layers.Dense(LATENT) for _ in range(2)]
            self.flow = kit.layer(0, name='flow', kl_weight=0.5)
            self.decoder = kit.keras.layers.Dense(FEATURES)

        def call(self, x):
            return self.decoder(self.flow([head(x) for head in self.heads])[0])

        def train_step(self, x):
            for metric in self.metrics:
                metric.reset_state()
            with tf.GradientTape() as tape:
                self(x)
                kl_term = sum(self.losses)
            weights = self.heads[0].trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(kl_term, weights), weights, strict=True))
            return {'weight': kl_term / self.flow.metrics[0].result()}

        def test_step(self, x):
            self(x)
            return {'weight': sum(self.losses) / self.flow.metrics[0].result()}

    model = Own()
    model(data())
    model.compile(kit.keras.optimizers.SGD(0.0), run_eagerly=run_eagerly, jit_compile=False)
    return model


@pytest.mark.slow
@each_kit
def test_steps_that_do_not_say_whether_they_train(kit):
    model, warmup = own_steps(kit), kit.KLWarmup(4, start=0.1)
    logs = model.fit(data(), batch_size=12, epochs=3, verbose=0, callbacks=[warmup], validation_data=(data(),)).history
    np.testing.assert_allclose(logs['weight'], [0.1, 0.2, 0.3], rtol=1e-4)
    np.testing.assert_allclose(logs['val_weight'], [0.5] * 3, rtol=1e-4)
    np.testing.assert_allclose(model.evaluate(data(), verbose=0, return_dict=True)['weight'], 0.5, rtol=1e-4)


def interrupt(model, kit, *args):
    """Trains with a warm-up, until an interruption within the first step, which no callback is told of."""

    class Interrupt(kit.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(*args, verbose=0, callbacks=[kit.KLWarmup(4), Interrupt()])


@pytest.mark.slow
@each_kit
def test_a_warmup_that_was_interrupted_has_no_effect_on_what_follows(kit):
    model = one_output(kit)
    interrupt(model, kit, data(), data())
    assert flow_of(model).kl_weight_in_training.numpy() == 0.0
    np.testing.assert_allclose(evaluated_weight(model), 0.5, rtol=1e-3)
    interrupt(model, kit, data(), data())
    record = recorder(kit, flow_of(model))
    fit(model, rows=5, callbacks=[record])
    assert record.weights == [0.5]
    model = own_steps(kit, run_eagerly=True)  # whose evaluation does not say that it does not train
    interrupt(model, kit, data())
    np.testing.assert_allclose(model.evaluate(data(), verbose=0, return_dict=True)['weight'], 0.5, rtol=1e-4)


# Errors


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'steps': 0}, ValueError, ['steps', '0', 'at least 1']),
        ({'steps': 2.5}, TypeError, ['steps', '2.5', 'int']),
        ({'steps': 3, 'start': 'low'}, TypeError, ['start', "'low'", 'number']),
    ],
    ids=['zero', 'fraction', 'start'],
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        K3.KLWarmup(**arguments)


@pytest.mark.parametrize(
    ('layer', 'optimizer', 'parts'),
    [
        (K3.layer(kl_weight=None), 'sgd', ['kl_weight']),
        (K3.layer(), None, ['without an optimizer', 'compile']),
    ],
    ids=['no_layer', 'no_optimizer'],
)
def test_a_model_that_does_not_fit(layer, optimizer, parts):
    model, callback = K3.keras.Sequential([K3.keras.layers.Dense(2), layer], name='mine'), K3.KLWarmup(4)
    model.compile(optimizer)
    callback.set_model(model)
    with raises(ValueError, 'KLWarmup', "'mine'", *parts):
        callback.on_train_begin()


def test_an_optimizer_that_makes_no_step():
    class OwnOptimizer(K3.keras.Model):
        def __init__(self):
            super().__init__(name='own')
            self.flow = K3.layer(0)

        def train_step(self, x):
            self.flow([x, x])
            return {'loss': tf.constant(0.0)}

    model = OwnOptimizer()
    model.compile('sgd', run_eagerly=True)
    with raises(ValueError, 'KLWarmup', "'own'", 'no step in 10 batches', 'compile'):
        model.fit(tf.zeros([10, 2]), batch_size=1, epochs=1, callbacks=[K3.KLWarmup(4)], verbose=0)
