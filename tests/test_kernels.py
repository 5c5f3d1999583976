"""Kernels in blocks hold what the masks permit, and multiply like the masked matrices."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import normal, raises
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, masks
from tfp_iaf.kernels import Block, Layout, default_num_blocks, joined, products, split

_layouts = st.tuples(
    st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=2), st.booleans(), st.integers(0, 3)
)


def made(event_size, hidden_units, conditional, power):
    """The degrees, and the layout of the second layer's kernel."""
    num_blocks = 2 ** min(power, int(np.log2(event_size)))
    degrees = masks.degrees(event_size, hidden_units, conditional)
    return degrees, num_blocks, Layout(degrees, 1, num_blocks)


@hypothesis.given(_layouts)
def test_what_is_stored_is_what_the_mask_permits(arguments):
    degrees, _, layout = made(*arguments)
    mask = masks.mask(degrees[1], degrees[2])
    kernel = normal(mask.shape).numpy()
    stored = layout.stored(kernel)
    np.testing.assert_array_equal(layout.triangle(tf.constant(stored)).masked(), np.where(mask, kernel, 0))
    permitted = layout.stored(mask)
    assert permitted.sum() == mask.sum()
    assert set(stored[permitted]) == set(kernel[mask])


@hypothesis.given(_layouts)
def test_products_are_those_of_the_masked_matrix(arguments):
    degrees, num_blocks, layout = made(*arguments)
    mask = masks.mask(degrees[1], degrees[2])
    kernel, values = normal(mask.shape).numpy(), normal([3, degrees[1].size], seed=1)
    blocks = Block(degrees, 0, degrees[0].size).cut(num_blocks)
    triangle = layout.triangle(tf.constant(layout.stored(kernel)))
    parts = products(triangle, split(values, [block.sizes[1] for block in blocks]))
    assert [part.shape[-1] for part in parts] == [block.sizes[2] for block in blocks]
    np.testing.assert_allclose(joined(parts), values @ np.where(mask, kernel, 0), rtol=1e-12, atol=1e-12)


@hypothesis.given(_layouts)
def test_gradient_is_that_of_the_stored_weights(arguments):
    degrees, _, layout = made(*arguments)
    values, cotangents = (normal([3, degrees[layer].size], seed=layer) for layer in (1, 2))
    stored = tf.Variable(layout.stored(normal([degrees[1].size, degrees[2].size]).numpy()))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(values @ layout.triangle(stored).masked() * cotangents)
    np.testing.assert_allclose(layout.gradient(values, cotangents), tape.gradient(total, stored), atol=1e-12)


@hypothesis.given(_layouts)
def test_a_square_can_be_halved(arguments):
    degrees, _, layout = made(*arguments)
    hypothesis.assume(degrees[0].size > 1)
    kernel = normal([degrees[1].size, degrees[2].size]).numpy()
    triangle = layout.triangle(tf.constant(layout.stored(kernel)))
    np.testing.assert_array_equal(triangle.halved().masked(), triangle.masked())


def test_halves_store_less():
    """Four blocks of a large square kernel leave out three eighths of it."""
    sizes = [
        MaskedAutoregressiveNetwork(16, (160, 160), context_size=1, seed=0, num_blocks=count).kernels[1].shape
        for count in (1, 2, 4)
    ]
    assert [np.prod(size) / 160**2 for size in sizes] == [1, 0.75, 0.625]


@pytest.mark.parametrize(
    ('event_size', 'largest', 'expected'),
    [(32, 256**2, 1), (32, 320**2, 2), (256, 1024**2, 4), (3072, 3072**2, 4), (2, 1920**2, 2), (1, 1920**2, 1)],
)
def test_rule_of_the_blocks(event_size, largest, expected):
    assert default_num_blocks(event_size, largest) == expected


def test_network_follows_the_rule_or_what_it_is_told():
    assert MaskedAutoregressiveNetwork(4, (300, 300), seed=0).num_blocks == 2
    assert MaskedAutoregressiveNetwork(4, (300, 300), seed=0, num_blocks=4).num_blocks == 4


def test_blocks_start_from_the_same_weights():
    x = normal([3, 9], tf.float32)
    outputs = [MaskedAutoregressiveNetwork(9, (12, 11), seed=0, num_blocks=count)(x) for count in (1, 2, 4, 8)]
    for other in outputs[1:]:
        np.testing.assert_allclose(outputs[0], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('count', [0, 3, 16])
def test_number_of_blocks_is_checked(count):
    with raises(ValueError, 'num_blocks', str(count)):
        MaskedAutoregressiveNetwork(9, (12,), num_blocks=count)


def test_number_of_blocks_is_an_int():
    with raises(TypeError, 'num_blocks', '2.0'):
        MaskedAutoregressiveNetwork(9, (12,), num_blocks=2.0)


@pytest.mark.parametrize('shape', [[5], [2, 3]], ids=str)
@pytest.mark.parametrize('jit_compile', [False, True])
def test_blocks_without_units(shape, jit_compile):
    """Fewer units than blocks: some blocks have none, in both directions and for gradients."""
    results = []
    for count in (1, 4):
        network = MaskedAutoregressiveNetwork(5, (3, 2), seed=0, num_blocks=count, dtype=tf.float64)
        step = InverseAutoregressiveFlow(network)

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
