"""Solving y = f(x): exact in at most D iterations for whatever is autoregressive, NaN for what is not; by blocks."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import Counted, count_ops, each_dtype, jacobian, masked_kernels, normal, ops_of, perturb, raises
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, transforms
from tfp_iaf.inversion import blockwise


def affine_step(shift, log_scale=tf.zeros_like, **kwargs):
    """A step of plain functions of the entry before, so that what comes first is far from what comes last."""

    def network(x):
        before = tf.concat([tf.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
        return tf.stack([shift(before), log_scale(before)], axis=-1)

    return InverseAutoregressiveFlow(Counted(network), transform='affine', **kwargs)


def _masked_step(inverse='auto'):
    return InverseAutoregressiveFlow(MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64), inverse=inverse)


def assert_inverts(step, x, **tolerance):
    y = step.forward(x)
    np.testing.assert_allclose(step.inverse(tf.identity(y)), x, **tolerance)


each_inverse = pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])


@each_dtype
def test_needs_no_contraction(dtype):
    """Every iteration makes one more entry exact, while the entries after it are still far away."""
    step = affine_step(lambda before: 1.5 * before)
    assert_inverts(step, normal([10, 12], dtype), rtol=0, atol=1e-4 if dtype == tf.float32 else 1e-12)


def test_transients_that_explode_do_no_harm():
    step = affine_step(lambda before: before**3, lambda before: 4.0 * tf.tanh(before))
    x = 0.5 * normal([50, 12])
    transients = x
    for _ in range(5):
        transients = step.forward(transients)
    assert np.abs(transients).max() > 1e10
    assert_inverts(step, x, rtol=1e-6, atol=1e-6)


def test_transients_that_overflow_do_no_harm():
    step = affine_step(lambda before: tf.exp(200.0 * before) + 5.0)
    x = -tf.ones([1, 8], tf.float64)
    assert np.any(np.isinf(step.forward(step.forward(x)))), 'the first iteration, which starts from y, must overflow'
    assert_inverts(step, x, rtol=1e-12)


def test_number_of_passes():
    """At most one more than there are entries, fewer where the step contracts, and in a graph it does not grow."""
    steep, contracting = affine_step(lambda x: 5.0 * tf.sin(3.0 * x)), affine_step(lambda x: 0.01 * tf.sin(x))
    for step, size, most in ((steep, 20, 21), (contracting, 200, 12)):
        y = tf.identity(step.forward(normal([10, size])))
        step.network.calls = 0
        step.inverse(y), step.inverse_log_det_jacobian(y)
        assert step.network.calls <= most

    @tf.function(autograph=False)
    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = tf.reduce_sum(contracting.inverse(y)) + tf.reduce_sum(contracting.inverse_log_det_jacobian(y))
        return tape.gradient(total, y)

    contracting.network.calls = 0
    gradient(y)
    assert contracting.network.calls <= 3, 'one for the iterations, and one for the check, the log-det and the gradient'


def test_gradient_of_a_step_that_expands_equals_the_inverse_of_the_jacobian():
    step = affine_step(lambda before: 5.0 * tf.sin(3.0 * before), lambda before: tf.cos(2.0 * before))
    x = normal([4, 5])
    y = step.forward(x)
    expected = np.linalg.inv(jacobian(step.forward, tf.identity(x)))
    np.testing.assert_allclose(jacobian(step.inverse, tf.identity(y)), expected, rtol=1e-6, atol=1e-6 * expected.max())


@pytest.mark.parametrize('make', [lambda: affine_step(tf.sin), _masked_step], ids=['function', 'masked'])
def test_derivative_in_forward_mode_is_refused(make):
    """Not taken for none."""
    step, y = make(), normal([4, 3])
    with raises(NotImplementedError, 'inverse', 'reverse mode', 'forward'):
        with tf.autodiff.ForwardAccumulator(y, tf.ones_like(y)) as accumulator:
            x = step.inverse(tf.identity(y))
        accumulator.jvp(x)


@pytest.mark.slow
@pytest.mark.parametrize(('inverse', 'is_traced_before'), [('auto', True), ('fixed_point', False)])
def test_gradient_inside_a_vectorized_map(inverse, is_traced_before):
    step, y = _masked_step(inverse), normal([4, 3])
    function = tf.function(step.inverse, autograph=False) if is_traced_before else step.inverse
    function(y[0])

    def gradient(function, row):
        with tf.GradientTape() as tape:
            tape.watch(row)
            total = tf.reduce_sum(tf.sin(function(row)))
        return tape.gradient(total, row)

    inside = tf.vectorized_map(lambda row: gradient(function, row), y)
    np.testing.assert_allclose(inside, gradient(step.inverse, tf.identity(y)), rtol=1e-10)


@each_inverse
def test_gradient_of_a_very_large_objective(inverse):
    """Bounds on transients must not bound the solution."""
    net = MaskedAutoregressiveNetwork(2, (8,), seed=0)
    step = InverseAutoregressiveFlow(net, transform='affine', inverse=inverse)
    y = normal([5, 2], tf.float32)

    def gradients(factor):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = factor * tf.reduce_sum(step.inverse(tf.identity(y)))
        return tape.gradient(total, [y, *net.trainable_variables])

    for actual, expected in zip(gradients(1e20), gradients(1.0), strict=True):
        np.testing.assert_allclose(actual / 1e20, expected, rtol=1e-4, atol=1e-5)


@each_inverse
def test_entries_of_very_different_size(inverse):
    """A small entry is as exact beside a large one as alone, and the same whatever else is in the batch."""
    scales = tf.constant([1e5, 1.0, 1e-4, 1.0, 1e2, 1.0])
    network = MaskedAutoregressiveNetwork(6, (24, 24), seed=0)
    perturb(network, 0.3)
    (kernel, _), *_ = masked_kernels(network)
    kernel.assign(kernel / scales[:, tf.newaxis])  # standardised inputs, as sorted as the entries are
    step = InverseAutoregressiveFlow(network, transform='affine', inverse=inverse)
    x = scales * normal([30, 6], tf.float32)
    y = step.forward(x)
    exact = y
    for _ in range(6):
        exact = step.transform.inverse(y, network(exact))[0]
    for rows in (y, y[:1]):
        inverted = step.inverse(tf.identity(rows))
        np.testing.assert_allclose(inverted / scales, exact[: len(rows)] / scales, rtol=1e-5, atol=1e-5)


@each_inverse
def test_lost_events_leave_the_gradients_of_others_alone(inverse):
    """Where a mask keeps them out of the loss: a row that is NaN must not be one in the gradient of a sum."""
    net = MaskedAutoregressiveNetwork([2, 2], (9,), context_shape=2, seed=0, dtype=tf.float64)
    perturb(net)
    step = InverseAutoregressiveFlow(net, transform='affine', inverse=inverse)
    y, context = normal([9, 2, 2], seed=1).numpy(), normal([9, 2], seed=2).numpy()
    for row, bad in enumerate([np.nan, np.inf, -np.inf, 1e200]):
        y[row, 1, 1] = bad
    context[4, 0] = np.nan
    good = np.arange(9) > 4

    def value_and_gradients(y, context, good):
        y, context = tf.constant(y), tf.constant(context)
        with tf.GradientTape() as tape:
            tape.watch([y, context])
            x = step.inverse(y, context=context)
            totals = tf.reduce_sum(tf.sin(x), axis=[1, 2]) + step.inverse_log_det_jacobian(y, context=context)
            loss = tf.reduce_sum(tf.where(good, totals, 0.0))
        return [x.numpy(), *tape.gradient(loss, [y, context, *net.trainable_variables])]

    expected = value_and_gradients(y[good], context[good], good[good])
    actual = value_and_gradients(y, context, good)
    assert np.all(np.isnan(actual[0][~good]))
    for i in range(3):
        actual[i] = actual[i][good]
    for value, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-12)


@each_dtype
@each_inverse
def test_range_of_the_points(inverse, dtype):
    """Up to a power of the largest number, a network of some layers does not overflow; beyond, an event is NaN."""
    net = MaskedAutoregressiveNetwork(4, (16, 16), activation='tanh', seed=0, dtype=dtype)
    step = InverseAutoregressiveFlow(net, transform='affine', inverse=inverse)
    limit = float(dtype.max) ** 0.4
    y = tf.constant([[0.0, 0.5 * limit, 0.0, 0.0], [0.0, 2 * limit, 0.0, 0.0], [-0.5 * limit] * 4], dtype)
    x, log_det = step.inverse(y), step.inverse_log_det_jacobian(y)
    assert np.isnan(x).tolist() == [[False] * 4, [True] * 4, [False] * 4]
    assert np.isnan(log_det).tolist() == [False, True, False]
    image = step.forward(tf.identity(x)).numpy()
    np.testing.assert_allclose(image[::2], y.numpy()[::2], rtol=1e-5, atol=1e-6 * limit)
    far = tf.identity(y)
    assert np.isnan(step.forward(far)).any(axis=-1).tolist() == [False, True, False]
    assert np.isnan(step.forward_log_det_jacobian(far)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ('transform', 'activation', 'magnitude', 'least', 'most'),
    [
        (transforms.Gated(), 'tanh', 1e10, 20, 20),
        (transforms.Affine(), 'elu', 1e10, 20, 20),
        # Far out, gates of a network without a bound are shut: what was before them, rounding has lost.
        (transforms.Gated(), 'elu', 1e3, 1, 19),
        (transforms.Gated(), 'elu', 1e10, 0, 0),
        (transforms.Affine(), 'elu', 1e38, 0, 0),
    ],
    ids=str,
)
def test_far_away_points_give_a_preimage_or_nan(transform, activation, magnitude, least, most):
    net = MaskedAutoregressiveNetwork(4, (16,), activation=activation, seed=0)
    step = InverseAutoregressiveFlow(net, transform=transform)
    y = magnitude * normal([20, 4], tf.float32)
    x = step.inverse(y)
    image = step.forward(tf.identity(x)).numpy()
    found = np.isfinite(x).all(axis=-1)
    assert least <= np.sum(found) <= most
    assert np.all(np.isnan(x.numpy()[~found]))
    np.testing.assert_allclose(image[found], y.numpy()[found], rtol=1e-3, atol=1e-5 * magnitude)


def test_a_residual_that_a_shut_gate_hides_is_found():
    """With a gate of 1e-3, what is far off in x is close in y."""

    def circular(x):
        shut = tf.fill(tf.shape(x), tf.constant(np.log(1e-3 / (1 - 1e-3)) - 2, x.dtype))
        return tf.stack([2e-3 * tf.cos(3 * x), shut], axis=-1)

    step = InverseAutoregressiveFlow(circular)
    y = step.forward(normal([8, 3], tf.float32))
    x = step.inverse(tf.identity(y)).numpy()
    again = step.forward(tf.constant(x)).numpy()
    wrong = np.abs(again - y.numpy()) > 1e-3
    assert np.any(np.isnan(x)) and not np.any(wrong & ~np.isnan(x))


# Its first entry depends on the last one, so that iterations go round in circles.
def _circular(x):
    return tf.stack([3.0 * tf.roll(x, 1, axis=-1), tf.zeros_like(x)], axis=-1)


@each_dtype
def test_network_that_is_not_autoregressive_gives_nan(dtype):
    step = InverseAutoregressiveFlow(_circular, transform='affine')
    y = normal([4, 3], dtype)
    assert np.all(np.isnan(step.inverse(y)))
    assert np.all(np.isnan(step.inverse_log_det_jacobian(y)))


def test_validate_args_makes_it_an_error():
    step = InverseAutoregressiveFlow(_circular, transform='affine', validate_args=True, name='circular')
    for inverse in (step.inverse, tf.function(step.inverse)):
        with raises(tf.errors.InvalidArgumentError, 'circular', 'inverse', 'autoregressive'):
            inverse(normal([4, 3]))
    net = MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64)
    good = InverseAutoregressiveFlow(net, validate_args=True)
    assert_inverts(good, normal([4, 3]), rtol=1e-12)
    with raises(tf.errors.InvalidArgumentError, 'inverse', 'finite'):
        good.inverse(tf.constant([[0.0, np.nan, 0.0]], tf.float64))


def test_number_of_entries_that_is_known_only_when_it_runs():
    """The fixed point then takes as many iterations as there turn out to be entries."""

    def network(x):
        before = tf.concat([tf.zeros_like(x[:, :1]), tf.cumsum(x, axis=-1)[:, :-1]], axis=-1)
        return tf.stack([tf.sin(before), 0.5 * tf.cos(before)], axis=-1)

    step = InverseAutoregressiveFlow(network, transform='affine')
    x = normal([4, 6], tf.float32)
    inverse = tf.function(step.inverse, input_signature=[tf.TensorSpec([None, None])])
    np.testing.assert_allclose(inverse(step.forward(x) + 0.0), x, atol=1e-4)


def test_depth_of_a_network_is_checked_and_that_of_another_callable_means_something_else():
    network, x = MaskedAutoregressiveNetwork(6, (8,), seed=0), normal([2, 6], tf.float32)

    def callable_network(x):
        return network(x)

    callable_network.depth = 2
    assert_inverts(InverseAutoregressiveFlow(callable_network), x, atol=1e-4)
    for depth, error in ((2.5, TypeError), (0, ValueError)):
        network.depth = depth
        with raises(error, 'network.depth', str(depth)):
            InverseAutoregressiveFlow(network, inverse='fixed_point').inverse(x)


@st.composite
def _architectures(draw):
    """An architecture, and a number of blocks."""
    event_size = draw(st.integers(1, 9))
    architecture = {
        'event_shape': event_size,
        'hidden_units': draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)),
        'context_shape': draw(st.none() | st.just(2)),
        'order': draw(st.sampled_from(['left-to-right', 'right-to-left', 'random'])),
    }
    return architecture, draw(st.integers(1, event_size))


@pytest.mark.slow
@hypothesis.settings(max_examples=10)
@hypothesis.given(_architectures(), st.sampled_from([transforms.Gated(), transforms.Affine()]))
def test_values_and_gradients_by_blocks_are_those_of_unrolled_iterations(drawn, transform):
    architecture, num_blocks = drawn
    net = MaskedAutoregressiveNetwork(**architecture, seed=0, dtype=tf.float64)
    perturb(net)
    sizes = [architecture['event_shape'], *([] if architecture['context_shape'] is None else [2])]
    inputs = [normal([3, size], seed=i) for i, size in enumerate(sizes)]

    def unrolled(y, context=None):
        x = y
        for _ in range(architecture['event_shape']):
            x, _ = transform.inverse(y, net(x, context))
        return x, transform.forward(x, net(x, context))[1], y

    def by_blocks(y, context=None):
        return blockwise(net.masked_layers(context), transform, y, num_blocks)

    def values_and_gradients(invert):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            x, log_derivatives, image = invert(*inputs)
            total = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(normal(x.shape, seed=7) * tf.cos(log_derivatives))
        sources = [*inputs, *net.trainable_variables]
        return [x, log_derivatives, image, *tape.gradient(total, sources, unconnected_gradients='zero')]

    for value, expected in zip(values_and_gradients(by_blocks), values_and_gradients(unrolled), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_blocks_cost_about_one_network_pass_and_the_graph_does_not_grow_with_the_event():
    def traced(event_size):
        net = MaskedAutoregressiveNetwork(event_size, (64,), seed=0)
        function = tf.function(lambda y: blockwise(net.masked_layers(), transforms.Gated(), y), autograph=False)
        return function.get_concrete_function(tf.TensorSpec([None, event_size]))

    small, large = traced(64), traced(256)
    # For each of two layers, one with each of the seven strips before the blocks that are not the first, and one with
    # each block itself, in the loop's body.
    assert count_ops(small, 'MatMul') == 2 * (7 + 8)
    assert len(ops_of(large)) == len(ops_of(small))
