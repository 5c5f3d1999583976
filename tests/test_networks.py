"""The masked autoregressive network: who sees whom, whatever its weights are; shapes; bad input."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests import reference
from tests.flows import InBlocks, each_dtype, jacobian, masked_kernels, normal, permitted, perturb, raises
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


def assert_autoregressive(net, derivatives):
    allowed = permitted(net.order, strictly=True)[:, np.newaxis, :]
    assert np.all(np.where(allowed, 0.0, derivatives) == 0.0)


def random_input(net, rows=2):
    context = None if net.context_shape is None else normal([rows, *net.context_shape], net.dtype, seed=1)
    return normal([rows, *net.event_shape], net.dtype, seed=2), context


@st.composite
def _architectures(draw, conditional=None):
    """Events and contexts have any number of axes, zero included."""
    shapes = st.lists(st.integers(1, 3), max_size=2) | st.integers(1, 6)
    event_shape = draw(shapes)
    conditional = draw(st.booleans()) if conditional is None else conditional
    return {
        'event_shape': event_shape,
        'hidden_units': draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)),
        'context_shape': draw(shapes) if conditional else None,
        'params': draw(st.integers(1, 3)),
        'order': draw(st.permutations(range(np.prod(event_shape, dtype=int)))),
    }


each_kind = pytest.mark.parametrize('kind', [MaskedAutoregressiveNetwork, InBlocks])


@each_kind
@hypothesis.given(_architectures())
def test_parameters_depend_on_the_entries_before_alone(kind, architecture):
    net = network(kind=kind, **architecture)
    assert_autoregressive(net, event_jacobian(net, *random_input(net)))


@each_kind
@hypothesis.given(_architectures())
def test_parameters_depend_on_all_entries_before_with_enough_units(kind, architecture):
    hidden_units = [len(architecture['order']) + units for units in architecture['hidden_units']]
    net = network(kind=kind, **{**architecture, 'hidden_units': hidden_units})
    derivatives = event_jacobian(net, *random_input(net))
    assert np.array_equal(np.all(derivatives != 0, axis=(0, 2)), permitted(net.order, strictly=True))


@each_kind
@hypothesis.given(_architectures(conditional=True))
def test_context_reaches_every_parameter_of_every_entry(kind, architecture):
    """The first entry too, for which no other entry is an input, and however few units there are."""
    net = network(kind=kind, **architecture)
    x, context = random_input(net)
    rows = tf.reshape(context, [2, -1])
    flat = jacobian(lambda rows: tf.reshape(net(x, tf.reshape(rows, context.shape)), [2, -1]), rows)
    assert np.all(flat != 0)


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


@pytest.mark.parametrize('event_shape', [6, [2, 3]], ids=str)
def test_fewest_units_in_the_documentation_are_enough(event_shape):
    for context_shape, units in ((None, 5), (2, 6)):
        net = network(event_shape, (units, units), context_shape=context_shape)
        derivatives = event_jacobian(net, *random_input(net))
        assert np.array_equal(np.all(derivatives != 0, axis=(0, 2)), permitted(net.order, strictly=True))


@pytest.mark.parametrize(
    'activation', ['elu', 'gelu', 'relu', 'silu', 'tanh', pytest.param(tf.math.sin, id='callable')]
)
def test_activations(activation):
    net = network(activation=activation)
    x, context = random_input(net)
    assert_autoregressive(net, event_jacobian(net, x, context))
    identity = network(activation=tf.identity)
    assert np.abs(net(x, context) - identity(x, context)).max() > 1e-3


# What may come into the kernels: each returns the new value from the old one and the mask.
def _ones(kernel, _):
    return tf.ones_like(kernel)


def _forbidden(value):
    return lambda kernel, mask: tf.where(mask, kernel, tf.constant(value, kernel.dtype))


overwritten = pytest.mark.parametrize(
    'overwrite',
    [_ones, _forbidden(np.inf), _forbidden(-np.inf), _forbidden(np.nan), _forbidden(1e300)],
    ids=['ones', 'forbidden_inf', 'forbidden_minus_inf', 'forbidden_nan', 'forbidden_huge'],
)


@pytest.mark.slow
@overwritten
@pytest.mark.parametrize('method', ['assign', 'assign_sub'])
@pytest.mark.parametrize('order', ['left-to-right', 'right-to-left', (2, 0, 3, 1)], ids=str)
@each_kind
def test_no_weight_breaks_the_autoregressive_property(overwrite, method, order, kind):
    net = network(order=order, activation='tanh', kind=kind)
    for kernel, mask in masked_kernels(net):
        value = overwrite(kernel, mask)
        getattr(kernel, method)(value if method == 'assign' else kernel - value)
    derivatives = event_jacobian(net, *random_input(net))
    assert_autoregressive(net, derivatives)
    assert np.all(np.isfinite(derivatives))
    assert np.array_equal(np.any(derivatives != 0, axis=(0, 2)), permitted(net.order, strictly=True))


@overwritten
@each_kind
def test_forbidden_weights_do_not_change_the_output(overwrite, kind):
    net = network(kind=kind)
    x, context = random_input(net)
    for kernel, mask in masked_kernels(net):
        kernel.assign(tf.where(mask, kernel, 0.0))
    before = net(x, context)
    for kernel, mask in masked_kernels(net):
        kernel.assign(tf.where(mask, kernel, overwrite(kernel, mask)))
    np.testing.assert_array_equal(net(x, context), before)


@pytest.mark.parametrize('forbidden', [0.0, 1.0, np.inf, np.nan])
@each_kind
def test_gradient_is_zero_for_forbidden_weights_and_for_no_other(forbidden, kind):
    net = network(kind=kind)
    x, context = random_input(net)
    for kernel, mask in masked_kernels(net):
        kernel.assign(_forbidden(forbidden)(kernel, mask))
    with tf.GradientTape(persistent=True) as tape:
        total = tf.reduce_sum(net(x, context) * normal([2, 4, 2]))
    for kernel, mask in masked_kernels(net):
        gradient = tape.gradient(total, kernel)
        assert np.array_equal(gradient.numpy() != 0, mask)


def test_every_variable_gets_a_gradient():
    net = network()
    x, context = random_input(net)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(net(x, context) * normal([2, 4, 2]))
    for variable, gradient in zip(net.trainable_variables, tape.gradient(total, net.trainable_variables), strict=True):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), variable.name


@pytest.mark.parametrize('order', ['left-to-right', 'right-to-left', 'random'])
@pytest.mark.parametrize('context_size', [None, 3])
@pytest.mark.parametrize(('event_size', 'hidden_units', 'params'), [(1, (3,), 2), (4, (6,), 3), (5, (7, 9, 6), 2)])
@each_kind
def test_output_equals_the_reference(order, context_size, event_size, hidden_units, params, kind):
    net = network(event_size, hidden_units, context_shape=context_size, params=params, order=order, kind=kind)
    x, context = random_input(net)
    expected = [
        reference.made(
            reference.weights_of(net), net.order, params, row.numpy(), None if context is None else context[i].numpy()
        )
        for i, row in enumerate(x)
    ]
    np.testing.assert_allclose(net(x, context), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('event_shape', 'context_shape'), [([4], [2]), ([2, 3], [2]), ([4], [2, 2]), ([2, 1, 2], [2, 1]), ([], [])], ids=str
)
def test_event_and_context_of_any_rank(event_shape, context_shape):
    """Are those of one axis, reshaped."""
    net = network(event_shape, context_shape=context_shape, order='random')
    flat = network(
        net.event_shape.num_elements(), context_shape=net.context_shape.num_elements(), order=net.order, kind=InBlocks
    )
    for variable, other in zip(flat.variables, net.variables, strict=True):
        variable.assign(other)
    x, context = normal([7, 5, *event_shape], seed=1), normal([5, *context_shape], seed=2)
    output = net(x, context)
    assert output.shape == [7, 5, *event_shape, 2]
    expected = flat(tf.reshape(x, [7, 5, -1]), tf.reshape(context, [5, -1]))
    np.testing.assert_allclose(output, tf.reshape(expected, output.shape), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('x_lead', [[], [2], [3, 2], [3, 1], [4, 3, 2]], ids=str)
@pytest.mark.parametrize('context_lead', [[], [1], [2], [3, 2]], ids=str)
@pytest.mark.parametrize(('event_shape', 'context_shape'), [([4], [2]), ([2, 3], [2, 2])], ids=str)
def test_leading_shapes_broadcast(x_lead, context_lead, event_shape, context_shape):
    net = network(event_shape, context_shape=context_shape)
    x, context = normal([*x_lead, *event_shape], seed=1), normal([*context_lead, *context_shape], seed=2)
    lead = np.broadcast_shapes(x_lead, context_lead)
    xs = np.broadcast_to(x, [*lead, *event_shape]).reshape([-1, *event_shape])
    contexts = np.broadcast_to(context, [*lead, *context_shape]).reshape([-1, *context_shape])
    expected = np.reshape([net(*row) for row in zip(xs, contexts, strict=True)], [*lead, *event_shape, 2])
    output = net(x, context)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('shapes', [([None, 4], [None, 2]), ([None, None, 4], [None, 2]), (None, None)], ids=str)
@each_kind
def test_unknown_shapes(shapes, kind):
    net = network(kind=kind)
    compiled = tf.function(net, input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes])
    x, context = normal([3, 2, 4], seed=1), normal([2, 2], seed=2)
    if shapes[0] == [None, 4]:
        x = x[0]
    np.testing.assert_allclose(compiled(x, context), net(x, context), rtol=1e-12)


@pytest.mark.parametrize(
    'shapes', [([None, 2, 3], [None, 2, 2]), ([None, None, 2, 3], [None, 2, 2]), (None, None)], ids=str
)
def test_unknown_leading_shapes_of_events_of_more_axes(shapes):
    net = network([2, 3], context_shape=[2, 2])
    compiled = tf.function(net, input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes])
    x, context = normal([3, 2, 2, 3], seed=1), normal([2, 2, 2], seed=2)
    if shapes[0] == [None, 2, 3]:
        x = x[0]
    np.testing.assert_allclose(compiled(x, context), net(x, context), rtol=1e-12)


def test_context_is_multiplied_once_for_all_samples():
    net = network()
    graph = tf.function(net).get_concrete_function(tf.zeros([50, 3, 4], tf.float64), tf.zeros([3, 2], tf.float64)).graph
    rows = [op.outputs[0].shape[0] for op in graph.get_operations() if op.type == 'MatMul']
    assert sorted(rows) == [3, 150, 150, 150]


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


@each_dtype
def test_dtype_of_variables_and_output(dtype):
    net = network(dtype=dtype)
    assert net.dtype == dtype
    assert {variable.dtype for variable in net.trainable_variables} == {dtype}
    assert net(*random_input(net)).dtype == dtype


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


def test_without_a_seed_weights_follow_the_global_seed():
    def kernel(seed=None):
        if seed is not None:
            tf.random.set_seed(seed)
        return masked_kernels(MaskedAutoregressiveNetwork(3, (8,)))[0][0].numpy()

    first, second = kernel(1), kernel()
    assert not np.array_equal(first, second), 'two networks of one program must differ'
    np.testing.assert_array_equal(kernel(1), first)


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


def test_initial_parameters_are_small():
    net = MaskedAutoregressiveNetwork(16, (64, 64), context_shape=4, seed=0)
    outputs = net(normal([200, 16], tf.float32), normal([200, 4], tf.float32, seed=1))
    assert 0.01 < np.std(outputs) < 0.3


def test_order_belongs_to_the_caller():
    net = network(order=(2, 0, 3, 1))
    net.order[:] = 0
    assert net.order.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(
    'shapes', [(4, 2), ([4], (2,)), ([2, 3], [5, 1]), (np.array([2, 3]), tf.TensorShape([3]))], ids=str
)
def test_properties(shapes):
    net = network(shapes[0], [9, 8], context_shape=shapes[1], params=3, dtype=tf.float32)
    for shape, given in zip((net.event_shape, net.context_shape), shapes, strict=True):
        assert isinstance(shape, tf.TensorShape)
        assert shape == np.atleast_1d(given).tolist()
    assert (net.hidden_units, net.params) == ((9, 8), 3)
    assert network(context_shape=None).context_shape is None


def test_repr_tells_how_it_was_made():
    text = repr(network([2, 3], name='mine'))
    for part in ('MaskedAutoregressiveNetwork', 'mine', 'event_shape=[2, 3]', '(9, 8)', 'context_shape=[2]', 'float64'):
        assert part in text
    assert 'context_shape=None' in repr(network(context_shape=None))


@each_kind
def test_variables_are_those_that_a_module_finds(kind):
    """In the order of the layers; `tf.Module` sorts by the names of attributes."""
    for context_shape in (None, 2):
        net = network(context_shape=context_shape, kind=kind)
        assert {id(v) for v in net.variables} == {id(v) for v in tf.Module.variables.fget(net)}
        assert len(net.variables) == len(net.trainable_variables) == (7 if context_shape else 6)


def test_what_is_stored_depends_on_the_architecture_alone():
    """One matrix `[units in, units out]` for each layer, in whatever way it is multiplied."""
    shapes = [(2, 9), (4, 9), (9, 8), (8, 8), (9,), (8,), (8,)]
    for kind in (MaskedAutoregressiveNetwork, InBlocks):
        assert [tuple(variable.shape) for variable in network(kind=kind).variables] == shapes


def test_variables_come_from_the_factory():
    made = {}

    def factory(name, value):
        assert value.dtype == np.float32
        made[name] = tf.Variable(value)
        return made[name]

    net = MaskedAutoregressiveNetwork(3, (8,), context_shape=2, variable_factory=factory)
    assert {v.ref() for v in net.trainable_variables} == {v.ref() for v in made.values()}
    assert set(made) == {'context_kernel', 'kernel_0', 'bias_0', 'kernel_1', 'bias_1'}


def test_network_can_be_made_inside_a_function():
    made = []

    @tf.function
    def apply(x):
        if not made:
            made.append(MaskedAutoregressiveNetwork(3, (8,), order='random'))
        return made[0](x)

    x = normal([2, 3], tf.float32)
    np.testing.assert_allclose(apply(x), made[0](x), atol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'event_shape': 0}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'event_shape': -3}, ValueError, ['event_shape', '-3', 'at least 1']),
        ({'event_shape': 2.0}, TypeError, ['event_shape', '2.0', 'int']),
        ({'event_shape': None}, TypeError, ['event_shape', 'None', 'int']),
        ({'event_shape': True}, TypeError, ['event_shape', 'True', 'int']),
        ({'event_shape': [2, 0]}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'event_shape': [2, 1.5]}, TypeError, ['event_shape', '1.5', 'int']),
        ({'event_shape': [2, None]}, ValueError, ['event_shape', '[2, None]', 'all sizes', 'known']),
        ({'event_shape': tf.TensorShape([None])}, ValueError, ['event_shape', 'None', 'all sizes', 'known']),
        ({'event_shape': tf.TensorShape(None)}, ValueError, ['event_shape', 'None', 'all sizes', 'known']),
        ({'event_shape': '3'}, TypeError, ['event_shape', "'3'", 'int']),
        ({'hidden_units': ()}, ValueError, ['hidden_units', 'no layer', 'at least one', '(320, 320)']),
        ({'hidden_units': np.zeros([0], int)}, ValueError, ['hidden_units', 'no layer', 'at least one']),
        ({'hidden_units': (8, 0)}, ValueError, ['hidden_units', '0', 'at least 1']),
        ({'hidden_units': (8.5,)}, TypeError, ['hidden_units', '8.5', 'int']),
        ({'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints', '(320, 320)']),
        ({'hidden_units': '88'}, TypeError, ['hidden_units', "'88'", 'sequence of ints']),
        ({'context_shape': 0}, ValueError, ['context_shape', '0', 'at least 1']),
        ({'context_shape': 2.5}, TypeError, ['context_shape', '2.5', 'int']),
        ({'context_shape': [2, 0]}, ValueError, ['context_shape', '0', 'at least 1']),
        ({'params': 0}, ValueError, ['params', '0', 'at least 1']),
        ({'activation': 'elou'}, ValueError, ['activation', "'elou'", 'callable', "'elu'", "'relu'"]),
        ({'activation': None}, TypeError, ['activation', 'None', 'callable', "'elu'"]),
        pytest.param(
            {'activation': tf.nn.softmax}, ValueError, ['activation', 'softmax', 'every unit alone'], id='softmax'
        ),
        pytest.param(
            {'activation': keras.layers.PReLU()},
            TypeError,
            ['activation', 'PReLU', 'variables', 'tf.nn.elu'],
            id='layer',
        ),
        ({'order': [0, 1, 1]}, ValueError, ['order', '[0, 1, 1]', 'permutation of range(3)']),
        ({'order': 'reversed'}, ValueError, ['order', "'reversed'", "'right-to-left'"]),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative int or None']),
        ({'seed': 1.5}, TypeError, ['seed', '1.5', 'non-negative int or None']),
        ({'seed': 'one'}, TypeError, ['seed', "'one'", 'non-negative int or None']),
        ({'seed': True}, TypeError, ['seed', 'True', 'non-negative int or None']),
        ({'dtype': tf.int32}, TypeError, ['dtype', 'int32', 'float32', 'float64']),
        ({'dtype': tf.float16}, TypeError, ['dtype', 'float16', 'float32', 'float64', 'mixed precision']),
        ({'dtype': tf.bfloat16}, TypeError, ['dtype', 'bfloat16', 'float32', 'float64', 'mixed precision']),
        ({'dtype': tf.complex64}, TypeError, ['dtype', 'complex64', 'float32', 'float64']),
        ({'dtype': 'floaty'}, TypeError, ['dtype:', 'floaty', 'float32', 'float64']),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        MaskedAutoregressiveNetwork(**{'event_shape': 3, 'hidden_units': (8,), **arguments})


def test_missing_context():
    with raises(ValueError, 'context', 'None', '[..., 2]', 'context_shape=[2]', 'Pass context='):
        network()(tf.zeros([5, 4], tf.float64))


def test_unexpected_context():
    net = network(context_shape=None)
    with raises(ValueError, 'context', repr(net), 'pass context_shape'):
        net(tf.zeros([5, 4], tf.float64), tf.zeros([5, 2], tf.float64))


@pytest.mark.parametrize('shape', [[5, 3], [3], [5, 1], []], ids=str)
def test_event_of_another_size(shape):
    with raises(ValueError, 'x:', str(tuple(shape)).rstrip(',)'), '[..., 4]', 'event'):
        network()(tf.zeros(shape, tf.float64), tf.zeros([5, 2], tf.float64))


def test_event_and_context_of_another_shape():
    net = network([2, 3], context_shape=[2, 2])
    with raises(ValueError, 'x:', '(5, 3, 2)', '[..., 2, 3]', repr(net)):
        net(tf.zeros([5, 3, 2], tf.float64), tf.zeros([5, 2, 2], tf.float64))
    with raises(ValueError, 'context:', '(5, 4)', '[..., 2, 2]', repr(net)):
        net(tf.zeros([5, 2, 3], tf.float64), tf.zeros([5, 4], tf.float64))
    with raises(ValueError, 'context:', '(4,)', 'x', '(5,)', 'one context for each row'):
        net(tf.zeros([5, 2, 3], tf.float64), tf.zeros([4, 2, 2], tf.float64))


@pytest.mark.parametrize('shape', [[5, 3], [3], [5, 1], []], ids=str)
def test_context_of_another_size(shape):
    with raises(ValueError, 'context:', str(tuple(shape)).rstrip(',)'), '[..., 2]'):
        network()(tf.zeros([5, 4], tf.float64), tf.zeros(shape, tf.float64))


@pytest.mark.parametrize('argument', ['x', 'context'])
@pytest.mark.parametrize('dtype', [tf.float32, tf.float16, tf.int32], ids=lambda dtype: dtype.name)
def test_tensor_of_another_dtype(argument, dtype):
    tensors = {'x': tf.zeros([5, 4], tf.float64), 'context': tf.zeros([5, 2], tf.float64)}
    tensors[argument] = tf.cast(tensors[argument], dtype)
    with raises(TypeError, f'{argument}:', dtype.name, 'expected float64', 'Cast'):
        network()(**tensors)


def test_is_a_public_name():
    assert tfp_iaf.MaskedAutoregressiveNetwork is MaskedAutoregressiveNetwork
    assert tfp_iaf.networks.MaskedAutoregressiveNetwork is MaskedAutoregressiveNetwork


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
    with raises(ValueError, 'base_width', '0'):
        MaskedAutoregressiveNetwork(4, (8,), base_width=0)
