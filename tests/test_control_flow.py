"""Flows inside loops, branches and vectorisers, with gradients from outside: the same as without them, or an error."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import FLOWS, normal, perturb, raises, tfd

# To trace and to compile takes seconds.
pytestmark = pytest.mark.slow

ROWS = 2


def _map_fn(function, rows):
    # What is converted by AutoGraph is called without its own name.
    return tf.map_fn(tf.autograph.experimental.do_not_convert(function), rows, fn_output_signature=rows[0].dtype)


def _vectorized_map(function, rows):
    return tf.vectorized_map(function, rows)


def _scan(function, rows):
    zero = tf.zeros([], rows[0].dtype)
    totals = tf.scan(lambda total, row: total + function(row), rows, zero)
    return tf.concat([totals[:1], totals[1:] - totals[:-1]], axis=0)


def _while_loop(function, rows):
    def body(i, results):
        value = function([row[i] for row in rows])
        return i + 1, tf.tensor_scatter_nd_update(results, [[i]], [value])

    zeros = tf.zeros([ROWS], rows[0].dtype)
    return tf.while_loop(lambda i, _: i < ROWS, body, (0, zeros), maximum_iterations=ROWS)[1]


def _cond(function, rows):
    def of_row(i):
        row = [row[i] for row in rows]
        return tf.cond(tf.reduce_sum(row[0]) < 1e9, lambda: function(row), lambda: tf.zeros([], row[0].dtype))

    return tf.stack([of_row(i) for i in range(ROWS)])


CONSTRUCTS = {
    'map_fn': _map_fn,
    'scan': _scan,
    'while_loop': _while_loop,
    'cond': _cond,
    'vectorized_map': _vectorized_map,
}


class Case:
    """An objective of a flow, row by row, in both directions, and its gradients for everything."""

    def __init__(self, name):
        self.flow = FLOWS[name]
        self.owner = self.flow.build()
        self.rows = [self.flow.events([ROWS])]
        if self.flow.context_size is not None:
            self.rows.append(self.flow.contexts([ROWS]))

    def objective(self, row):
        x, *context = row
        bijector = self.owner.bijector(*context)
        y, z = bijector.forward(x), bijector.inverse(tf.identity(x))
        sines = tf.reduce_sum(tf.sin(y), axis=-1) + tf.reduce_sum(tf.sin(z), axis=-1)
        return sines + bijector.forward_log_det_jacobian(x) - bijector.inverse_log_det_jacobian(tf.identity(x))

    def gradients(self, construct):
        """The objective of each row, and its weighted sum's gradients, of the rows and of the variables."""
        with tf.GradientTape() as tape:
            tape.watch(self.rows)
            values = construct(self.objective, self.rows)
            total = tf.reduce_sum(values * normal([ROWS], seed=5))
        return [values, *tape.gradient(total, [*self.rows, *self.owner.trainable_variables])]

    def check(self, construct, **options):
        expected = self.gradients(lambda objective, rows: objective(rows))

        def computed():
            return self.gradients(CONSTRUCTS[construct])

        actual = computed() if options.pop('eager', False) else tf.function(computed, autograph=False, **options)()
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * max(1, np.max(np.abs(b))))


# Flows differ in how their inverses iterate, and in what a gradient then solves; to vectorize one takes seconds.
KINDS = (
    'gated_context',
    'blocks',
    'in_blocks_by_entry',
    'fixed_point',
    'inverted',
    'convolutional',
    'scalar_bijector',
    'function',
    'chain_of_one',
    'planar',
    'radial',
    'sylvester_orthogonal',
)


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_flow_in_a_vectorizer(name):
    Case(name).check('vectorized_map', eager=True)


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_flow_in_a_loop(name):
    Case(name).check('while_loop')


@pytest.mark.parametrize('name', ['gated_context', 'image_fixed_point'])
@pytest.mark.parametrize('construct', ['map_fn', 'scan', 'cond'])
def test_eagerly(name, construct):
    Case(name).check(construct, eager=True)


@pytest.mark.parametrize(
    ('name', 'construct'),
    [
        ('gated_context', 'map_fn'),
        ('fixed_point', 'scan'),
        ('fixed_point', 'cond'),
        ('fixed_point', 'vectorized_map'),
        ('radial', 'vectorized_map'),
    ],
)
def test_in_a_graph(name, construct):
    Case(name).check(construct)


@pytest.mark.parametrize(
    ('name', 'construct'),
    [
        ('gated_context', 'while_loop'),
        ('fixed_point', 'scan'),
        ('gated_context', 'vectorized_map'),
        ('fixed_point', 'vectorized_map'),
    ],
)
def test_under_xla(name, construct):
    Case(name).check(construct, jit_compile=True)


@pytest.mark.parametrize(
    ('name', 'in_function'), [('gated', False), ('gated', True), ('blocks', False), ('fixed_point', True)]
)
def test_jacobian_by_a_vectorizer(name, in_function):
    case = Case(name)
    bijector = case.owner.bijector(*case.rows[1:])

    def jacobian(use_pfor):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(case.rows[0])
            x = bijector.inverse(tf.identity(case.rows[0]))
        return tape.batch_jacobian(x, case.rows[0], experimental_use_pfor=use_pfor)

    compute = tf.function(jacobian, autograph=False) if in_function else jacobian
    expected = jacobian(False)
    np.testing.assert_allclose(compute(True), expected, rtol=1e-7, atol=1e-9 * np.max(np.abs(expected)))


# Second derivatives


@pytest.mark.parametrize('name', ['gated', 'fixed_point'])
def test_second_derivative_inside_a_vectorizer_is_right(name):
    case, along = Case(name), normal([ROWS, FLOWS[name].event_size], seed=8)

    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = tf.reduce_sum(tf.vectorized_map(case.objective, [y, *case.rows[1:]]))
        return tape.gradient(total, y)

    y = case.rows[0]
    with tf.GradientTape() as tape:
        tape.watch(y)
        total = tf.reduce_sum(gradient(y) * along)
    actual = tape.gradient(total, y)
    step = 1e-6
    expected = (gradient(y + step * along) - gradient(y - step * along)) / (2 * step)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize('name', ['gated', 'fixed_point'])
@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('derivative', ['gradient', 'batch_jacobian'])
def test_derivative_of_a_gradient_is_refused(name, in_function, derivative):
    """Also where a vectoriser differentiates the gradient of the inverse: an error, and not a wrong value."""
    case = Case(name)
    y = case.rows[0]

    def second():
        with tf.GradientTape() as outer:
            outer.watch(y)
            with tf.GradientTape() as inner:
                inner.watch(y)
                total = tf.reduce_sum(case.objective([tf.identity(y), *case.rows[1:]]))
            first = inner.gradient(total, y)
        return getattr(outer, derivative)(first, y)

    with raises(NotImplementedError, 'inverse', 'first derivatives only', 'forward'):
        (tf.function(second, autograph=False) if in_function else second)()


@pytest.mark.parametrize('name', ['gated', 'fixed_point'])
def test_a_function_traced_outside_the_vectorizer_is_refused(name):
    """The vectoriser has lost its custom gradient; autodiff through what is left would be silently wrong."""
    case = Case(name)
    traced = tf.function(case.objective, autograph=False)
    traced([row[0] for row in case.rows])

    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = tf.reduce_sum(tf.vectorized_map(traced, [y, *case.rows[1:]]))
        return tape.gradient(total, y)

    with raises(LookupError, 'inverse', 'tf.vectorized_map', 'traced outside'):
        gradient(case.rows[0])


def test_a_function_traced_outside_the_vectorizer_has_the_right_values():
    case = Case('gated')
    traced = tf.function(case.objective, autograph=False)
    traced([row[0] for row in case.rows])
    np.testing.assert_allclose(tf.vectorized_map(traced, case.rows), case.objective(case.rows), rtol=1e-10)


# Models


def _posterior(inverse='auto'):
    made = tfp_iaf.IAFPosterior(3, 2, (16,), transform='affine', inverse=inverse, seed=0, dtype=tf.float64)
    perturb(made, 0.2)
    return made(tf.zeros([3], tf.float64), tf.ones([3], tf.float64))


def _hamiltonian(target):
    return tfp.mcmc.HamiltonianMonteCarlo(target, 0.1, 3)


def _no_u_turn(target):
    return tfp.mcmc.NoUTurnSampler(target, 0.1, max_tree_depth=3)


@pytest.mark.parametrize(
    ('kernel', 'inverse', 'jit_compile'),
    [
        (_hamiltonian, 'fixed_point', True),
        (_no_u_turn, 'auto', False),
    ],
)
def test_autobatched_model_under_mcmc(kernel, inverse, jit_compile):
    """A model whose prior is a flow moves as the density written by hand does."""
    prior = _posterior(inverse)
    model = tfd.JointDistributionNamedAutoBatched(
        {'z': prior, 'x': lambda z: tfd.MultivariateNormalDiag(z)}
    ).experimental_pin(x=np.zeros(3))

    def by_hand(z):
        likelihood = tfd.MultivariateNormalDiag(z).log_prob(tf.zeros(3, tf.float64))
        return prior.log_prob(tf.identity(z)) + likelihood

    def chain(target):
        @tf.function(jit_compile=jit_compile, autograph=False)
        def sample():
            start = tf.zeros([4, 3], tf.float64)
            return tfp.mcmc.sample_chain(5, start, kernel=kernel(target), trace_fn=None, seed=[0, 1])

        return sample()

    actual, expected = chain(lambda z: model.unnormalized_log_prob(z=z)), chain(by_hand)
    assert np.std(actual) > 0.01
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


def test_variational_inference_in_an_autobatched_model():
    """With a Gaussian likelihood and a flow prior near N(0, 1), the posterior mean is close to x / 1.01."""
    prior = tfp_iaf.IAFPosterior(2, 1, (8,), transform='affine', inverse='fixed_point', seed=0)(tf.zeros(2), tf.ones(2))
    x = tf.constant([1.36, -0.33])
    model = tfd.JointDistributionNamedAutoBatched(
        {'z': prior, 'x': lambda z: tfd.MultivariateNormalDiag(z, 0.1 * tf.ones(2))}
    ).experimental_pin(x=x)
    q = tfp_iaf.build_iaf_surrogate_posterior(model.event_shape_tensor(), num_flows=0, seed=0)
    tfp.vi.fit_surrogate_posterior(
        model.unnormalized_log_prob,
        q,
        keras.optimizers.Adam(5e-2),
        num_steps=200,
        sample_size=8,
        seed=1,
        trainable_variables=q.trainable_variables,
    )
    np.testing.assert_allclose(q.sample(2000, seed=2)['z'].numpy().mean(axis=0), x / 1.01, atol=0.05)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
def test_in_a_keras_rnn(inverse):
    """A cell that scores each step of a sequence under a flow: Keras runs it in a loop."""
    posterior = tfp_iaf.IAFPosterior(2, 2, (8,), context_shape=3, transform='affine', inverse=inverse, seed=0)
    loc, scale = tf.zeros([2]), tf.ones([2])

    class Cell(keras.layers.Layer):
        state_size, output_size = 3, 1

        def call(self, inputs, states):
            (state,) = states
            log_prob = posterior(loc, scale, state).log_prob(inputs)
            return log_prob[:, tf.newaxis], [state + tf.reduce_sum(inputs, axis=-1, keepdims=True)]

    sequences = normal([4, 5, 2], tf.float32)
    rnn = keras.layers.RNN(Cell(), return_sequences=True)

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch(sequences)
            total = tf.reduce_sum(run(sequences))
        return [total, *tape.gradient(total, [sequences, *posterior.trainable_variables])]

    def by_hand(sequences):
        state, total = tf.zeros([4, 3]), []
        for step in tf.unstack(sequences, axis=1):
            total.append(posterior(loc, scale, state).log_prob(step))
            state += tf.reduce_sum(step, axis=-1, keepdims=True)
        return tf.stack(total, axis=1)

    expected = gradients(by_hand)
    for run in (lambda: gradients(rnn), tf.function(lambda: gradients(rnn), autograph=False)):
        for a, b in zip(run(), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
