"""Saving and loading of models with the layers, in every format of either Keras, configs, and cloning."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.flows import raises, tfb, tfd
from tests.keras_models import (
    CONTEXT,
    FEATURES,
    K2,
    K3,
    LATENT,
    assert_all_changed,
    assert_equal,
    data,
    each_kit,
    fit,
    flow_of,
    log_laplace,
    narrow_at_first,
    registered,
    values_of,
)
from tfp_iaf import transforms


@registered
def cubed(x):
    return x**3


@registered
def shifted(params):
    return tfb.Shift(params[..., 0])


@registered
@dataclasses.dataclass(frozen=True)
class Doubled(transforms.Affine):
    """A transform of a user's own."""

    factor: float = 2.0


def _classes(kit):
    register = kit.keras.saving.register_keras_serializable(package='tests')

    @register
    class OwnPosterior(kit.PosteriorSampling):
        """A Gaussian whose scale comes from a layer of its own."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scale = kit.keras.layers.Dense(LATENT)

        def posterior(self, z_mean, z_log_var, context=None):
            return tfd.MultivariateNormalDiag(z_mean, tf.exp(self.scale(context)))

    @register
    class LearnedPrior(kit.keras.layers.Layer):
        """Normal, with a mean that a sublayer holds."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mean = kit.keras.layers.Dense(LATENT)

        def call(self, z):
            return tf.reduce_sum(tfd.Normal(self.mean(tf.ones_like(z)), 1.0).log_prob(z), axis=-1)

    @register
    class Everything(kit.keras.Model):
        """A model that is built when it is first called, with layers of every kind as attributes."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            # Not in lists, which Keras 3 hides from tf.train.Checkpoint.
            self.z_mean, self.z_log_var, self.context, self.decoder = (
                kit.keras.layers.Dense(size) for size in (LATENT, LATENT, CONTEXT, FEATURES)
            )
            self.flow = kit.layer(1, name='flow', kl_weight=0.5)
            self.maps = kit.IAFSampling(1, filters=(5,), name='maps')
            self.own = OwnPosterior(name='own')
            self.planar = kit.PlanarSampling(1, name='planar')
            self.sylvester = kit.SylvesterSampling(1, 'orthogonal', 1, name='sylvester')
            self.density = kit.IAFPosterior(LATENT, 1, (8,), context_shape=CONTEXT, name='density')

        def call(self, x):
            inputs = z_mean, z_log_var, context = self.z_mean(x), self.z_log_var(x), self.context(x)
            maps = [tf.reshape(value, [-1, 2, 1, value.shape[1] // 2]) for value in (x[:, :4], x[:, 2:], x)]
            flows = self.own, self.planar, self.sylvester
            outputs = [self.flow(inputs, prior=[z_log_var, z_mean]), self.maps(maps), *(flow(inputs) for flow in flows)]
            q = self.density(z_mean, tf.exp(z_log_var), context)
            z = q.sample(seed=[0, 1])
            outputs.append((z, q.log_prob(z)))
            z = tf.concat([tf.reshape(z, [-1, z.shape[1:].num_elements()]) for z, _ in outputs], axis=-1)
            return {'x': self.decoder(z), 'z': z, 'log_q': tf.add_n([log_q for _, log_q in outputs])}

    return {'learned_prior': LearnedPrior, 'everything': Everything}


CLASSES = {kit.keras: _classes(kit) for kit in (K3, K2)}
MODELS = {
    'functional': lambda kit: kit.functional_model(
        activation=cubed,
        transform=Doubled(0.5, factor=3.0),
        free_bits=0.01,
        network=narrow_at_first,
        prior=CLASSES[kit.keras]['learned_prior'](),
        seed=3,
    ),
    'subclassed': lambda kit: CLASSES[kit.keras]['everything'](),
}
WHOLE = ('model.keras', 'model.h5')


def save(model, path):
    if path.name in WHOLE:
        model.save(path)
    elif path.name == 'checkpoint':
        tf.train.Checkpoint(model=model).write(str(path))
    else:
        model.save_weights(path)


def load(kit, path, other):
    """The model in a file; where it has weights alone, the other model with these."""
    if path.name in WHOLE:
        return kit.keras.models.load_model(path)
    other.set_weights([np.zeros_like(value) for value in other.get_weights()])
    if path.name == 'checkpoint':
        tf.train.Checkpoint(model=other).read(str(path)).expect_partial()
    else:
        other.load_weights(path)
    return other


def flows_of(kit, model):
    return [layer for layer in model.layers if isinstance(layer, (kit.PosteriorSampling, kit.IAFPosterior))]


def kinds_of_flows(kit, model):
    """Their classes and configs, without the priors: a layer in one may have another name."""
    return [
        (type(flow), {key: value for key, value in flow.get_config().items() if key != 'prior'})
        for flow in flows_of(kit, model)
    ]


@pytest.mark.slow
@each_kit
@pytest.mark.parametrize('name', MODELS)
def test_every_format_brings_everything_back(kit, name, tmp_path):
    """All weights, the config, the full weight of the KL term, the prior in it, and the state of the seed."""
    model, other = (MODELS[name](kit) for _ in range(2))
    model(data()), other(data())
    before = values_of(model.trainable_weights)
    kit.train(model)
    assert_all_changed(model.trainable_weights, before)
    for flow in flows_of(kit, model):
        if isinstance(flow, kit.PosteriorSampling):
            flow.kl_weight.assign(0.125)
    files = ['model.keras', 'model.weights.h5', 'checkpoint']
    if kit is K2:
        files += ['weights.h5', *(['model.h5'] if name == 'functional' else [])]
    paths = [tmp_path / file for file in files]
    for path in paths:
        save(model, path)
    expected = [model(data()), model.losses]
    for path in paths:
        loaded = load(kit, path, other)
        assert kinds_of_flows(kit, loaded) == kinds_of_flows(kit, model), path
        assert_equal(values_of(loaded.trainable_weights), values_of(model.trainable_weights))
        assert_equal([loaded(data()), loaded.losses], expected)
        if path.name in WHOLE:
            before = values_of(flow_of(loaded).trainable_weights)
            loaded.run_eagerly = True
            fit(loaded)
            assert np.any(flow_of(loaded).trainable_weights[0] != before[0]), f'{path} continues training'


@pytest.mark.slow
@each_kit
def test_served_model_samples_from_the_same_posterior(kit, tmp_path):
    """What Keras 3 exports, and the SavedModel of tf_keras, which tf_keras loads too."""
    model = kit.vae(kit.layer(1, name='flow'), prior_at_the_call=True)
    save = functools.partial(model.export, verbose=False) if kit is K3 else model.save
    save(str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    serve = loaded.serve if kit is K3 else loaded.signatures['serving_default']
    results = [tf.nest.flatten(serve(tf.constant(data()))) for _ in range(2)]
    by_shape = [{tuple(value.shape): value for value in each} for each in results]  # tf_keras has names of its own
    z, log_q = by_shape[0][len(data()), LATENT], by_shape[0][len(data()),]
    encoder = kit.keras.Model(model.input, flow_of(model).input[:3])  # without the prior
    expected = flow_of(model).posterior(*encoder(data())).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    assert np.all(by_shape[1][len(data()), LATENT] != z), 'every call has its own noise'
    if kit is K2:
        loaded = tf_keras.models.load_model(tmp_path)
        assert_equal([loaded(data()), loaded.losses], [model(data()), model.losses])


@pytest.mark.slow
def test_two_layers_in_one_part_of_an_h5_file(tmp_path):
    def model():
        inputs = [tf_keras.Input([LATENT]) for _ in range(2)]
        part = tf_keras.Model(inputs, K2.layer(1)([K2.layer(1)(inputs)[0]] * 2)[0])
        return tf_keras.Model(inputs, part(inputs))

    first, second = model(), model()
    first.save_weights(tmp_path / 'model.h5')
    second.load_weights(tmp_path / 'model.h5')
    assert_equal(second.get_weights(), first.get_weights())


# Configs


@each_kit
@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'num_flows': 3, 'hidden_units': [4, 5], 'transform': 'affine', 'seed': np.int64(3), 'kl_weight': 0.1},
        {'transform': transforms.Gated(1.0), 'alternate_order': False, 'inverse': 'fixed_point', 'name': 'mine'},
        {'transform': transforms.RationalQuadraticSpline(num_bins=4), 'dtype': 'float64', 'activation': 'mish'},
        {'transform': Doubled(0.5), 'filters': (5, 4), 'free_bits': 0.5, 'free_bits_axis': [1, -1]},
        {'transform': transforms.ScalarBijector(shifted, params=1), 'network': narrow_at_first},
        {'activation': cubed, 'prior': log_laplace},
        {'event_shape': 3},
        {'event_shape': [2, 3, 2], 'filters': [5], 'context_shape': [2, 3, 4], 'seed': 2, 'name': 'mine'},
        {'event_shape': (4,), 'transform': Doubled(2.0), 'activation': 'mish', 'dtype': 'float64', 'num_flows': 1},
    ],
    ids='-'.join,
)
def test_config_makes_an_equal_layer(kit, arguments):
    """Of the arguments, whatever has been assigned to the weight since."""
    is_factory = 'event_shape' in arguments
    first = (kit.IAFPosterior if is_factory else kit.IAFSampling)(**arguments)
    config = json.loads(json.dumps(first.get_config()))
    second = type(first).from_config(config)
    assert second.transform == first.transform
    if is_factory:
        assert [v.shape for v in second.flow.variables] == [v.shape for v in first.flow.variables]
    else:
        assert second.kl_weight.numpy() == first.kl_weight.numpy() and second.free_bits_axis == first.free_bits_axis
        second.kl_weight.assign(7.0)
        for name in {'activation', 'filters', 'network', 'prior', 'seed'} & set(arguments):
            assert getattr(second, name) == arguments[name], name
    assert second.get_config() == first.get_config()


@each_kit
def test_distribution_as_the_prior_has_no_config(kit):
    register = f'{kit.keras.__name__}.saving.register_keras_serializable'
    with raises(NotImplementedError, 'prior', 'Laplace', register, 'layer'):
        kit.layer(prior=tfd.Laplace(0.0, 1.0)).get_config()
