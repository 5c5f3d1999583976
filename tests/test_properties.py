"""What holds for every flow of the registry, whatever it is made of; `test_conformance` has what any module must do."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests import reference
from tests.flows import (
    FLOWS,
    each_conditional,
    each_dtype,
    each_flow,
    each_kind,
    each_masked_step,
    each_step,
    each_with_reference,
    jacobian,
    masked_kernels,
    normal,
    permitted,
)

DIRECTIONS = {'forward': 'forward_log_det_jacobian', 'inverse': 'inverse_log_det_jacobian'}

each_direction = pytest.mark.parametrize('direction', DIRECTIONS)


def value_and_log_det(bijector, direction, x):
    return getattr(bijector, direction)(x), getattr(bijector, DIRECTIONS[direction])(x)


def standard_normal_log_prob(bijector, y):
    """The log-density at y of standard normal noise sent through the flow."""
    x = bijector.inverse(y)
    noise = tfp.distributions.Normal(tf.zeros([], y.dtype), 1.0)
    return tf.reduce_sum(noise.log_prob(x), axis=-1) + bijector.inverse_log_det_jacobian(y)


def assert_all_close(actual, expected, **tolerance):
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Jacobians


@each_step
@each_direction
def test_jacobian_is_triangular_in_the_order_without_a_zero(flow, direction):
    bijector = flow.build().bijector(flow.contexts())
    derivatives = jacobian(getattr(bijector, direction), flow.events())
    allowed = np.broadcast_to(permitted(flow.order), derivatives.shape)
    assert np.all(derivatives[~allowed] == 0.0)
    assert np.all(derivatives[allowed] != 0.0)


@each_conditional
@each_direction
def test_context_reaches_every_output(flow, direction):
    owner, x = flow.build(), flow.events()
    derivatives = jacobian(lambda context: getattr(owner.bijector(context), direction)(x), flow.contexts())
    assert np.array_equal(derivatives != 0.0, np.broadcast_to(flow.reach_of_context(), derivatives.shape))


@each_flow
@each_direction
def test_log_det_is_that_of_the_jacobian(flow, direction):
    bijector, x = flow.build().bijector(flow.contexts()), flow.events()
    sign, log_det = np.linalg.slogdet(jacobian(getattr(bijector, direction), x))
    assert np.all(sign == 1)
    np.testing.assert_allclose(getattr(bijector, DIRECTIONS[direction])(x), log_det, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@each_masked_step
@pytest.mark.parametrize(('method', 'forbidden'), [('assign_sub', 1.0), ('assign', np.nan)])
def test_overwritten_kernels_leave_the_jacobian_triangular(flow, method, forbidden):
    owner = flow.build()
    (network,) = owner.networks
    for kernel, mask in masked_kernels(network):
        value = tf.where(mask, tf.ones_like(kernel), tf.constant(forbidden, kernel.dtype))
        getattr(kernel, method)(value if method == 'assign' else kernel - value)
    context = None if flow.context_size is None else 0.1 * flow.contexts()
    bijector, x = owner.bijector(context), 0.1 * flow.events()
    for direction, log_det_of in DIRECTIONS.items():
        derivatives = jacobian(getattr(bijector, direction), tf.identity(x))
        assert np.all(np.isfinite(derivatives))
        assert np.all(derivatives[:, ~permitted(flow.order)] == 0.0)
        log_det = np.sum(np.log(np.diagonal(derivatives, axis1=1, axis2=2)), axis=-1)
        np.testing.assert_allclose(getattr(bijector, log_det_of)(tf.identity(x)), log_det, rtol=1e-6, atol=1e-6)


# Values


def _reference(flow, owner, x, context):
    transform = getattr(reference, flow.transform)
    if flow.transform == 'gated':
        transform = functools.partial(transform, gate_bias=owner.transform.gate_bias)
    layers = [(reference.weights_of(network), network.order, network.params) for network in owner.networks]
    rows = [
        reference.chain(layers, transform, row.numpy(), None if context is None else context[i].numpy())
        for i, row in enumerate(x)
    ]
    return [np.stack(values) for values in zip(*rows, strict=True)]


@each_with_reference
def test_value_and_log_det_equal_the_papers_equations(flow):
    owner, x, context = flow.build(), flow.events(), flow.contexts()
    expected = _reference(flow, owner, x, context)
    actual = value_and_log_det(owner.bijector(context), 'forward', x)
    assert_all_close(actual, expected, rtol=1e-11, atol=1e-11)


@each_flow
@each_direction
@each_dtype
def test_round_trip(flow, direction, dtype):
    bijector = flow.build(dtype).bijector(flow.contexts([200], dtype))
    back = 'inverse' if direction == 'forward' else 'forward'
    x = flow.events([200], dtype)
    y, log_det = value_and_log_det(bijector, direction, x)
    # A new tensor, which TFP's cache does not know.
    x_again, log_det_again = value_and_log_det(bijector, back, tf.identity(y))
    tolerance = 1e-4 if dtype == tf.float32 else 1e-12
    assert y.dtype == log_det.dtype == x_again.dtype == log_det_again.dtype == dtype
    np.testing.assert_allclose(x_again, x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(log_det_again, -log_det, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@each_flow
@hypothesis.settings(max_examples=6)
@hypothesis.given(st.floats(-4, 4), st.integers(0, 1000))
def test_inverse_is_a_preimage_at_every_magnitude(flow, exponent, seed):
    bijector = flow.build().bijector(flow.contexts())
    # From the inputs on, since not every y of that size has a preimage among the floating-point numbers.
    y = bijector.forward(10.0**exponent * flow.events(seed=seed))
    image = bijector.forward(tf.identity(bijector.inverse(tf.identity(y))))
    lost = np.any(np.isnan(image), axis=-1)
    scale = 1 + np.max(np.abs(y), axis=-1, keepdims=True)
    assert np.all(np.abs(image - y)[~lost] <= 1e-7 * np.broadcast_to(scale, y.shape)[~lost])
    assert exponent > 0.5 or not np.any(lost)


# Gradients


@each_flow
def test_sampling_gives_every_variable_and_the_context_a_gradient(flow):
    owner, x, context = flow.build(), flow.events(), flow.contexts()
    with tf.GradientTape() as tape:
        tape.watch([x, context] if context is not None else x)
        y, log_det = value_and_log_det(owner.bijector(context), 'forward', x)
        total = tf.reduce_sum(y * normal(y.shape)) + tf.reduce_sum(log_det)
    _assert_gradients(tape, total, flow, owner, x, context)


@each_flow
def test_log_prob_of_a_fresh_point_gives_every_variable_and_the_context_a_gradient(flow):
    owner, y, context = flow.build(), flow.events(), flow.contexts()
    with tf.GradientTape() as tape:
        tape.watch([y, context] if context is not None else y)
        total = tf.reduce_sum(standard_normal_log_prob(owner.bijector(context), y))
    _assert_gradients(tape, total, flow, owner, y, context)


def _assert_gradients(tape, total, flow, owner, x, context):
    sources = {'event': x, 'context': context} if context is not None else {'event': x}
    sources.update({f'{i} {v.name}': v for i, v in enumerate(owner.trainable_variables) if v.name not in flow.idle})
    for name, gradient in tape.gradient(total, sources).items():
        assert gradient is not None, name
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), name


@pytest.mark.slow
@each_flow
@each_direction
def test_gradients_equal_finite_differences(flow, direction):
    """Through the inverse they come from the implicit function theorem, so that autodiff is no check on them."""
    owner, x, context = flow.build(), tf.Variable(flow.events([2, 3])), flow.contexts([3])
    sources = [x, *owner.trainable_variables]
    if context is not None:
        context = tf.Variable(context)
        sources.append(context)
    weights = normal([2, 3, flow.event_size], seed=8), normal([2, 3], seed=9)

    def objective():
        bijector = owner.bijector(None if context is None else tf.identity(context))
        value, log_det = value_and_log_det(bijector, direction, tf.identity(x))
        return tf.reduce_sum(value * weights[0]) + tf.reduce_sum(log_det * weights[1])

    with tf.GradientTape() as tape:
        total = objective()
    for i, (source, gradient) in enumerate(zip(sources, tape.gradient(total, sources), strict=True)):
        along, step = normal(source.shape, seed=20 + i), 3e-6
        source.assign_add(step * along)
        above = objective()
        source.assign_sub(2 * step * along)
        below = objective()
        source.assign_add(step * along)
        expected = (above - below) / (2 * step)
        np.testing.assert_allclose(tf.reduce_sum(gradient * along), expected, rtol=1e-6, atol=1e-7, err_msg=source.name)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize('scale', [1e-10, 1e10])
def test_gradients_of_log_prob_scale_with_the_objective(flow, scale):
    """The mean over a large batch is a small multiple, a loss scale a large one; no tolerance may be absolute."""
    owner, y, context = flow.build(tf.float32), flow.events(dtype=tf.float32), flow.contexts(dtype=tf.float32)

    def gradients(scale):
        with tf.GradientTape() as tape:
            tape.watch(y)
            total = scale * tf.reduce_sum(standard_normal_log_prob(owner.bijector(context), tf.identity(y)))
        return [gradient / scale for gradient in tape.gradient(total, [y, *owner.trainable_variables])]

    assert_all_close(gradients(scale), gradients(1.0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'direction'), [('gated', 'forward'), ('gated', 'inverse'), ('function', 'inverse')])
def test_persistent_tape_under_xla(name, direction):
    """Two losses from one tape: TensorFlow then records every loop, which XLA refuses without a bound on its passes."""
    flow = FLOWS[name]
    owner, x, context = flow.build(), flow.events(), flow.contexts()

    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            value, log_det = value_and_log_det(owner.bijector(context), direction, tf.identity(x))
        return [tape.gradient(loss, owner.trainable_variables) for loss in (value, log_det)]

    assert_all_close(tf.function(gradients, jit_compile=True)(), gradients(), rtol=1e-10, atol=1e-10)


# Shapes


@pytest.mark.slow
@each_flow
@pytest.mark.parametrize(('sample_shape', 'batch_shape'), [((2,), ()), ((2, 1), (2,))], ids=str)
def test_every_element_of_a_sample_equals_its_row_alone(flow, sample_shape, batch_shape):
    owner, x, context = flow.build(), flow.events(sample_shape + batch_shape), flow.contexts(batch_shape)
    for direction in DIRECTIONS:
        values, log_dets = value_and_log_det(owner.bijector(context), direction, x)
        assert values.shape == x.shape
        assert log_dets.shape == x.shape[:-1]
        for index in np.ndindex(*sample_shape, *batch_shape):
            own_context = None if context is None else context[index[len(sample_shape) :]]
            row = value_and_log_det(owner.bijector(own_context), direction, tf.identity(x[index]))
            assert_all_close([values[index], log_dets[index]], row, rtol=1e-11, atol=1e-11)


@each_conditional
@each_direction
def test_one_event_takes_the_batch_of_its_context(flow, direction):
    owner, x, context = flow.build(), flow.events([]), flow.contexts([3])
    values, log_dets = value_and_log_det(owner.bijector(context), direction, x)
    for i in range(3):
        row = value_and_log_det(owner.bijector(context[i]), direction, tf.identity(x))
        assert_all_close([values[i], tf.broadcast_to(log_dets, [3])[i]], row, rtol=1e-11, atol=1e-11)


@each_flow
def test_empty_batch(flow):
    bijector = flow.build().bijector(flow.contexts([0]))
    for direction in DIRECTIONS:
        value, log_det = value_and_log_det(bijector, direction, flow.events([0]))
        assert value.shape == [0, flow.event_size]
        assert log_det.shape == [0]


# Values that are not numbers


def assert_other_rows_are_the_same(results, clean):
    """All rows but no. 1, of five."""
    others = [0, 2, 3, 4]
    for actual, expected in zip(results, clean, strict=True):
        np.testing.assert_allclose(actual.numpy()[others], expected.numpy()[others], rtol=1e-11, atol=1e-11)


@each_flow
@each_direction
@pytest.mark.parametrize(('bad', 'entry'), [(np.nan, 0), (np.inf, -1)])
def test_nan_in_gives_nan_out_and_spares_the_other_rows(flow, direction, bad, entry):
    bijector = flow.build().bijector(flow.contexts())
    x = flow.events().numpy()
    clean = value_and_log_det(bijector, direction, tf.constant(x))
    x[1, entry] = bad
    value, log_det = value_and_log_det(bijector, direction, tf.constant(x))
    assert not np.all(np.isfinite(value[1]))
    assert_other_rows_are_the_same((value, log_det), clean)


@each_conditional
@each_direction
def test_nan_in_a_context_spares_the_other_rows(flow, direction):
    owner, x, contexts = flow.build(), flow.events(), flow.contexts().numpy()
    clean = value_and_log_det(owner.bijector(tf.constant(contexts)), direction, x)
    contexts[1, 0] = np.nan
    value, log_det = value_and_log_det(owner.bijector(tf.constant(contexts)), direction, x)
    assert np.all(np.isnan(value[1]))
    assert_other_rows_are_the_same((value, log_det), clean)


@each_flow
def test_log_prob_of_nan_is_nan_and_its_gradient_ends(flow):
    owner, context = flow.build(), flow.contexts()
    y = tf.constant(np.where(np.eye(5, flow.event_size, -1), np.nan, flow.events()))
    with tf.GradientTape() as tape:
        tape.watch(y)
        log_prob = standard_normal_log_prob(owner.bijector(context), y)
    rows = np.any(np.isnan(y), axis=-1)
    assert np.array_equal(np.isnan(log_prob), rows)
    assert np.all(np.isfinite(tape.gradient(log_prob, y)[~rows]))
