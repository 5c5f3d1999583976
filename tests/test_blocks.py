"""Inverting block by block gives what iterating over all entries at once gives, however many blocks there are."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import count_ops, masked_kernels, normal, perturb
from tfp_iaf import MaskedAutoregressiveNetwork, transforms
from tfp_iaf.inversion import blockwise, fixed_point


@st.composite
def _architectures(draw):
    """An architecture, and a number of blocks."""
    event_size = draw(st.integers(1, 9))
    architecture = {
        'event_shape': event_size,
        'hidden_units': draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)),
        'context_shape': draw(st.none() | st.just(2)),
        'order': draw(st.sampled_from(['left-to-right', 'right-to-left', 'random'])),
    }
    return architecture, draw(st.integers(1, event_size))


def network(**kwargs):
    made = MaskedAutoregressiveNetwork(**kwargs, seed=0, dtype=tf.float64)
    perturb(made)
    return made


def inverse_and_gradients(invert, net, y, context):
    with tf.GradientTape() as tape:
        tape.watch([y] if context is None else [y, context])
        x, log_derivatives, image = invert(y, context)
        weights = normal(x.shape, seed=7)
        total = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(weights * tf.cos(log_derivatives))
    sources = [y, *net.trainable_variables] if context is None else [y, context, *net.trainable_variables]
    return [x, log_derivatives, image, *tape.gradient(total, sources, unconnected_gradients='zero')]


@pytest.mark.slow
@pytest.mark.parametrize('transform', [transforms.Gated(), transforms.Affine()], ids=str)
@hypothesis.given(_architectures())
def test_equals_iterations_over_all_entries(transform, drawn):
    architecture, num_blocks = drawn
    net = network(**architecture)
    y = normal([3, architecture['event_shape']], seed=1)
    context = None if net.context_shape is None else normal([3, 2], seed=2)

    def at_once(y, context):
        arguments = () if context is None else (context,)
        return fixed_point(lambda x: net(x, *arguments), transform, y)

    def by_blocks(y, context):
        return blockwise(net.masked_layers(context), transform, y, num_blocks)

    expected = inverse_and_gradients(at_once, net, y, context)
    actual = inverse_and_gradients(by_blocks, net, y, context)
    np.testing.assert_allclose(actual[2], y, rtol=1e-10, atol=1e-10)
    for value, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('forbidden', [1.0, np.inf, np.nan])
@pytest.mark.parametrize('num_blocks', [1, 2, 4, 5, 7])
def test_forbidden_weights_change_nothing(forbidden, num_blocks):
    net = network(event_shape=7, hidden_units=(9, 8), context_shape=2)
    y, context = normal([3, 7], seed=1), normal([3, 2], seed=2)

    def invert(y, context):
        return blockwise(net.masked_layers(context), transforms.Affine(), y, num_blocks)

    expected = inverse_and_gradients(invert, net, y, context)
    for kernel, mask in masked_kernels(net):
        kernel.assign(tf.where(mask, kernel, tf.constant(forbidden, kernel.dtype)))
    for actual, other in zip(inverse_and_gradients(invert, net, y, context), expected, strict=True):
        np.testing.assert_array_equal(actual, other)


@pytest.mark.parametrize('shapes', [([], []), ([4], []), ([], [4]), ([2, 3], [3]), ([3], [2, 1])], ids=str)
def test_leading_shapes_broadcast(shapes):
    net = network(event_shape=5, hidden_units=(8,), context_shape=2)
    y, context = (normal([*shape, size], seed=size) for shape, size in zip(shapes, (5, 2), strict=True))
    lead = np.broadcast_shapes(*shapes)
    full = [tf.broadcast_to(value, [*lead, value.shape[-1]]) for value in (y, context)]
    results = [blockwise(net.masked_layers(each[1]), transforms.Gated(), each[0], 2) for each in ([y, context], full)]
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == [*lead, 5]
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.slow
def test_costs_about_one_network_pass():
    """Near the identity the squares on the diagonal take a few iterations; all else is one product."""
    net = MaskedAutoregressiveNetwork(64, (128,), seed=0)
    function = tf.function(lambda y: blockwise(net.masked_layers(), transforms.Gated(), y))
    graph = function.get_concrete_function(tf.zeros([10, 64]))
    # For each of two layers, one with each of the seven strips before the blocks that are not the first, and with the
    # block itself one in the first iteration and one in the loop's body.
    assert count_ops(graph, 'MatMul') == 2 * (7 + 8 * 2)
