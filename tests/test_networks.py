"""The masked autoregressive network: who sees whom, whatever its weights are; shapes; bad input."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import InBlocks, jacobian, masked_kernels, normal, permitted, perturb, raises
from tfp_iaf import MaskedAutoregressiveNetwork


def network(
    event_shape=4,
    hidden_units=(9, 8),
    *,
    context_shape=2,
    dtype=tf.float64,
    seed=0,
    kind=MaskedAutoregressiveNetwork,
    **kwargs,
):
    made = kind(event_shape, hidden_units, context_shape=context_shape, dtype=dtype, seed=seed, **kwargs)
    perturb(made)
    return made


def event_jacobian(net, x, context=None):
    """[N, D, P, D]: the parameters of an entry by the entries of x."""
    size = net.event_shape.num_elements()
    rows = tf.reshape(x, [-1, size])
    flat = jacobian(lambda rows: tf.reshape(net(tf.reshape(rows, x.shape), context), [x.shape[0], -1]), rows)
    return flat.reshape([-1, size, net.params, size])


def random_input(net, rows=2):
    context = None if net.context_shape is None else normal([rows, *net.context_shape], net.dtype, seed=1)
    return normal([rows, *net.event_shape], net.dtype, seed=2), context


KINDS = (MaskedAutoregressiveNetwork, InBlocks)
each_kind = pytest.mark.parametrize('kind', KINDS)


@st.composite
def _architectures(draw):
    """Events and contexts have any number of axes, zero included; there are enough hidden units or fewer."""
    shapes = st.lists(st.integers(1, 3), max_size=2) | st.integers(1, 6)
    event_shape = draw(shapes)
    size = int(np.prod(event_shape, dtype=int))
    enough = draw(st.booleans())
    architecture = {
        'kind': draw(st.sampled_from(KINDS)),
        'event_shape': event_shape,
        'hidden_units': draw(st.lists(st.integers(1, 9).map(lambda n: n + enough * size), min_size=1, max_size=3)),
        'context_shape': draw(shapes) if draw(st.booleans()) else None,
        'params': draw(st.integers(1, 3)),
        'order': draw(st.permutations(range(size))),
    }
    return architecture, enough


@pytest.mark.slow
@hypothesis.settings(max_examples=12)
@hypothesis.given(_architectures())
def test_parameters_depend_on_the_entries_before_and_on_the_context(drawn):
    """On all entries before with enough units; on the context, however few: the first entry too."""
    architecture, enough = drawn
    net = network(**architecture)
    x, context = random_input(net)
    depends = event_jacobian(net, x, context) != 0
    before = permitted(net.order, strictly=True)
    assert not np.any(depends & ~before[:, np.newaxis, :])
    if enough:
        assert np.array_equal(np.all(depends, axis=(0, 2)), before)
    if context is not None:
        rows = tf.reshape(context, [2, -1])
        assert np.all(jacobian(lambda rows: tf.reshape(net(x, tf.reshape(rows, context.shape)), [2, -1]), rows) != 0)


def test_context_acts_on_the_first_entry_beyond_a_linear_term():
    net = network()
    x, context = random_input(net)
    with tf.GradientTape() as outer:
        outer.watch(context)
        with tf.GradientTape() as inner:
            inner.watch(context)
            first = net(x, context)[:, 0, :]
        slope = inner.gradient(first, context)
    assert np.all(outer.gradient(slope, context) != 0)


def test_activations():
    x, context = random_input(network())
    identity = network(activation=tf.identity)(x, context)
    for name in ('elu', 'gelu', 'relu', 'silu', 'tanh'):
        output = network(activation=name)(x, context)
        np.testing.assert_array_equal(output, network(activation=getattr(tf.nn, name))(x, context), err_msg=name)
        assert np.abs(output - identity).max() > 1e-3, name


@each_kind
def test_forbidden_weights_have_no_effect_and_no_gradient(kind):
    net = network(kind=kind)
    x, context = random_input(net)
    for kernel, mask in masked_kernels(net):
        kernel.assign(tf.where(mask, kernel, 0.0))
    before = net(x, context)
    for forbidden in (1.0, np.inf, -np.inf, np.nan, 1e300):
        for kernel, mask in masked_kernels(net):
            kernel.assign(tf.where(mask, kernel, tf.constant(forbidden, kernel.dtype)))
        with tf.GradientTape() as tape:
            output = net(x, context)
            total = tf.reduce_sum(output * normal([2, 4, 2]))
        np.testing.assert_array_equal(output, before, err_msg=str(forbidden))
        kernels = [kernel for kernel, _ in masked_kernels(net)]
        for gradient, (_, mask) in zip(tape.gradient(total, kernels), masked_kernels(net), strict=True):
            np.testing.assert_array_equal(gradient.numpy() != 0, mask, err_msg=str(forbidden))


def test_leading_shapes_broadcast():
    net = network()
    for x_lead, context_lead in [([2], [1]), ([], [2]), ([3, 1], [2]), ([4, 3, 2], [3, 2])]:
        x, context = normal([*x_lead, 4], seed=1), normal([*context_lead, 2], seed=2)
        lead = np.broadcast_shapes(x_lead, context_lead)
        output = net(x, context)
        assert output.shape == [*lead, 4, 2], (x_lead, context_lead)
        rows = net(tf.broadcast_to(x, [*lead, 4]), tf.broadcast_to(context, [*lead, 2]))
        np.testing.assert_allclose(output, rows, rtol=1e-12, err_msg=f'{x_lead} {context_lead}')


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
@each_kind
def test_context_is_multiplied_once_in_either_direction(direction, kind, monkeypatch):
    step = tfp_iaf.InverseAutoregressiveFlow(network(context_shape=11, kind=kind))
    x, context = normal([50, 3, 4], seed=1), normal([3, 11], seed=2)
    matmul, shapes = tf.matmul, []
    monkeypatch.setattr(
        tf, 'matmul', lambda a, b, **kwargs: shapes.append((a.shape, b.shape)) or matmul(a, b, **kwargs)
    )
    getattr(step, direction)(x, context=context)
    assert [left for left, right in shapes if right[0] == 11] == [[3, 11]]
    assert {left[0] for left, _ in shapes} == {3, 150}


def test_lists_and_numpy_arrays_take_the_networks_dtype():
    net = network(2, dtype=tf.float32)
    expected = net(tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0]]))
    np.testing.assert_array_equal(net([[1, 2]], [[3, 4]]), expected)
    np.testing.assert_array_equal(net(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])), expected)


def test_seed_fixes_weights_and_order():
    def variables(seed):
        net = MaskedAutoregressiveNetwork(9, (20,), order='random', seed=seed)
        return [net.order, *(v.numpy() for v in net.trainable_variables)]

    order, *_, kernel = variables(1)
    other_order, *_, other_kernel = variables(2)
    assert all(np.array_equal(a, b) for a, b in zip(variables(1), variables(1), strict=True))
    assert not np.array_equal(order, other_order) and not np.array_equal(kernel, other_kernel)


def test_dtypes_start_from_the_same_weights():
    single, double = (MaskedAutoregressiveNetwork(3, (8,), seed=1, dtype=dtype) for dtype in (tf.float32, tf.float64))
    for a, b in zip(single.trainable_variables, double.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_initial_weights_take_the_fan_in_of_the_masks_into_account():
    """Pre-activations have a variance of about one for units of every degree, few inputs or many."""
    net = MaskedAutoregressiveNetwork(16, (1600, 1600), context_shape=4, seed=0, dtype=tf.float64)
    context_kernel = next(v for v in net.trainable_variables if v.name.startswith('context_kernel')).numpy()
    first, second, _ = (np.where(mask, kernel, 0.0) for kernel, mask in masked_kernels(net))
    scales = net.masked_layers(tf.zeros([4], tf.float64)).scales
    assert scales[0] is None and np.min(scales[1]) == 320 / 1600
    for kernel in (np.concatenate([first, context_kernel]), scales[1] * second):
        variances = np.sum(np.square(kernel), axis=0).reshape([16, 100]).mean(axis=1)
        np.testing.assert_allclose(variances, 1.0, atol=0.3)


def test_properties():
    for event, context in [(4, 2), ([4], (2,)), ([2, 3], [5, 1]), (np.array([2, 3]), tf.TensorShape([3]))]:
        net = network(event, [9, 8], context_shape=context, params=3, dtype=tf.float32)
        for shape, given in ((net.event_shape, event), (net.context_shape, context)):
            assert isinstance(shape, tf.TensorShape)
            assert shape == np.atleast_1d(given).tolist()
        assert (net.hidden_units, net.params, net.dtype) == ((9, 8), 3, tf.float32)
    assert network(context_shape=None).context_shape is None
    net = network(order=(2, 0, 3, 1))
    net.order[:] = 0
    assert net.order.tolist() == [2, 0, 3, 1]


def test_repr_tells_how_it_was_made():
    text = repr(network([2, 3], name='mine'))
    for part in ('MaskedAutoregressiveNetwork', 'mine', 'event_shape=[2, 3]', '(9, 8)', 'context_shape=[2]', 'float64'):
        assert part in text
    assert 'context_shape=None' in repr(network(context_shape=None))


def test_what_is_stored_depends_on_the_architecture_alone():
    """One matrix `[units in, units out]` for each layer, however it is multiplied, in the order of the layers."""
    shapes = [(4, 9), (9, 8), (8, 8), (9,), (8,), (8,)]
    for kind in KINDS:
        for net, expected in (
            (network(kind=kind), [(2, 9), *shapes]),
            (network(kind=kind, context_shape=None), shapes),
        ):
            assert [tuple(variable.shape) for variable in net.variables] == expected
            assert {variable.dtype for variable in net.variables} == {tf.float64}
            assert {id(v) for v in net.variables} == {id(v) for v in net.trainable_variables}
            # `tf.Module` sorts by the names of attributes.
            assert {id(v) for v in net.variables} == {id(v) for v in tf.Module.variables.fget(net)}


def test_network_can_be_made_inside_a_function():
    made = []

    @tf.function
    def apply(x):
        if not made:
            made.append(MaskedAutoregressiveNetwork(3, (8,), order='random'))
        return made[0](x)

    x = normal([2, 3], tf.float32)
    np.testing.assert_allclose(apply(x), made[0](x), atol=1e-6)


def change_of_outputs(width, base_width):
    """How far the outputs move if each weight moves by a learning rate of 0.01, as in a first step of Adam."""
    net = MaskedAutoregressiveNetwork(16, (width, width), base_width=base_width, seed=0)
    x = normal([64, 16], dtype=tf.float32)
    before = net(x)
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(net(x))
    for variable, gradient in zip(net.variables, tape.gradient(total, net.variables), strict=True):
        variable.assign_add(0.01 * tf.sign(gradient))
    return float(tf.reduce_mean(tf.abs(net(x) - before)))


def test_an_optimizer_moves_a_wide_network_no_further():
    narrow, wide = (change_of_outputs(width, base_width=32) for width in (64, 1024))
    assert wide < 1.5 * narrow
    narrow, wide = (change_of_outputs(width, base_width=10**6) for width in (64, 1024))
    assert wide > 5 * narrow


def test_networks_up_to_the_base_width_are_ordinary():
    nets = [
        MaskedAutoregressiveNetwork(4, (8, 7), context_shape=3, base_width=base_width, seed=0)
        for base_width in (11, 320)
    ]
    x, context = normal([5, 4], dtype=tf.float32), normal([5, 3], dtype=tf.float32)
    np.testing.assert_array_equal(*(net(x, context) for net in nets))
    # Above it, checkpoints hold larger weights for outputs of the same variance within the layers.
    scaled = MaskedAutoregressiveNetwork(4, (8, 7), context_shape=3, base_width=2, seed=0)
    assert np.abs(scaled.variables[1]).sum() > 1.5 * np.abs(nets[0].variables[1]).sum()


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'event_shape': 0}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'event_shape': 2.0}, TypeError, ['event_shape', '2.0', 'int']),
        ({'event_shape': True}, TypeError, ['event_shape', 'True', 'int']),
        ({'event_shape': '3'}, TypeError, ['event_shape', "'3'", 'int']),
        ({'event_shape': [2, 0]}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'event_shape': [2, None]}, ValueError, ['event_shape', '[2, None]', 'all sizes', 'known']),
        ({'event_shape': tf.TensorShape(None)}, ValueError, ['event_shape', 'None', 'all sizes', 'known']),
        ({'hidden_units': ()}, ValueError, ['hidden_units', 'no layer', 'at least one', '(320, 320)']),
        ({'hidden_units': (8, 0)}, ValueError, ['hidden_units', '0', 'at least 1']),
        ({'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints', '(320, 320)']),
        ({'hidden_units': '88'}, TypeError, ['hidden_units', "'88'", 'sequence of ints']),
        ({'context_shape': 0}, ValueError, ['context_shape', '0', 'at least 1']),
        ({'params': 0}, ValueError, ['params', '0', 'at least 1']),
        ({'base_width': 0}, ValueError, ['base_width', '0']),
        ({'activation': 'elou'}, ValueError, ['activation', "'elou'", 'callable', "'elu'", "'relu'"]),
        ({'activation': None}, TypeError, ['activation', 'None', 'callable', "'elu'"]),
        ({'activation': tf.nn.softmax}, ValueError, ['activation', 'softmax', 'every unit alone']),
        ({'activation': keras.layers.PReLU()}, TypeError, ['activation', 'PReLU', 'variables', 'tf.nn.elu']),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative int or None']),
        ({'seed': True}, TypeError, ['seed', 'True', 'non-negative int or None']),
        ({'dtype': tf.int32}, TypeError, ['dtype', 'int32', 'float32', 'float64']),
        ({'dtype': tf.bfloat16}, TypeError, ['dtype', 'bfloat16', 'float32', 'float64', 'mixed precision']),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        MaskedAutoregressiveNetwork(**{'event_shape': 3, 'hidden_units': (8,), **arguments})


def test_bad_calls():
    def zeros(*shape, dtype=tf.float64):
        return tf.zeros(shape, dtype)

    vectors, images = network(), network([2, 3], context_shape=[2, 2])
    unconditional, x, context = network(context_shape=None), zeros(5, 4), zeros(5, 2)
    for net, inputs, error, parts in (
        (vectors, [x], ValueError, ['context', 'None', '[..., 2]', 'context_shape=[2]', 'Pass context=']),
        (unconditional, [x, context], ValueError, ['context', repr(unconditional), 'pass context_shape']),
        *((vectors, [zeros(*n), context], ValueError, ['x:', str(n), '[..., 4]']) for n in [(5, 3), (5, 1), ()]),
        *((vectors, [x, zeros(*n)], ValueError, ['context:', str(n), '[..., 2]']) for n in [(5, 3), (5, 1), ()]),
        (images, [zeros(5, 3, 2), zeros(5, 2, 2)], ValueError, ['x:', '(5, 3, 2)', '[..., 2, 3]', repr(images)]),
        (images, [zeros(5, 2, 3), zeros(5, 4)], ValueError, ['context:', '(5, 4)', '[..., 2, 2]', repr(images)]),
        (images, [zeros(5, 2, 3), zeros(4, 2, 2)], ValueError, ['context:', '(4,)', 'x', '(5,)', 'one context for']),
        *(
            (vectors, [tf.cast(x, dtype), context], TypeError, ['x:', dtype.name, 'expected float64', 'Cast'])
            for dtype in (tf.float32, tf.int32)
        ),
        (vectors, [x, zeros(5, 2, dtype=tf.float32)], TypeError, ['context:', 'float32', 'expected float64', 'Cast']),
    ):
        with raises(error, *parts):
            net(*inputs)
