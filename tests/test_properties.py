"""What holds for every flow of the registry, whatever it is made of; `test_conformance` has what any module must do."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.flows import (
    assert_all_close,
    each_conditional,
    each_dtype,
    each_flow,
    each_kind,
    each_masked_step,
    each_step,
    each_with_reference,
    masked_kernels,
    normal,
    permitted,
    tfd,
)

DIRECTIONS = {'forward': 'forward_log_det_jacobian', 'inverse': 'inverse_log_det_jacobian'}

each_direction = pytest.mark.parametrize('direction', DIRECTIONS)


def value_and_log_det(bijector, direction, x):
    return getattr(bijector, direction)(x), getattr(bijector, DIRECTIONS[direction])(x)


# Jacobians


def jacobians(owner, direction, *inputs):
    """For each row the derivatives of the outputs (rows) by the event and by the context (columns).

    From a single gradient: of as many copies of all rows as there are outputs, each copy asked for its own output.
    """
    size = inputs[0].shape[-1]
    copies = [tf.tile(value[tf.newaxis], [size, 1, 1]) for value in inputs if value is not None]
    with tf.GradientTape() as tape:
        tape.watch(copies)
        x, *context = copies
        y = getattr(owner.bijector(*context), direction)(x)
    asked = tf.broadcast_to(tf.eye(size, dtype=y.dtype)[:, tf.newaxis], y.shape)
    return [np.swapaxes(gradient, 0, 1) for gradient in tape.gradient(y, copies, asked)]


@functools.cache
def jacobians_of(flow, direction):
    return jacobians(flow.build(), direction, flow.events(), flow.contexts())


@each_step
@each_direction
def test_jacobian_is_triangular_in_the_order_without_a_zero(flow, direction):
    derivatives = jacobians_of(flow, direction)[0]
    allowed = np.broadcast_to(permitted(flow.order), derivatives.shape)
    assert np.all(derivatives[~allowed] == 0.0)
    assert np.all(derivatives[allowed] != 0.0)


@each_conditional
@each_direction
def test_context_reaches_every_output(flow, direction):
    derivatives = jacobians_of(flow, direction)[1]
    assert np.array_equal(derivatives != 0.0, np.broadcast_to(flow.reach_of_context(), derivatives.shape))


@each_flow
@each_direction
def test_log_det_is_that_of_the_jacobian(flow, direction):
    sign, expected = np.linalg.slogdet(jacobians_of(flow, direction)[0])
    assert np.all(sign == 1)
    log_det = getattr(flow.build().bijector(flow.contexts()), DIRECTIONS[direction])(flow.events())
    np.testing.assert_allclose(log_det, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@each_masked_step
def test_overwritten_kernels_leave_the_jacobian_triangular(flow):
    """Whatever stands where the masks forbid a weight."""
    owner = flow.build()
    (network,) = owner.networks
    for kernel, mask in masked_kernels(network):
        kernel.assign(tf.where(mask, tf.ones_like(kernel), tf.constant(np.nan, kernel.dtype)))
    x, context = 0.1 * flow.events(), None if flow.context_size is None else 0.1 * flow.contexts()
    for direction, log_det_of in DIRECTIONS.items():
        derivatives = jacobians(owner, direction, x, context)[0]
        assert np.all(np.isfinite(derivatives)), direction
        assert np.all(derivatives[:, ~permitted(flow.order)] == 0.0), direction
        log_det = np.sum(np.log(np.diagonal(derivatives, axis1=1, axis2=2)), axis=-1)
        np.testing.assert_allclose(
            getattr(owner.bijector(context), log_det_of)(tf.identity(x)), log_det, rtol=1e-6, atol=1e-6
        )


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
@each_dtype
def test_round_trip(flow, dtype):
    bijector, x = flow.build(dtype).bijector(flow.contexts([200], dtype)), flow.events([200], dtype)
    tolerance = 1e-4 if dtype == tf.float32 else 1e-12
    for direction, back in (('forward', 'inverse'), ('inverse', 'forward')):
        y, log_det = value_and_log_det(bijector, direction, x)
        # A new tensor, which TFP's cache does not know.
        x_again, log_det_again = value_and_log_det(bijector, back, tf.identity(y))
        assert y.dtype == log_det.dtype == x_again.dtype == log_det_again.dtype == dtype
        assert_all_close([x_again, log_det_again], [x, -log_det], rtol=tolerance, atol=tolerance, err_msg=direction)


@pytest.mark.slow
@each_flow
def test_inverse_is_a_preimage_at_every_magnitude(flow):
    bijector = flow.build().bijector(flow.contexts())
    exponents = np.linspace(-4, 4, 17)[:, np.newaxis]
    # From the inputs on, since not every y of that size has a preimage among the floating-point numbers.
    y = bijector.forward(10.0 ** exponents[..., np.newaxis] * flow.events([17, 5]))
    image = bijector.forward(tf.identity(bijector.inverse(tf.identity(y))))
    lost = np.any(np.isnan(image), axis=-1)
    scale = 1 + np.max(np.abs(y), axis=-1, keepdims=True)
    assert np.all(np.abs(image - y)[~lost] <= 1e-7 * np.broadcast_to(scale, y.shape)[~lost])
    assert not np.any(lost & (exponents <= 0.5))


# Gradients


@pytest.mark.slow
@each_flow
@each_direction
def test_gradient_of_everything_equals_finite_differences(flow, direction):
    """Through the inverse it comes from the implicit function theorem, so that autodiff is no check on it."""
    owner, x, context = flow.build(), tf.Variable(flow.events([2, 3]), name='x'), flow.contexts([3])
    inputs = [x] if context is None else [x, tf.Variable(context, name='context')]
    sources = [*inputs, *owner.trainable_variables]
    weights = normal([2, 3, flow.event_size], seed=8), normal([2, 3], seed=9)

    def objective():
        x, *context = map(tf.identity, inputs)
        value, log_det = value_and_log_det(owner.bijector(*context), direction, x)
        return tf.reduce_sum(value * weights[0]) + tf.reduce_sum(log_det * weights[1])

    with tf.GradientTape() as tape:
        total = objective()
    gradients = tape.gradient(total, sources)
    for source, gradient in zip(sources, gradients, strict=True):
        assert source.name in flow.idle or np.any(gradient != 0), source.name

    values = [tf.identity(source) for source in sources]
    along = [normal(value.shape, seed=20 + i) for i, value in enumerate(values)]

    def moved(step):
        for source, value, of_source in zip(sources, values, along, strict=True):
            source.assign(value + step * of_source)
        return objective()

    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    actual = tf.add_n([tf.reduce_sum(gradient * a) for gradient, a in zip(gradients, along, strict=True)])
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@each_kind
def test_gradients_of_log_prob_scale_with_the_objective(flow):
    """The mean over a large batch is a small multiple, a loss scale a large one; no tolerance may be absolute."""
    owner, y, context = flow.build(tf.float32), flow.events(dtype=tf.float32), flow.contexts(dtype=tf.float32)
    sources = [y, *owner.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(y)
        bijector, noise = owner.bijector(context), tfd.MultivariateNormalDiag(tf.zeros([flow.event_size]))
        log_prob = tfd.TransformedDistribution(noise, bijector).log_prob(tf.identity(y))
    expected = tape.gradient(log_prob, sources)
    for scale in (1e-10, 1e10):
        gradients = tape.gradient(log_prob, sources, scale * tf.ones_like(log_prob))
        assert_all_close([gradient / scale for gradient in gradients], expected, rtol=1e-4, atol=1e-5)


# Shapes


@each_flow
@each_direction
def test_leading_shapes_broadcast(flow, direction):
    """To what each event gives with its own context alone."""
    owner, x, contexts = flow.build(), flow.events([2, 3]).numpy(), flow.contexts([3])
    x[0] = x[0, 0]  # one event for all contexts

    def results(x, contexts):
        return value_and_log_det(owner.bijector(contexts), direction, tf.constant(x))

    def of(take):
        return None if contexts is None else take(contexts)

    values, log_dets = results(x, contexts)
    assert values.shape == x.shape and log_dets.shape == x.shape[:-1]
    flat = results(x.reshape([6, -1]), of(lambda contexts: tf.tile(contexts, [2, 1])))
    one = results(x[0, 0], contexts)
    alone = results(x[1, 2], of(lambda contexts: contexts[2]))
    for value, of_flat, of_one, of_alone in zip((values, log_dets), flat, one, alone, strict=True):
        expected = [tf.reshape(of_flat, value.shape), tf.broadcast_to(of_one, value[0].shape), of_alone]
        assert_all_close([value, value[0], value[1, 2]], expected, rtol=1e-11, atol=1e-11)


@each_flow
def test_empty_batch(flow):
    bijector = flow.build().bijector(flow.contexts([0]))
    for direction in DIRECTIONS:
        value, log_det = value_and_log_det(bijector, direction, flow.events([0]))
        assert value.shape == [0, flow.event_size]
        assert log_det.shape == [0]


# Values that are not numbers


@pytest.mark.slow
@each_flow
@each_direction
def test_what_is_out_of_range_stays_in_its_row(flow, direction):
    """In values, and in the gradients of a loss that masks such rows out."""
    owner, x, contexts = flow.build(), flow.events([9]).numpy(), flow.contexts([9])
    x[1, 0], x[2, -1], x[3, -1], x[4, -1], x[5, 0] = np.nan, np.nan, np.inf, -np.inf, 1e200
    if contexts is not None:
        contexts = contexts.numpy()
        contexts[6, 0] = np.nan
    good = np.array([True] + 5 * [False] + [contexts is None] + 2 * [True])

    def results(rows):
        inputs = [tf.constant(value[rows]) for value in (x, contexts) if value is not None]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value, log_det = value_and_log_det(owner.bijector(*inputs[1:]), direction, inputs[0])
            totals = tf.reduce_sum(tf.sin(value), axis=-1) + log_det
            loss = tf.reduce_sum(tf.where(good[rows], totals, 0.0))
        of_inputs, of_variables = tape.gradient(loss, [inputs, owner.trainable_variables])
        return [value, log_det, *of_inputs], of_variables

    by_row, of_variables = results(np.arange(9))
    expected, expected_of_variables = results(np.flatnonzero(good))
    assert_all_close([value.numpy()[good] for value in by_row], expected, rtol=1e-9, atol=1e-11)
    assert_all_close(of_variables, expected_of_variables, rtol=1e-9, atol=1e-11)
    is_lost = np.any(np.isnan(by_row[0]), axis=-1) & np.isnan(by_row[1])
    assert np.array_equal(np.delete(is_lost, 5), np.delete(~good, 5)), 'what has no preimage is NaN'
