"""The step as a citizen of TFP: context and keywords, TFP's own networks, one evaluation of the network, bad input."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import Counted, jacobian, normal, perturb, raises, tfb, tfd
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, transforms


def network(event_shape=3, hidden_units=(8,), **kwargs):
    made = MaskedAutoregressiveNetwork(event_shape, hidden_units, seed=0, **kwargs)
    perturb(made)
    return made


x3 = normal([5, 3], tf.float32, seed=1)
context2 = normal([5, 2], tf.float32, seed=2)

DIRECTIONS = ('forward', 'inverse')


def test_context_of_the_call_comes_before_that_of_the_step():
    net = network(context_shape=2)
    other = normal([5, 2], tf.float32, seed=3)
    expected = InverseAutoregressiveFlow(net, context=other).forward(x3)
    step = InverseAutoregressiveFlow(net, context=context2)
    np.testing.assert_array_equal(step.forward(x3, context=other), expected)
    assert np.all(step.forward(x3) != expected)


@pytest.mark.parametrize('of', [lambda variable: variable, lambda variable: tfp.util.DeferredTensor(variable, tf.tanh)])
def test_context_as_a_variable_is_tracked_and_trained_and_may_change(of):
    context = tf.Variable(context2)
    step = InverseAutoregressiveFlow(network(context_shape=2), context=of(context))
    assert any(variable is context for variable in step.trainable_variables)
    with tf.GradientTape(persistent=True) as tape:
        y = step.forward(x3)
        first, cached = (step.inverse_log_det_jacobian(y) for _ in range(2))
    assert np.all(tape.gradient(y, context) != 0) and np.all(tape.gradient(first, context) != 0)
    np.testing.assert_array_equal(tape.gradient(cached, context), tape.gradient(first, context))
    context.assign_add(tf.ones_like(context))
    assert np.any(step.forward(x3) != y) and np.any(step.inverse(y) != x3)
    np.testing.assert_array_equal(step.forward(x3), step.forward(tf.identity(x3)))


@pytest.mark.parametrize('given', [context2.numpy(), context2.numpy().tolist()], ids=['array', 'list'])
def test_context_that_is_not_a_tensor_is_kept_as_one(given):
    step = InverseAutoregressiveFlow(network(context_shape=2), context=given)
    same = InverseAutoregressiveFlow(network(context_shape=2), context=context2)
    given[0] = given[1]
    np.testing.assert_array_equal(step.forward(x3), same.forward(x3))
    assert tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 3), step).batch_shape == [5]


def test_function_with_a_context_of_any_shape_and_dtype():
    """Such as the numbers of classes, or images; also where the network tells the shape, but no dtype."""

    def function(x, context):
        mean = tf.cast(context, tf.float32)
        mean = tf.reduce_mean(mean, axis=list(range(1, len(context.shape)))) if context.shape.rank else mean
        shift = 0.1 * tf.cumsum(x, axis=-1, exclusive=True) + mean[..., tf.newaxis]
        return tf.stack([shift, tf.zeros_like(x)], axis=-1)

    class Classes:
        context_shape = tf.TensorShape([1])

        def __call__(self, x, context):
            return function(x, context)

    of_tfp = tfb.AutoregressiveNetwork(
        2, event_shape=[3], conditional=True, conditional_event_shape=[2], hidden_units=[8], activation='elu'
    )
    for net, shape, dtype in (
        (function, [], tf.float32),
        (function, [5], tf.int32),
        (function, [5, 1], tf.float32),
        (function, [5, 8, 2], tf.int32),
        (Classes(), [5, 1], tf.int32),
        (of_tfp, [5, 2], tf.float32),
    ):
        step, context = InverseAutoregressiveFlow(net, transform='affine'), tf.cast(3 * normal(shape), dtype)
        y = step.forward(x3, context=context)
        x = step.inverse(tf.identity(y), context=context)
        np.testing.assert_allclose(x, x3, atol=1e-5, err_msg=f'{net} {shape}')


def test_nan_in_a_context_of_a_function_spares_the_other_rows():
    """Though the step does not know which axes of the context are batch axes."""
    net = network(context_shape=2)
    for function, given in (
        (lambda x, context: net(x, context), context2.numpy()),
        (lambda x, context: net(x, tf.stack([context, context], axis=-1)), context2.numpy()[:, 0]),
    ):
        step, bad = InverseAutoregressiveFlow(function), np.array(given)
        bad[1, ...] = np.nan
        for direction in DIRECTIONS:
            clean = getattr(step, direction)(x3, context=tf.constant(given))
            value = getattr(step, direction)(tf.identity(x3), context=tf.constant(bad)).numpy()
            assert np.all(np.isnan(value[1])), direction
            np.testing.assert_allclose(np.delete(value, 1, axis=0), np.delete(clean, 1, axis=0), rtol=1e-5, atol=1e-6)


def test_properties_copy_and_equality():
    net = network(context_shape=2)
    step = InverseAutoregressiveFlow(net, context=context2, transform=transforms.Affine(2.0), name='mine')
    copied = step.copy(validate_args=True)
    for made in (step, copied):
        assert (made.network, made.context, made.transform) == (net, context2, transforms.Affine(2.0))
        assert (made.name, made.dtype) == ('mine', tf.float32)
    assert copied.validate_args and not step.validate_args
    np.testing.assert_array_equal(copied.forward(x3), step.forward(x3))
    assert InverseAutoregressiveFlow(net, name=None).name == InverseAutoregressiveFlow(net).name
    assert step.copy() == step and hash(step.copy()) == hash(step)
    for changed in (
        {'network': network(context_shape=2)},
        {'transform': 'affine'},
        {'transform': transforms.Affine(1.0)},
        {'context': context2 + 1.0},
    ):
        assert step.copy(**changed) != step, changed


@pytest.mark.parametrize('event_shape', [[], [3], [2, 1, 3]], ids=str)
def test_event_rank_is_that_of_the_network(event_shape):
    net, rank = network(event_shape), len(event_shape)
    for step in (InverseAutoregressiveFlow(net), InverseAutoregressiveFlow(net, event_ndims=rank)):
        assert (step.forward_min_event_ndims, step.inverse_min_event_ndims) == (rank, rank)
        x = normal([7, *event_shape], tf.float32)
        y = step.forward(x)
        assert step.forward_event_shape(x.shape) == step.inverse_event_shape(x.shape) == x.shape == y.shape
        assert step.forward_event_shape_tensor(x.shape).numpy().tolist() == x.shape
        log_det = step.forward_log_det_jacobian(x)
        assert log_det.shape == [7]
        of_all = step.forward_log_det_jacobian(tf.identity(x), event_ndims=rank + 1)
        np.testing.assert_allclose(of_all, tf.reduce_sum(log_det), rtol=1e-5)
        np.testing.assert_allclose(step.inverse(tf.identity(y)), x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('event_shape', 'lead', 'signature'),
    [([3], [5], [None, None]), ([1, 3], [1, 5], [[None, None, 1, 3], [None, 2]])],
    ids=['ranks', 'sizes'],
)
def test_unknown_shapes(event_shape, lead, signature):
    net, x = network(event_shape, context_shape=2), tf.reshape(x3, [*lead, *event_shape])
    steps = [InverseAutoregressiveFlow(net, inverse=inverse) for inverse in ('auto', 'fixed_point')]

    def results(x, context):
        return [steps[0].forward(x, context=context), *(step.inverse(x, context=context) for step in steps)]

    compiled = tf.function(results, [tf.TensorSpec(shape) for shape in signature], autograph=False)
    for actual, expected in zip(compiled(x, context2), results(x, context2), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('event_shape', 'transform', 'inverse'),
    [([3], 'gated', 'auto'), ([2, 3], 'affine', 'auto'), ([2, 3], 'affine', 'fixed_point'), ([], 'gated', 'auto')],
    ids=str,
)
def test_log_derivatives_are_those_of_each_entry(event_shape, transform, inverse):
    """The diagonal of the Jacobian, and summed up the log-det."""
    step = InverseAutoregressiveFlow(network(event_shape, dtype=tf.float64), transform=transform, inverse=inverse)
    x = normal([5, *event_shape])
    for direction in DIRECTIONS:
        log_derivatives = getattr(step, f'{direction}_log_derivatives')(x)
        assert log_derivatives.shape == x.shape
        log_det = getattr(step, f'{direction}_log_det_jacobian')(tf.identity(x))
        sums = tf.reduce_sum(log_derivatives, list(range(1, x.shape.rank)))
        np.testing.assert_allclose(sums, log_det, rtol=1e-11, err_msg=direction)

        def of_rows(rows, direction=direction):
            return tf.reshape(getattr(step, direction)(tf.reshape(rows, x.shape)), [5, -1])

        slopes = np.diagonal(jacobian(of_rows, tf.reshape(x, [5, -1])), axis1=1, axis2=2).reshape(x.shape)
        np.testing.assert_allclose(log_derivatives, np.log(slopes), rtol=1e-9, atol=1e-11, err_msg=direction)


def test_keras_layer_and_model_as_the_network():
    """Their methods have common names, which a step must not take for those of the protocol."""

    class Constant(keras.layers.Layer):
        def build(self, input_shape):
            self.shift = self.add_weight(shape=(3, 2), initializer='ones')

        def call(self, x):
            return tf.zeros_like(x)[..., tf.newaxis] + self.shift

    inputs, layer = keras.Input([3]), Constant()
    for net in (layer, keras.Model(inputs, layer(inputs))):
        step = InverseAutoregressiveFlow(net, transform='affine')
        before = step.forward(x3)
        np.testing.assert_allclose(step.inverse(tf.identity(before)), x3, atol=1e-5)
        layer.shift.assign(2 * layer.shift)
        np.testing.assert_array_equal(step.forward(x3), step.forward(tf.identity(x3)))
        assert np.any(step.forward(x3) != before)


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


def test_inverse_of_ones_own_is_used_unless_the_fixed_point_is_asked_for(monkeypatch):
    net, context, x = RowsWithInverse(), normal([5, 2], seed=2), normal([5, 4, 3], seed=1)
    own, iterated = (
        InverseAutoregressiveFlow(net, context=context, transform='affine', inverse=inverse)
        for inverse in ('auto', 'fixed_point')
    )
    y = tf.identity(own.forward(x))
    net.calls = 0
    own.inverse(y)
    assert net.calls == 5, 'four, and one more that checks'
    np.testing.assert_allclose(iterated.inverse(tf.identity(y)), x, rtol=1e-9, atol=1e-9)
    assert net.calls > 5 + 4
    monkeypatch.setattr(net, 'invert_step', lambda transform, y, context: (7 * y, tf.zeros_like(y)))
    assert np.all(np.isnan(own.inverse(tf.identity(y)))), 'a wrong one is found out'


def test_one_evaluation_does_for_all_that_is_asked_of_its_result():
    net = Counted(network())
    step = InverseAutoregressiveFlow(net)
    y = step.forward(x3)
    step.forward_log_det_jacobian(x3), step.forward_log_derivatives(x3)
    step.inverse(y), step.inverse_log_det_jacobian(y), step.inverse_log_derivatives(y)
    assert net.calls == 1
    # The fast direction of `tfb.Invert` is its inverse: what a density model is trained with.
    q = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 3), tfb.Invert(step))
    q.log_prob(tf.identity(x3))
    assert net.calls == 2
    x = step.inverse(x3)
    calls = net.calls
    step.inverse_log_det_jacobian(x3), step.inverse_log_derivatives(x3)
    step.forward(x), step.forward_log_det_jacobian(x), step.forward_log_derivatives(x)
    assert net.calls == calls

    @tf.function(autograph=False)
    def log_det_first(x):
        """Eagerly the value that came with it is gone before it is asked for: TFP's cache holds it weakly."""
        return step.forward_log_det_jacobian(x), step.forward(x)

    log_det_first.get_concrete_function(x3)
    assert net.calls == calls + 1


# What is known of the variables of a network: all, or nothing.
OPAQUE = {
    'network': lambda net: net,
    'function': lambda net: lambda x: net(x),
    'tf.function': lambda net: tf.function(lambda x: net(x), autograph=False),
}
each_opacity = pytest.mark.parametrize('opacity', OPAQUE)


@each_opacity
@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
def test_value_at_the_same_tensor_follows_an_assignment(opacity, in_function):
    """TFP caches by tensor; a variable that changes must not leave the old value behind."""
    net = network()
    step = InverseAutoregressiveFlow(OPAQUE[opacity](net))
    # To trace an inverse takes a second, and it is kept as all else.
    methods = [step.forward, step.forward_log_derivatives, *([] if in_function else [step.inverse])]

    def compute():
        before = [method(x3) for method in methods]
        perturb(net)
        return before, [method(x3) for method in methods], [method(tf.identity(x3)) for method in methods]

    results = (tf.function(compute, autograph=False) if in_function else compute)()
    for before, after, expected in zip(*results, strict=True):
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


@pytest.mark.parametrize(
    ('opacity', 'in_function'),
    [*((opacity, False) for opacity in OPAQUE), pytest.param('function', True, marks=pytest.mark.slow)],
)
def test_every_tape_has_gradients(opacity, in_function):
    """Whether the result was first made outside of any tape, in an outer tape, or in one before."""
    net = network()
    step = InverseAutoregressiveFlow(OPAQUE[opacity](net))
    methods = step.forward, step.inverse_log_det_jacobian, step.inverse, step.forward_log_det_jacobian

    def gradients():
        results = []
        for method in methods[:2] if in_function else methods:
            with tf.GradientTape() as tape:
                tape.watch(x3)
                value = method(x3)
            results.append(tape.gradient(value, [x3, *net.trainable_variables]))
        return results

    def compute():
        kept = [step.forward(x3), step.inverse(x3)]
        results = gradients()
        with tf.GradientTape():
            kept += [step.forward(x3), step.inverse(x3)]
            results += gradients()
        return kept, results + gradients()

    _, results = (tf.function(compute, autograph=False) if in_function else compute)()
    assert all(gradient is not None and np.any(gradient != 0) for gradient in tf.nest.flatten(results))


@pytest.mark.parametrize('frozen', ['function', 'network'])
def test_context_gets_a_gradient_through_a_frozen_network(frozen):
    """Which is known from outside of the tape, and of whose sources the tape sees the context alone."""
    context = tf.identity(context2)
    net = network(context_shape=2, variable_factory=lambda name, value: tf.Variable(value, name=name, trainable=False))
    step = InverseAutoregressiveFlow(net if frozen == 'network' else (lambda *inputs: net(*inputs)), context=context)
    for direction in DIRECTIONS:
        known = getattr(step, direction)(x3)
        with tf.GradientTape() as tape:
            tape.watch(context)
            value = getattr(step, direction)(x3)
        np.testing.assert_allclose(value, known, rtol=1e-6)
        assert np.any(tape.gradient(value, context) != 0), direction


def test_network_that_hides_its_variables_from_the_tape():
    """No tape ever sees a way from them to the result, so that none can be kept for it."""

    class Frozen(tf.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def __call__(self, x):
            return tf.stop_gradient(self.network(x))

    step = InverseAutoregressiveFlow(Frozen())
    for direction in DIRECTIONS:
        for method in (direction, f'{direction}_log_det_jacobian', f'{direction}_log_derivatives'):
            expected = getattr(step, method)(tf.identity(x3))
            with tf.GradientTape() as tape:
                value = getattr(step, method)(tf.identity(x3))
            np.testing.assert_array_equal(value, expected)
            assert set(tape.gradient(value, step.trainable_variables)) == {None}


def test_result_of_a_network_in_half_precision_is_kept():
    """Whose variables no buffer of Python shows: it is told by value whether they changed."""

    class Network(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(tf.ones([], tf.bfloat16))

        def __call__(self, x):
            return tf.cast(self.scale, tf.float32) * tf.zeros([*x.shape, 2])

    step = InverseAutoregressiveFlow(Network(), transform='affine')
    np.testing.assert_array_equal(step.inverse(step.forward(x3)), x3)


@pytest.mark.slow
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


def test_bad_arguments():
    net, conditional = network(), network(context_shape=2)
    callables = ['network', 'callable', 'MaskedAutoregressiveNetwork']
    too_many = tfb.AutoregressiveNetwork(params=3, event_shape=[3])
    for given, keywords, error, parts in (
        *((bad, {}, TypeError, callables) for bad in (None, 3, 'made', tf.zeros([2]))),
        (network(params=1), {}, ValueError, ['network', '1 parameters', 'expected 2', 'params=2']),
        (too_many, {}, ValueError, ['network', '3 parameters', 'expected 2', 'params=2']),
        (net, {'transform': 'cubic'}, ValueError, ['transform', "'cubic'", "'gated'", "'affine'"]),
        (net, {'inverse': 'newton'}, ValueError, ['inverse', "'newton'", "'auto'", "'fixed_point'"]),
        # That is what 'auto' means for a network that has layers.
        (net, {'inverse': 'blockwise'}, ValueError, ['inverse', "'blockwise'", "'auto'", 'block by block']),
        (net, {'event_ndims': 0}, ValueError, ['event_ndims', '0', 'expected 1', repr(net), 'Leave it out']),
        (net, {'event_ndims': 2}, ValueError, ['event_ndims', '2', 'expected 1', repr(net), 'Leave it out']),
        (lambda x: x, {'event_ndims': -1}, ValueError, ['event_ndims', '-1', 'at least 0']),
        (lambda x: x, {'event_ndims': 1.5}, TypeError, ['event_ndims', '1.5', 'at least 0']),
        (conditional, {'context': x3}, ValueError, ['context', '(5, 3)', '[..., 2]']),
        (net, {'context': context2}, ValueError, ['context', 'pass context_shape']),
        (conditional, {'context': tf.cast(context2, tf.float64)}, TypeError, ['context', 'float64', 'Cast']),
    ):
        with raises(error, *parts):
            InverseAutoregressiveFlow(given, **keywords)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_bad_calls(direction):
    point = {'forward': 'x', 'inverse': 'y'}[direction]
    plain, conditional = network(), network(context_shape=2)
    double, twice = tf.cast(context2, tf.float64), {'context': context2, 'conditional_input': context2}
    nested = ["'mine'", 'mine={"context": ...}', 'bijector_kwargs={"mine": {"context": ...}}']
    for net, value, keywords, error, parts in (
        (plain, tf.zeros([5, 4]), {}, ValueError, ['(5, 4)', '[..., 3]']),
        (network([2, 3]), tf.zeros([5, 3, 2]), {}, ValueError, [f'{point}:', '(5, 3, 2)', '[..., 2, 3]']),
        # TFP's message, since it converts the input before the step sees it.
        (plain, tf.zeros([5, 3], tf.float64), {}, ValueError, ['dtype float32', 'dtype float64']),
        (plain, x3, {'contxt': context2}, TypeError, ["['contxt']", 'expected context', 'conditional_input']),
        (plain, x3, {'context': context2}, ValueError, ['context', 'pass context_shape']),
        (conditional, x3, {}, ValueError, ['context', 'None', '[..., 2]', 'Pass context=', *nested]),
        (conditional, x3, {'context': tf.zeros([5, 4])}, ValueError, ['context', '(5, 4)', '[..., 2]']),
        (conditional, x3, {'context': tf.zeros([4, 2])}, ValueError, ['context', '(4,)', point, '(5,)', 'one context']),
        (conditional, x3, {'context': double}, TypeError, ['context', 'float64', 'expected float32', 'Cast']),
        (conditional, x3, twice, ValueError, ['context', 'twice', 'conditional_input', 'one of them']),
        (lambda x: (x, x), x3, {}, TypeError, ['network', 'tuple', '[..., 3, 2]', 'tf.stack']),
    ):
        with raises(error, *parts):
            getattr(InverseAutoregressiveFlow(net, name='mine'), direction)(value, **keywords)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_function_that_returns_another_number_of_parameters(direction):
    """Some of these shapes broadcast: to a log-det that is a wrong sum."""
    for event_shape, shapes in (
        ([3], [(5, 3, 3), (5, 7, 2), (5, 1, 2), (1, 2), (2,), ()]),
        ([4, 3], [(5, 4, 3), (5, 3, 4, 2), (5, 1, 3, 2), (3, 2), ()]),
    ):
        expected = ', '.join(map(str, [*event_shape, 2]))
        for shape in shapes:
            step = InverseAutoregressiveFlow(
                lambda x, shape=shape: tf.zeros(shape), transform='affine', event_ndims=len(event_shape)
            )
            with raises(ValueError, 'network', str(shape), f'expected [..., {expected}]'):
                getattr(step, direction)(tf.zeros([5, *event_shape]))


def test_parameters_for_other_leading_shapes_broadcast():
    for shape in [(3, 2), (1, 3, 2), (4, 5, 3, 2)]:
        step = InverseAutoregressiveFlow(lambda x, shape=shape: tf.ones(shape), transform='affine')
        y, log_det = step.forward(x3), step.forward_log_det_jacobian(x3)
        lead = np.broadcast_shapes(shape[:-2], [5])
        assert y.shape == [*lead, 3]
        np.testing.assert_allclose(np.broadcast_to(log_det, lead), 3 * 8 * np.tanh(1 / 8), rtol=1e-6)
