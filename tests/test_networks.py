"""The masked autoregressive network: who sees whom, whatever its weights are; shapes; bad input."""

import copy

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import InBlocks, jacobian, masked_kernels, normal, permitted, perturb, raises
from tfp_iaf import MaskedAutoregressiveNetwork


def network(event_shape=4, hidden_units=(9, 8), *, context_shape=2, kind=MaskedAutoregressiveNetwork, **kwargs):
    made = kind(event_shape, hidden_units, context_shape=context_shape, **{'dtype': tf.float64, 'seed': 0, **kwargs})
    perturb(made)
    return made


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
    size = net.event_shape.num_elements()

    def of_rows(rows):
        return tf.reshape(net(tf.reshape(rows, x.shape), context), [2, -1])

    depends = jacobian(of_rows, tf.reshape(x, [2, size])).reshape([2, size, net.params, size]) != 0
    before = permitted(net.order, strictly=True)
    assert not np.any(depends & ~before[:, np.newaxis, :])
    if enough:
        assert np.array_equal(np.all(depends, axis=(0, 2)), before)
    if context is not None:
        rows = tf.reshape(context, [2, -1])
        assert np.all(jacobian(lambda rows: tf.reshape(net(x, tf.reshape(rows, context.shape)), [2, -1]), rows) != 0)


def test_activations():
    x, context = random_input(network())
    identity = network(activation=tf.identity)(x, context)
    for name in ('elu', 'gelu', 'relu', 'silu', 'tanh'):
        output = network(activation=name)(x, context)
        np.testing.assert_array_equal(output, network(activation=getattr(tf.nn, name))(x, context), err_msg=name)
        assert np.abs(output - identity).max() > 1e-3, name


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


def test_seed_fixes_weights_and_order_in_every_dtype():
    def values(seed, dtype=tf.float32):
        net = MaskedAutoregressiveNetwork(9, (20,), order='random', seed=seed, dtype=dtype)
        return [net.order, *(v.numpy() for v in net.trainable_variables)]

    first, again, double, other = values(1), values(1), values(1, tf.float64), values(2)
    for one, same, wider in zip(first, again, double, strict=True):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_allclose(one, wider, rtol=1e-6)
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[-1], other[-1])


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


def test_properties_and_repr():
    for event, context in [(4, 2), ([4], (2,)), ([2, 3], [5, 1]), (np.array([2, 3]), tf.TensorShape([3]))]:
        net = network(event, [9, 8], context_shape=context, params=3, dtype=tf.float32)
        for shape, given in ((net.event_shape, event), (net.context_shape, context)):
            assert isinstance(shape, tf.TensorShape)
            assert shape == np.atleast_1d(given).tolist()
        assert (net.hidden_units, net.params, net.dtype) == ((9, 8), 3, tf.float32)
    text = repr(network([2, 3], name='mine'))
    for part in ('MaskedAutoregressiveNetwork', 'mine', 'event_shape=[2, 3]', '(9, 8)', 'context_shape=[2]', 'float64'):
        assert part in text
    net = network(context_shape=None, order=(2, 0, 3, 1))
    assert net.context_shape is None and 'context_shape=None' in repr(net)
    net.order[:] = 0
    assert net.order.tolist() == copy.deepcopy(net).order.tolist() == [2, 0, 3, 1]


@each_kind
@pytest.mark.parametrize('context_shape', [None, 2])
def test_what_is_stored_depends_on_the_architecture_alone(kind, context_shape):
    """One matrix `[units in, units out]` for each layer, however it is multiplied, in the order of the layers."""
    net = network(kind=kind, context_shape=context_shape)
    of_context = [] if context_shape is None else [(2, 9)]
    assert [tuple(v.shape) for v in net.variables] == [*of_context, (4, 9), (9, 8), (8, 8), (9,), (8,), (8,)]
    assert {v.dtype for v in net.variables} == {tf.float64}
    # `tf.Module` sorts by the names of attributes.
    found = tf.Module.variables.fget(net)
    assert {id(v) for v in net.variables} == {id(v) for v in net.trainable_variables} == {id(v) for v in found}


def test_network_can_be_made_inside_a_function():
    made = []

    @tf.function(autograph=False)
    def apply(x):
        if not made:
            made.append(MaskedAutoregressiveNetwork(3, (8,), order='random'))
        return made[0](x)

    x = normal([2, 3], tf.float32)
    np.testing.assert_allclose(apply(x), made[0](x), atol=1e-6)


@pytest.mark.parametrize(('base_width', 'least', 'most'), [(32, 0, 1.5), (10**6, 5, np.inf)])
def test_an_optimizer_moves_a_wide_network_no_further(base_width, least, most):
    def change_of_outputs(width):
        """If each weight moves by a learning rate of 0.01, as in a first step of Adam."""
        net = MaskedAutoregressiveNetwork(16, (width, width), base_width=base_width, seed=0)
        x = normal([64, 16], dtype=tf.float32)
        with tf.GradientTape() as tape:
            before = net(x)
            total = tf.reduce_mean(before)
        for variable, gradient in zip(net.variables, tape.gradient(total, net.variables), strict=True):
            variable.assign_add(0.01 * tf.sign(gradient))
        return float(tf.reduce_mean(tf.abs(net(x) - before)))

    assert least < change_of_outputs(1024) / change_of_outputs(64) < most


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
