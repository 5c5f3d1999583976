"""Objectives beyond the ELBO: free bits."""

import numpy as np
import pytest
import tensorflow as tf

from tests.flows import each_dtype, normal, raises
from tfp_iaf import objectives


def test_free_bits_of_one_group():
    kl = tf.constant([0.1, 0.3, 0.8])
    np.testing.assert_allclose(objectives.free_bits(kl, 0.3), 0.4, rtol=1e-6)
    np.testing.assert_allclose(objectives.free_bits(kl, 0.5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(objectives.free_bits(kl, 0), 0.4, rtol=1e-6)


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_free_bits_of_groups(axis):
    """The mean comes first, then the maximum, then the sum."""
    kl = np.abs(normal([6, 4]).numpy())
    means = kl.mean(axis=axis)
    minimum = float(np.median(means))
    assert np.any(means < minimum) and np.any(means > minimum)
    expected = np.sum(np.maximum(means, minimum))
    np.testing.assert_allclose(objectives.free_bits(tf.constant(kl), minimum, axis), expected, rtol=1e-12)


def test_free_bits_of_groups_along_several_axes():
    kl = np.abs(normal([5, 2, 3]).numpy())
    expected = np.sum(np.maximum(kl.mean(axis=0), 0.7))
    np.testing.assert_allclose(objectives.free_bits(tf.constant(kl), 0.7), expected, rtol=1e-12)


def test_groups_below_the_minimum_get_no_gradient():
    kl = tf.constant([[0.1, 2.0], [0.3, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(kl)
        term = objectives.free_bits(kl, 0.5)
    np.testing.assert_array_equal(tape.gradient(term, kl), [[0.0, 0.5], [0.0, 0.5]])


@each_dtype
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_free_bits_of_an_unknown_batch(dtype, jit_compile):
    compiled = tf.function(
        lambda kl: objectives.free_bits(kl, 0.5),
        input_signature=[tf.TensorSpec([None, 2], dtype)],
        jit_compile=jit_compile,
    )
    result = compiled(tf.constant([[0.1, 3.0], [0.3, 1.0]], dtype))
    assert result.dtype == dtype and result.shape == []
    np.testing.assert_allclose(result, 2.5, rtol=1e-6)
    assert compiled(tf.zeros([0, 2], dtype)) == 1.0


@pytest.mark.parametrize(('shape', 'axis', 'expected'), [([0], 0, 0.5), ([0, 3], 0, 1.5), ([0, 2, 3], (0, 1), 1.5)])
def test_free_bits_of_no_rows(shape, axis, expected):
    kl = tf.zeros(shape)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        term = objectives.free_bits(kl, 0.5, axis)
    assert term == expected and tape.gradient(term, kl).shape == shape


@pytest.mark.parametrize(
    'minimum',
    [tf.constant(0.5), tf.constant(0.5, tf.float64), tf.Variable(0.5)],
    ids=['float32', 'float64', 'variable'],
)
def test_minimum_that_changes(minimum):
    kl = tf.constant([[0.1, 3.0], [0.3, 1.0]])
    assert objectives.free_bits(kl, minimum).numpy() == 2.5


def test_batch_of_two_axes():
    kl = normal([2, 3, 4], tf.float64) ** 2
    expected = objectives.free_bits(tf.reshape(kl, [6, 4]), 0.5)
    np.testing.assert_allclose(objectives.free_bits(kl, 0.5, axis=(0, 1)), expected, rtol=1e-12)


@pytest.mark.parametrize('axis', [2, -3, (), (0, 5)])
def test_axis_that_does_not_exist(axis):
    with raises(ValueError, 'axis', str(axis), 'kl', '(3, 2)'):
        objectives.free_bits(tf.zeros([3, 2]), 0.5, axis=axis)


def test_nan_is_not_free():
    assert np.isnan(objectives.free_bits(tf.constant([np.nan, 1.0]), 0.5))


@pytest.mark.parametrize(
    ('kl', 'minimum', 'error', 'parts'),
    [
        (tf.constant([1, 2]), 0.5, TypeError, ['kl', 'int32', 'floating']),
        (tf.constant(1.0), 0.5, ValueError, ['kl', 'scalar', 'axis for the batch']),
        (tf.constant([1.0]), -0.5, ValueError, ['minimum', '-0.5', 'at least 0']),
        (tf.constant([1.0]), float('nan'), ValueError, ['minimum', 'nan', 'at least 0']),
        (tf.constant([1.0]), 'few', TypeError, ['minimum', "'few'", 'number']),
    ],
    ids=['int', 'scalar', 'negative', 'nan', 'str'],
)
def test_bad_arguments_of_free_bits(kl, minimum, error, parts):
    with raises(error, *parts):
        objectives.free_bits(kl, minimum)
