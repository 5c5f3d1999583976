"""Inverting block by block gives what iterating over all entries gives, however many blocks there are."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import count_ops, normal, perturb
from tfp_iaf import MaskedAutoregressiveNetwork, transforms
from tfp_iaf.inversion import blockwise


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
@hypothesis.settings(max_examples=15)
@hypothesis.given(_architectures(), st.sampled_from([transforms.Gated(), transforms.Affine()]))
def test_values_and_gradients_are_those_of_unrolled_iterations(drawn, transform):
    architecture, num_blocks = drawn
    size = architecture['event_shape']
    net = network(**architecture)
    y = normal([3, size], seed=1)
    context = None if net.context_shape is None else normal([3, 2], seed=2)

    def unrolled(y, context):
        x = y
        for _ in range(size):
            x, _ = transform.inverse(y, net(x, context))
        return x, transform.forward(x, net(x, context))[1], y

    def by_blocks(y, context):
        return blockwise(net.masked_layers(context), transform, y, num_blocks)

    expected = inverse_and_gradients(unrolled, net, y, context)
    for value, other in zip(inverse_and_gradients(by_blocks, net, y, context), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_costs_about_one_network_pass_and_the_graph_does_not_grow_with_the_event():
    def traced(event_size):
        net = MaskedAutoregressiveNetwork(event_size, (64,), seed=0)
        function = tf.function(lambda y: blockwise(net.masked_layers(), transforms.Gated(), y), autograph=False)
        return function.get_concrete_function(tf.TensorSpec([None, event_size]))

    def nodes(function):
        graph = function.graph.as_graph_def()
        return len(graph.node) + sum(len(inner.node_def) for inner in graph.library.function)

    small, large = traced(64), traced(256)
    # For each of two layers, one with each of the seven strips before the blocks that are not the first, and one with
    # each block itself, in the loop's body.
    assert count_ops(small, 'MatMul') == 2 * (7 + 8)
    assert nodes(large) == nodes(small)
