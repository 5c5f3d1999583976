"""The surrogate posterior: any structure and support, exact, one pass of each network, trained by TFP's own means."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_iaf
from tests.flows import jacobian, normal, perturb, raises, tfb, tfd
from tfp_iaf import IAFPosterior, build_iaf_surrogate_posterior, transforms

SEED = (1, 2)  # a stateless seed, which gives the same sample every time
Pair = collections.namedtuple('Pair', ['first', 'second'])


def surrogate(event_shape, bijector=None, **kwargs):
    """A small one, away from its initialisation, where it is nearly a standard normal."""
    made = build_iaf_surrogate_posterior(
        event_shape, bijector, **{'hidden_units': (8,), 'seed': 0, 'dtype': tf.float64, **kwargs}
    )
    perturb(made)
    return made


def networks_of(q):
    return [step.network for step in reversed(q.bijector.bijectors) if hasattr(step, 'network')]


def fresh(event):
    """The same values, as tensors that no cache knows."""
    return tf.nest.map_structure(tf.identity, event)


def coroutine():
    scale = yield tfd.HalfNormal(np.float64(2.0), name='scale')
    yield tfd.Sample(tfd.Normal(np.float64(0.0), scale), 3, name='x')


def named():
    return tfd.JointDistributionNamed(
        {
            'scale': tfd.HalfNormal(np.float64(2.0)),
            'x': lambda scale: tfd.Sample(tfd.Normal(np.float64(0.0), scale), 3),
            # Its support depends on another part.
            'upto': lambda scale: tfd.Uniform(np.float64(0.0), scale),
        }
    )


MODELS = {
    'coroutine': lambda: tfd.JointDistributionCoroutineAutoBatched(coroutine),
    'named': named,
    'distribution': lambda: tfd.CholeskyLKJ(3, np.float64(2.0)),
    # Whose bijector, in TFP 0.25, does not run with every NumPy.
    'simplex': lambda: tfd.Dirichlet(np.full(3, 2.0)),
}


@pytest.mark.parametrize(
    ('name', 'in_xla'),
    [
        pytest.param('coroutine', False, marks=pytest.mark.slow),
        *((name, False) for name in ('named', 'distribution', 'simplex')),
        pytest.param('named', True, marks=pytest.mark.slow),
    ],
)
def test_events_are_those_of_the_model_from_one_pass_of_each_network(name, in_xla, network_calls, inversions):
    model = MODELS[name]()
    dtype = None if name == 'named' else tf.float64  # that of a joint model is taken from it
    q = surrogate(model.event_shape_tensor(), model.experimental_default_event_space_bijector(), dtype=dtype)

    def both_ways():
        z, log_q = q.experimental_sample_and_log_prob(5, seed=SEED)
        jointly = list(network_calls)
        network_calls.clear()
        same = q.sample(5, seed=SEED)
        log_same = q.log_prob(same)
        assert network_calls == jointly == networks_of(q) and inversions == []
        return z, log_q, same, log_same

    z, log_q, same, log_same = (tf.function(both_ways, jit_compile=True) if in_xla else both_ways)()
    expected = q.log_prob(fresh(z))
    np.testing.assert_allclose([log_q, log_same], [expected, expected], rtol=1e-9)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), same, z)
    of_model = model.sample(5)
    tf.nest.assert_same_structure(z, of_model)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(*map(tf.nest.flatten, (z, of_model)), strict=True)
    )
    assert np.all(np.isfinite(model.log_prob(z)))


def test_sample_and_density_equal_those_by_hand():
    shapes = {'matrix': [2, 2], 'positive': [], 'reals': [2]}  # in the order in which tf.nest takes them
    q = surrogate(shapes, {'matrix': None, 'positive': tfb.Exp(), 'reals': tfb.Scale(np.float64(3.0))})
    loc = next(v for v in q.trainable_variables if v.name == 'loc:0')
    scale = next(v for v in q.trainable_variables if 'scale' in v.name)
    noise = normal([5, 7])

    def by_hand(x):
        for network in networks_of(q):
            x, _ = transforms.Affine().forward(x, network(x))
        x = loc + (tf.math.softplus(scale) + np.finfo(np.float64).eps) * x
        return tf.concat([x[:, :4], tf.exp(x[:, 4:5]), 3 * x[:, 5:]], axis=-1)

    z = q.bijector.forward(noise)
    assert {name: part.shape[1:] for name, part in z.items()} == shapes
    flat = tf.concat([tf.reshape(part, [5, -1]) for part in tf.nest.flatten(z)], axis=-1)
    np.testing.assert_allclose(flat, by_hand(noise), rtol=1e-9)
    log_det = np.linalg.slogdet(jacobian(by_hand, noise))[1]
    expected = tf.reduce_sum(tfd.Normal(np.float64(0.0), 1.0).log_prob(noise), axis=-1) - log_det
    np.testing.assert_allclose(q.log_prob(fresh(z)), expected, rtol=1e-8)
    np.testing.assert_allclose(q.bijector.forward_log_det_jacobian(noise), log_det, rtol=1e-8)


def shape(*sizes):
    return tf.TensorShape(sizes)


@pytest.mark.parametrize(
    ('event_shape', 'bijector', 'expected'),
    [
        ([], None, shape()),
        (3, None, shape(3)),
        ((2, 3), tfb.Exp(), shape(2, 3)),
        (np.array([2, 1]), None, shape(2, 1)),
        (tf.constant([3]), None, shape(3)),
        ([[], [3]], [tfb.Exp(), None], [shape(), shape(3)]),
        ({'b': [2], 'a': []}, {'a': tfb.Exp(), 'b': None}, {'a': shape(), 'b': shape(2)}),
        (Pair([], [2]), [tfb.Exp(), None], Pair(shape(), shape(2))),
        ({'x': [[2], []], 'y': Pair([], (1, 2))}, None, {'x': [shape(2), shape()], 'y': Pair(shape(), shape(1, 2))}),
        # A part may be empty, and a bijector may have a structure of its own.
        ([[0], [2]], None, [shape(0), shape(2)]),
        ([[1], [2]], tfb.Split([1, 2]), [shape(1), shape(2)]),
    ],
    ids=str,
)
def test_structures(event_shape, bijector, expected):
    q = surrogate(event_shape, bijector, num_flows=1)
    z, log_q = q.experimental_sample_and_log_prob(4, seed=SEED)
    assert tf.nest.map_structure(lambda part: part.shape[1:], z) == expected == q.event_shape
    assert (log_q.shape, q.batch_shape) == ([4], [])
    np.testing.assert_allclose(q.log_prob(fresh(z)), log_q, rtol=1e-9)


def test_log_prob_of_a_held_sample_follows_an_update_and_has_all_gradients():
    q = surrogate([[], [2]], [tfb.Exp(), None])
    z, before = q.experimental_sample_and_log_prob(seed=SEED)
    perturb(q)
    results = []
    for event in (z, fresh(z)):
        with tf.GradientTape() as tape:
            log_q = q.log_prob(event)
        results.append([log_q, *tape.gradient(log_q, q.trainable_variables)])
    for of_the_sample, expected in zip(*results, strict=True):
        np.testing.assert_allclose(of_the_sample, expected, rtol=1e-7, atol=1e-10)
    assert results[0][0] != before


def model_with_variables():
    """A bijector that belongs to a model, with a location of its own and the flow of a prior."""
    location = tf.Variable(np.array([0.5, -0.5]), name='of_model')
    prior = IAFPosterior(2, 1, (4,), seed=1, dtype=tf.float64)
    perturb(prior)
    bijector = tfb.Chain([tfb.Exp(), tfb.Shift(location), prior.bijector()])
    return bijector, [location, *prior.trainable_variables]


def test_variables_of_the_model_are_neither_trained_nor_saved(tmp_path):
    bijector, of_model = model_with_variables()
    q = surrogate({'a': [], 'b': [2]}, {'a': None, 'b': bijector})
    for view in (q, q.bijector, q.copy(name='copied')):
        assert view.trainable_variables
        assert not {id(v) for v in of_model} & {id(v) for v in view.variables}
    path = tf.train.Checkpoint(q=q).write(str(tmp_path / 'q'))
    assert not any('of_model' in name for name, _ in tf.train.list_variables(path))
    assert len(tf.train.list_variables(path)) == len(q.variables) + 1  # and the graph of the objects


def test_variables_of_the_model_act_and_get_gradients():
    """Trained with the posterior by who has them, as in a variational EM."""
    bijector, of_model = model_with_variables()
    q = surrogate([2], bijector)
    z, log_q = q.experimental_sample_and_log_prob(5, seed=SEED)
    np.testing.assert_allclose(q.log_prob(fresh(z)), log_q, rtol=1e-9)
    with tf.GradientTape() as tape:
        z, log_q = q.experimental_sample_and_log_prob(5, seed=SEED)
        total = tf.reduce_sum(log_q) + tf.reduce_sum(z**2)
    assert all(np.any(gradient != 0) for gradient in tape.gradient(total, of_model))
    of_model[0].assign_add([1.0, 2.0])
    moved = q.sample(5, seed=SEED)
    np.testing.assert_allclose(moved, z * np.exp([1.0, 2.0]), rtol=1e-9)
    np.testing.assert_allclose(q.log_prob(moved), q.log_prob(fresh(moved)), rtol=1e-9)


def test_defaults():
    q = build_iaf_surrogate_posterior([40])
    assert [step.transform for step in q.bijector.bijectors if hasattr(step, 'network')] == [transforms.Affine()] * 2
    assert [network.hidden_units for network in networks_of(q)] == [(40, 40)] * 2
    assert np.isclose(min(networks_of(q)[0].masked_layers().scales[1]), 16 / 40)  # of the base width
    assert networks_of(build_iaf_surrogate_posterior([3]))[0].hidden_units == (32, 32)
    assert (q.dtype, q.name) == (tf.float32, 'iaf_surrogate_posterior')
    of_seed = [surrogate([2], seed=seed).sample(seed=SEED).numpy() for seed in (1, 1, 2)]
    assert np.array_equal(of_seed[0], of_seed[1]) and np.any(of_seed[0] != of_seed[2])
    # A standard normal, before training, but for the steps' small weights.
    assert abs(np.std(q.sample(1000, seed=SEED)) - 1.0) < 0.1


def test_arguments_reach_the_networks():
    q = surrogate(
        [3],
        num_flows=3,
        hidden_units=(5, 6),
        transform=transforms.Affine(2.0),
        activation='tanh',
        alternate_order=False,
        inverse='fixed_point',
        name='mine',
    )
    made = networks_of(q)
    assert [(network.hidden_units, network.dtype) for network in made] == 3 * [((5, 6), tf.float64)]
    assert all(network.masked_layers().activation is tf.nn.tanh for network in made)
    assert [network.order.tolist() for network in made] == 3 * [[0, 1, 2]]
    assert q.bijector.bijectors[-1].transform == transforms.Affine(2.0)
    assert (q.name, q.bijector.name) == ('mine', 'mine')


def test_networks_of_ones_own():
    """They give the same as the arguments that would build them."""
    networks = [tfp_iaf.MaskedAutoregressiveNetwork(5, (16,), order=order, seed=3) for order in ('random', range(5))]
    q = build_iaf_surrogate_posterior({'a': [2], 'b': [3]}, networks=networks)
    of_networks = {id(variable) for network in networks for variable in network.variables}
    assert of_networks < {id(variable) for variable in q.trainable_variables}
    assert len(of_networks) + 2 == len(q.trainable_variables)
    z, log_q = q.experimental_sample_and_log_prob(4, seed=SEED)
    np.testing.assert_allclose(q.log_prob(fresh(z)), log_q, atol=1e-4)
    with raises(ValueError, 'networks', 'event_shape=[5]', 'expected [4]'):
        build_iaf_surrogate_posterior({'a': [2], 'b': [2]}, networks=networks)
    with raises(ValueError, 'networks', 'hidden_units'):
        build_iaf_surrogate_posterior([5], hidden_units=(8,), networks=networks)
    with raises(ValueError, 'num_flows', '3', 'beside networks'):
        build_iaf_surrogate_posterior([5], num_flows=3, networks=networks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('optimizer', 'jit_compile', 'num_steps'),
    [(keras.optimizers.Adam, True, 200), (tf_keras.optimizers.Adam, None, 20)],
    ids=['keras', 'tf_keras'],
)
def test_training_in_tfp(optimizer, jit_compile, num_steps):
    """No Gaussian, mapped part by part, has a scale that depends on another part."""

    def target_log_prob(scale, x):
        of_x = tfd.Normal(0.0, scale[..., tf.newaxis]).log_prob(x)
        return tfd.LogNormal(0.5, 0.3).log_prob(scale) + tf.reduce_sum(of_x, axis=-1)

    q = build_iaf_surrogate_posterior([[], [2]], [tfb.Exp(), None], hidden_units=(8,), num_flows=1, seed=0)
    before = [v.numpy() for v in q.trainable_variables]
    losses = tfp.vi.fit_surrogate_posterior(
        target_log_prob,
        q,
        optimizer=optimizer(0.02),
        num_steps=num_steps,
        sample_size=32,
        jit_compile=jit_compile,
        seed=SEED,
    )
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    # The evidence is one.
    assert num_steps < 200 or abs(np.mean(losses[-50:])) < 0.1 < np.mean(losses[:5])
    for variable, value in zip(q.trainable_variables, before, strict=True):
        assert np.any(variable != value), variable.name


def test_a_sample_that_overflows_the_target_leaves_the_others_their_gradients():
    """The loss shows it; the weights do not take it up."""
    q = build_iaf_surrogate_posterior({'a': [], 'b': [2]}, num_flows=1, hidden_units=(8,), seed=0)

    def target(a, b, guard=False):
        is_safe = a < 0.5
        safe = tf.where(is_safe, a, 0.0) if guard else a
        log_prob = tf.sqrt(0.5 - safe) - tf.reduce_sum(b**2, axis=-1)
        return tf.where(is_safe, log_prob, 0.0) if guard else log_prob

    def gradients(guard):
        with tf.GradientTape() as tape:
            z, log_q = q.experimental_sample_and_log_prob(64, seed=[0, 0])
            loss = tf.reduce_mean(log_q - target(**z, guard=guard))
        return loss, tape.gradient(loss, q.trainable_variables)

    (loss, actual), (_, expected) = gradients(guard=False), gradients(guard=True)
    assert np.isnan(loss)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_target_that_overflows_far_from_where_q_starts():
    """Like stochastic volatility: a scale that is the exponential of a sum, and data of another magnitude."""
    returns = 100.0 * normal([50], dtype=tf.float32)

    def target(z):
        log_likelihood = tfd.Normal(0.0, tf.exp(tf.cumsum(z, axis=-1))).log_prob(returns)
        return tf.reduce_sum(log_likelihood, axis=-1) + tfd.Sample(tfd.Normal(0.0, 1.0), 50).log_prob(z)

    q = build_iaf_surrogate_posterior([50], num_flows=4, hidden_units=(64,), seed=0)
    optimizer = keras.optimizers.Adam(1e-2, global_clipnorm=10.0)
    optimizer.build(q.trainable_variables)  # or else the first step is traced twice
    losses = tfp.vi.fit_surrogate_posterior(target, q, optimizer, 80, sample_size=16, seed=[0, 0])
    assert all(np.all(np.isfinite(variable)) for variable in q.trainable_variables)
    assert np.mean(np.isfinite(losses[-30:])) > 0.9
    assert np.nanmedian(losses[-30:]) < 600


class UnknownShape(tfb.Identity):
    def _inverse_event_shape(self, output_shape):
        return tf.TensorShape(None)


@pytest.mark.parametrize(
    ('event_shape', 'bijector', 'keywords', 'error', 'parts'),
    [
        (tf.TensorShape([None]), None, {}, ValueError, ['event_shape', 'None', 'all sizes known']),
        (None, None, {}, ValueError, ['event_shape', 'None', 'all sizes known']),
        ([-1], None, {}, ValueError, ['event_shape', '-1', 'expected a shape']),
        ([2.5], None, {}, TypeError, ['event_shape', '2.5', 'expected a shape']),
        ('three', None, {}, TypeError, ['event_shape', "'three'", 'expected a shape']),
        (tf.constant([2.0]), None, {}, TypeError, ['event_shape', '2.', 'expected a shape']),
        ([0], None, {}, ValueError, ['event_shape', '[0]', 'no entry', 'at least one']),
        ({}, None, {}, ValueError, ['event_shape', '{}', 'no entry', 'at least one']),
        ([2], 3, {}, TypeError, ['bijector', '3', 'expected a tfb.Bijector']),
        ([[2], [3]], [tfb.Exp, None], {}, TypeError, ['bijector', 'Exp', 'expected a tfb.Bijector']),
        ([[2], [3]], [tfb.Exp()], {}, ValueError, ['bijector', 'Exp', 'structure of event_shape', '[3]']),
        ({'a': [], 'b': []}, {'a': None}, {}, ValueError, ['bijector', "{'a': None}", 'structure of event_shape']),
        ([2], [tfb.Exp()], {}, ValueError, ['bijector', 'Exp', 'structure of event_shape', '[2]']),
        ([[], [2]], tfb.Exp(), {}, ValueError, ['bijector', 'Exp', 'does not fit event_shape']),
        ([3], tfb.FillScaleTriL(), {}, ValueError, ['bijector', 'fill_scale_tril', 'does not fit event_shape']),
        ([2], UnknownShape(), {}, ValueError, ['bijector', 'identity', 'unknown', 'inverse_event_shape']),
        ([2], None, {'dtype': tf.int32}, TypeError, ['dtype', 'int32', 'float32', 'float64']),
    ],
    ids=str,
)
def test_bad_arguments(event_shape, bijector, keywords, error, parts):
    with raises(error, *parts):
        build_iaf_surrogate_posterior(event_shape, bijector, **keywords)


def test_shape_that_is_known_only_when_the_graph_runs():
    build = tf.function(build_iaf_surrogate_posterior, input_signature=[tf.TensorSpec([1], tf.int32)])
    with raises(ValueError, 'event_shape', 'all sizes known'):
        build(tf.constant([2]))
