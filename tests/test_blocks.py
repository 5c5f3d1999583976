"""Inverting block by block gives what sweeps over all entries at once give, whatever the blocks are."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import count_ops, masked_kernels, normal, perturb
from tfp_iaf import MaskedAutoregressiveNetwork, transforms
from tfp_iaf.blocks import blockwise
from tfp_iaf.inversion import fixed_point

_architectures = st.fixed_dictionaries(
    {
        'event_size': st.integers(1, 9),
        'hidden_units': st.lists(st.integers(1, 12), min_size=1, max_size=3),
        'context_size': st.none() | st.just(2),
        'order': st.sampled_from(['left-to-right', 'right-to-left', 'random']),
    }
)


def network(**kwargs):
    made = MaskedAutoregressiveNetwork(**kwargs, seed=0, dtype=tf.float64)
    perturb(made)
    return made


def inverse_and_gradients(invert, net, y, context):
    with tf.GradientTape() as tape:
        tape.watch([y] if context is None else [y, context])
        x, log_det = invert(y, context)
        total = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(tf.cos(log_det))
    sources = [y, *net.trainable_variables] if context is None else [y, context, *net.trainable_variables]
    return [x, log_det, *tape.gradient(total, sources, unconnected_gradients='zero')]


@pytest.mark.parametrize('transform', [transforms.Gated(), transforms.Affine()], ids=str)
@hypothesis.given(_architectures, st.integers(0, 3), st.integers(0, 3))
def test_equals_sweeps_over_all_entries(transform, architecture, stored, solved):
    """However many blocks the kernels are stored in, and however many are solved one after the other."""
    stored, solved = (2 ** min(power, int(np.log2(architecture['event_size']))) for power in (stored, solved))
    net = network(**architecture, num_blocks=stored)
    y = normal([3, net.event_size], seed=1)
    context = None if net.context_size is None else normal([3, 2], seed=2)

    def by_sweeps(y, context):
        arguments = () if context is None else (context,)
        return fixed_point(lambda x: net(x, *arguments), transform, y, net.event_size)

    def by_blocks(y, context):
        return blockwise(net, transform, y, context, solved)

    expected = inverse_and_gradients(by_sweeps, net, y, context)
    for actual, other in zip(inverse_and_gradients(by_blocks, net, y, context), expected, strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('forbidden', [1.0, np.inf, np.nan])
@pytest.mark.parametrize(('stored', 'solved'), [(1, 1), (1, 4), (4, 1), (2, 4)])
def test_forbidden_weights_change_nothing(forbidden, stored, solved):
    net = network(event_size=7, hidden_units=(9, 8), context_size=2, num_blocks=stored)
    y, context = normal([3, 7], seed=1), normal([3, 2], seed=2)

    def invert(y, context):
        return blockwise(net, transforms.Affine(), y, context, solved)

    expected = inverse_and_gradients(invert, net, y, context)
    for kernel, mask in masked_kernels(net):
        kernel.assign(tf.where(mask, kernel, tf.constant(forbidden, kernel.dtype)))
    for actual, other in zip(inverse_and_gradients(invert, net, y, context), expected, strict=True):
        np.testing.assert_array_equal(actual, other)


@pytest.mark.parametrize('shapes', [([], []), ([4], []), ([], [4]), ([2, 3], [3]), ([3], [2, 1])], ids=str)
def test_leading_shapes_broadcast(shapes):
    net = network(event_size=5, hidden_units=(8,), context_size=2)
    y, context = (normal([*shape, size], seed=size) for shape, size in zip(shapes, (5, 2), strict=True))
    lead = np.broadcast_shapes(*shapes)
    full = [tf.broadcast_to(value, [*lead, value.shape[-1]]) for value in (y, context)]
    for actual, expected in zip(
        blockwise(net, transforms.Gated(), y, context, 2), blockwise(net, transforms.Gated(), *full, 2), strict=True
    ):
        assert actual.shape == [*lead, 5]
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_costs_about_one_network_pass():
    """Near the identity the squares on the diagonal take a few sweeps; all else is one product."""
    net = MaskedAutoregressiveNetwork(64, (128,), seed=0)
    graph = tf.function(lambda y: blockwise(net, transforms.Gated(), y)).get_concrete_function(tf.zeros([10, 64]))
    # For each of two layers, one with each of the seven corners between eight blocks, and with the block itself one in
    # the first sweep and one in the loop's body.
    assert count_ops(graph, 'MatMul') == 2 * (7 + 8 * 2)
