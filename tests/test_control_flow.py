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
        flow = FLOWS[name]
        self.owner = flow.build()
        self.rows = [value for value in (flow.events([ROWS]), flow.contexts([ROWS])) if value is not None]

    def objective(self, row):
        x, *context = row
        bijector = self.owner.bijector(*context)
        forward = tf.reduce_sum(tf.sin(bijector.forward(x)), axis=-1) + bijector.forward_log_det_jacobian(x)
        return forward + self.of_inverse(row)

    def of_inverse(self, row):
        y, *context = map(tf.identity, row)
        bijector = self.owner.bijector(*context)
        return tf.reduce_sum(tf.sin(bijector.inverse(y)), axis=-1) - bijector.inverse_log_det_jacobian(y)

    def gradients(self, construct):
        """The objective of each row, and its weighted sum's gradients, of the rows and of the variables."""
        with tf.GradientTape() as tape:
            tape.watch(self.rows)
            values = construct(self.objective, self.rows)
            total = tf.reduce_sum(values * normal([ROWS], seed=5))
        return [values, *tape.gradient(total, [*self.rows, *self.owner.trainable_variables])]

    def check(self, construct, mode):
        expected = self.gradients(lambda objective, rows: objective(rows))

        def computed():
            return self.gradients(CONSTRUCTS[construct])

        in_function = tf.function(computed, autograph=False, jit_compile=mode == 'xla')
        for a, b in zip(computed() if mode == 'eager' else in_function(), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * max(1, np.max(np.abs(b))))


# Flows differ in how their inverses iterate, and in what a gradient then solves.
@pytest.mark.parametrize(
    'name',
    ['blocks', 'fixed_point', 'convolutional', 'scalar_bijector', 'function', 'radial', 'sylvester_orthogonal'],
)
def test_every_kind_of_flow_in_a_vectorizer(name):
    Case(name).check('vectorized_map', 'eager')


@pytest.mark.parametrize('name', ['blocks', 'convolutional', 'function', 'chain', 'planar'])
def test_every_kind_of_flow_in_a_loop(name):
    Case(name).check('while_loop', 'graph')


@pytest.mark.parametrize(
    ('name', 'construct', 'mode'),
    [
        ('gated', 'map_fn', 'eager'),
        ('fixed_point', 'scan', 'eager'),
        ('gated', 'cond', 'graph'),
        ('fixed_point', 'map_fn', 'graph'),
        ('fixed_point', 'vectorized_map', 'graph'),
        ('gated', 'scan', 'xla'),
        ('fixed_point', 'while_loop', 'xla'),
        ('gated', 'vectorized_map', 'xla'),
        ('fixed_point', 'vectorized_map', 'xla'),
    ],
)
def test_every_construct_in_every_mode(name, construct, mode):
    Case(name).check(construct, mode)


@pytest.mark.parametrize(('name', 'in_function'), [('gated', False), ('fixed_point', True)])
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

    @tf.function(autograph=False)
    def derivatives(y):
        with tf.GradientTape() as outer:
            outer.watch(y)
            with tf.GradientTape() as inner:
                inner.watch(y)
                total = tf.reduce_sum(tf.vectorized_map(case.of_inverse, [y, *case.rows[1:]]))
            first = inner.gradient(total, y)
        return first, outer.gradient(first, y, along)

    y, step = case.rows[0], 1e-6
    expected = (derivatives(y + step * along)[0] - derivatives(y - step * along)[0]) / (2 * step)
    np.testing.assert_allclose(derivatives(y)[1], expected, rtol=1e-5, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    ('name', 'in_function', 'derivative'),
    [
        ('gated', False, 'gradient'),
        ('gated', True, 'batch_jacobian'),
        ('fixed_point', False, 'batch_jacobian'),
        ('fixed_point', True, 'gradient'),
    ],
)
def test_derivative_of_a_gradient_is_refused(name, in_function, derivative):
    """Also where a vectoriser differentiates the gradient of the inverse: an error, and not a wrong value."""
    case = Case(name)
    y = case.rows[0]

    def second():
        with tf.GradientTape() as outer:
            outer.watch(y)
            with tf.GradientTape() as inner:
                inner.watch(y)
                total = tf.reduce_sum(case.of_inverse([y, *case.rows[1:]]))
            first = inner.gradient(total, y)
        return getattr(outer, derivative)(first, y)

    with raises(NotImplementedError, 'inverse', 'first derivatives only', 'forward'):
        (tf.function(second, autograph=False) if in_function else second)()


@pytest.mark.parametrize('name', ['gated', 'fixed_point'])
def test_a_function_traced_outside_the_vectorizer_has_values_but_no_gradient(name):
    """The vectoriser has lost its custom gradient; autodiff through what is left would be silently wrong."""
    case = Case(name)
    traced = tf.function(case.objective, autograph=False)
    traced([row[0] for row in case.rows])
    np.testing.assert_allclose(tf.vectorized_map(traced, case.rows), case.objective(case.rows), rtol=1e-10)
    with raises(LookupError, 'inverse', 'tf.vectorized_map', 'traced outside'), tf.GradientTape() as tape:
        tape.watch(case.rows)
        tape.gradient(tf.vectorized_map(traced, case.rows), case.rows)


# Models


@pytest.mark.parametrize(('inverse', 'mode'), [('auto', 'graph'), ('fixed_point', 'xla')])
def test_autobatched_model_under_mcmc(inverse, mode):
    """A model whose prior is a flow moves as the density written by hand does."""
    made = tfp_iaf.IAFPosterior(3, 1, (8,), transform='affine', inverse=inverse, seed=0, dtype=tf.float64)
    perturb(made, 0.2)
    prior = made(tf.zeros([3], tf.float64), tf.ones([3], tf.float64))
    model = tfd.JointDistributionNamedAutoBatched(
        {'z': prior, 'x': lambda z: tfd.MultivariateNormalDiag(z)}
    ).experimental_pin(x=np.zeros(3))

    def by_hand(z):
        likelihood = tfd.MultivariateNormalDiag(z).log_prob(tf.zeros(3, tf.float64))
        return prior.log_prob(tf.identity(z)) + likelihood

    start = normal([4, 3], seed=1)

    def chain(target):
        if mode == 'graph':
            kernel = tfp.mcmc.NoUTurnSampler(target, 0.1, max_tree_depth=2)
            return tfp.mcmc.sample_chain(2, start, kernel=kernel, trace_fn=None, seed=[0, 1])
        # XLA draws other numbers.
        return tf.while_loop(
            lambda z: True,
            lambda z: [z + 0.1 * tfp.math.value_and_gradient(target, z)[1]],
            [start],
            maximum_iterations=3,
        )

    actual = tf.function(chain, jit_compile=mode == 'xla', autograph=False)(lambda z: model.unnormalized_log_prob(z=z))
    assert np.std(actual - start) > 0.01
    np.testing.assert_allclose(actual, chain(by_hand), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(('inverse', 'in_function'), [('auto', True), ('fixed_point', False)])
def test_in_a_keras_rnn(inverse, in_function):
    """A cell that scores each step of a sequence under a flow: Keras runs it in a loop."""
    posterior = tfp_iaf.IAFPosterior(2, 1, (8,), context_shape=3, transform='affine', inverse=inverse, seed=0)
    loc, scale = tf.zeros([2]), tf.ones([2])

    class Cell(keras.layers.Layer):
        state_size, output_size = 3, 1

        def call(self, inputs, states):
            (state,) = states
            log_prob = posterior(loc, scale, state).log_prob(inputs)
            return log_prob[:, tf.newaxis], [state + tf.reduce_sum(inputs, axis=-1, keepdims=True)]

    sequences = normal([4, 3, 2], tf.float32)
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

    actual = tf.function(gradients, autograph=False)(rnn) if in_function else gradients(rnn)
    for a, b in zip(actual, gradients(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
