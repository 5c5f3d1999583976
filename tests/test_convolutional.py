"""The masked convolutional network: who sees whom, whatever its weights are; shapes; its inverse; bad input."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import jacobian, masked_kernels, normal, permitted, perturb, raises
from tfp_iaf import MaskedConvolutionalNetwork

ORDERS = ('left-to-right', 'right-to-left')


def network(event_shape=(3, 4, 2), filters=(5, 4), *, context_shape=(3, 4, 3), dtype=tf.float64, seed=0, **kwargs):
    made = MaskedConvolutionalNetwork(
        event_shape, filters, context_shape=context_shape, dtype=dtype, seed=seed, **kwargs
    )
    perturb(made)
    return made


def inputs_of(net, lead=(2,)):
    x = normal([*lead, *net.event_shape], net.dtype, seed=1)
    return [x] if net.context_shape is None else [x, normal([*lead, *net.context_shape], net.dtype, seed=2)]


def seen(net):
    """[D, D]: which entries (columns) the parameters of an entry (rows) see, followed from layer to layer in loops."""
    (height, width, channels), radius = net.event_shape, net.kernel_size // 2
    connected = np.eye(height * width * channels, dtype=bool).reshape([height, width, channels, -1])
    for _, mask in masked_kernels(net):
        kernel = np.zeros([net.kernel_size, net.kernel_size, *mask.shape[2:]], bool)
        kernel[radius if net.order[0] else 0 :][: radius + 1] = mask
        padded = np.pad(connected, [[radius, radius], [radius, radius], [0, 0], [0, 0]])
        after = np.zeros([height, width, kernel.shape[-1], connected.shape[-1]], bool)
        for i, j in np.ndindex(net.kernel_size, net.kernel_size):
            after |= np.einsum('hwid,io->hwod', padded[i : i + height, j : j + width], kernel[i, j])
        connected = after
    return connected.reshape([-1, net.params, connected.shape[-1]])[:, 0]


@st.composite
def _architectures(draw):
    height, width, channels = (draw(st.integers(1, 3)) for _ in range(3))
    context = draw(st.none() | st.integers(1, 3))
    return {
        'event_shape': [height, width, channels],
        'filters': draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        'kernel_size': draw(st.sampled_from([1, 3, 5])),
        'context_shape': None if context is None else [height, width, context],
        'params': draw(st.integers(1, 3)),
        'order': draw(st.sampled_from(ORDERS)),
    }


@pytest.mark.slow
@hypothesis.settings(max_examples=6)
@hypothesis.given(_architectures())
def test_parameters_depend_on_what_is_before_and_within_reach_and_on_nothing_else(architecture):
    """With other weights and, overwritten by ones, with kernels in which no weight is zero."""
    net = network(activation='tanh', **architecture)
    x, *context = inputs_of(net)
    size = net.event_shape.num_elements()
    weights = normal([net.params], seed=4)
    assert not np.any(seen(net) & ~permitted(net.order, strictly=True))

    def of_rows(rows):
        return tf.reshape(tf.linalg.matvec(net(tf.reshape(rows, x.shape), *context), weights), rows.shape)

    for overwritten in (False, True):
        if overwritten:
            for kernel, _ in masked_kernels(net):
                kernel.assign(tf.ones_like(kernel))
        derivatives = jacobian(of_rows, tf.reshape(x, [-1, size]))
        assert np.array_equal(np.any(derivatives != 0, axis=0), seen(net))


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('filters', [(1,), (2, 3), (4, 4), (9, 5, 7)], ids=str)
def test_pixels_see_what_the_documentation_says(filters, order):
    """All channels of the pixels within reach and, with as many filters as channels, the channels before their own."""
    net = network([5, 6, 4], filters, context_shape=None, order=order)
    height, width, channels = net.event_shape
    reach = len(filters) + 1
    sees = seen(net) if order == 'left-to-right' else seen(net)[::-1, ::-1]
    sees = sees.reshape([height, width, channels, height, width, channels])
    for i, j, k, m in np.ndindex(height, width, height, width):
        rows, columns = i - k, m - j  # above, and to the right
        if (rows, columns) == (0, 0):
            if min(filters) >= channels:
                assert np.array_equal(sees[i, j, :, k, m, :], np.tri(channels, k=-1, dtype=bool))
        else:
            expected = -reach <= columns <= min(rows, reach) and 0 <= rows <= reach and (rows > 0 or columns < 0)
            assert np.all(sees[i, j, :, k, m, :] == expected), (i, j, k, m)


def test_forbidden_weights_have_no_effect_and_no_gradient():
    net = network()
    inputs = inputs_of(net)
    before = net(*inputs)
    for forbidden in (1.0, np.inf, np.nan):
        for kernel, mask in masked_kernels(net):
            kernel.assign(tf.where(mask, kernel, tf.constant(forbidden, kernel.dtype)))
        with tf.GradientTape(persistent=True) as tape:
            outputs = net(*inputs)
            total = tf.reduce_sum(outputs * normal([2, *net.event_shape, 2]))
        np.testing.assert_array_equal(outputs, before, err_msg=str(forbidden))
        for kernel, mask in masked_kernels(net):
            assert np.array_equal(tape.gradient(total, kernel).numpy() != 0, mask), forbidden


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_output_equals_convolutions_in_loops(kernel_size, order):
    net = network(kernel_size=kernel_size, order=order, activation='tanh')
    x, context = (value.numpy() for value in inputs_of(net))
    (height, width, _), radius = net.event_shape, kernel_size // 2
    context_kernel, *_ = net.variables
    biases = [variable.numpy() for variable in net.variables if variable.name.startswith('bias_')]
    values = x
    for layer, ((kernel, mask), bias) in enumerate(zip(masked_kernels(net), biases, strict=True)):
        weights = np.where(mask, kernel, 0.0)
        first_row = -radius if order == 'left-to-right' else 0
        sums = np.zeros([*values.shape[:3], len(bias)]) + bias
        for n, i, j, row, column in np.ndindex(*values.shape[:3], *weights.shape[:2]):
            k, m = i + first_row + row, j - radius + column
            if 0 <= k < height and 0 <= m < width:
                sums[n, i, j] += values[n, k, m] @ weights[row, column]
        if layer == 0:
            sums += context @ context_kernel.numpy()
        values = np.tanh(sums)
    np.testing.assert_allclose(net(x, context), sums.reshape([*x.shape, 2]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('lead', [([None], [None]), ([None, None], [None]), (None, None)], ids=str)
def test_unknown_leading_shapes(lead):
    net = network()
    shapes = [
        None if of_input is None else [*of_input, *shape]
        for of_input, shape in zip(lead, (net.event_shape, net.context_shape), strict=True)
    ]
    compiled = tf.function(net, [tf.TensorSpec(shape, tf.float64) for shape in shapes], autograph=False)
    for batch in (0, 2):
        x, context = inputs_of(net, [batch] if lead[0] == [None] else [3, batch])[0], inputs_of(net, [batch])[1]
        np.testing.assert_allclose(compiled(x, context), net(x, context), rtol=1e-12)


def test_context_is_multiplied_once_for_all_samples():
    net = network()
    graph = tf.function(net).get_concrete_function(*inputs_of(net, [50, 3])[:1], inputs_of(net, [3])[1]).graph
    operations = [(op.type, op.outputs[0].shape[0]) for op in graph.get_operations() if op.type in ('MatMul', 'Conv2D')]
    assert sorted(operations) == [('Conv2D', 150)] * 3 + [('MatMul', 3 * 3 * 4)]


@pytest.mark.parametrize(
    ('order', 'dtype'), [('left-to-right', tf.float32), ('right-to-left', tf.float64)], ids=['float32', 'float64']
)
def test_what_is_stored_depends_on_the_architecture_alone(order, dtype):
    net = MaskedConvolutionalNetwork([6, 8, 2], (5, 4), context_shape=[6, 8, 3], order=order, dtype=dtype)
    kernels = [[2, 3, 2, 5], [2, 3, 5, 4], [2, 3, 4, 4]]
    assert [variable.shape for variable in net.variables] == [[3, 5], *kernels, [5], [4], [4]]
    assert {variable.dtype for variable in net.variables} == {dtype}
    assert all(part in repr(net) for part in ('MaskedConvolutionalNetwork', 'filters=(5, 4)', 'kernel_size=3'))


def test_initial_weights_take_the_fan_in_of_the_masks_into_account():
    net = MaskedConvolutionalNetwork([4, 4, 4], (400, 400), context_shape=[4, 4, 4], seed=0, dtype=tf.float64)
    context_kernel, *_ = net.variables
    first, second, _ = (np.where(mask, kernel, 0.0) for kernel, mask in masked_kernels(net))
    for kernel in (np.concatenate([first.reshape([-1, 400]), context_kernel]), second.reshape([-1, 400])):
        variances = np.sum(np.square(kernel), axis=0).reshape([4, 100]).mean(axis=1)
        np.testing.assert_allclose(variances, 1.0, atol=0.2)
    assert 0.01 < np.std(net(*inputs_of(net, [20]))) < 0.3


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(('event_shape', 'kernel_size'), [([4, 4, 2], 3), ([3, 8, 1], 5), ([1, 7, 2], 3)], ids=str)
def test_depth_is_the_longest_chain(event_shape, kernel_size, order):
    """Of a network that reaches everything within reach, by the power at which its matrix vanishes."""
    net = network(event_shape, (4, 4, 4, 4), context_shape=None, kernel_size=kernel_size, order=order)
    sees, chains, longest = seen(net).astype(int), np.eye(net.event_shape.num_elements(), dtype=int), 0
    while np.any(chains):
        chains, longest = np.minimum(chains @ sees, 1), longest + 1
    assert longest == net.depth


@pytest.mark.parametrize('order', ORDERS)
def test_inverse_of_a_steep_step_takes_no_more_passes_than_the_bound(order, monkeypatch):
    """As many passes as the depth make it exact however far from the identity, and one checks it."""
    net = network([4, 4, 2], (6, 6), context_shape=None, order=order, activation='tanh')
    for variable in net.variables:
        variable.assign(2 * variable)
    calls, evaluate = [], MaskedConvolutionalNetwork.unchecked_call
    monkeypatch.setattr(MaskedConvolutionalNetwork, 'unchecked_call', lambda *args: calls.append(1) or evaluate(*args))
    step = tfp_iaf.InverseAutoregressiveFlow(net, transform='affine')
    (x,) = inputs_of(net)
    y = tf.identity(step.forward(x))
    calls.clear()
    np.testing.assert_allclose(step.inverse(y), x, rtol=1e-8, atol=1e-8)
    assert net.depth // 2 < len(calls) <= net.depth + 1 < 4 * 4 * 2


def test_posterior_of_feature_maps_alternates_the_order():
    posterior = tfp_iaf.IAFPosterior([3, 4, 2], 3, filters=(5, 4), context_shape=[3, 4, 1], seed=0)
    assert [type(net) for net in posterior.networks] == [MaskedConvolutionalNetwork] * 3
    assert [int(net.order[0]) for net in posterior.networks] == [0, 23, 0]
    assert {net.filters for net in posterior.networks} == {(5, 4)}
    q = posterior(tf.zeros([5, 3, 4, 2]), tf.ones([5, 3, 4, 2]), tf.ones([5, 3, 4, 1]))
    z, log_q = q.experimental_sample_and_log_prob(7, seed=0)
    assert z.shape == [7, 5, 3, 4, 2]
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'event_shape': 32}, ValueError, ['event_shape', '(32,)', '[height, width, channels]', 'MaskedAutoreg']),
        ({'event_shape': [2, 2, 2, 2]}, ValueError, ['event_shape', '(2, 2, 2, 2)', '[height, width, channels]']),
        ({'context_shape': 5}, ValueError, ['context_shape', '(5,)', '[3, 4, channels]']),
        ({'context_shape': [4, 3, 2]}, ValueError, ['context_shape', '(4, 3, 2)', '[3, 4, channels]']),
        ({'filters': 32}, TypeError, ['filters', '32', 'a sequence of ints']),
        ({'kernel_size': 2}, ValueError, ['kernel_size', '2', 'odd']),
        ({'kernel_size': (3, 3)}, TypeError, ['kernel_size', '(3, 3)', 'an int']),
        ({'order': 'random'}, ValueError, ['order', "'random'", 'left-to-right', 'right-to-left']),
        ({'activation': 'softmax'}, ValueError, ['activation', "'softmax'", 'elu']),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, parts):
    """Those of the networks in common are tested with the dense one."""
    with raises(error, *parts):
        network(**arguments)
