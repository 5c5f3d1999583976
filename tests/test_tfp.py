"""The flow inside TFP: its bijectors, joint distributions, losses and MCMC, and what TFP's cache makes of it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import samplers

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


# TFP's bijectors around a step. Each case: the bijector, the same by hand, and the number of entries.

LOWER = tf.constant([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.7]], tf.float64)


def _parts(y, sizes):
    return tf.split(y, sizes, axis=-1)


COMPOSITIONS = {
    'softplus': lambda f: (tfb.Chain([tfb.Softplus(), f]), lambda x: tf.math.softplus(f.forward(x)), 3),
    'scale_and_shift': lambda f: (
        tfb.Chain([tfb.Shift(np.float64(1.0)), tfb.Scale(np.float64(2.0)), f, tfb.Scale(np.float64(-3.0))]),
        lambda x: 2 * f.forward(-3 * x) + 1,
        3,
    ),
    'permute': lambda f: (
        tfb.Chain([f, tfb.Permute([2, 0, 1])]),
        lambda x: f.forward(tf.gather(x, [2, 0, 1], axis=-1)),
        3,
    ),
    'triangle': lambda f: (
        tfb.Chain([tfb.ScaleMatvecTriL(LOWER), f]),
        lambda x: tf.linalg.matvec(LOWER, f.forward(x)),
        3,
    ),
    'invert': lambda f: (tfb.Chain([tfb.Invert(f), tfb.Scale(np.float64(2.0))]), lambda x: f.inverse(2 * x), 3),
    'invert_chain': lambda f: (
        tfb.Invert(tfb.Chain([tfb.Scale(np.float64(2.0)), f])),
        lambda x: f.inverse(x / 2),
        3,
    ),
    'blockwise': lambda f: (
        tfb.Blockwise([f, tfb.Exp()], [3, 2]),
        lambda x: tf.concat([f.forward(x[..., :3]), tf.exp(x[..., 3:])], axis=-1),
        5,
    ),
    'reshape': lambda f: (
        tfb.Chain([tfb.Reshape([3, 1], [3]), f, tfb.Reshape([3], [1, 3]), tfb.Reshape([1, 3], [3])]),
        lambda x: f.forward(x)[..., tf.newaxis],
        3,
    ),
    'split': lambda f: (
        tfb.Chain([tfb.JointMap([tfb.Softplus(), tfb.Scale(np.float64(3.0))]), tfb.Split([1, 2]), f]),
        lambda x: [tf.math.softplus(f.forward(x)[..., :1]), 3 * f.forward(x)[..., 1:]],
        3,
    ),
    'joint_map': lambda f: (
        tfb.Chain([tfb.JointMap([f, tfb.Exp()]), tfb.Split([3, 2])]),
        lambda x: [f.forward(x[..., :3]), tf.exp(x[..., 3:])],
        5,
    ),
    'steps_in_steps': lambda f: (tfb.Chain([f, tfb.Invert(tfb.Chain([f, f]))]), lambda x: f.inverse(x), 3),
}


def flat(event):
    return tf.concat([tf.reshape(part, [part.shape[0], -1]) for part in tf.nest.flatten(event)], axis=-1)


@pytest.mark.parametrize('compose', COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_composition_equals_that_by_hand(compose):
    bijector, by_hand, size = compose(step(transform='affine'))
    x = normal([5, size], seed=5)
    y = bijector.forward(x)
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), y, by_hand(tf.identity(x)))
    log_det = np.linalg.slogdet(jacobian(lambda x: flat(by_hand(x)), x))[1]
    fresh = tf.nest.map_structure(tf.identity, y)
    ndims = tf.nest.map_structure(lambda part: part.shape.rank - 1, y)
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(x, 1), log_det, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(bijector.inverse(fresh), x, rtol=1e-7, atol=1e-9)
    fresh = tf.nest.map_structure(tf.identity, y)
    np.testing.assert_allclose(bijector.inverse_log_det_jacobian(fresh, ndims), -log_det, rtol=1e-7, atol=1e-9)


# Distributions around a posterior


def test_independent():
    q = distribution()
    joint = tfd.Independent(q, 1)
    z, log_q = joint.experimental_sample_and_log_prob(4, seed=SEED)
    assert (joint.batch_shape, joint.event_shape) == ([], [3, EVENT])
    np.testing.assert_allclose(log_q, tf.reduce_sum(q.log_prob(tf.identity(z)), axis=-1), rtol=1e-9)
    np.testing.assert_allclose(joint.log_prob(z), log_q, rtol=1e-9)


def test_sample():
    q = distribution()
    joint = tfd.Sample(q, 2)
    z, log_q = joint.experimental_sample_and_log_prob(4, seed=SEED)
    assert (joint.batch_shape, joint.event_shape) == ([3], [2, EVENT])
    each = q.log_prob(tf.transpose(z, [2, 0, 1, 3]))
    np.testing.assert_allclose(log_q, tf.reduce_sum(each, axis=0), rtol=1e-9)
    np.testing.assert_allclose(joint.log_prob(z), log_q, rtol=1e-9)


def test_mixture():
    q, logits = distribution(), normal([3], seed=6)
    mixture = tfd.MixtureSameFamily(tfd.Categorical(logits=logits), q)
    z = mixture.sample(4, seed=SEED)
    expected = tf.reduce_logsumexp(q.log_prob(z[:, tf.newaxis]) + tf.nn.log_softmax(logits), axis=-1)
    assert mixture.event_shape == [EVENT]
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=1e-9)


def joint_distributions(made):
    def prior():
        return tfd.Independent(tfd.Normal(tf.zeros([EVENT], tf.float64), 1.0), 1)

    def likelihood(z):
        return tfd.Independent(tfd.Normal(z, tf.constant(0.5, tf.float64)), 1)

    def flow(loc):
        return made(loc, tf.ones([EVENT], tf.float64))

    def coroutine():
        loc = yield prior()
        z = yield flow(loc)
        yield likelihood(z)

    def rooted():
        loc = yield tfd.JointDistributionCoroutine.Root(prior())
        z = yield flow(loc)
        yield likelihood(z)

    return {
        'sequential': tfd.JointDistributionSequential([prior(), flow, lambda z, loc: likelihood(z)]),
        'named': tfd.JointDistributionNamed({'loc': prior(), 'z': flow, 'y': likelihood}),
        'coroutine': tfd.JointDistributionCoroutine(rooted),
        'auto_batched': tfd.JointDistributionCoroutineAutoBatched(coroutine),
    }


@pytest.mark.parametrize('kind', ['sequential', 'named', 'coroutine', 'auto_batched'])
def test_component_of_a_joint_distribution(kind):
    made = posterior()
    joint = joint_distributions(made)[kind]
    event, log_prob = joint.experimental_sample_and_log_prob(4, seed=1)
    loc, z, y = (event[name] for name in ('loc', 'z', 'y')) if kind == 'named' else event
    expected = log_normal(loc) + made(loc, tf.ones_like(loc)).log_prob(tf.identity(z)) + log_normal(y - z, 0.5)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-9)
    np.testing.assert_allclose(joint.log_prob(event), expected, rtol=1e-9)
    np.testing.assert_allclose(joint.log_prob(tf.nest.map_structure(tf.identity, event)), expected, rtol=1e-9)


def test_one_posterior_twice_in_a_joint_distribution():
    """A joint distribution names components itself, unless they insist on a name, which then may come but once."""
    made, scale = posterior(), tf.ones([EVENT], tf.float64)

    def model():
        first = yield made(tf.zeros([EVENT], tf.float64), scale)
        yield made(first, scale)

    joint = tfd.JointDistributionCoroutineAutoBatched(model)
    first, second = joint.sample(seed=1)
    expected = made(tf.zeros_like(first), scale).log_prob(first.numpy()) + made(first, scale).log_prob(second.numpy())
    np.testing.assert_allclose(joint.log_prob([first, second]), expected, rtol=1e-9)
    assert posterior(name='mine')(first, scale).name == 'mine'


def test_equality_hash_and_copy_of_the_chain():
    made = posterior(context_shape=CONTEXT)
    chain, same = made.bijector(context2), made.bijector(context2)
    assert chain == same and hash(chain) == hash(same)
    assert chain != made.bijector(context2 + 1.0)
    assert chain != posterior(context_shape=CONTEXT).bijector(context2)
    np.testing.assert_array_equal(chain.copy(name='copy').forward(x3), chain.forward(x3))


@pytest.mark.parametrize('index', [1, slice(1, 3), (Ellipsis, slice(2))], ids=str)
def test_slicing_within_a_chain_of_ones_own(index):
    made = posterior(context_shape=CONTEXT)
    loc = normal([5, EVENT], seed=7)

    def of(loc, context):
        base = tfd.MultivariateNormalDiag(loc, tf.ones([EVENT], tf.float64))
        return tfd.TransformedDistribution(base, tfb.Chain([tfb.Softplus(), *made.bijector(context).bijectors]))

    sliced = of(loc, context2)[index]
    rows = index[-1] if isinstance(index, tuple) else index
    expected = of(loc[rows], context2[rows])
    z = expected.sample(seed=SEED)
    assert sliced.batch_shape == expected.batch_shape
    np.testing.assert_allclose(sliced.log_prob(tf.identity(z)), expected.log_prob(z), rtol=1e-9)


# Contexts by keyword


def test_two_posteriors_in_one_chain_take_contexts_by_their_names():
    first, second = (posterior(context_shape=CONTEXT, name=name, seed=i) for i, name in enumerate(['first', 'second']))
    chain = tfb.Chain([second.bijector(), tfb.Scale(np.float64(2.0)), first.bijector()], name='outer')
    other = normal([5, CONTEXT], seed=8)
    keywords = {
        'first': {f'flow_{t}': {'context': context2} for t in range(STEPS)},
        'second': {f'flow_{t}': {'conditional_input': other} for t in range(STEPS)},
    }
    expected = second.bijector(other).forward(2 * first.bijector(context2).forward(x3))
    y = chain.forward(x3, **keywords)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    np.testing.assert_allclose(chain.inverse(tf.identity(y), **keywords), x3, rtol=1e-7)
    q = tfd.TransformedDistribution(standard_normal(batch=[5]), chain)
    same = tfd.TransformedDistribution(
        standard_normal(batch=[5]),
        tfb.Chain([second.bijector(other), tfb.Scale(np.float64(2.0)), first.bijector(context2)]),
    )
    np.testing.assert_allclose(q.log_prob(y, bijector_kwargs=keywords), same.log_prob(tf.identity(y)), rtol=1e-9)


# From `Invert(MaskedAutoregressiveFlow)` to the step


@dataclasses.dataclass(frozen=True)
class Whitening(transforms.Transform):
    """What `tfb.Invert` makes of TFP's flow: y = (x - shift) * exp(-log_scale)."""

    @property
    def params(self):
        return 2

    def forward(self, x, params):
        shift, log_scale = tf.unstack(params, axis=-1)
        return (x - shift) * tf.exp(-log_scale), -log_scale

    def inverse(self, y, params):
        shift, log_scale = tf.unstack(params, axis=-1)
        return y * tf.exp(log_scale) + shift, -log_scale


def test_in_place_of_tfps_own_flow():
    """With its network, its weights and its formula: the same samples and densities, and the same gradients."""
    network = tfb.AutoregressiveNetwork(2, event_shape=[EVENT], hidden_units=[8], activation='tanh', dtype=tf.float64)
    network(tf.zeros([1, EVENT], tf.float64))
    ours = InverseAutoregressiveFlow(network, transform=Whitening())
    theirs = tfb.Invert(tfb.MaskedAutoregressiveFlow(network))
    results = []
    for bijector in (ours, theirs):
        q = tfd.TransformedDistribution(standard_normal(), bijector)
        with tf.GradientTape() as tape:
            z = q.sample(5, seed=SEED)
            log_q = q.log_prob(x3)
            total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
        results.append([z, log_q, *tape.gradient(total, network.trainable_variables)])
    (z, log_q, *gradients), (their_z, their_log_q, *their_gradients) = results
    np.testing.assert_allclose(z, their_z, rtol=1e-9)
    np.testing.assert_allclose(log_q, their_log_q, rtol=1e-7)
    for variable, gradient, expected in zip(network.trainable_variables, gradients, their_gradients, strict=True):
        # Their unrolled inverse has one for forbidden weights too, which start at zero.
        allowed = (variable.numpy() != 0) | ('bias' in variable.name)
        np.testing.assert_allclose(gradient[allowed], expected[allowed], rtol=1e-5, atol=1e-7)


# Variational inference


@pytest.mark.parametrize(
    ('estimator', 'importance_samples'), [('REPARAMETERIZATION', 1), ('REPARAMETERIZATION', 4), ('SCORE_FUNCTION', 1)]
)
def test_variational_loss_equals_that_by_hand(estimator, importance_samples):
    made = posterior(transform='affine')
    q = made(tf.zeros([EVENT], tf.float64), tf.ones([EVENT], tf.float64))

    def target(z):
        return -tf.reduce_sum((z - 1.0) ** 2, axis=-1)

    with tf.GradientTape() as tape:
        loss = tfp.vi.monte_carlo_variational_loss(
            target,
            q,
            sample_size=8,
            importance_sample_size=importance_samples,
            gradient_estimator=tfp.vi.GradientEstimators[estimator],
            seed=SEED,
        )
    gradients = tape.gradient(loss, made.trainable_variables)
    with tf.GradientTape() as tape:
        z, log_q = q.experimental_sample_and_log_prob(8 * importance_samples, seed=samplers.split_seed(SEED)[0])
        if estimator == 'SCORE_FUNCTION':
            z = tf.constant(z.numpy())
            log_q = q.log_prob(z)
        log_weights = tf.reshape(target(z) - log_q, [8, importance_samples])
        value = -tf.reduce_mean(tfp.math.reduce_logmeanexp(log_weights, axis=1))
        surrogate = value
        if estimator == 'SCORE_FUNCTION':
            surrogate += tf.reduce_mean(tf.stop_gradient(log_q - target(z)) * log_q)
    np.testing.assert_allclose(loss, value, rtol=1e-9)
    for gradient, expected in zip(gradients, tape.gradient(surrogate, made.trainable_variables), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_importance_weights_give_the_evidence():
    made = IAFPosterior(EVENT, STEPS, (8,), transform='affine', seed=0, dtype=tf.float64)
    perturb(made, scale=0.1)
    q = made(tf.zeros([EVENT], tf.float64), tf.fill([EVENT], tf.constant(1.5, tf.float64)))
    z, log_q = q.experimental_sample_and_log_prob(50_000, seed=SEED)
    found = tfp.math.reduce_logmeanexp(log_normal(z) + np.log(7.0) - log_q)
    np.testing.assert_allclose(found, np.log(7.0), atol=0.03)


def test_in_the_chain_of_tfps_tutorial(network_calls, inversions):
    """Variational Inference and Joint Distributions: the steps below Split, Reshape, Restructure and the supports."""
    model = tfd.JointDistributionNamed(
        {'scale': tfd.HalfNormal(1.0), 'x': lambda scale: tfd.Sample(tfd.Normal(0.0, scale), [2, 2])}
    )
    made = IAFPosterior(5, 2, (8,), seed=0)
    perturb(made)
    chain = tfb.Chain(
        [
            model.experimental_default_event_space_bijector(),
            tfb.JointMap({'scale': tfb.Reshape([], [1]), 'x': tfb.Reshape([2, 2], [4])}),
            tfb.Restructure({'scale': 0, 'x': 1}),
            tfb.Split([1, 4]),
            *made.bijector().bijectors,
        ]
    )
    q = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 5), chain)

    def sample_and_log_prob():
        z = q.sample(8, seed=SEED)
        return z, q.log_prob(z)

    for function in (
        sample_and_log_prob,
        tf.function(sample_and_log_prob),
        tf.function(jit_compile=True)(sample_and_log_prob),
    ):
        network_calls.clear()
        z, log_q = function()
        assert network_calls == list(made.networks)
        assert inversions == []
        expected = tf.function(q.log_prob)(z)  # another function: not from a cache
        np.testing.assert_allclose(log_q, expected, rtol=1e-3, atol=1e-3)
        assert np.all(np.isfinite(model.log_prob(z)))
        inversions.clear()


# MCMC


def test_hamiltonian_monte_carlo_through_the_flow():
    """Samples of a known Gaussian, in the flow's coordinates, which are not those where it is one."""
    made = IAFPosterior(EVENT, STEPS, (8,), transform='affine', seed=0, dtype=tf.float64)
    perturb(made, scale=0.1)
    flow = tfb.Chain([tfb.Shift(tf.constant([1.0, 0.0, -1.0], tf.float64)), made.bijector()])
    covariance = tf.matmul(LOWER, LOWER, transpose_b=True)
    target = tfd.MultivariateNormalTriL(tf.constant([1.0, 2.0, -1.0], tf.float64), LOWER)
    kernel = tfp.mcmc.TransformedTransitionKernel(
        tfp.mcmc.HamiltonianMonteCarlo(target.log_prob, step_size=np.float64(0.25), num_leapfrog_steps=6), flow
    )
    start = target.sample(200, seed=SEED)
    results = kernel.bootstrap_results(start)
    x = results.transformed_state
    np.testing.assert_allclose(flow.forward(tf.identity(x)), start, rtol=1e-7)
    np.testing.assert_allclose(
        results.inner_results.accepted_results.target_log_prob,
        target.log_prob(start) + flow.forward_log_det_jacobian(tf.identity(x)),
        rtol=1e-7,
    )

    @tf.function(autograph=False)
    def chain():
        return tfp.mcmc.sample_chain(
            60, start, kernel=kernel, trace_fn=lambda _, results: results.inner_results.is_accepted, seed=SEED
        )

    samples, accepted = chain()
    assert 0.6 < np.mean(accepted) < 1.0
    z = samples.numpy().reshape([-1, EVENT])
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((z.mean(axis=0) - target.mean()) / scale, np.zeros(EVENT), atol=0.08)
    np.testing.assert_allclose((np.cov(z.T) - covariance) / np.outer(scale, scale), np.zeros([3, 3]), atol=0.15)


@pytest.mark.parametrize(
    'make_kernel',
    [
        lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, step_size=np.float64(0.1), num_leapfrog_steps=3),
        lambda target: tfp.mcmc.NoUTurnSampler(target, step_size=np.float64(0.1), max_tree_depth=3),
    ],
    ids=['hmc', 'nuts'],
)
@pytest.mark.parametrize('kind', ['sequential', 'auto_batched'])
def test_flow_as_a_prior_under_mcmc(kind, make_kernel):
    """Its density is one of fresh points, inverted in the loops of MCMC and, auto-batched, in `tf.vectorized_map`."""
    made = posterior()
    joint = joint_distributions(made)[kind]
    observed = normal([EVENT], seed=9)
    target = joint.experimental_pin(None, None, observed).unnormalized_log_prob
    start = [normal([4, EVENT], seed=10), normal([4, EVENT], seed=11)]

    @tf.function(autograph=False)
    def chain():
        def traced(_, results):
            results = getattr(results, 'accepted_results', results)
            return results.target_log_prob, results.grads_target_log_prob

        return tfp.mcmc.sample_chain(3, start, kernel=make_kernel(target), trace_fn=traced, seed=SEED)

    (loc, z), (log_prob, gradients) = chain()
    assert np.any(z[-1] != start[1])
    with tf.GradientTape() as tape:
        tape.watch([loc, z])
        of_flow = made(loc, tf.ones([EVENT], tf.float64)).log_prob(tf.identity(z))
        expected = log_normal(loc) + of_flow + log_normal(observed - z, 0.5)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-9)
    for gradient, other in zip(gradients, tape.gradient(expected, [loc, z]), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-8, atol=1e-10)


# Inside TensorFlow's control flow

POINTS = 4
CONTROL_FLOW = {
    'map_fn': lambda function, x: tf.map_fn(function, x),
    'scan': lambda function, x: tf.scan(lambda _, row: function(row), x, initializer=tf.zeros([], x.dtype)),
    'while_loop': lambda function, x: tf.while_loop(
        lambda i, _: i < POINTS,
        lambda i, values: (i + 1, values.write(i, function(x[i]))),
        (0, tf.TensorArray(x.dtype, POINTS)),
    )[1].stack(),
    'cond': lambda function, x: tf.cond(x[0, 0] < 100, lambda: function(x), lambda: tf.zeros([POINTS], x.dtype)),
    'vectorized_map': lambda function, x: tf.vectorized_map(function, x),
}


class Summing(tf.Module):
    """A network that is a function, with a variable."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(0.3, dtype=tf.float64)

    def __call__(self, x):
        before = tf.cumsum(tf.sin(x), axis=-1, exclusive=True)
        return tf.stack([self.weight * before, 0.1 * tf.cos(before)], axis=-1)


def _for_control_flow(kind):
    """Over so many entries that they are solved in two blocks."""
    if kind == 'function':
        return tfd.TransformedDistribution(
            standard_normal(16), InverseAutoregressiveFlow(Summing(), transform='affine')
        )
    made = IAFPosterior(16, 1, (18,), inverse=kind, seed=0, dtype=tf.float64)
    perturb(made)
    return made(tf.zeros([16], tf.float64), tf.ones([16], tf.float64))


@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('way', CONTROL_FLOW.values(), ids=CONTROL_FLOW)
@pytest.mark.parametrize('kind', ['auto', 'fixed_point', 'function'])
def test_density_and_its_gradients_in_control_flow(kind, way, in_function):
    q, x, weights = _for_control_flow(kind), normal([POINTS, 16], seed=5), normal([POINTS], seed=6)

    def values_and_gradients(way):
        with tf.GradientTape() as tape:
            tape.watch(x)
            log_q = way(q.log_prob, tf.identity(x))
            total = tf.reduce_sum(weights * log_q)
        return [log_q, *tape.gradient(total, [x, *q.trainable_variables])]

    function = tf.function(values_and_gradients, autograph=False) if in_function else values_and_gradients
    expected = values_and_gradients(lambda function, x: function(x))
    for actual, other in zip(function(way), expected, strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-9, atol=1e-11)


# What TFP's cache loses, and what it keeps too long


def test_values_are_right_where_the_cache_is_lost(inversions):
    """As the docstring of `IAFPosterior` says: each of these inverts every step."""
    made = posterior(context_shape=CONTEXT)
    loc, scale = normal([5, EVENT], seed=3), tf.ones([5, EVENT], tf.float64)
    q = made(loc, scale, context2)
    z, log_q = q.experimental_sample_and_log_prob(4, seed=SEED)
    independent, several = tfd.Independent(q, 1), tfd.Sample(q, 2)
    of_function = tf.function(lambda: q.sample(4, seed=SEED))()
    of_independent = independent.sample(4, seed=SEED)
    of_several, log_several = several.experimental_sample_and_log_prob(4, seed=SEED)
    assert inversions == []
    ways = {
        'known': (lambda: q.log_prob(z), log_q, 0),
        'identity': (lambda: q.log_prob(tf.identity(z)), log_q, STEPS),
        'numpy': (lambda: q.log_prob(z.numpy()), log_q, STEPS),
        'another function': (lambda: tf.function(q.log_prob)(of_function), log_q, STEPS),
        'another context': (lambda: made(loc, scale, tf.identity(context2)).log_prob(z), log_q, STEPS),
        'independent': (lambda: independent.log_prob(of_independent), tf.reduce_sum(log_q, axis=-1), STEPS),
        'sample': (lambda: several.log_prob(of_several), log_several, STEPS),
    }
    for name, (way, expected, inverted) in ways.items():
        inversions.clear()
        np.testing.assert_allclose(way(), expected, rtol=1e-8, err_msg=name)
        assert len(inversions) == inverted, name


@pytest.mark.parametrize(
    'around',
    [
        lambda q: tfd.Independent(q, 1),
        lambda q: tfd.Sample(q, 2),
        lambda q: tfd.JointDistributionSequential([q, lambda z: tfd.Independent(tfd.Normal(z, tf.ones_like(z)), 1)]),
    ],
    ids=['independent', 'sample', 'joint'],
)
def test_sampling_with_the_density_inverts_nothing(around, network_calls, inversions):
    whole = around(distribution())
    whole.sample(seed=1)  # once, a joint distribution draws another sample, to learn its own structure
    network_calls.clear()
    whole.experimental_sample_and_log_prob(4, seed=1)
    assert len(network_calls) == STEPS
    assert inversions == []


def distributions_to_update():
    made = posterior()
    of_posterior = made(tf.zeros([EVENT], tf.float64), tf.ones([EVENT], tf.float64))
    own = tfb.Chain([tfb.Softplus(), *made.bijector().bijectors])
    return {
        'posterior': (made, of_posterior),
        'chain of ones own': (made, tfd.TransformedDistribution(standard_normal(), own)),
        'inverted': (made, tfd.TransformedDistribution(standard_normal(), tfb.Invert(made.bijector()))),
        'nested': (
            made,
            tfd.TransformedDistribution(standard_normal(), tfb.Chain([tfb.Softplus(), made.bijector()])),
        ),
    }


each_to_update = pytest.mark.parametrize('kind', ['posterior', 'chain of ones own', 'inverted', 'nested'])


@each_to_update
def test_log_prob_of_a_held_point_follows_an_update(kind):
    """As in an evaluation after each epoch, on the same tensor."""
    made, q = distributions_to_update()[kind]
    point = tf.abs(x3) + 0.1
    before = q.log_prob(point)
    perturb(made)
    after = q.log_prob(point)
    np.testing.assert_allclose(after, q.log_prob(tf.identity(point)), rtol=1e-9)
    assert np.all(after != before)


@each_to_update
def test_log_prob_of_a_held_point_has_all_gradients(kind):
    made, q = distributions_to_update()[kind]
    point = tf.abs(x3) + 0.1
    kept = q.log_prob(point)
    gradients = []
    for value in (point, tf.identity(point)):
        with tf.GradientTape() as tape:
            log_q = q.log_prob(value)
        gradients.append(tape.gradient(log_q, made.trainable_variables))
    np.testing.assert_allclose(log_q, kept, rtol=1e-9)
    for gradient, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-10)


def test_held_sample_of_a_chain_of_ones_own_needs_a_new_tensor():
    """TFP's chain keeps the way back from a sample. What the docstring of the step says helps against it does help."""
    made, q = distributions_to_update()['chain of ones own']
    z = q.sample(5, seed=SEED)
    perturb(made)
    expected = tfd.TransformedDistribution(
        standard_normal(), tfb.Chain([tfb.Softplus(), *made.bijector().bijectors], name='another')
    ).log_prob(z.numpy())
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), expected, rtol=1e-9)
    np.testing.assert_allclose(tf.function(q.log_prob)(z), expected, rtol=1e-9)


def test_network_is_not_used_twice_for_a_context_given_by_keyword(network_calls, inversions):
    made = posterior(context_shape=CONTEXT)
    keywords = {f'flow_{t}': {'context': context2} for t in range(STEPS)}
    q = tfd.TransformedDistribution(standard_normal(batch=[5]), made.bijector())
    z = q.sample(4, seed=SEED, bijector_kwargs=keywords)
    log_q = q.log_prob(z, bijector_kwargs=keywords)
    assert network_calls == list(made.networks)
    assert inversions == []
    expected = tfd.TransformedDistribution(standard_normal(batch=[5]), made.bijector(context2)).log_prob(z.numpy())
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)
