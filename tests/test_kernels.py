"""Masked products are those of the dense masked matrix, in however many blocks they are made."""

import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import InBlocks, count_ops, each_dtype, normal
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork
from tfp_iaf.networks import _kernels, _masks
from tfp_iaf.networks._kernels import MaskedKernel, gather, num_blocks_for

ROWS = 3


@st.composite
def _kernels_and_blocks(draw):
    """A kernel of any layer of any network, and a number of blocks for it."""
    event_size = draw(st.integers(1, 9))
    hidden_units = draw(st.lists(st.integers(1, 12), min_size=1, max_size=2))
    layers = _masks.degrees(event_size, hidden_units, draw(st.integers(1, 3)), draw(st.booleans()))
    layer = draw(st.integers(0, len(hidden_units)))
    return MaskedKernel(layers, layer), draw(st.integers(1, event_size))


def made(event_size, units, num_blocks=4):
    """The kernel between two hidden layers."""
    return MaskedKernel(_masks.degrees(event_size, units, 1, conditional=True), 1), num_blocks


def arguments(kernel, rows=ROWS, forbidden=1.0, dtype=tf.float64):
    """Values and weights, with a given value wherever the mask forbids a weight."""
    inputs, outputs = kernel.mask.shape
    weights = tf.where(kernel.mask, normal([inputs, outputs], dtype), tf.constant(forbidden, dtype))
    return normal([rows, inputs], dtype, seed=1), weights


def dense(kernel):
    """What the kernel must do, in one product."""
    return lambda values, weights: tf.matmul(values, tf.where(kernel.mask, weights, 0.0))


def in_blocks(kernel, num_blocks):
    return lambda values, weights: kernel(values, weights, num_blocks)


def derivatives(product, values, weights):
    """The product, its gradients, and the gradients of those."""
    with tf.GradientTape(persistent=True) as outer:
        outer.watch([values, weights])
        with tf.GradientTape() as inner:
            inner.watch([values, weights])
            outputs = product(values, weights)
            total = tf.reduce_sum(tf.sin(outputs) * normal(outputs.shape, outputs.dtype, seed=2))
        first = inner.gradient(total, [values, weights])
        totals = [tf.reduce_sum(tf.cos(part) * normal(part.shape, part.dtype, seed=3)) for part in first]
    second = [outer.gradient(total, [values, weights]) for total in totals]
    return [outputs, *first, *second[0], *second[1]]


def derivatives_in_forward_mode(product, values, weights):
    """Of the product, and of its gradients."""
    directions = [normal(argument.shape, argument.dtype, seed=5 + i) for i, argument in enumerate((values, weights))]
    with tf.autodiff.ForwardAccumulator([values, weights], directions) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch([values, weights])
            outputs = product(values, weights)
            total = tf.reduce_sum(tf.sin(outputs) * normal(outputs.shape, outputs.dtype, seed=2))
        gradients = tape.gradient(total, [values, weights])
    return [accumulator.jvp(result) for result in (outputs, *gradients)]


def assert_all_close(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@hypothesis.given(_kernels_and_blocks())
def test_product_and_derivatives_are_those_of_the_masked_matrix(drawn):
    kernel, num_blocks = drawn
    values, weights = arguments(kernel)
    expected = derivatives(dense(kernel), values, weights)
    assert_all_close(derivatives(in_blocks(kernel, num_blocks), values, weights), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@hypothesis.settings(max_examples=5)  # TensorFlow traces each
@hypothesis.given(_kernels_and_blocks())
def test_derivatives_in_forward_mode_are_those_of_the_masked_matrix(drawn):
    kernel, num_blocks = drawn
    values, weights = arguments(kernel)
    expected = derivatives_in_forward_mode(dense(kernel), values, weights)
    actual = derivatives_in_forward_mode(in_blocks(kernel, num_blocks), values, weights)
    assert_all_close(actual, expected, rtol=1e-11, atol=1e-12)


@hypothesis.given(_kernels_and_blocks(), st.sampled_from([np.inf, -np.inf, np.nan, 1e300]))
def test_forbidden_weights_change_nothing(drawn, forbidden):
    kernel, num_blocks = drawn
    results = [
        derivatives(in_blocks(kernel, num_blocks), *arguments(kernel, forbidden=value)) for value in (0.0, forbidden)
    ]
    for actual, expected in zip(*results, strict=True):
        assert np.all(np.isfinite(actual))
        np.testing.assert_array_equal(actual, expected)


@hypothesis.given(_kernels_and_blocks())
def test_gradient_of_forbidden_weights_is_zero_and_of_no_others(drawn):
    kernel, num_blocks = drawn
    values, weights = arguments(kernel)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        outputs = kernel(values, weights, num_blocks)
        total = tf.reduce_sum(outputs * normal(outputs.shape, seed=2))
    np.testing.assert_array_equal(tape.gradient(total, weights) != 0, kernel.mask)


@hypothesis.given(_kernels_and_blocks())
def test_parts_of_a_kernel(drawn):
    """`runs` cuts the mask into blocks, none of which below the diagonal has a weight; `permitted` masks each."""
    kernel, num_blocks = drawn
    _, weights = arguments(kernel)
    rows, columns = kernel.runs(num_blocks)
    parts = [
        [
            kernel.permitted(weights[row, column], row, column) if column.stop > column.start else None
            for column in columns
        ]
        for row in rows
    ]
    whole = np.where(kernel.mask, weights, 0)
    np.testing.assert_array_equal(kernel.whole(weights), whole)
    for b, row in enumerate(rows):
        for c, column in enumerate(columns):
            if parts[b][c] is not None:
                np.testing.assert_array_equal(parts[b][c], whole[row, column])
                assert c >= b or not np.any(parts[b][c])


@pytest.mark.parametrize('rows', [0, 1, None])
@pytest.mark.parametrize('num_blocks', [1, 3])
def test_any_number_of_rows(rows, num_blocks):
    kernel, _ = made(5, (7, 6))
    values, weights = arguments(kernel, rows=2 if rows is None else rows)

    def values_and_gradients(values, weights):
        with tf.GradientTape() as tape:
            tape.watch([values, weights])
            outputs = kernel(values, weights, num_blocks)
            total = tf.reduce_sum(tf.sin(outputs))
        return outputs, *tape.gradient(total, [values, weights])

    signature = [tf.TensorSpec([rows, 7], tf.float64), tf.TensorSpec([7, 6], tf.float64)]
    outputs, of_values, of_weights = tf.function(values_and_gradients, input_signature=signature)(values, weights)
    assert (outputs.shape, of_values.shape) == ([values.shape[0], 6], values.shape)
    np.testing.assert_allclose(outputs, dense(kernel)(values, weights), rtol=1e-12)
    np.testing.assert_allclose(of_weights, values_and_gradients(values, weights)[2], rtol=1e-12)


@each_dtype
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
@pytest.mark.parametrize('units', [(3, 2), (1, 1), (9, 2), (2, 9)], ids=str)
def test_blocks_without_units(units, jit_compile, dtype):
    """Fewer units than blocks: some blocks have no rows, some no columns."""
    kernel, num_blocks = made(5, units)
    sizes = [run.stop - run.start for runs in kernel.runs(num_blocks) for run in runs]
    assert 0 in sizes
    values, weights = arguments(kernel, dtype=dtype)

    def values_and_gradients(product):
        with tf.GradientTape() as tape:
            tape.watch([values, weights])
            outputs = product(values, weights)
            total = tf.reduce_sum(tf.sin(outputs))
        return outputs, *tape.gradient(total, [values, weights])

    compiled = tf.function(lambda: values_and_gradients(in_blocks(kernel, num_blocks)), jit_compile=jit_compile)
    tolerance = 1e-5 if dtype == tf.float32 else 1e-12
    assert_all_close(compiled(), values_and_gradients(dense(kernel)), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [[5], [2, 3]], ids=str)
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_step_of_a_network_with_blocks_without_units(shape, jit_compile):
    """In both directions, and for gradients."""
    results = []
    for kind in (MaskedAutoregressiveNetwork, InBlocks):
        step = InverseAutoregressiveFlow(kind(5, (3, 2), seed=0, dtype=tf.float64))

        @tf.function(jit_compile=jit_compile, autograph=False)
        def values_and_gradients(x, step=step):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                y, z = step.forward(x), step.inverse(tf.identity(x))
                totals = [tf.reduce_sum(tf.sin(value)) for value in (y, z)]
            return y, z, *(tape.gradient(total, x) for total in totals)

        results.append(values_and_gradients(normal([*shape, 5])))
    for one, four in zip(*results, strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-10, atol=1e-12)


def test_four_blocks_skip_three_eighths(monkeypatch):
    """Of the multiplications with a large square kernel, and of those of its gradients."""
    kernel, _ = made(16, (160, 160))
    values, weights = arguments(kernel, dtype=tf.float32)
    matmul, counts = tf.matmul, []

    def counted(a, b, **kwargs):
        result = matmul(a, b, **kwargs)
        counts.append(np.prod([*result.shape, a.shape[0 if kwargs.get('transpose_a') else 1]]))
        return result

    monkeypatch.setattr(tf, 'matmul', counted)
    with tf.GradientTape() as tape:
        tape.watch([values, weights])
        outputs = kernel(values, weights, 4)
    assert sum(counts) == 0.625 * ROWS * 160**2
    counts.clear()
    tape.gradient(outputs, [values, weights])
    assert sum(counts) == 2 * 0.625 * ROWS * 160**2


# In how many blocks


@pytest.mark.parametrize(
    ('event_size', 'largest', 'rows', 'expected'),
    [
        (32, 320**2, 1000, 1),
        (32, 2**17, 1000, 1),
        (32, 2**17 + 1, 1000, 4),
        (3072, 3072**2, 1000, 4),
        (3072, 3072**2, 15, 1),
        (3072, 3072**2, 16, 4),
        (3072, 3072**2, None, 4),
        (32, 320**2, None, 1),
        (4, 1920**2, 1000, 4),
        (3, 1920**2, 1000, 1),
        (1, 1920**2, 1000, 1),
    ],
)
@pytest.mark.parametrize('device', ['/job:localhost/replica:0/task:0/device:CPU:0', ''], ids=['eager', 'graph'])
def test_rule_of_the_blocks(event_size, largest, rows, expected, device):
    values = types.SimpleNamespace(shape=[rows, event_size], device=device)
    assert num_blocks_for(event_size, largest, values) == (expected if device or not _has_accelerator() else 1)


def _has_accelerator():
    return any(device.device_type != 'CPU' for device in tf.config.list_logical_devices())


def test_kernels_stay_whole_on_a_gpu(monkeypatch):
    on_gpu = types.SimpleNamespace(shape=[1000, 32], device='/job:localhost/replica:0/task:0/device:GPU:0')
    assert num_blocks_for(32, 1920**2, on_gpu) == 1
    # In a graph, where TensorFlow has yet to choose.
    devices = [types.SimpleNamespace(device_type=device_type) for device_type in ('CPU', 'GPU')]
    monkeypatch.setattr(tf.config, 'list_logical_devices', lambda: devices)
    anywhere = types.SimpleNamespace(shape=[1000, 32], device='')
    assert num_blocks_for(32, 1920**2, anywhere) == 1


@pytest.mark.parametrize(('rows', 'expected'), [(None, 4), (16, 4), (15, 1)])
def test_network_follows_the_rule(rows, expected, monkeypatch):
    monkeypatch.setattr(_kernels, 'runs_on_cpu', lambda value: True)
    network = MaskedAutoregressiveNetwork(4, (400, 400), context_shape=1, seed=0)
    function = tf.function(network).get_concrete_function(tf.TensorSpec([rows, 4]), tf.TensorSpec([1]))
    # One for the context, and for each of three layers one a block.
    assert count_ops(function, 'MatMul') == 1 + 3 * expected


def test_outputs_do_not_depend_on_the_blocks():
    x = normal([3, 9], tf.float32)
    networks = [kind(9, (12, 11), seed=0) for kind in (MaskedAutoregressiveNetwork, InBlocks)]
    for one, four in zip(*(network.variables for network in networks), strict=True):
        np.testing.assert_array_equal(one, four)
    np.testing.assert_allclose(networks[0](x), networks[1](x), rtol=1e-5, atol=1e-6)


# Permutations


@hypothesis.given(st.permutations(range(5)), st.sampled_from([0, 1, -1, -2]))
def test_gather_is_that_of_tensorflow_with_all_derivatives(order, axis):
    order, value = np.array(order), normal([5, 5])

    def results(permuted):
        with tf.autodiff.ForwardAccumulator(value, normal([5, 5], seed=1)) as accumulator:
            with tf.GradientTape() as outer:
                outer.watch(value)
                with tf.GradientTape() as inner:
                    inner.watch(value)
                    permutation = permuted(value)
                    total = tf.reduce_sum(tf.sin(permutation) * normal([5, 5], seed=2))
                first = tf.convert_to_tensor(inner.gradient(total, value))
                again = tf.reduce_sum(first * normal([5, 5], seed=3))
            second = outer.gradient(again, value)
        # That of `tf.gather` itself is sparse.
        return permutation, first, tf.convert_to_tensor(second), accumulator.jvp(permutation)

    expected = results(lambda value: tf.gather(value, order, axis=axis))
    assert_all_close(results(lambda value: gather(value, order, axis)), expected, rtol=1e-13)


@pytest.mark.parametrize('order', [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
def test_gradient_of_gather_scatters_nothing(order):
    @tf.function
    def gradient(value):
        with tf.GradientTape() as tape:
            tape.watch(value)
            total = tf.reduce_sum(tf.sin(gather(value, np.array(order), axis=1)))
        return tape.gradient(total, value)

    graph = gradient.get_concrete_function(tf.TensorSpec([None, 4]))
    kinds = {operation.type for operation in graph.graph.get_operations()}
    assert not any('Scatter' in kind or 'Segment' in kind for kind in kinds), kinds
