"""What one entry goes through: both directions, their log-derivative, and their limits."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.flows import Shift, each_dtype, jacobian, normal, raises, sinh_arcsinh, tfb
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork, transforms
from tfp_iaf.transforms import RationalQuadraticSpline, ScalarBijector


def affine(params):
    """`transforms.Affine`, but for its bound, as TFP would put it."""
    m, log_scale = tf.unstack(params, axis=-1)
    return tfb.Chain([tfb.Shift(m), tfb.Scale(log_scale=log_scale)])


each_transform = pytest.mark.parametrize(
    'transform',
    [
        transforms.Gated(),
        transforms.Gated(gate_bias=-1.0),
        transforms.Affine(),
        transforms.Affine(2.0),
        RationalQuadraticSpline(),
        RationalQuadraticSpline(num_bins=2, bound=700.0, min_bin_size=0.2, min_slope=0.3),
        ScalarBijector(affine, params=2),
        Shift(),
    ],
    ids=str,
)


@each_transform
@hypothesis.settings(max_examples=15)
@hypothesis.given(st.floats(-1e3, 1e3), st.floats(-15, 15), st.floats(-15, 15))
def test_inverse_undoes_forward_and_the_log_derivative_is_that_of_the_map(transform, x, first, second):
    x = tf.constant([x], tf.float64)
    params = tf.constant([np.resize([first, second], transform.params)], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, log_derivative = transform.forward(x, params)
    np.testing.assert_allclose(tf.exp(log_derivative), tape.gradient(y, x), rtol=1e-8)
    back, log_derivative_there = transform.inverse(y, params)
    # Where the map contracts, a rounding of y grows by the inverse of the slope.
    slack = 1e-13 * float(tf.exp(-log_derivative)[0])
    np.testing.assert_allclose(back, x, rtol=1e-13 + slack, atol=100 * slack)
    np.testing.assert_allclose(log_derivative_there, log_derivative, rtol=1e-9, atol=1e-9)


@each_dtype
@pytest.mark.parametrize('transform', [transforms.Gated(), transforms.Affine(), RationalQuadraticSpline()], ids=str)
def test_extreme_parameters_stay_finite(transform, dtype):
    """Issue 1203 of TFP: a context near 10 gave NaN through an exponential that nothing bounds."""
    values = [[10.0, -1e4], [10.0, 1e4], [-1e4, -1e4]]
    params = tf.constant([np.resize(pair, transform.params) for pair in values], dtype)
    with tf.GradientTape() as tape:
        tape.watch(params)
        y, log_derivative = transform.forward(tf.ones([3], dtype), params)
        total = tf.reduce_sum(y) + tf.reduce_sum(log_derivative)
    assert all(np.all(np.isfinite(value)) for value in (y, log_derivative, tape.gradient(total, params)))
    if isinstance(transform, transforms.Affine):
        np.testing.assert_allclose(log_derivative, [-8.0, 8.0, -8.0], rtol=1e-5)


def test_settings_are_not_rounded_to_single_precision():
    x = normal([3])
    for make in (
        transforms.Gated,
        transforms.Affine,
        lambda value: RationalQuadraticSpline(bound=value),
        lambda value: RationalQuadraticSpline(min_slope=value),
    ):
        coarse, fine = make(np.float32(0.1)), make(0.1)
        params = normal([3, fine.params], seed=1)
        assert np.any(coarse.forward(0.05 * x, params)[0] != fine.forward(0.05 * x, params)[0]), fine


splines = st.builds(
    RationalQuadraticSpline,
    num_bins=st.integers(2, 9),
    bound=st.floats(0.5, 20),
    min_bin_size=st.floats(1e-3, 0.1),
    min_slope=st.floats(0.01, 0.9),
)


def _points_and_params(spline, seed, count=10, scale=1.0, dtype=tf.float64):
    rng = np.random.default_rng(seed)
    x = 1.2 * spline.bound * rng.uniform(-1, 1, [count])
    return tf.constant(x, dtype), tf.constant(scale * rng.standard_normal([count, spline.params]), dtype)


@hypothesis.settings(max_examples=10)
@hypothesis.given(splines, st.integers(0, 1000))
def test_spline_equals_the_papers_equations_and_increases(spline, seed):
    """It is the identity where the parameters are zero, and joins it with slope one at both ends."""
    x, params = _points_and_params(spline, seed)
    x, one = tf.sort(x), tf.broadcast_to(params[0], params.shape)
    y, log_derivative = spline.forward(x, params)
    settings = spline.bound, spline.min_bin_size, spline.min_slope
    expected, log_det = reference.spline(x.numpy(), params.numpy(), *settings)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(tf.reduce_sum(log_derivative), log_det, rtol=1e-9, atol=1e-10)
    back, log_derivative_there = spline.inverse(y, params)
    np.testing.assert_allclose(back, x, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_derivative_there, log_derivative, rtol=1e-8, atol=1e-8)
    assert np.all(np.diff(spline.forward(x, one)[0]) > 0)
    ends = np.array([-spline.bound, spline.bound])
    for direction in (spline.forward, spline.inverse):
        y, log_derivative = direction(x, tf.zeros_like(params))
        np.testing.assert_allclose(y, x, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(log_derivative, tf.zeros_like(x), atol=1e-12)
        y, log_derivative = direction(tf.constant(ends * (1 - 1e-9)), params[:2])
        np.testing.assert_allclose(y, ends, rtol=1e-6)
        np.testing.assert_allclose(log_derivative, [0, 0], atol=1e-4)


@each_dtype
def test_spline_leaves_alone_what_lies_outside(dtype):
    spline = RationalQuadraticSpline()
    factors = np.array([1.0, 1.0001, 1e3, 1e20, np.inf])
    x = tf.constant(spline.bound * np.concatenate([factors, -factors]), dtype)
    _, params = _points_and_params(spline, seed=0, dtype=dtype)
    for direction in (spline.forward, spline.inverse):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, params])
            y, log_derivative = direction(x, params)
            total = tf.reduce_sum(y) + tf.reduce_sum(log_derivative)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(log_derivative, tf.zeros_like(x))
        np.testing.assert_array_equal(tape.gradient(total, x), tf.ones_like(x))
        np.testing.assert_array_equal(tape.gradient(total, params), tf.zeros_like(params))


def test_spline_of_steep_bins_inverts_in_single_precision():
    """That of TFP cancels: it goes back to NaN, and to points that are off by whole bins."""
    spline = RationalQuadraticSpline()
    for scale in (1.0, 10.0, 100.0):
        y, params = _points_and_params(spline, seed=0, count=20_000, scale=scale, dtype=tf.float32)
        x, log_derivative = spline.inverse(y, params)
        # A slope of 100, and x of size 5, both rounded.
        np.testing.assert_allclose(spline.forward(x, params)[0], y, atol=2e-4)
        assert np.all(np.isfinite(log_derivative))


def test_spline_of_unknown_rank_and_of_entries_against_a_batch_of_parameters():
    spline = RationalQuadraticSpline()
    x, params = normal([3]), normal([5, 3, spline.params])
    unknown = tf.function(spline.forward, [tf.TensorSpec(None, tf.float64)] * 2, autograph=False)
    rows = spline.forward(tf.broadcast_to(x, [5, 3]), params)
    for function in (spline.forward, unknown):
        np.testing.assert_allclose(function(x, params), rows, rtol=1e-12, atol=1e-14)


class Cube(tfb.Bijector):
    """Has, like many of TFP's, a log-derivative in one direction only, and counts its evaluations."""

    def __init__(self, is_increasing=True):
        super().__init__(forward_min_event_ndims=0, parameters={})
        self.calls, self._increases = [], is_increasing

    def _forward(self, x):
        self.calls.append('forward')
        return x**3

    def _inverse(self, y):
        self.calls.append('inverse')
        return tf.sign(y) * tf.abs(y) ** (1 / 3)

    def _inverse_log_det_jacobian(self, y):
        return -tf.math.log(3 * tf.abs(y) ** (2 / 3))

    def _is_increasing(self):
        if self._increases is None:
            raise NotImplementedError
        return self._increases


def test_scalar_bijector_equals_the_transform_that_it_is():
    x, params = normal([5, 3]), normal([5, 3, 2], seed=1)
    expected, log_scale = transforms.Affine(max_log_scale=1e9).forward(x, params)
    transform = ScalarBijector(affine, params=2)
    np.testing.assert_allclose(transform.forward(x, params), [expected, log_scale], rtol=1e-12)
    np.testing.assert_allclose(transform.inverse(expected, params), [x, log_scale], rtol=1e-12)


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_scalar_bijector_is_made_and_evaluated_once(direction):
    made = []
    transform = ScalarBijector(lambda params: made.append(Cube()) or made[-1], params=1)
    getattr(transform, direction)(normal([3]), normal([3, 1]))
    assert [bijector.calls for bijector in made] == [[direction]]


@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_scalar_bijector_evaluated_outside_of_a_tape_has_gradients_inside(direction):
    """TFP would find the result for the same tensor, even that of another bijector of the class, and no gradient."""
    x, params = tf.exp(normal([3])), normal([3, 1])
    function = getattr(ScalarBijector(lambda params: tfb.Softplus(), params=1), direction)
    kept = function(x, params)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = function(x, params)
    np.testing.assert_array_equal(y, kept[0])
    assert tape.gradient(y, x) is not None


@pytest.mark.parametrize('in_function', [False, True])
def test_scalar_bijector_that_decreases_in_an_entry_is_nan_there(in_function):
    transform = ScalarBijector(lambda params: tfb.Scale(params[..., 0]), params=1)
    function = tf.function(transform.forward) if in_function else transform.forward
    _, log_derivative = function(tf.ones([3]), tf.constant([[2.0], [-2.0], [3.0]]))
    np.testing.assert_allclose(log_derivative, [np.log(2.0), np.nan, np.log(3.0)], rtol=1e-6)


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
def test_step_of_a_bijector_without_parameters_of_its_own_has_the_gradient_of_its_inverse(inverse):
    """Solving for x and differentiating at x use the same tensors, in which TFP's cache must not mix them up."""

    def bijector_fn(params):
        return tfb.Chain([tfb.Shift(params[..., 0]), tfb.Softplus()])

    network = MaskedAutoregressiveNetwork(3, (8,), params=1, seed=0, dtype=tf.float64)
    step = InverseAutoregressiveFlow(network, transform=ScalarBijector(bijector_fn, 1), inverse=inverse)

    @tf.function(autograph=False)
    def value_and_gradient(y):
        with tf.GradientTape() as tape:
            tape.watch(y)
            x = step.inverse(y)
            total = tf.reduce_sum(tf.sin(x))
        return x, tape.gradient(total, y)

    x = normal([4, 3])
    solution, gradient = value_and_gradient(step.forward(x))
    np.testing.assert_allclose(solution, x, rtol=1e-10)
    expected = np.einsum('ni,nij->nj', np.cos(x), np.linalg.inv(jacobian(step.forward, tf.identity(x))))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_variable_that_a_transform_closes_over_is_refused_by_the_blockwise_inverse():
    """Forward it gets its gradient, and by fixed point too."""
    variable = tf.Variable(0.5, dtype=tf.float64)
    shift = transforms.ScalarBijector(lambda params: tfb.Shift(params[..., 0] + variable), params=1)
    network = MaskedAutoregressiveNetwork(3, (8,), params=1, seed=0, dtype=tf.float64)

    def gradient(inverse):
        step = InverseAutoregressiveFlow(network, transform=shift, inverse=inverse)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(step.inverse(tf.ones([2, 3], tf.float64)))
        return tape.gradient(total, variable)

    assert abs(gradient('fixed_point')) > 0.1
    with raises(ValueError, 'transform', "inverse='fixed_point'"):
        gradient('auto')


def test_function_that_returns_something_else():
    for bijector_fn, error, parts in (
        (lambda params: params, TypeError, ['returned', 'expected a tfp.bijectors.Bijector']),
        (lambda params: tfb.Cumsum(), ValueError, ['cumsum', 'scalars', 'forward_min_event_ndims=0']),
        (lambda params: tfb.AbsoluteValue(), ValueError, ['absolute_value', 'one-to-one']),
        (lambda params: tfb.Reciprocal(), ValueError, ['reciprocal', 'decreases']),
        (lambda params: Cube(is_increasing=None), ValueError, ['Cube', 'does not tell', '_is_increasing']),
        (tfb.Shift, ValueError, ['(2,)', '(2, 2)', 'params[..., 0]']),
    ):
        transform = ScalarBijector(bijector_fn, params=2)
        for function in (transform.forward, transform.inverse):
            with raises(error, 'bijector_fn', *parts):
                function(tf.ones([2]), tf.ones([2, 2]))


def test_configs_and_values():
    """A config makes an equal transform; transforms with other settings are others."""
    made = [
        *(transforms.Gated(), transforms.Gated(1.0), transforms.Affine(), transforms.Affine(3.0)),
        *(RationalQuadraticSpline(), RationalQuadraticSpline(5, bound=2.0)),
        *(ScalarBijector(affine, 2), ScalarBijector(affine, 3), ScalarBijector(sinh_arcsinh, 2)),
    ]
    for i, transform in enumerate(made):
        same = type(transform).from_config(transform.get_config())
        assert (same, hash(same)) == (transform, hash(transform))
        assert all(other != transform for other in made[:i])
    assert repr(ScalarBijector(affine, 2)) == 'ScalarBijector(bijector_fn=affine, params=2)'


def test_gates_near_the_identity():
    """All steps together keep as much of x, whatever their number."""
    for num_flows in (1, 2, 8, 64):
        gated, y = transforms.Gated.near_identity(num_flows), tf.ones([], tf.float64)
        for _ in range(num_flows):
            y, _ = gated.forward(y, tf.zeros([2], tf.float64))
        np.testing.assert_allclose(y, 0.93, atol=0.003)
        np.testing.assert_allclose(gated.gate_bias, 2.6 + np.log(num_flows))


def test_names_and_objects():
    assert transforms.get('gated') == transforms.Gated(2.0)
    assert transforms.get('affine') == transforms.Affine()
    assert transforms.get('spline') == RationalQuadraticSpline(8)
    own = Shift()
    assert transforms.get(own) is own
    for transform in ('cubic', None, transforms.Affine, 2):
        with raises(ValueError, 'transform', repr(transform), "'gated'", "'affine'", "'spline'", 'tfp_iaf.transforms'):
            transforms.get(transform)


@pytest.mark.parametrize(
    ('make', 'settings', 'error', 'parts'),
    [
        (transforms.Gated, {'gate_bias': 'x'}, TypeError, ["'x'", 'a number']),
        (transforms.Affine, {'max_log_scale': 'x'}, TypeError, ["'x'", 'a number']),
        (transforms.Affine, {'max_log_scale': 0.0}, ValueError, ['0.0', 'positive']),
        (transforms.Affine, {'max_log_scale': -1.0}, ValueError, ['-1.0', 'positive']),
        (transforms.Affine, {'max_log_scale': np.inf}, ValueError, ['inf', 'finite']),
        (transforms.Gated.near_identity, {'num_flows': -1}, ValueError, ['-1', 'at least 0']),
        (transforms.Gated.near_identity, {'num_flows': 1.5}, TypeError, ['1.5', 'at least 0']),
        (RationalQuadraticSpline, {'num_bins': 1}, ValueError, ['1', 'at least 2']),
        (RationalQuadraticSpline, {'num_bins': 2.5}, TypeError, ['2.5', 'int']),
        (RationalQuadraticSpline, {'bound': 'x'}, TypeError, ["'x'", 'a number']),
        (RationalQuadraticSpline, {'bound': 0.0}, ValueError, ['0.0', 'positive']),
        (RationalQuadraticSpline, {'bound': np.nan}, ValueError, ['nan', 'finite']),
        (RationalQuadraticSpline, {'min_bin_size': 0.0}, ValueError, ['0.0', 'positive']),
        (RationalQuadraticSpline, {'min_bin_size': 0.125}, ValueError, ['0.125', 'below 1 / num_bins']),
        (RationalQuadraticSpline, {'min_slope': 0.0}, ValueError, ['0.0', 'between 0 and 1']),
        (RationalQuadraticSpline, {'min_slope': 1.0}, ValueError, ['1.0', 'between 0 and 1']),
        (ScalarBijector, {'bijector_fn': None, 'params': 1}, TypeError, ['None', 'function of the parameters']),
        (ScalarBijector, {'bijector_fn': tfb.Softplus(), 'params': 1}, TypeError, ['softplus', 'function of the']),
        (ScalarBijector, {'params': 0, 'bijector_fn': affine}, ValueError, ['0', 'at least 1']),
        (ScalarBijector, {'params': 1.5, 'bijector_fn': affine}, TypeError, ['1.5', 'at least 1']),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_bad_settings(make, settings, error, parts):
    """The message names the first of them."""
    with raises(error, next(iter(settings)), *parts):
        make(**settings)
