"""The step as a citizen of TFP: context and keywords, TFP's own networks, one evaluation of the network, bad input."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import Counted, Shift, count_ops, jacobian, normal, permitted, perturb, raises, tfb, tfd
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, transforms


def network(event_shape=3, hidden_units=(8,), **kwargs):
    made = MaskedAutoregressiveNetwork(event_shape, hidden_units, seed=0, **kwargs)
    perturb(made)
    return made


def tfp_network(**kwargs):
    made = tfb.AutoregressiveNetwork(params=2, event_shape=[3], hidden_units=[8], activation='elu', **kwargs)
    # The variables come with the first call.
    arguments = {'conditional_input': tf.zeros([1, 2])} if kwargs.get('conditional') else {}
    made(tf.zeros([1, 3]), **arguments)
    return made


x3 = normal([5, 3], tf.float32, seed=1)
context2 = normal([5, 2], tf.float32, seed=2)


# Context


def test_context_of_the_call_comes_before_that_of_the_step():
    net = network(context_shape=2)
    other = normal([5, 2], tf.float32, seed=3)
    expected = InverseAutoregressiveFlow(net, context=other).forward(x3)
    step = InverseAutoregressiveFlow(net, context=context2)
    np.testing.assert_array_equal(step.forward(x3, context=other), expected)
    assert np.all(step.forward(x3) != expected)


def test_deferred_context_gets_gradients_through_cached_results():
    variable = tf.Variable(context2)
    step = InverseAutoregressiveFlow(network(context_shape=2), context=tfp.util.DeferredTensor(variable, tf.tanh))
    with tf.GradientTape(persistent=True) as tape:
        y = step.forward(x3)
        first = step.inverse_log_det_jacobian(y)
        cached = step.inverse_log_det_jacobian(y)
    np.testing.assert_array_equal(tape.gradient(cached, variable), tape.gradient(first, variable))
    assert np.any(tape.gradient(cached, variable))
    variable.assign_add(tf.ones_like(variable))
    assert np.any(step.inverse(y) != x3)


@pytest.mark.parametrize('method', ['forward', 'inverse', 'forward_log_det_jacobian', 'inverse_log_det_jacobian'])
def test_conditional_input_is_another_name_of_context(method):
    step = InverseAutoregressiveFlow(network(context_shape=2))
    expected = getattr(step, method)(x3, context=context2)
    np.testing.assert_array_equal(getattr(step, method)(tf.identity(x3), conditional_input=context2), expected)


@pytest.mark.parametrize('keyword', ['context', 'conditional_input'])
def test_keywords_nested_by_name_in_a_chain(keyword):
    net = network(context_shape=2)
    step = InverseAutoregressiveFlow(net, name='step')
    chain = tfb.Chain([tfb.Scale(2.0), step, tfb.Shift(1.0)])
    expected = 2.0 * step.forward(x3 + 1.0, context=context2)
    y = chain.forward(x3, step={keyword: context2})
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(chain.inverse(tf.identity(y), step={keyword: context2}), x3, atol=1e-5)
    log_det = chain.forward_log_det_jacobian(x3, step={keyword: context2})
    np.testing.assert_allclose(
        log_det, 3 * np.log(2.0) + step.forward_log_det_jacobian(x3 + 1.0, context=context2), rtol=1e-5
    )


def test_keywords_through_a_distribution():
    net = network(context_shape=2)
    base = tfd.Sample(tfd.Normal(tf.zeros([5]), 1.0), 3)
    q = tfd.TransformedDistribution(base, InverseAutoregressiveFlow(net, name='step'))
    same = tfd.TransformedDistribution(base, InverseAutoregressiveFlow(net, context=context2))
    keywords = {'bijector_kwargs': {'conditional_input': context2}}
    np.testing.assert_allclose(q.log_prob(x3, **keywords), same.log_prob(tf.identity(x3)), rtol=1e-5)
    z = q.sample(2, seed=1, **keywords)
    np.testing.assert_allclose(q.log_prob(z, **keywords), same.log_prob(tf.identity(z)), rtol=1e-5)


def test_context_of_the_step_gives_the_batch_shape():
    step = InverseAutoregressiveFlow(network(context_shape=2), context=tf.zeros([7, 5, 2]))
    assert step.experimental_batch_shape() == [7, 5]
    assert InverseAutoregressiveFlow(network()).experimental_batch_shape() == []
    step = InverseAutoregressiveFlow(network(context_shape=[2, 2]), context=tf.zeros([7, 5, 2, 2]))
    assert step.experimental_batch_shape() == [7, 5]


def test_context_as_a_variable_is_tracked_and_trained():
    context = tf.Variable(context2)
    step = InverseAutoregressiveFlow(network(context_shape=2), context=context)
    assert any(variable is context for variable in step.trainable_variables)
    with tf.GradientTape() as tape:
        y = step.forward(x3)
    assert np.all(tape.gradient(y, context) != 0)


# TFP's services


def test_properties():
    net = network(context_shape=2)
    step = InverseAutoregressiveFlow(net, context=context2, transform=transforms.Affine(2.0), name='mine')
    assert step.network is net
    assert step.transform == transforms.Affine(2.0)
    assert step.context is context2
    assert step.name == 'mine'
    assert step.dtype == tf.float32
    assert (step.forward_min_event_ndims, step.inverse_min_event_ndims) == (1, 1)


@pytest.mark.parametrize('event_shape', [[], [3], [2, 3], [2, 1, 3]], ids=str)
def test_event_rank_is_that_of_the_network(event_shape):
    net = network(event_shape)
    rank = len(event_shape)
    for step in (InverseAutoregressiveFlow(net), InverseAutoregressiveFlow(net, event_ndims=rank)):
        assert (step.forward_min_event_ndims, step.inverse_min_event_ndims) == (rank, rank)
        x = normal([7, *event_shape], tf.float32)
        y = step.forward(x)
        assert step.forward_event_shape(x.shape) == x.shape == y.shape
        assert step.forward_log_det_jacobian(x).shape == [7]
        np.testing.assert_allclose(step.inverse(tf.identity(y)), x, atol=1e-5)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize(('event_shape', 'context_shape'), [([2, 3], [2]), ([6], [2, 1]), ([], []), ([3, 2, 1], [])])
def test_events_and_contexts_of_any_rank(event_shape, context_shape, inverse):
    """Give what their entries in one axis give."""
    net = network(event_shape, context_shape=context_shape, dtype=tf.float64)
    flat = network(net.event_shape.num_elements(), context_shape=net.context_shape.num_elements(), dtype=tf.float64)
    step, same = (InverseAutoregressiveFlow(each, transform='affine', inverse=inverse) for each in (net, flat))
    x, context = normal([4, 5, *event_shape], seed=1), normal([5, *context_shape], seed=2)
    rows, row_contexts = tf.reshape(x, [4, 5, -1]), tf.reshape(context, [5, -1])
    for value, log_det in (
        ('forward', 'forward_log_det_jacobian'),
        ('inverse', 'inverse_log_det_jacobian'),
    ):
        actual = getattr(step, value)(x, context=context)
        expected = getattr(same, value)(rows, context=row_contexts)
        assert actual.shape == x.shape
        np.testing.assert_allclose(actual, tf.reshape(expected, x.shape), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(
            getattr(step, log_det)(x, context=context),
            getattr(same, log_det)(rows, context=row_contexts),
            rtol=1e-11,
            atol=1e-12,
        )


def test_event_rank_of_a_function_is_given():
    def shift_by_the_rows_before(x):
        return tf.stack([0.5 * tf.cumsum(tf.sin(x), axis=-2, exclusive=True), tf.zeros_like(x)], axis=-1)

    step = InverseAutoregressiveFlow(shift_by_the_rows_before, transform='affine', event_ndims=2)
    x = normal([5, 4, 3], tf.float32)
    assert (step.forward_min_event_ndims, step.forward_log_det_jacobian(x).shape) == (2, [5])
    np.testing.assert_allclose(step.inverse(tf.identity(step.forward(x))), x, atol=1e-5)


def test_copy_with_another_argument():
    step = InverseAutoregressiveFlow(network(), transform='affine', name='step')
    copied = step.copy(validate_args=True)
    assert copied.validate_args and not step.validate_args
    assert (copied.network, copied.transform, copied.name) == (step.network, step.transform, 'step')
    np.testing.assert_array_equal(copied.forward(x3), step.forward(x3))


def test_equality_follows_network_context_and_transform():
    net = network(context_shape=2)

    def step(**kwargs):
        return InverseAutoregressiveFlow(**{'network': net, 'context': context2, **kwargs})

    assert step() == step() and hash(step()) == hash(step())
    assert step() != step(network=network(context_shape=2))
    assert step() != step(transform='affine')
    assert step() != step(transform=transforms.Gated(1.0))
    assert step() != step(context=context2 + 1.0)


def test_shapes_are_inferred():
    step = InverseAutoregressiveFlow(network())
    assert step.forward_event_shape([3]) == [3]
    assert step.inverse_event_shape([3]) == [3]
    assert step.forward_event_shape_tensor([3]).numpy().tolist() == [3]


def test_log_det_sums_over_further_event_dimensions():
    step = InverseAutoregressiveFlow(network())
    per_row = step.forward_log_det_jacobian(x3)
    np.testing.assert_allclose(step.forward_log_det_jacobian(tf.identity(x3), event_ndims=2), tf.reduce_sum(per_row))


def test_name_stays_when_a_step_is_made_again_in_a_graph():
    """Keywords of a Chain are nested by name; TFP's own bijectors become name_1."""
    names = []

    @tf.function
    def apply(x):
        for _ in range(2):
            step = InverseAutoregressiveFlow(network_, name='step')
            names.append(step.name)
            x = tfb.Chain([step]).forward(x, step={'context': tf.ones([2])})
        return x

    network_ = network(context_shape=2)
    apply(x3)
    assert names == ['step', 'step']


def test_numpy_and_lists_take_the_networks_dtype():
    step = InverseAutoregressiveFlow(network())
    expected = step.forward(tf.constant([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(step.forward(np.array([[1.0, 2.0, 3.0]])), expected)
    np.testing.assert_array_equal(step.forward([[1, 2, 3]]), expected)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize('event_shape', [[3], [1, 3], [3, 1]], ids=str)
def test_unknown_shapes(event_shape, inverse):
    step = InverseAutoregressiveFlow(network(event_shape, context_shape=2), inverse=inverse)
    signature = [tf.TensorSpec(None), tf.TensorSpec(None)]
    x = tf.reshape(x3, [5, *event_shape])

    @tf.function(input_signature=signature)
    def both(x, context):
        return step.forward(x, context=context), step.inverse(x, context=context)

    for actual, expected in zip(
        both(x, context2), (step.forward(x, context=context2), step.inverse(x, context=context2)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# Log-derivatives


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize('transform', ['gated', 'affine'])
@pytest.mark.parametrize('event_shape', [[3], [2, 3]], ids=str)
@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_log_derivatives_are_those_of_each_entry(direction, event_shape, transform, inverse):
    """The diagonal of the Jacobian, and summed up the log-det."""
    step = InverseAutoregressiveFlow(network(event_shape, dtype=tf.float64), transform=transform, inverse=inverse)
    x = normal([5, *event_shape])
    log_derivatives = getattr(step, f'{direction}_log_derivatives')(x)
    assert log_derivatives.shape == x.shape
    log_det = getattr(step, f'{direction}_log_det_jacobian')(tf.identity(x))
    np.testing.assert_allclose(tf.reduce_sum(log_derivatives, list(range(1, x.shape.rank))), log_det, rtol=1e-11)

    def of_rows(rows):
        return tf.reshape(getattr(step, direction)(tf.reshape(rows, x.shape)), [5, -1])

    slopes = np.diagonal(jacobian(of_rows, tf.reshape(x, [5, -1])), axis1=1, axis2=2).reshape(x.shape)
    np.testing.assert_allclose(log_derivatives, np.log(slopes), rtol=1e-9, atol=1e-11)


def test_log_derivatives_take_no_evaluation_of_their_own():
    net = Counted(network())
    step = InverseAutoregressiveFlow(net)
    y = step.forward(x3)
    step.forward_log_derivatives(x3)
    step.inverse_log_derivatives(y)
    assert net.calls == 1
    x = step.inverse(x3)
    calls = net.calls
    step.inverse_log_derivatives(x3)
    step.forward_log_derivatives(x)
    assert net.calls == calls


def test_log_derivatives_follow_an_assignment_and_the_context():
    net = network(context_shape=2)
    step = InverseAutoregressiveFlow(net)
    kept = step.forward(x3, context=context2)
    before = step.forward_log_derivatives(x3, context=context2)
    assert np.any(step.forward_log_derivatives(x3, context=context2 + 1.0) != before)
    perturb(net)
    after = step.forward_log_derivatives(x3, context=context2)
    assert kept is not None and np.any(after != before)
    np.testing.assert_array_equal(after, step.forward_log_derivatives(tf.identity(x3), context=context2))


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_log_derivatives_have_gradients(direction):
    step = InverseAutoregressiveFlow(network(dtype=tf.float64))
    x, weights = normal([5, 3]), normal([3], seed=1)

    def gradients(log_det):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = log_det(tf.identity(x))
        return tape.gradient(total, [x, *step.trainable_variables])

    of_entries = getattr(step, f'{direction}_log_derivatives')
    by_entry = [gradients(lambda x, i=i: weights[i] * tf.reduce_sum(of_entries(x)[:, i])) for i in range(3)]
    at_once = gradients(lambda x: tf.reduce_sum(weights * of_entries(x)))
    for each, actual in zip(zip(*by_entry, strict=True), at_once, strict=True):
        np.testing.assert_allclose(actual, sum(each), rtol=1e-9, atol=1e-12)
    log_det = getattr(step, f'{direction}_log_det_jacobian')
    of_log_det = gradients(lambda x: tf.reduce_sum(log_det(x)))
    of_sum = gradients(lambda x: tf.reduce_sum(of_entries(x)))
    for actual, expected in zip(of_sum, of_log_det, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


# TFP's networks


@pytest.mark.parametrize('order', ['left-to-right', 'right-to-left'])
def test_network_of_tfp(order):
    net = tfp_network(input_order=order)
    step = InverseAutoregressiveFlow(net, transform='affine')
    derivatives = jacobian(step.forward, x3)
    entries = [0, 1, 2] if order == 'left-to-right' else [2, 1, 0]
    assert np.all(derivatives[:, ~permitted(entries)] == 0)
    assert np.all(derivatives[:, permitted(entries)] != 0)
    np.testing.assert_allclose(
        step.forward_log_det_jacobian(tf.identity(x3)), np.linalg.slogdet(derivatives)[1], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(step.inverse(tf.identity(step.forward(x3))), x3, atol=1e-5)


def test_network_of_tfp_equals_tfps_own_flow():
    """With the transform that `MaskedAutoregressiveFlow` has, up to the bound on the log-scale."""
    net = tfp_network(conditional=True, conditional_event_shape=[2])
    step = InverseAutoregressiveFlow(net, transform=transforms.Affine(max_log_scale=1e4))
    theirs = tfb.Invert(tfb.MaskedAutoregressiveFlow(lambda y, **keywords: _inverted(net(y, **keywords))))
    y = step.forward(x3, conditional_input=context2)
    np.testing.assert_allclose(
        step.forward_log_det_jacobian(x3, conditional_input=context2),
        theirs.forward_log_det_jacobian(x3, conditional_input=context2),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(theirs.forward(x3, conditional_input=context2), y, rtol=1e-4, atol=1e-5)


def _inverted(params):
    """Their inverse, (x - shift) * exp(-log_scale), as our forward, x * exp(a) + m."""
    m, a = tf.unstack(params, axis=-1)
    return tf.stack([-m * tf.exp(-a), -a], axis=-1)


def test_variables_of_a_tfp_network_are_visible_and_get_gradients():
    net = tfp_network(conditional=True, conditional_event_shape=[2])
    q = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(tf.zeros([5]), 1.0), 3), InverseAutoregressiveFlow(net, context=context2)
    )
    assert {id(v) for v in q.trainable_variables} == {id(v) for v in net.trainable_variables}
    with tf.GradientTape() as tape:
        log_prob = q.log_prob(x3)
    for gradient in tape.gradient(log_prob, net.trainable_variables):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


# A network of one's own


class Rows(tf.Module):
    """Shifts each row of an image by what comes before it; a `Network`, with an inverse of its own on demand."""

    event_shape, context_shape, params, dtype = tf.TensorShape([4, 3]), tf.TensorShape([2]), 2, tf.float64

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(0.3, dtype=tf.float64)
        self.calls = 0

    def __call__(self, x, context=None):
        self.calls += 1
        before = tf.cumsum(tf.sin(x), axis=-2, exclusive=True)
        return tf.stack([self.weight * before + context[..., :1, tf.newaxis], tf.cos(before)], axis=-1)


class RowsWithInverse(Rows):
    """Row by row, in four passes."""

    def invert_step(self, transform, y, context):
        x = y
        for _ in range(4):
            x, log_derivatives = transform.inverse(y, self(x, context))
        return x, log_derivatives


@pytest.mark.parametrize('kind', [Rows, RowsWithInverse])
def test_network_of_ones_own(kind):
    net, context = kind(), normal([5, 2], seed=2)
    step = InverseAutoregressiveFlow(net, context=context, transform='affine')
    x = normal([7, 5, 4, 3], seed=1)
    y, log_det = step.forward(x), step.forward_log_det_jacobian(x)
    assert (step.dtype, step.forward_min_event_ndims, log_det.shape) == (tf.float64, 2, [7, 5])
    assert step.experimental_batch_shape() == [5]
    np.testing.assert_allclose(step.inverse(tf.identity(y)), x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(step.inverse_log_det_jacobian(tf.identity(y)), -log_det, rtol=1e-9)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(step.inverse(tf.identity(y)))
    assert tape.gradient(total, net.weight) != 0
    with raises(ValueError, 'x:', '(5, 3, 4)', '[..., 4, 3]'):
        step.forward(tf.zeros([5, 3, 4], tf.float64))
    with raises(ValueError, 'context', '(5, 3)', '[..., 2]'):
        step.forward(x, context=tf.zeros([5, 3], tf.float64))


def test_inverse_of_ones_own_is_used_unless_the_fixed_point_is_asked_for():
    net, context, x = RowsWithInverse(), normal([5, 2], seed=2), normal([5, 4, 3], seed=1)
    step = InverseAutoregressiveFlow(net, context=context, transform='affine')
    y = tf.identity(step.forward(x))
    net.calls = 0
    step.inverse(y)
    assert net.calls == 5, 'four, and one more that checks'
    iterated = InverseAutoregressiveFlow(net, context=context, transform='affine', inverse='fixed_point')
    net.calls = 0
    np.testing.assert_allclose(iterated.inverse(tf.identity(y)), x, rtol=1e-9, atol=1e-9)
    assert net.calls > 4


@pytest.mark.parametrize('shape', [[], [5], [5, 1], [5, 8, 2]], ids=str)
@pytest.mark.parametrize('dtype', [tf.float32, tf.int32], ids=lambda dtype: dtype.name)
def test_function_with_a_context_of_any_shape_and_dtype(shape, dtype):
    """Such as the numbers of classes, or images."""
    context = tf.cast(3 * normal(shape), dtype)

    def function(x, context):
        mean = tf.cast(context, tf.float32)
        mean = tf.reduce_mean(mean, axis=list(range(1, len(shape)))) if shape else mean
        shift = 0.1 * tf.cumsum(x, axis=-1, exclusive=True) + mean[..., tf.newaxis]
        return tf.stack([shift, tf.zeros_like(x)], axis=-1)

    step = InverseAutoregressiveFlow(function, transform='affine')
    y = step.forward(x3, context=context)
    np.testing.assert_allclose(step.inverse(tf.identity(y), context=context), x3, atol=1e-5)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize('kind', ['masked', 'function', 'numbers'])
@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_nan_in_a_context_spares_the_other_rows(direction, kind, inverse):
    """Also where the step does not know which axes of the context are batch axes."""
    net = network(context_shape=2)
    networks = {
        'masked': net,
        'function': lambda x, context: net(x, context),
        'numbers': lambda x, context: net(x, tf.stack([context, context], axis=-1)),
    }
    step = InverseAutoregressiveFlow(networks[kind], inverse=inverse)
    context = np.array(context2[:, 0] if kind == 'numbers' else context2)
    clean = getattr(step, direction)(x3, context=tf.constant(context))
    context[1, ...] = np.nan
    value = getattr(step, direction)(tf.identity(x3), context=tf.constant(context)).numpy()
    assert np.all(np.isnan(value[1]))
    np.testing.assert_allclose(np.delete(value, 1, axis=0), np.delete(clean, 1, axis=0), rtol=1e-5, atol=1e-6)


# One evaluation of the network


def test_forward_and_log_det_take_one_evaluation():
    net = Counted(network())
    step = InverseAutoregressiveFlow(net)
    y = step.forward(x3)
    step.forward_log_det_jacobian(x3)
    step.inverse(y)
    step.inverse_log_det_jacobian(y)
    assert net.calls == 1


def test_log_det_before_forward_takes_one_evaluation_in_a_graph():
    """Eagerly the value that came with the log-det is gone before it is asked for: TFP's cache holds it weakly."""
    net = Counted(network())
    step = InverseAutoregressiveFlow(net)

    @tf.function(autograph=False)
    def both(x):
        return step.forward_log_det_jacobian(x), step.forward(x)

    both.get_concrete_function(x3)
    assert net.calls == 1


def test_log_det_after_inverse_takes_no_further_evaluation():
    net = Counted(network())
    step = InverseAutoregressiveFlow(net)
    x = step.inverse(x3)
    calls = net.calls
    step.inverse_log_det_jacobian(x3)
    step.forward(x)
    step.forward_log_det_jacobian(x)
    assert net.calls == calls


def test_another_context_is_another_evaluation():
    net = Counted(network(context_shape=2))
    step = InverseAutoregressiveFlow(net)
    first = step.forward(x3, context=context2)
    second = step.forward(x3, context=context2 + 1.0)
    assert net.calls == 2
    assert np.all(first != second)


def test_inverted_step_takes_one_evaluation_for_density_estimation():
    """The fast direction of `tfb.Invert` is its inverse: what a density model is trained with."""
    net = Counted(network())
    q = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 3), tfb.Invert(InverseAutoregressiveFlow(net)))
    q.log_prob(x3)
    assert net.calls == 1


# What is known of the variables of a network: all, or nothing.
OPAQUE = {
    'network': lambda net: net,
    'function': lambda net: lambda x: net(x),
    'tf.function': lambda net: tf.function(lambda x: net(x), autograph=False),
}
each_opacity = pytest.mark.parametrize('opacity', OPAQUE)


@each_opacity
@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
def test_value_at_the_same_tensor_follows_an_assignment(direction, opacity, in_function):
    """TFP caches by tensor; a variable that changes must not leave the old value behind."""
    net = network()
    step = InverseAutoregressiveFlow(OPAQUE[opacity](net))
    calculate = getattr(step, direction)

    def compute():
        before = calculate(x3)
        perturb(net)
        return before, calculate(x3), calculate(tf.identity(x3))

    before, after, expected = (tf.function(compute, autograph=False) if in_function else compute)()
    np.testing.assert_array_equal(after, expected)
    assert np.any(after != before)


def test_a_function_that_assigns_is_an_assignment():
    """In a graph, such as that of a training loop, the assignment may be inside a call, a loop or a branch."""
    net = network()
    step = InverseAutoregressiveFlow(net)

    @tf.function(autograph=False)
    def perturbed():
        perturb(net)
        return 0

    @tf.function(autograph=False)
    def compute():
        before = step.forward(x3)
        tf.while_loop(lambda i: i < 2, lambda i: perturbed() + i + 1, [0])
        return before, step.forward(x3), step.forward(tf.identity(x3))

    before, after, expected = compute()
    np.testing.assert_array_equal(after, expected)
    assert np.any(after != before)


@each_opacity
@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
def test_a_tape_that_comes_later_has_gradients(direction, opacity, in_function):
    net = network()
    step = InverseAutoregressiveFlow(OPAQUE[opacity](net))

    def compute():
        known = getattr(step, direction)(x3)
        with tf.GradientTape() as tape:
            log_det = getattr(step, f'{direction}_log_det_jacobian')(x3)
        return known, tape.gradient(log_det, net.trainable_variables)

    _, gradients = (tf.function(compute, autograph=False) if in_function else compute)()
    assert all(gradient is not None and np.any(gradient != 0) for gradient in gradients)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@pytest.mark.parametrize('frozen', ['function', 'network'])
def test_context_gets_a_gradient_through_a_frozen_network(direction, frozen):
    """Which is known from outside of the tape, and of whose sources the tape sees the context alone."""
    context = tf.identity(context2)
    net = network(context_shape=2, variable_factory=lambda name, value: tf.Variable(value, name=name, trainable=False))
    step = InverseAutoregressiveFlow(net if frozen == 'network' else (lambda *inputs: net(*inputs)), context=context)
    known = getattr(step, direction)(x3)
    with tf.GradientTape() as tape:
        tape.watch(context)
        value = getattr(step, direction)(x3)
    np.testing.assert_allclose(value, known, rtol=1e-6)
    assert np.any(tape.gradient(value, context) != 0)


@pytest.mark.parametrize('keep', [np.array, lambda context: np.array(context).tolist()], ids=['array', 'list'])
def test_context_that_is_not_a_tensor_is_kept_as_one(keep):
    given = keep(context2)
    step = InverseAutoregressiveFlow(network(context_shape=2), context=given)
    same = InverseAutoregressiveFlow(network(context_shape=2), context=context2)
    given[0] = given[1]
    np.testing.assert_array_equal(step.forward(x3), same.forward(x3))
    q = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 3), step)
    assert q.batch_shape == [5]


def test_result_of_a_network_in_half_precision_is_kept():
    """Whose variables no buffer of Python shows: it is told by value whether they changed."""
    scale = tf.Variable(tf.ones([], tf.bfloat16))

    class Network(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def __call__(self, x):
            return tf.cast(self.scale, tf.float32) * tf.zeros([*x.shape, 2])

    step = InverseAutoregressiveFlow(Network(), transform='affine')
    y = step.forward(x3)
    np.testing.assert_array_equal(step.inverse(y), x3)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_value_known_from_outside_of_a_tape_still_has_gradients(direction):
    net = network()
    step = InverseAutoregressiveFlow(net)
    kept = getattr(step, direction)(x3)
    with tf.GradientTape() as tape:
        tape.watch(x3)
        value = getattr(step, direction)(x3)
    np.testing.assert_array_equal(value, kept)
    assert all(np.any(gradient != 0) for gradient in tape.gradient(value, [x3, *net.trainable_variables]))


# Plain functions and transforms of a user's own


def test_plain_function():
    def shift_by_the_sum_before(x):
        before = tf.cumsum(x, axis=-1, exclusive=True)
        return tf.stack([before, tf.zeros_like(x)], axis=-1)

    step = InverseAutoregressiveFlow(shift_by_the_sum_before, transform='affine')
    y = step.forward(tf.constant([1.0, 2.0, 4.0]))
    assert y.numpy().tolist() == [1.0, 3.0, 7.0]
    assert step.inverse(tf.identity(y)).numpy().tolist() == [1.0, 2.0, 4.0]
    assert step.forward_log_det_jacobian(tf.constant([1.0, 2.0, 4.0])) == 0.0


def test_transform_of_ones_own_with_one_parameter():
    step = InverseAutoregressiveFlow(network(params=1), transform=Shift())
    y = step.forward(x3)
    np.testing.assert_allclose(y, x3 + network(params=1)(x3)[..., 0], rtol=1e-6)
    assert step.forward_log_det_jacobian(x3).numpy().tolist() == [0.0] * 5


# Bad input


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_context_of_another_batch(direction):
    step = InverseAutoregressiveFlow(network(context_shape=2))
    with raises(ValueError, 'context', '(4,)', 'x' if direction == 'forward' else 'y', '(5,)', 'one context for each'):
        getattr(step, direction)(x3, context=tf.zeros([4, 2]))


def test_context_that_does_not_fit_is_refused_where_it_is_given():
    with raises(ValueError, 'context', '(5, 3)', '[..., 2]'):
        InverseAutoregressiveFlow(network(context_shape=2), context=x3)
    with raises(ValueError, 'context', 'pass context_shape'):
        InverseAutoregressiveFlow(network(), context=context2)
    with raises(TypeError, 'context', 'float64', 'expected float32', 'Cast'):
        InverseAutoregressiveFlow(network(context_shape=2), context=tf.cast(context2, tf.float64))


def test_no_name():
    assert InverseAutoregressiveFlow(network(), name=None).name == InverseAutoregressiveFlow(network()).name


@pytest.mark.parametrize('net', [None, 3, 'made', tf.zeros([2])], ids=['none', 'int', 'str', 'tensor'])
def test_network_that_is_not_callable(net):
    with raises(TypeError, 'network', 'callable', 'MaskedAutoregressiveNetwork'):
        InverseAutoregressiveFlow(net)


def test_unknown_transform():
    with raises(ValueError, 'transform', "'cubic'", "'gated'", "'affine'"):
        InverseAutoregressiveFlow(network(), transform='cubic')


def test_unknown_method_of_the_inverse():
    with raises(ValueError, 'inverse', "'newton'", "'auto'", "'fixed_point'"):
        InverseAutoregressiveFlow(network(), inverse='newton')


def test_solving_in_blocks_is_not_a_method_to_ask_for():
    """They are what 'auto' means for a network that has layers."""
    with raises(ValueError, 'inverse', "'blockwise'", "'auto'", "'fixed_point'", 'block by block'):
        InverseAutoregressiveFlow(network(), inverse='blockwise')


@pytest.mark.parametrize('event_ndims', [0, 2])
def test_event_rank_that_the_network_does_not_have(event_ndims):
    net = network()
    with raises(ValueError, 'event_ndims', str(event_ndims), 'expected 1', repr(net), 'Leave it out'):
        InverseAutoregressiveFlow(net, event_ndims=event_ndims)


@pytest.mark.parametrize(('event_ndims', 'error'), [(-1, ValueError), (1.5, TypeError)])
def test_event_rank_that_is_not_valid(event_ndims, error):
    with raises(error, 'event_ndims', str(event_ndims), 'at least 0'):
        InverseAutoregressiveFlow(lambda x: tf.stack([x, x], axis=-1), event_ndims=event_ndims)


@pytest.mark.parametrize('params', [1, 3])
def test_network_with_another_number_of_parameters(params):
    with raises(ValueError, 'network', f'{params} parameters', 'expected 2', 'params=2'):
        InverseAutoregressiveFlow(network(params=params))


def test_network_of_tfp_with_another_number_of_parameters():
    with raises(ValueError, 'network', '3 parameters', 'expected 2', 'params=2'):
        InverseAutoregressiveFlow(tfb.AutoregressiveNetwork(params=3, event_shape=[3]))


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@pytest.mark.parametrize('shape', [(5, 3, 3), (5, 7, 2), (5, 1, 2), (1, 2), (2,), ()], ids=str)
def test_function_that_returns_another_number_of_parameters(shape, direction):
    """Some of these shapes broadcast: to a log-det that is a wrong sum."""
    step = InverseAutoregressiveFlow(lambda x: tf.zeros(shape), transform='affine')
    with raises(ValueError, 'network', str(shape), 'expected [..., 3, 2]'):
        getattr(step, direction)(x3)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@pytest.mark.parametrize('shape', [(5, 4, 3), (5, 3, 4, 2), (5, 1, 3, 2), (3, 2), ()], ids=str)
def test_function_that_returns_parameters_for_another_event(shape, direction):
    step = InverseAutoregressiveFlow(lambda x: tf.zeros(shape), transform='affine', event_ndims=2)
    with raises(ValueError, 'network', str(shape), 'expected [..., 4, 3, 2]'):
        getattr(step, direction)(tf.zeros([5, 4, 3]))


@pytest.mark.parametrize('shape', [(3, 2), (1, 3, 2), (4, 5, 3, 2)], ids=str)
def test_parameters_for_other_leading_shapes_broadcast(shape):
    step = InverseAutoregressiveFlow(lambda x: tf.ones(shape), transform='affine')
    y, log_det = step.forward(x3), step.forward_log_det_jacobian(x3)
    lead = np.broadcast_shapes(shape[:-2], [5])
    assert y.shape == [*lead, 3]
    np.testing.assert_allclose(np.broadcast_to(log_det, lead), 3 * 8 * np.tanh(1 / 8), rtol=1e-6)


def test_context_given_twice():
    step = InverseAutoregressiveFlow(network(context_shape=2))
    with raises(ValueError, 'context', 'twice', 'conditional_input', 'one of them'):
        step.forward(x3, context=context2, conditional_input=context2)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_missing_context(direction):
    step = InverseAutoregressiveFlow(network(context_shape=2), name='mine')
    nested = 'bijector_kwargs={"mine": {"context": ...}}'
    with raises(ValueError, 'context', 'None', '[..., 2]', "'mine'", 'Pass context=', 'mine={"context": ...}', nested):
        getattr(step, direction)(x3)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_unexpected_context(direction):
    with raises(ValueError, 'context', 'pass context_shape'):
        getattr(InverseAutoregressiveFlow(network()), direction)(x3, context=context2)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_context_of_another_size(direction):
    with raises(ValueError, 'context', '(5, 4)', '[..., 2]'):
        getattr(InverseAutoregressiveFlow(network(context_shape=2)), direction)(x3, context=tf.zeros([5, 4]))


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_event_of_another_size(direction):
    with raises(ValueError, '(5, 4)', '[..., 3]'):
        getattr(InverseAutoregressiveFlow(network()), direction)(tf.zeros([5, 4]))
    with raises(ValueError, f'{"x" if direction == "forward" else "y"}:', '(5, 3, 2)', '[..., 2, 3]'):
        getattr(InverseAutoregressiveFlow(network([2, 3])), direction)(tf.zeros([5, 3, 2]))


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_context_of_another_dtype(direction):
    step, context = InverseAutoregressiveFlow(network(context_shape=2)), tf.cast(context2, tf.float64)
    with raises(TypeError, 'context', 'float64', 'expected float32', 'Cast'):
        getattr(step, direction)(x3, context=context)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_event_of_another_dtype(direction):
    """TFP's message, since it converts the input before the step sees it."""
    with raises(ValueError, 'dtype float32', 'dtype float64'):
        getattr(InverseAutoregressiveFlow(network()), direction)(tf.zeros([5, 3], tf.float64))


def test_unknown_keyword():
    with raises(TypeError, "['contxt']", 'expected context', 'conditional_input'):
        InverseAutoregressiveFlow(network()).forward(x3, contxt=context2)


def test_graph_has_one_network(network_calls):
    """Sampling with its density, as an estimator of evidence does: in the graph, with the gradient, and for XLA."""
    net = network(hidden_units=(8, 8))

    def objective():
        base = tfd.Sample(tfd.Normal(tf.zeros([5]), 1.0), 3)
        q = tfd.TransformedDistribution(base, InverseAutoregressiveFlow(net))
        z = q.sample(seed=1)
        return tf.reduce_sum(z**2) + tf.reduce_sum(q.log_prob(z))

    graph = tf.function(objective).get_concrete_function()
    assert network_calls == [net]
    assert count_ops(graph, 'MatMul') == 3
    assert count_ops(graph, 'While') + count_ops(graph, 'StatelessWhile') == 0


def gradients_are_there(step, compute):
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(compute())
    return all(gradient is not None for gradient in tape.gradient(total, step.trainable_variables))


@pytest.mark.parametrize('direction', ['forward', 'inverse', 'forward_log_det_jacobian', 'inverse_log_det_jacobian'])
def test_a_result_of_one_tape_is_not_given_to_the_next(direction):
    step = InverseAutoregressiveFlow(network())
    compute = functools.partial(getattr(step, direction), x3)
    with tf.GradientTape():
        kept = [step.forward(x3), step.inverse(x3), compute()]
    assert gradients_are_there(step, compute) and kept


def test_a_result_of_an_outer_tape_is_not_given_to_an_inner_one():
    step = InverseAutoregressiveFlow(network())
    with tf.GradientTape():
        kept = step.forward(x3)
        assert gradients_are_there(step, lambda: step.forward(x3))
    assert kept is not step.forward(x3)


def test_network_that_hides_its_variables_from_the_tape():
    """No tape ever sees a way from them to the result, so that none can be kept for it."""

    class Frozen(tf.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def __call__(self, x):
            return tf.stop_gradient(self.network(x))

    step = InverseAutoregressiveFlow(Frozen())
    for direction in ('forward', 'inverse'):
        for method in (direction, f'{direction}_log_det_jacobian', f'{direction}_log_derivatives'):
            expected = getattr(step, method)(tf.identity(x3))
            with tf.GradientTape() as tape:
                value = getattr(step, method)(tf.identity(x3))
            np.testing.assert_array_equal(value, expected)
            assert set(tape.gradient(value, step.trainable_variables)) == {None}


def test_training_unrolled_in_one_function_has_gradients():
    step = InverseAutoregressiveFlow(network())

    @tf.function(autograph=False)
    def both():
        kept = step.inverse(x3)
        assert gradients_are_there(step, lambda: step.inverse(x3))
        assert gradients_are_there(step, lambda: step.inverse(x3))
        return kept

    both()


def test_a_context_that_is_a_variable_may_change():
    context = tf.Variable(context2)
    step = InverseAutoregressiveFlow(network(context_shape=2), context=context)
    before = step.forward(x3)
    context.assign(5 * context2)
    after = step.forward(x3)
    assert np.any(after != before)
    np.testing.assert_array_equal(after, step.forward(tf.identity(x3)))


def test_keras_layer_as_the_network():
    class Constant(keras.layers.Layer):
        def build(self, input_shape):
            self.shift = self.add_weight(shape=(3, 2), initializer='ones')

        def call(self, x):
            return tf.zeros_like(x)[..., tf.newaxis] + self.shift

    layer = Constant()
    step = InverseAutoregressiveFlow(layer, transform='affine')
    before = step.forward(x3)
    layer.shift.assign(2 * layer.shift)
    np.testing.assert_array_equal(step.forward(x3), step.forward(tf.identity(x3)))
    assert np.any(step.forward(x3) != before)


def test_network_that_returns_a_pair():
    with raises(TypeError, 'network', 'tuple', '[..., 3, 2]', 'tf.stack'):
        InverseAutoregressiveFlow(lambda x: (x, x)).forward(x3)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_context_of_classes_whose_shape_is_known(direction):
    """A network that tells the shape of its context, but no dtype, may take integers."""

    class Classes:
        context_shape = tf.TensorShape([1])

        def __call__(self, x, context):
            shift = tf.cast(context, x.dtype) + 0.1 * tf.cumsum(x, axis=-1, exclusive=True)
            return tf.stack([shift, tf.zeros_like(x)], axis=-1)

    step = InverseAutoregressiveFlow(Classes(), transform='affine')
    assert np.all(np.isfinite(getattr(step, direction)(x3, context=tf.ones([5, 1], tf.int32))))


def test_cache_notices_assignments_whatever_freed_memory_holds():
    """Addresses are read from memory that TensorFlow shares. Here the C library overwrites what is freed."""
    program = """
import tensorflow as tf, tfp_iaf
from tfp_iaf._caching import _address
one, other = tf.ones([3]), tf.ones([3])
assert _address(one) == _address(tf.identity(one)) != _address(other)
network = tfp_iaf.MaskedAutoregressiveNetwork(3, (8,), seed=0)
step, x = tfp_iaf.InverseAutoregressiveFlow(network), tf.ones([2, 3])
before = step.forward(x)
for variable in network.variables:
    variable.assign(5 * variable + 1)
assert tf.reduce_any(before != step.forward(x))
"""
    environment = {**os.environ, 'GLIBC_TUNABLES': 'glibc.malloc.tcache_count=0', 'MALLOC_PERTURB_': '165'}
    subprocess.run([sys.executable, '-c', program], check=True, env=environment, timeout=300)
