"""What one entry goes through: both directions, their log-derivative, and their limits."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.flows import Shift, each_dtype, normal, raises
from tfp_iaf import transforms

each_transform = pytest.mark.parametrize(
    'transform',
    [transforms.Gated(), transforms.Gated(gate_bias=-1.0), transforms.Affine(), transforms.Affine(2.0), Shift()],
    ids=str,
)


def _params(transform, *values, shape=()):
    """As many of the values as the transform takes."""
    return tf.constant(np.broadcast_to(values[: transform.params], [*shape, transform.params]), tf.float64)


_points = st.floats(-1e3, 1e3)
_parameters = st.floats(-15, 15)


@each_transform
@hypothesis.given(_points, _parameters, _parameters)
def test_inverse_undoes_forward(transform, x, first, second):
    x, params = tf.constant([x], tf.float64), _params(transform, first, second, shape=[1])
    y, log_derivative = transform.forward(x, params)
    back, log_derivative_there = transform.inverse(y, params)
    # Where the map contracts, a rounding of y grows by the inverse of the slope.
    slack = 1e-13 * float(tf.exp(-log_derivative)[0])
    np.testing.assert_allclose(back, x, rtol=1e-13 + slack, atol=100 * slack)
    np.testing.assert_allclose(log_derivative_there, log_derivative, rtol=0, atol=0)


@each_transform
@hypothesis.given(_points, _parameters, _parameters)
def test_log_derivative_is_that_of_the_map(transform, x, first, second):
    x, params = tf.constant([x], tf.float64), _params(transform, first, second, shape=[1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, log_derivative = transform.forward(x, params)
    np.testing.assert_allclose(tf.exp(log_derivative), tape.gradient(y, x), rtol=1e-12)


@hypothesis.given(_points, _parameters, _parameters)
def test_gated_is_the_papers_equation_and_only_contracts(x, m, s):
    y, log_derivative = transforms.Gated(gate_bias=0.0).forward(
        tf.constant([x], tf.float64), tf.constant([[m, s]], tf.float64)
    )
    gate = 1 / (1 + np.exp(-s))
    np.testing.assert_allclose(y, [gate * x + (1 - gate) * m], rtol=1e-12, atol=1e-12)
    assert log_derivative[0] < 0


def test_affine_contracts_and_expands_up_to_its_bound():
    params = tf.constant([[0.0, -1e6], [0.0, -0.01], [0.0, 0.01], [0.0, 1e6]], tf.float64)
    _, log_derivative = transforms.Affine(max_log_scale=3.0).forward(tf.ones([4], tf.float64), params)
    np.testing.assert_allclose(log_derivative, [-3.0, -0.01, 0.01, 3.0], rtol=1e-5)


@each_dtype
@pytest.mark.parametrize('transform', [transforms.Gated(), transforms.Affine()], ids=str)
def test_extreme_parameters_stay_finite(transform, dtype):
    """Issue 1203 of TFP: a context near 10 gave NaN through an exponential that nothing bounds."""
    params = tf.constant([[10.0, -1e4], [10.0, 1e4], [-1e4, -1e4]], dtype)
    with tf.GradientTape() as tape:
        tape.watch(params)
        y, log_derivative = transform.forward(tf.ones([3], dtype), params)
        total = tf.reduce_sum(y) + tf.reduce_sum(log_derivative)
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(log_derivative))
    assert np.all(np.isfinite(tape.gradient(total, params)))


@each_transform
@each_dtype
def test_dtype_and_shape_are_those_of_the_event(transform, dtype):
    x, params = normal([2, 3], dtype), normal([2, 3, transform.params], dtype)
    for value in (*transform.forward(x, params), *transform.inverse(x, params)):
        assert value.dtype == dtype
        assert value.shape == [2, 3]


@pytest.mark.parametrize('transform', [transforms.Gated(gate_bias=2.0), transforms.Affine()], ids=str)
def test_parameters_of_zero_mean_a_map_near_the_identity(transform):
    x = normal([100])
    y, _ = transform.forward(x, tf.zeros([100, 2], tf.float64))
    assert np.corrcoef(x, y)[0, 1] > 1 - 1e-12
    assert np.all(np.abs(y - x) <= 0.12 * np.abs(x))


def test_transforms_compare_by_value():
    assert transforms.Gated() == transforms.Gated(2.0) != transforms.Gated(1.0)
    assert hash(transforms.Affine(4.0)) == hash(transforms.Affine(4.0))
    assert transforms.Gated() != transforms.Affine()


def test_names_and_objects():
    assert transforms.get('gated') == transforms.Gated()
    assert transforms.get('affine') == transforms.Affine()
    own = Shift()
    assert transforms.get(own) is own


@pytest.mark.parametrize('transform', ['spline', None, transforms.Affine, 2], ids=str)
def test_unknown_transform(transform):
    with raises(ValueError, 'transform', repr(transform), "'gated'", "'affine'", 'tfp_iaf.transforms'):
        transforms.get(transform)


@pytest.mark.parametrize('bound', [0.0, -1.0, float('nan')])
def test_bound_that_is_not_positive(bound):
    with raises(ValueError, 'max_log_scale', str(bound), 'positive'):
        transforms.Affine(max_log_scale=bound)
