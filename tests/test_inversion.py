"""Solving y = f(x): exact in at most D iterations for whatever is autoregressive, NaN for what is not."""

import numpy as np
import pytest
import tensorflow as tf

from tests.flows import Counted, each_dtype, jacobian, masked_kernels, normal, perturb, raises
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, transforms


def affine_step(shift, log_scale=tf.zeros_like, **kwargs):
    """A step of plain functions of the entry before, so that what comes first is far from what comes last."""

    def network(x):
        before = tf.concat([tf.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
        return tf.stack([shift(before), log_scale(before)], axis=-1)

    return InverseAutoregressiveFlow(Counted(network), transform='affine', **kwargs)


def assert_inverts(step, x, **tolerance):
    y = step.forward(x)
    np.testing.assert_allclose(step.inverse(tf.identity(y)), x, **tolerance)


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


def test_takes_at_most_one_pass_more_than_there_are_entries():
    step = affine_step(lambda before: 5.0 * tf.sin(3.0 * before))
    y = step.forward(normal([10, 20]))
    step.network.calls = 0
    step.inverse(tf.identity(y))
    assert step.network.calls <= 21


def test_ends_early_where_the_step_contracts():
    step = affine_step(lambda before: 0.01 * tf.sin(before))
    y = step.forward(normal([10, 200]))
    step.network.calls = 0
    x = tf.identity(y)
    step.inverse(x), step.inverse_log_det_jacobian(x)
    assert step.network.calls <= 12


def test_number_of_passes_does_not_grow_in_a_graph():
    """One for the iterations, however many they are, and one for the check, the log-det and the gradient."""
    step = affine_step(lambda before: 0.01 * tf.sin(before))

    @tf.function
    def gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = tf.reduce_sum(step.inverse(y)) + tf.reduce_sum(step.inverse_log_det_jacobian(y))
        return tape.gradient(total, y)

    gradient(normal([10, 200]))
    assert step.network.calls <= 3


def test_one_event_alone():
    assert_inverts(affine_step(tf.sin), normal([6]), rtol=1e-12)


def test_gradient_of_a_step_that_expands_equals_the_inverse_of_the_jacobian():
    step = affine_step(lambda before: 5.0 * tf.sin(3.0 * before), lambda before: tf.cos(2.0 * before))
    x = normal([4, 5])
    y = step.forward(x)
    expected = np.linalg.inv(jacobian(step.forward, tf.identity(x)))
    np.testing.assert_allclose(jacobian(step.inverse, tf.identity(y)), expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_gradient_reaches_what_a_function_closes_over():
    weight = tf.Variable(0.7, dtype=tf.float64)
    step = affine_step(lambda before: weight * before)
    y = tf.constant([1.0, 2.0, 3.0], tf.float64)
    with tf.GradientTape() as tape:
        last = step.inverse(y)[2]
    # x_2 = y_2 - w y_1 + w^2 y_0
    np.testing.assert_allclose(tape.gradient(last, weight), -2.0 + 2 * 0.7 * 1.0, rtol=1e-12)


def test_batch_jacobian_is_vectorized():
    step = InverseAutoregressiveFlow(MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64))
    x = normal([4, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = step.inverse(x)
    np.testing.assert_allclose(tape.batch_jacobian(y, x), jacobian(step.inverse, tf.identity(x)), rtol=1e-10)


@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('make', [lambda: affine_step(tf.sin), lambda: _masked_step()], ids=['function', 'masked'])
def test_second_derivative_is_refused(make, in_function):
    """A wrong one, from what does not differentiate the solution, would go unnoticed."""
    step, y = make(), normal([4, 3])

    def second():
        with tf.GradientTape() as outer:
            outer.watch(y)
            with tf.GradientTape() as inner:
                inner.watch(y)
                x = step.inverse(tf.identity(y))
            first = inner.gradient(x, y)
        return outer.gradient(first, y)

    with raises(NotImplementedError, 'inverse', 'first derivatives only', 'forward'):
        (tf.function(second, autograph=False) if in_function else second)()


@pytest.mark.parametrize('make', [lambda: affine_step(tf.sin), lambda: _masked_step()], ids=['function', 'masked'])
def test_derivative_in_forward_mode_is_refused(make):
    """Not taken for none."""
    step, y = make(), normal([4, 3])
    with raises(NotImplementedError, 'inverse', 'reverse mode', 'forward'):
        with tf.autodiff.ForwardAccumulator(y, tf.ones_like(y)) as accumulator:
            x = step.inverse(tf.identity(y))
        accumulator.jvp(x)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
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


def _second_derivatives(function, row):
    """Of the sum of what a function makes of a row, by the row, twice."""
    with tf.GradientTape() as outer:
        outer.watch(row)
        with tf.GradientTape() as inner:
            inner.watch(row)
            total = tf.reduce_sum(tf.sin(function(tf.identity(row))))
        first = inner.gradient(total, row)
    return outer.gradient(first, row)


@pytest.mark.slow
@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
@pytest.mark.parametrize('make', [lambda: affine_step(tf.sin), lambda: _masked_step()], ids=['function', 'masked'])
def test_second_derivative_in_a_vectorized_map(make, in_function):
    """There the inverse is unrolled, since custom gradients get lost; what is differentiated is the solution."""
    step, y = make(), normal([4, 3])

    def unrolled(y):
        x = y
        for _ in range(3):
            x, _ = step.transform.inverse(y, step.network(x))
        return x

    def second():
        return tf.vectorized_map(lambda row: _second_derivatives(step.inverse, row), y)

    actual = (tf.function(second, autograph=False) if in_function else second)()
    np.testing.assert_allclose(actual, _second_derivatives(unrolled, y), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('make', [lambda: affine_step(tf.sin), lambda: _masked_step()], ids=['function', 'masked'])
def test_function_traced_before_a_vectorized_map_has_no_wrong_gradient_there(make):
    """Its gradient by a tape inside is right; one outside would go through a graph that has lost its own gradient."""
    step, y = make(), normal([4, 3])
    traced = tf.function(step.inverse, autograph=False)
    traced(y[0])

    def gradient(function, row):
        with tf.GradientTape() as tape:
            tape.watch(row)
            total = tf.reduce_sum(tf.sin(function(row)))
        return tape.gradient(total, row)

    inside = tf.vectorized_map(lambda row: gradient(traced, row), y)
    np.testing.assert_allclose(inside, gradient(step.inverse, tf.identity(y)), rtol=1e-10)
    with raises(LookupError, 'inverse', 'tf.vectorized_map', 'call the function that it wraps'):
        gradient(lambda y: tf.vectorized_map(traced, y), y)


def test_second_derivative_of_the_forward_direction():
    step, x = _masked_step(), normal([4, 3])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            total = tf.reduce_sum(step.forward(tf.identity(x)) ** 2)
        first = inner.gradient(total, x)
    assert np.all(np.isfinite(outer.gradient(first, x)))


def _masked_step():
    return InverseAutoregressiveFlow(MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64))


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize('event_shape', [[4], [2, 2]], ids=str)
@pytest.mark.parametrize('bad', ['nan', 'inf', 'minus_inf', 'out_of_range', 'context'])
def test_lost_events_leave_the_gradients_of_others_alone(bad, event_shape, inverse):
    """Where a mask keeps them out of the loss: a row that is NaN must not be one in the gradient of a sum."""
    net = MaskedAutoregressiveNetwork(event_shape, (9,), context_shape=2, seed=0, dtype=tf.float64)
    perturb(net)
    step = InverseAutoregressiveFlow(net, transform='affine', inverse=inverse)
    y, context = normal([5, *event_shape], seed=1).numpy(), normal([5, 2], seed=2).numpy()
    if bad == 'context':
        context[1, 0] = np.nan
    else:
        y[1].flat[-1] = {'nan': np.nan, 'inf': np.inf, 'minus_inf': -np.inf, 'out_of_range': 1e200}[bad]
    good = tf.constant([True, False, True, True, True])

    def value_and_gradients(y, context, good):
        y, context = tf.constant(y), tf.constant(context)
        with tf.GradientTape() as tape:
            tape.watch([y, context])
            x = tf.reshape(step.inverse(y, context=context), [len(y), 4])
            totals = tf.reduce_sum(tf.sin(x), axis=-1) + step.inverse_log_det_jacobian(y, context=context)
            loss = tf.reduce_sum(tf.where(good, totals, 0.0))
        return x, *tape.gradient(loss, [y, context, *net.trainable_variables])

    x, dy, dcontext, *gradients = value_and_gradients(y, context, good)
    rest = [0, 2, 3, 4]
    clean, clean_dy, clean_dcontext, *expected = value_and_gradients(y[rest], context[rest], tf.fill([4], True))
    assert np.all(np.isnan(x[1]))
    np.testing.assert_allclose(x.numpy()[rest], clean, rtol=1e-10)
    np.testing.assert_allclose(dy.numpy()[rest], clean_dy, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dcontext.numpy()[rest], clean_dcontext, rtol=1e-9, atol=1e-12)
    for actual, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-9, atol=1e-12)


@each_dtype
@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
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
    with raises(tf.errors.InvalidArgumentError, 'circular', 'inverse', 'autoregressive'):
        step.inverse(normal([4, 3]))
    with raises(tf.errors.InvalidArgumentError, 'circular', 'inverse', 'autoregressive'):
        tf.function(step.inverse)(normal([4, 3]))


def test_validate_args_lets_good_networks_pass():
    net = MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64)
    step = InverseAutoregressiveFlow(net, validate_args=True)
    assert_inverts(step, normal([4, 3]), rtol=1e-12)


def test_validate_args_reports_nan():
    net = MaskedAutoregressiveNetwork(3, (8,), seed=0, dtype=tf.float64)
    step = InverseAutoregressiveFlow(net, validate_args=True)
    with raises(tf.errors.InvalidArgumentError, 'inverse', 'finite'):
        step.inverse(tf.constant([[0.0, np.nan, 0.0]], tf.float64))


@pytest.mark.parametrize(
    ('transform', 'activation', 'magnitude', 'least', 'most'),
    [
        (transforms.Gated(), 'tanh', 1e10, 20, 20),
        (transforms.Affine(), 'tanh', 1e10, 20, 20),
        (transforms.Affine(), 'elu', 1e10, 20, 20),
        # Far out, gates of a network without a bound are shut: what was before them, rounding has lost.
        (transforms.Gated(), 'elu', 1e3, 1, 19),
        (transforms.Gated(), 'elu', 1e10, 0, 0),
        *((transform, 'elu', m, 0, 0) for transform in (transforms.Gated(), transforms.Affine()) for m in (1e30, 1e38)),
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


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
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


def test_number_of_entries_that_is_known_only_when_it_runs():
    """The fixed point then takes as many iterations as there turn out to be entries."""

    def network(x):
        before = tf.concat([tf.zeros_like(x[:, :1]), tf.cumsum(x, axis=-1)[:, :-1]], axis=-1)
        return tf.stack([tf.sin(before), 0.5 * tf.cos(before)], axis=-1)

    step = InverseAutoregressiveFlow(network, transform='affine')
    x = normal([4, 6], tf.float32)
    inverse = tf.function(step.inverse, input_signature=[tf.TensorSpec([None, None])])
    np.testing.assert_allclose(inverse(step.forward(x) + 0.0), x, atol=1e-4)


@pytest.mark.parametrize('depth', [2.5, 0])
def test_depth_of_a_network_is_checked(depth):
    network = MaskedAutoregressiveNetwork(6, (8,), seed=0)
    network.depth = depth
    step = InverseAutoregressiveFlow(network, inverse='fixed_point')
    with raises((TypeError, ValueError), 'network.depth', str(depth)):
        step.inverse(normal([2, 6], tf.float32))


def test_depth_of_another_callable_means_something_else():
    network = MaskedAutoregressiveNetwork(6, (8,), seed=0)

    def callable_network(x):
        return network(x)

    callable_network.depth = 2
    step = InverseAutoregressiveFlow(callable_network)
    x = normal([2, 6], tf.float32)
    np.testing.assert_allclose(step.inverse(step.forward(x) + 0.0), x, atol=1e-4)
