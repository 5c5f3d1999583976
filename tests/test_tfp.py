"""The flow inside TFP: its bijectors, joint distributions and losses, and what TFP's cache makes of it."""

import numpy as np
import pytest
import tensorflow as tf

from tests.flows import jacobian, normal, perturb, tfb, tfd
from tfp_iaf import IAFPosterior, InverseAutoregressiveFlow, transforms

EVENT, CONTEXT, STEPS = 3, 2, 2
SEED = (1, 2)  # a stateless seed, which gives the same sample every time

x3 = normal([5, EVENT], seed=1)
context2 = normal([5, CONTEXT], seed=2)


def posterior(**kwargs):
    made = IAFPosterior(EVENT, hidden_units=(8,), **{'num_flows': STEPS, 'seed': 0, 'dtype': tf.float64, **kwargs})
    perturb(made)
    return made


def step(**kwargs):
    return posterior(num_flows=1, **kwargs).bijector().bijectors[0]


def distribution(**kwargs):
    """With a batch of three."""
    return posterior(**kwargs)(normal([3, EVENT], seed=3), 0.5 + tf.abs(normal([3, EVENT], seed=4)))


def standard_normal(event_shape=EVENT, batch=()):
    return tfd.Sample(tfd.Normal(tf.zeros(batch, tf.float64), 1.0), event_shape)


def log_normal(x, scale=1.0):
    """Of a vector of independent normals around zero."""
    return tf.reduce_sum(tfd.Normal(tf.zeros([], tf.float64), scale).log_prob(x), axis=-1)


# TFP's bijectors around a step: the bijector, the same by hand, and the number of entries.
COMPOSITIONS = {
    'invert_chain': (
        lambda f: tfb.Invert(tfb.Chain([tfb.Scale(np.float64(2.0)), f])),
        lambda f, x: f.inverse(x / 2),
        3,
    ),
    'split': (
        lambda f: tfb.Chain([tfb.JointMap([f, tfb.Exp()]), tfb.Split([3, 2])]),
        lambda f, x: [f.forward(x[..., :3]), tf.exp(x[..., 3:])],
        5,
    ),
    'steps_in_steps': (lambda f: tfb.Chain([f, tfb.Invert(tfb.Chain([f, f]))]), lambda f, x: f.inverse(x), 3),
}


@pytest.mark.parametrize(('compose', 'of_step', 'size'), COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_composition_equals_that_by_hand(compose, of_step, size):
    f, x = step(transform='affine'), normal([5, size], seed=5)
    bijector = compose(f)

    def by_hand(x):
        return tf.concat(tf.nest.flatten(of_step(f, x)), axis=-1)

    y = bijector.forward(x)
    np.testing.assert_allclose(tf.concat(tf.nest.flatten(y), axis=-1), by_hand(tf.identity(x)), rtol=1e-9)
    log_det = np.linalg.slogdet(jacobian(by_hand, x))[1]
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(x, 1), log_det, rtol=1e-8, atol=1e-9)
    fresh, again = (tf.nest.map_structure(tf.identity, y) for _ in range(2))
    np.testing.assert_allclose(bijector.inverse(fresh), x, rtol=1e-7, atol=1e-9)
    ndims = tf.nest.map_structure(lambda part: 1, y)
    np.testing.assert_allclose(bijector.inverse_log_det_jacobian(again, ndims), -log_det, rtol=1e-7, atol=1e-9)


def test_independent_sample_and_mixture():
    q, logits = distribution(), normal([3], seed=6)

    def of_mixture(z):
        return tf.reduce_logsumexp(q.log_prob(z[:, tf.newaxis]) + tf.nn.log_softmax(logits), axis=-1)

    for joint, batch_shape, event_shape, by_hand in (
        (tfd.Independent(q, 1), [], [3, EVENT], lambda z: tf.reduce_sum(q.log_prob(z), axis=-1)),
        (
            tfd.Sample(q, 2),
            [3],
            [2, EVENT],
            lambda z: tf.reduce_sum(q.log_prob(tf.transpose(z, [2, 0, 1, 3])), axis=0),
        ),
        (tfd.MixtureSameFamily(tfd.Categorical(logits=logits), q), [], [EVENT], of_mixture),
    ):
        z, log_q = joint.experimental_sample_and_log_prob(4, seed=SEED)
        assert (joint.batch_shape, joint.event_shape) == (batch_shape, event_shape)
        np.testing.assert_allclose(log_q, by_hand(tf.identity(z)), rtol=1e-9, err_msg=str(joint))
        np.testing.assert_allclose(joint.log_prob(z), log_q, rtol=1e-9, err_msg=str(joint))


def joint_distributions(made):
    def prior():
        return tfd.Independent(tfd.Normal(tf.zeros([EVENT], tf.float64), 1.0), 1)

    def flow(loc):
        return made(loc, tf.ones([EVENT], tf.float64))

    def likelihood(z):
        return tfd.Independent(tfd.Normal(z, tf.constant(0.5, tf.float64)), 1)

    def coroutine():
        loc = yield prior()
        z = yield flow(loc)
        yield likelihood(z)

    return {
        'sequential': tfd.JointDistributionSequential([prior(), flow, lambda z, loc: likelihood(z)]),
        'named': tfd.JointDistributionNamed({'loc': prior(), 'z': flow, 'y': likelihood}),
        'auto_batched': tfd.JointDistributionCoroutineAutoBatched(coroutine),
    }


@pytest.mark.parametrize('kind', ['sequential', 'named', pytest.param('auto_batched', marks=pytest.mark.slow)])
def test_component_of_a_joint_distribution(kind):
    made = posterior(num_flows=1)
    joint = joint_distributions(made)[kind]
    event, log_prob = joint.experimental_sample_and_log_prob(4, seed=1)
    loc, z, y = (event[name] for name in ('loc', 'z', 'y')) if kind == 'named' else event
    expected = log_normal(loc) + made(loc, tf.ones_like(loc)).log_prob(tf.identity(z)) + log_normal(y - z, 0.5)
    for density in (log_prob, joint.log_prob(event), joint.log_prob(tf.nest.map_structure(tf.identity, event))):
        np.testing.assert_allclose(density, expected, rtol=1e-9)


def test_one_posterior_twice_in_a_joint_distribution():
    """A joint distribution names components itself, unless they insist on a name, which then may come but once."""
    made, scale = posterior(num_flows=1), tf.ones([EVENT], tf.float64)

    def model():
        first = yield made(tf.zeros([EVENT], tf.float64), scale)
        yield made(first, scale)

    joint = tfd.JointDistributionCoroutineAutoBatched(model)
    first, second = joint.sample(seed=1)
    expected = made(tf.zeros_like(first), scale).log_prob(first.numpy()) + made(first, scale).log_prob(second.numpy())
    np.testing.assert_allclose(joint.log_prob([first, second]), expected, rtol=1e-9)
    assert posterior(name='mine')(first, scale).name == 'mine'


def test_two_posteriors_in_one_chain_take_contexts_by_their_names():
    first, second = (posterior(context_shape=CONTEXT, name=name, seed=i) for i, name in enumerate(['first', 'second']))
    chain = tfb.Chain([second.bijector(), tfb.Scale(np.float64(2.0)), first.bijector()], name='outer')
    other = normal([5, CONTEXT], seed=8)
    same = tfb.Chain([second.bijector(other), tfb.Scale(np.float64(2.0)), first.bijector(context2)])
    keywords = {
        'first': {f'flow_{t}': {'context': context2} for t in range(STEPS)},
        'second': {f'flow_{t}': {'conditional_input': other} for t in range(STEPS)},
    }
    y = chain.forward(x3, **keywords)
    np.testing.assert_allclose(y, same.forward(x3), rtol=1e-10)
    np.testing.assert_allclose(chain.inverse(tf.identity(y), **keywords), x3, rtol=1e-7)
    q, same = (tfd.TransformedDistribution(standard_normal(batch=[5]), bijector) for bijector in (chain, same))
    np.testing.assert_allclose(q.log_prob(y, bijector_kwargs=keywords), same.log_prob(tf.identity(y)), rtol=1e-9)


def test_network_is_used_once_for_a_context_given_by_keyword(network_calls, inversions):
    made = posterior(context_shape=CONTEXT)
    q = tfd.TransformedDistribution(standard_normal(batch=[5]), made.bijector())
    keywords = {'bijector_kwargs': {f'flow_{t}': {'context': context2} for t in range(STEPS)}}
    q.log_prob(q.sample(4, seed=SEED, **keywords), **keywords)
    assert (network_calls, inversions) == (list(made.networks), [])


def test_in_place_of_tfps_own_flow():
    """With its network, its weights and its formula: the same samples and densities, and the same gradients."""

    def whitening(params):
        shift, log_scale = tf.unstack(params, axis=-1)
        return tfb.Chain([tfb.Scale(log_scale=-log_scale), tfb.Shift(-shift)])

    network = tfb.AutoregressiveNetwork(2, event_shape=[EVENT], hidden_units=[8], activation='tanh', dtype=tf.float64)
    network(x3)  # the variables come with the first call
    ours = InverseAutoregressiveFlow(network, transform=transforms.ScalarBijector(whitening, params=2))
    theirs = tfb.Invert(tfb.MaskedAutoregressiveFlow(network))
    results = []
    for bijector in (ours, theirs):
        q = tfd.TransformedDistribution(standard_normal(), bijector)
        assert {id(v) for v in q.trainable_variables} == {id(v) for v in network.trainable_variables}
        with tf.GradientTape() as tape:
            z, log_q = q.sample(5, seed=SEED), q.log_prob(x3)
            total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
        results.append([z, log_q, *tape.gradient(total, network.trainable_variables)])
    (z, log_q, *gradients), (their_z, their_log_q, *their_gradients) = results
    np.testing.assert_allclose(z, their_z, rtol=1e-9)
    np.testing.assert_allclose(log_q, their_log_q, rtol=1e-7)
    for variable, gradient, expected in zip(network.trainable_variables, gradients, their_gradients, strict=True):
        # Their unrolled inverse has one for forbidden weights too, which start at zero.
        allowed = (variable.numpy() != 0) | ('bias' in variable.name)
        np.testing.assert_allclose(gradient[allowed], expected[allowed], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_values_are_right_where_the_cache_is_lost(network_calls, inversions):
    """As the docstring of `IAFPosterior` says: each of these inverts every step, but to sample with the density."""
    made = posterior(context_shape=CONTEXT)
    loc, scale = normal([5, EVENT], seed=3), tf.ones([5, EVENT], tf.float64)
    q = made(loc, scale, context2)
    joint = tfd.JointDistributionSequential([q, lambda z: tfd.Independent(tfd.Normal(z, tf.ones_like(z)), 1)])
    joint.sample(seed=1)  # once, a joint distribution draws another sample, to learn its own structure
    independent, several = tfd.Independent(q, 1), tfd.Sample(q, 2)
    of_independent = independent.sample(4, seed=SEED)
    of_function = tf.function(lambda: q.sample(4, seed=SEED), autograph=False)()
    samples = []
    for whole in (q, several, independent, joint):
        network_calls.clear()
        samples.append(whole.experimental_sample_and_log_prob(4, seed=SEED))
        assert (len(network_calls), inversions) == (STEPS, []), whole
    (z, log_q), (of_several, log_several), *_ = samples
    for name, log_prob, expected, inverted in (
        ('known', lambda: q.log_prob(z), log_q, 0),
        ('identity', lambda: q.log_prob(tf.identity(z)), log_q, STEPS),
        ('numpy', lambda: q.log_prob(z.numpy()), log_q, STEPS),
        ('another function', lambda: tf.function(q.log_prob, autograph=False)(of_function), log_q, STEPS),
        ('another context', lambda: made(loc, scale, tf.identity(context2)).log_prob(z), log_q, STEPS),
        ('independent', lambda: independent.log_prob(of_independent), tf.reduce_sum(log_q, axis=-1), STEPS),
        ('sample', lambda: several.log_prob(of_several), log_several, STEPS),
    ):
        inversions.clear()
        np.testing.assert_allclose(log_prob(), expected, rtol=1e-8, err_msg=name)
        assert len(inversions) == inverted, name


def distribution_to_update(kind):
    made = posterior()
    if kind == 'posterior':
        return made, made(tf.zeros([EVENT], tf.float64), tf.ones([EVENT], tf.float64))
    flow = made.bijector()
    bijector = {
        'chain of ones own': lambda: tfb.Chain([tfb.Softplus(), *flow.bijectors]),
        'inverted': lambda: tfb.Invert(flow),
        'nested': lambda: tfb.Chain([tfb.Softplus(), flow]),
    }[kind]()
    return made, tfd.TransformedDistribution(standard_normal(), bijector)


each_to_update = pytest.mark.parametrize('kind', ['posterior', 'chain of ones own', 'inverted', 'nested'])


@each_to_update
def test_a_sample_and_its_density_take_one_evaluation(kind, network_calls, inversions):
    _, q = distribution_to_update(kind)
    z = q.sample(4, seed=SEED)
    calls = list(network_calls), list(inversions)
    q.log_prob(z)
    assert (network_calls, inversions) == calls


@each_to_update
def test_log_prob_of_a_held_point_has_all_gradients_and_follows_an_update(kind):
    """As in an evaluation after each epoch on the same tensor; estimators such as the score function hold samples."""
    made, q = distribution_to_update(kind)
    point = q.sample(5, seed=SEED) if kind == 'posterior' else tf.abs(x3) + 0.1
    before = q.log_prob(point)
    gradients = []
    for value in (point, tf.identity(point)):
        with tf.GradientTape() as tape:
            log_q = q.log_prob(value)
        np.testing.assert_allclose(log_q, before, rtol=1e-9)
        gradients.append(tape.gradient(log_q, made.trainable_variables))
    for gradient, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-10)
    perturb(made)
    after = q.log_prob(point)
    np.testing.assert_allclose(after, q.log_prob(tf.identity(point)), rtol=1e-9)
    assert np.all(after != before)


def test_held_sample_of_a_chain_of_ones_own_needs_a_new_tensor():
    """TFP's chain keeps the way back from a sample. What the docstring of the step says helps against it does help."""
    made, q = distribution_to_update('chain of ones own')
    z = q.sample(5, seed=SEED)
    perturb(made)
    expected = tfd.TransformedDistribution(
        standard_normal(), tfb.Chain([tfb.Softplus(), *made.bijector().bijectors], name='another')
    ).log_prob(z.numpy())
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), expected, rtol=1e-9)
    np.testing.assert_allclose(tf.function(q.log_prob)(z), expected, rtol=1e-9)
