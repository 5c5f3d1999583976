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
    built,
    data,
    each_kit,
    fit,
    flow_of,
    log_laplace,
    log_q_of_a_fixed_point,
    narrow_at_first,
    registered,
    train,
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
            return -0.5 * tf.reduce_sum((z - self.mean(tf.ones_like(z))) ** 2, axis=-1)

    @register
    class Density(kit.keras.Model):
        """y given x, with a factory of distributions as an attribute."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.loc, self.context = kit.keras.layers.Dense(LATENT), kit.keras.layers.Dense(CONTEXT)
            self.flow = kit.IAFPosterior(LATENT, 1, (8,), context_shape=CONTEXT, name='flow')

        def call(self, x):
            loc = self.loc(x)
            q = self.flow(loc, tf.ones_like(loc), self.context(x))
            z = q.sample(seed=[0, 1])
            return {'x': tf.pad(z, [[0, 0], [0, FEATURES - LATENT]]), 'z': z, 'log_q': q.log_prob(z)}

    return {'own_posterior': OwnPosterior, 'learned_prior': LearnedPrior, 'density': Density}


CLASSES = {kit.keras: _classes(kit) for kit in (K3, K2)}


def _of_feature_maps(kit):
    layers = kit.keras.layers
    inputs = kit.keras.Input([FEATURES])
    maps = [layers.Reshape([2, 1, size])(layers.Dense(2 * size)(inputs)) for size in (2, 2, 3)]
    z, log_q = kit.IAFSampling(2, filters=(5, 4), name='flow')(maps)
    outputs = {'x': layers.Dense(FEATURES, name='x')(layers.Flatten()(z)), 'z': z, 'log_q': log_q}
    return kit.keras.Model(inputs, outputs)


MODELS = {
    'functional': lambda kit: kit.functional_model(
        activation=cubed, transform=Doubled(0.5, factor=3.0), free_bits=0.1, network=narrow_at_first, seed=3
    ),
    'subclassed': lambda kit: kit.subclassed_model(),
    'own_posterior': lambda kit: kit.vae(CLASSES[kit.keras]['own_posterior'](name='flow'), prior_at_the_call=True),
    'prior_function': lambda kit: kit.functional_model(num_flows=0, prior=log_laplace),
    'prior_layer': lambda kit: kit.functional_model(num_flows=0, prior=CLASSES[kit.keras]['learned_prior']()),
    'feature_maps': _of_feature_maps,
    'planar': lambda kit: kit.vae(kit.PlanarSampling(1, name='flow')),
    'sylvester': lambda kit: kit.vae(kit.SylvesterSampling(1, 'orthogonal', 1, name='flow')),
    'distributions': lambda kit: CLASSES[kit.keras]['density'](),
}
WHOLE = ('model.keras', 'model.h5', 'model')


def formats(kit, name):
    """The file names of all formats that can hold the model."""
    found = ['model.keras', 'model.weights.h5', 'checkpoint']
    if kit is K2:
        found.append('weights.h5')
        found += {'functional': ['model.h5'], 'own_posterior': ['model.h5', 'model']}.get(name, [])
    return found


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


def config_of(model):
    """Without the prior: a layer in it may have another name."""
    return {key: value for key, value in flow_of(model).get_config().items() if key != 'prior'}


@pytest.mark.slow
@each_kit
@pytest.mark.parametrize('name', MODELS)
def test_every_format_brings_everything_back(kit, name, tmp_path):
    """All weights, the config, the full weight of the KL term, the prior in it, and the state of the seed."""
    model, other = (built(MODELS[name](kit)) for _ in range(2))
    before = values_of(flow_of(model).trainable_weights)
    train(model, kit=kit)
    assert_all_changed(flow_of(model).trainable_weights, before)
    if name != 'distributions':
        flow_of(model).kl_weight.assign(0.125)
    paths = [tmp_path / each for each in formats(kit, name)]
    for path in paths:
        save(model, path)
    expected = [model(data()), model.losses]
    for path in paths:
        loaded = load(kit, path, other)
        assert type(flow_of(loaded)) is type(flow_of(model)), path
        assert config_of(loaded) == config_of(model), path
        assert_equal(values_of(loaded.trainable_weights), values_of(model.trainable_weights))
        assert_equal([loaded(data()), loaded.losses], expected)
        if path.name in WHOLE and name in ('functional', 'distributions'):
            before = values_of(flow_of(loaded).trainable_weights)
            loaded.run_eagerly = True
            fit(loaded)
            assert np.any(flow_of(loaded).trainable_weights[0] != before[0]), f'{path} continues training'


@pytest.mark.slow
@each_kit
def test_served_model_samples_from_the_same_posterior(kit, tmp_path):
    model = kit.functional_model(num_flows=1)
    save = functools.partial(model.export, verbose=False) if kit is K3 else model.save
    save(str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    serve = loaded.serve if kit is K3 else loaded.signatures['serving_default']
    results = [tf.nest.flatten(serve(tf.constant(data()))) for _ in range(2)]
    by_shape = [{tuple(value.shape): value for value in each} for each in results]  # tf_keras has names of its own
    z, log_q = by_shape[0][len(data()), LATENT], by_shape[0][len(data()),]
    encoder = kit.keras.Model(model.input, flow_of(model).input)
    expected = flow_of(model).posterior(*encoder(data())).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    assert np.all(by_shape[1][len(data()), LATENT] != z), 'every call has its own noise'


@pytest.mark.slow
def test_two_layers_in_one_part_of_an_h5_file(tmp_path):
    def model():
        inputs = [tf_keras.Input([LATENT]) for _ in range(2)]
        part = tf_keras.Model(inputs, K2.layer()([K2.layer()(inputs)[0]] * 2)[0])
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
        {'transform': transforms.ScalarBijector(shifted, params=1), 'filters': (5, 4), 'free_bits_axis': [1, -1]},
        {'transform': Doubled(0.5), 'activation': cubed, 'prior': log_laplace, 'network': narrow_at_first},
    ],
    ids=['default', 'names', 'gated', 'spline', 'bijector', 'functions'],
)
def test_config_makes_an_equal_layer(kit, arguments):
    first = kit.IAFSampling(**arguments, **({'free_bits': 0.5} if 'free_bits_axis' in arguments else {}))
    second = kit.IAFSampling.from_config(json.loads(json.dumps(first.get_config())))
    assert second.get_config() == first.get_config()
    assert second.transform == first.transform
    assert second.free_bits_axis == first.free_bits_axis
    for name in {'activation', 'filters', 'network', 'prior', 'seed'} & set(arguments):
        assert getattr(second, name) == arguments[name], name


@each_kit
@pytest.mark.parametrize(
    'arguments',
    [
        {'event_shape': 3},
        {'event_shape': [2, 3, 2], 'filters': [5], 'context_shape': [2, 3, 4], 'seed': 2, 'name': 'mine'},
        {'event_shape': (4,), 'transform': Doubled(2.0), 'activation': 'mish', 'dtype': 'float64', 'num_flows': 1},
    ],
    ids=['default', 'filters', 'objects'],
)
def test_config_makes_an_equal_factory_of_distributions(kit, arguments):
    first = kit.IAFPosterior(**arguments)
    second = kit.IAFPosterior.from_config(json.loads(json.dumps(first.get_config())))
    assert second.get_config() == first.get_config()
    assert second.transform == first.transform
    assert [v.shape for v in second.flow.variables] == [v.shape for v in first.flow.variables]


@each_kit
def test_clone(kit):
    model = kit.vae(kit.layer(1, name='flow', activation=cubed, free_bits=0.2), prior_at_the_call=True)
    flow_of(model).kl_weight.assign(0.1)
    clone = kit.keras.models.clone_model(model)
    assert flow_of(clone).get_config() == flow_of(model).get_config()
    assert flow_of(clone).kl_weight.numpy() == 1.0
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(log_q_of_a_fixed_point(clone), log_q_of_a_fixed_point(model))


@each_kit
def test_distribution_as_the_prior_has_no_config(kit, tmp_path):
    model = kit.functional_model(prior=tfd.Laplace(0.0, 1.0))
    register = f'{kit.keras.__name__}.saving.register_keras_serializable'
    with raises(NotImplementedError, 'prior', 'Laplace', register, 'layer'):
        model.save(tmp_path / 'model.keras')
    model.save_weights(tmp_path / 'model.weights.h5')
