"""Masked products are those of the dense masked matrix, in however many blocks they are made."""

import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import assert_all_close, count_ops, normal
from tfp_iaf import MaskedAutoregressiveNetwork
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


@hypothesis.settings(max_examples=15)
@hypothesis.given(_kernels_and_blocks(), st.sampled_from([1.0, np.inf, -np.inf, np.nan, 1e300]))
def test_product_and_derivatives_are_those_of_the_masked_matrix(drawn, forbidden):
    """Whatever stands where the mask forbids a weight: such a weight changes nothing, and its gradient is zero."""
    kernel, num_blocks = drawn
    expected = derivatives(dense(kernel), *arguments(kernel))
    actual = derivatives(in_blocks(kernel, num_blocks), *arguments(kernel, forbidden=forbidden))
    assert_all_close(actual, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(actual[2] != 0, kernel.mask)


@pytest.mark.slow
@hypothesis.settings(max_examples=2)  # TensorFlow traces each
@hypothesis.given(_kernels_and_blocks())
def test_derivatives_in_forward_mode_are_those_of_the_masked_matrix(drawn):
    kernel, num_blocks = drawn
    values, weights = arguments(kernel)
    expected = derivatives_in_forward_mode(dense(kernel), values, weights)
    actual = derivatives_in_forward_mode(in_blocks(kernel, num_blocks), values, weights)
    assert_all_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_blocks_without_units_under_xla():
    """Fewer units than blocks: some blocks have no rows, some no columns."""
    cases = [made(5, units) for units in [(3, 2), (1, 1), (9, 2), (2, 9)]]
    for kernel, num_blocks in cases:
        assert 0 in [run.stop - run.start for runs in kernel.runs(num_blocks) for run in runs]

    def values_and_gradients(product, values, weights):
        with tf.GradientTape() as tape:
            tape.watch([values, weights])
            outputs = product(values, weights)
            total = tf.reduce_sum(tf.sin(outputs))
        return outputs, *tape.gradient(total, [values, weights])

    @tf.function(jit_compile=True, autograph=False)
    def compiled():
        return [values_and_gradients(in_blocks(*case), *arguments(case[0])) for case in cases]

    for (kernel, _), actual in zip(cases, compiled(), strict=True):
        expected = values_and_gradients(dense(kernel), *arguments(kernel))
        assert_all_close(actual, expected, rtol=1e-12, atol=1e-12)


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


def test_rule_of_the_blocks(monkeypatch):
    """Large kernels are multiplied in blocks, for many rows, on a CPU."""
    cpu, gpu = (f'/job:localhost/replica:0/task:0/device:{kind}:0' for kind in ('CPU', 'GPU'))
    in_graph = ''  # where TensorFlow has yet to choose
    for event_size, largest, rows, device, kinds, expected in (
        (32, 2**17, 1000, cpu, ['CPU'], 1),
        (32, 2**17 + 1, 1000, cpu, ['CPU'], 4),
        (3072, 3072**2, 15, cpu, ['CPU'], 1),
        (3072, 3072**2, 16, cpu, ['CPU'], 4),
        (3072, 3072**2, None, in_graph, ['CPU'], 4),
        (4, 1920**2, 1000, cpu, ['CPU'], 4),
        (3, 1920**2, 1000, cpu, ['CPU'], 1),
        (32, 1920**2, 1000, gpu, ['CPU', 'GPU'], 1),
        (32, 1920**2, 1000, in_graph, ['CPU', 'GPU'], 1),
    ):
        devices = [types.SimpleNamespace(device_type=kind) for kind in kinds]
        monkeypatch.setattr(tf.config, 'list_logical_devices', lambda devices=devices: devices)
        values = types.SimpleNamespace(shape=[rows, event_size], device=device)
        assert num_blocks_for(event_size, largest, values) == expected, (event_size, largest, rows, device)


@pytest.mark.parametrize(('rows', 'expected'), [(None, 4), (15, 1)])
def test_network_follows_the_rule(rows, expected, monkeypatch):
    monkeypatch.setattr(_kernels, 'runs_on_cpu', lambda value: True)
    network = MaskedAutoregressiveNetwork(4, (400, 400), context_shape=1, seed=0)
    function = tf.function(network, autograph=False).get_concrete_function(tf.TensorSpec([rows, 4]), tf.TensorSpec([1]))
    # One for the context, and for each of three layers one a block.
    assert count_ops(function, 'MatMul') == 1 + 3 * expected


@pytest.mark.slow
@hypothesis.settings(max_examples=4)
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
