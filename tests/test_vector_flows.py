"""Planar, radial and Sylvester flows: what the registry does not ask of them, since their parameters are tensors."""

import copy
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import each_dtype, jacobian, normal, raises, tfb, tfd
from tfp_iaf.bijectors import _tanh_system

D, M, ROWS = 4, 2, 5
# The class, its keywords, and the shapes of its parameters.
KINDS = {
    'planar': (tfp_iaf.PlanarFlow, {}, {'u': [D], 'w': [D], 'b': []}),
    'radial': (tfp_iaf.RadialFlow, {}, {'center': [D], 'alpha': [], 'beta': []}),
    'orthogonal': (tfp_iaf.SylvesterFlow, {}, {'r': [M, M], 'r_tilde': [M, M], 'b': [M], 'q': [D, M]}),
    'householder': (
        tfp_iaf.SylvesterFlow,
        {'kind': 'householder'},
        {'r': [D, D], 'r_tilde': [D, D], 'b': [D], 'q': [3, D]},
    ),
    'triangular': (tfp_iaf.SylvesterFlow, {'kind': 'triangular'}, {'r': [D, D], 'r_tilde': [D, D], 'b': [D]}),
}
each_kind = pytest.mark.parametrize('kind', KINDS)
# The inverse of a triangular step is that of an orthogonal one whose Q is known.
each_with_inverse = pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'triangular'])


def parameters(kind, batch=(ROWS,), dtype=tf.float64, scale=1.0, seed=0):
    shapes = KINDS[kind][2]
    return {
        name: scale * normal([*batch, *shape], dtype, seed + i) for i, (name, shape) in enumerate(shapes.items(), 1)
    }


def make(kind, tensors=None, **kwargs):
    cls, keywords, _ = KINDS[kind]
    return cls(**(parameters(kind, **kwargs) if tensors is None else tensors), **keywords)


def numeric(kind):
    return {name: value.numpy() for name, value in parameters(kind).items()}


X = normal([ROWS, D]).numpy()


def test_planar_is_the_papers_where_the_condition_holds_and_else_meets_it_by_what_it_needs():
    values = numeric('planar')
    values['u'] *= np.sign(np.sum(values['u'] * values['w'], axis=-1, keepdims=True))
    tanh = np.tanh(np.sum(values['w'] * X, axis=-1) + values['b'])[:, None]
    np.testing.assert_allclose(make('planar', values).forward(X), X + values['u'] * tanh, rtol=1e-12)
    values['u'] *= -1
    u_hat = (make('planar', values).forward(X).numpy() - X) / tanh
    product = np.sum(values['w'] * values['u'], axis=-1)
    np.testing.assert_allclose(np.sum(values['w'] * u_hat, axis=-1), 1 / (1 - product) - 1, rtol=1e-10)
    across = u_hat - values['u']
    along = np.sum(across * values['w'], axis=-1) / np.linalg.norm(values['w'], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(across, axis=-1), np.abs(along), rtol=1e-10)


def test_radial_is_the_papers():
    values = numeric('radial')
    alpha, scale = (np.where(a < 0, 1 / (1 - a), 1 + a) for a in (values['alpha'], values['beta']))
    offset = X - values['center']
    r = np.linalg.norm(offset, axis=-1)
    expected = X + (alpha * (scale - 1) / (alpha + r))[:, None] * offset
    np.testing.assert_allclose(make('radial', values).forward(X), expected, rtol=1e-12)


@pytest.mark.parametrize('kind', ['orthogonal', 'householder', 'triangular'])
def test_sylvester_is_the_papers(kind):
    values = numeric(kind)
    y = make(kind, values).forward(X)
    for i, x in enumerate(X):
        q = np.eye(D)
        if kind == 'orthogonal':
            q, upper = np.linalg.qr(values['q'][i])
            q *= np.sign(np.diag(upper))
        if kind == 'householder':
            for v in values['q'][i][::-1]:
                q = (np.eye(D) - 2 * np.outer(v, v) / (v @ v)) @ q
        r, r_tilde = np.triu(values['r'][i]), np.triu(values['r_tilde'][i])
        diagonal = np.diag(r) / (1 + np.maximum(0, -np.diag(r) * np.diag(r_tilde)))
        assert np.all(diagonal * np.diag(r_tilde) > -1)
        r[np.diag_indices_from(r)] = diagonal
        np.testing.assert_allclose(y[i], x + q @ r @ np.tanh(r_tilde @ q.T @ x + values['b'][i]), rtol=1e-10)


def test_orthogonal_columns_are_continuous_in_what_they_are_made_of():
    """The signs of LAPACK's Q jump where an entry changes its sign; the flow must not."""
    values, images = parameters('orthogonal', ()), []
    for entry in (-1e-9, 1e-9):
        q = values['q'].numpy()
        q[0, 0] = entry
        images.append(make('orthogonal', {**values, 'q': q}).forward(X))
    np.testing.assert_allclose(*images, atol=1e-7)


@each_kind
@each_dtype
@pytest.mark.parametrize('scale', [1e-3, 1.0, 100.0])
def test_every_flow_is_invertible(kind, dtype, scale):
    """In units of round-off in y, since the preimage of a rounded y can be far where the flow is flat."""
    values = parameters(kind, (300,), dtype, scale)
    flow, x = make(kind, values), 3 * normal([300, D], dtype)
    y = flow.forward(x)
    x_again = flow.inverse(tf.identity(y))
    log_det = flow.forward_log_det_jacobian(x)
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(x_again)) and np.all(np.isfinite(log_det))
    size = np.max(np.abs(y), axis=-1) + sum(
        np.max(np.abs(v), axis=tuple(range(1, v.ndim))) ** 2 for v in values.values()
    )
    error = np.max(np.abs(flow.forward(tf.identity(x_again)) - y), axis=-1)
    assert np.all(error <= 1000 * np.finfo(dtype.as_numpy_dtype).eps * size)


@pytest.mark.parametrize('steepness', [1e-12, 0.1, 1.0, 1e6])
@each_dtype
def test_tanh_equation_is_solved_at_every_magnitude(steepness, dtype):
    d = np.concatenate([sign * 10.0 ** np.arange(-12, 7) for sign in (-1, 1)] + [[0.0]])[:, None]
    d, s = tf.constant(d, dtype), tf.constant([steepness], dtype)
    v, is_solved = _tanh_system.solved(d, s)
    assert np.all(is_solved) and np.all(np.sign(v) == np.sign(d))
    image = v + (s - 1) * tf.tanh(v)
    eps = np.finfo(dtype.as_numpy_dtype).eps
    assert np.all(np.abs(image - d) <= 8 * eps * (np.abs(d) + np.abs(s - 1)))


def test_number_of_iterations_is_small(monkeypatch):
    counts, loop = [], tf.while_loop

    def counted(cond, body, loop_vars, **kwargs):
        def counted_body(*args):
            counts[-1] += 1
            return body(*args)

        counts.append(0)
        return loop(cond, counted_body, loop_vars, **kwargs)

    monkeypatch.setattr(tf, 'while_loop', counted)
    for kind in ('planar', 'orthogonal', 'triangular'):
        make(kind, batch=(300,)).inverse(3 * normal([300, D]))
    assert len(counts) == 3 and max(counts) <= 25


@each_kind
def test_shapes_broadcast(kind):
    flow = make(kind)
    assert flow.experimental_batch_shape().as_list() == [ROWS]
    assert flow.experimental_batch_shape(x_event_ndims=2).as_list() == []
    for shape in ([D], [ROWS, D], [3, 7, 1, D]):
        y, log_det = flow.forward(normal(shape)), flow.forward_log_det_jacobian(normal(shape))
        x, inverse_log_det = flow.inverse(normal(shape)), flow.inverse_log_det_jacobian(normal(shape))
        lead = np.broadcast_shapes(shape[:-1], (ROWS,))
        assert y.shape == x.shape == (*lead, D) and log_det.shape == inverse_log_det.shape == lead
    one = make(kind, {name: value[0] for name, value in parameters(kind).items()})
    np.testing.assert_allclose(one.forward(normal([D])), flow.forward(normal([D]))[0], rtol=1e-12)


@each_kind
def test_unknown_batch_and_no_rows(kind):
    def compute(tensors):
        flow, x = make(kind, tensors), tf.ones([D], tf.float64)
        return flow.forward(x), flow.inverse(x), flow.forward_log_det_jacobian(x), flow.inverse_log_det_jacobian(x)

    signature = {name: tf.TensorSpec([None, *shape], tf.float64) for name, shape in KINDS[kind][2].items()}
    compiled = tf.function(compute, input_signature=[signature], autograph=False)
    for rows in (ROWS, 0):
        tensors = parameters(kind, (rows,))
        for actual, expected in zip(compiled(tensors), compute(tensors), strict=True):
            assert actual.shape[0] == rows
            np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.slow
@each_with_inverse
def test_derivatives_up_to_the_third_order(kind):
    """Of the inverse, along a curve through points and parameters, beside differences of those one order below."""
    values, along = parameters(kind), parameters(kind, seed=20)
    y, y_along = normal([ROWS, D], seed=8), normal([ROWS, D], seed=9)

    def of_order(order, t):
        if order == 0:
            flow = make(kind, {name: value + t * along[name] for name, value in values.items()})
            z = y + t * y_along
            return tf.reduce_sum(tf.sin(flow.inverse(z))) + tf.reduce_sum(flow.inverse_log_det_jacobian(z))
        with tf.GradientTape() as tape:
            tape.watch(t)
            below = of_order(order - 1, t)
        return tape.gradient(below, t)

    step, zero = 1e-6, tf.constant(0.0, tf.float64)
    for order in (1, 2, 3):
        expected = (of_order(order - 1, zero + step) - of_order(order - 1, zero - step)) / (2 * step)
        np.testing.assert_allclose(of_order(order, zero), expected, rtol=1e-5)


@pytest.mark.slow
@each_with_inverse
def test_derivative_in_forward_mode(kind):
    flow, y, along = make(kind), normal([ROWS, D]), normal([ROWS, D], seed=1)
    with tf.autodiff.ForwardAccumulator(y, along) as accumulator:
        x = flow.inverse(y)
    expected = np.einsum('nij,nj->ni', jacobian(flow.inverse, tf.identity(y)), along)
    np.testing.assert_allclose(accumulator.jvp(x), expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['planar', 'radial', 'orthogonal'])
def test_parameters_of_each_row_in_a_vectorizer(kind):
    """Nothing is lost with a custom gradient, even if the function was traced outside."""
    rows = {'y': normal([ROWS, D], seed=8), **parameters(kind)}

    def log_prob(row):
        y, values = row['y'], {name: value for name, value in row.items() if name != 'y'}
        flow = make(kind, values)
        return tf.reduce_sum(tf.sin(flow.inverse(y)), axis=-1) + flow.inverse_log_det_jacobian(y)

    traced = tf.function(log_prob, autograph=False)
    traced({name: value[0] for name, value in rows.items()})

    def results(run):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            values = run(rows)
        return {'': values, **tape.gradient(values, rows)}

    expected = results(log_prob)
    for name, actual in tf.function(results, autograph=False)(lambda rows: tf.vectorized_map(traced, rows)).items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)


@each_kind
@pytest.mark.parametrize('direction', ['forward', 'inverse'])
def test_a_parameter_that_is_not_finite_stays_in_its_row(kind, direction):
    """Each of them in rows of its own, and the last row without any."""
    bad_rows = list(enumerate(itertools.product(KINDS[kind][2], (np.nan, 1e200))))
    values = {name: value.numpy() for name, value in parameters(kind, (len(bad_rows) + 1,)).items()}
    for row, (name, bad) in bad_rows:
        values[name][(row, *[0] * (values[name].ndim - 1))] = bad
    values = {name: tf.constant(value) for name, value in values.items()}
    x = normal([1, D])  # which all rows share
    with tf.GradientTape() as tape:
        tape.watch([x, values])
        flow = make(kind, values)
        image = getattr(flow, direction)(x)
        log_det = getattr(flow, f'{direction}_log_det_jacobian')(x)
        known = tf.math.is_finite(log_det)
        total = tf.reduce_sum(tf.where(known, log_det + tf.reduce_sum(image, axis=-1), tf.zeros_like(log_det)))
    assert np.array_equal(np.isfinite(image).all(axis=-1), known)
    assert known.numpy().tolist() == [False] * len(bad_rows) + [True]
    assert all(np.all(np.isfinite(g)) for g in tf.nest.flatten(tape.gradient(total, [x, values])))


def test_radial_at_its_centre():
    center = tf.zeros([D], tf.float64)
    flow = tfp_iaf.RadialFlow(center, np.float64(0.3), np.float64(0.7))
    for direction in (flow.forward, flow.inverse):
        derivatives = jacobian(direction, tf.zeros([1, D], tf.float64))[0]
        scale = 1.7 if direction == flow.forward else 1 / 1.7
        np.testing.assert_allclose(derivatives, scale * np.eye(D), rtol=1e-12)


@pytest.mark.parametrize('size', [0.0, 1e-30, 1e-20, 1e-12])
def test_planar_without_a_plane(size):
    """As w vanishes, the correction must, too."""
    w = tf.constant([size, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(w)
        y = tfp_iaf.PlanarFlow([-3.0, 1.0], w, 0.5).forward(tf.ones([2]))
    np.testing.assert_allclose(y, 1 + np.array([-3.0, 1.0]) * np.tanh(0.5), rtol=1e-5)
    assert np.all(np.isfinite(tape.gradient(y, w)))


def _variables(kind):
    values = {name: tf.Variable(value, name=name) for name, value in parameters(kind, ()).items()}
    first = next(iter(values))
    deferred = tfp.util.DeferredTensor(values[first], lambda value: 2 * value)
    return values, make(kind, {**values, first: deferred})


@each_kind
def test_variables_are_tracked_through_everything(kind):
    values, flow = _variables(kind)
    base = tfd.MultivariateNormalDiag(tf.zeros([D], tf.float64), tf.ones([D], tf.float64))
    for view in (flow, tfb.Invert(flow), tfb.Chain([tfb.Exp(), flow]), tfd.TransformedDistribution(base, flow)):
        assert {id(v) for v in view.trainable_variables} == {id(v) for v in values.values()}
    assert {id(v) for v in copy.deepcopy(flow).trainable_variables}.isdisjoint({id(v) for v in values.values()})


@each_kind
def test_cache_neither_outlives_an_assignment_nor_hides_a_variable_from_a_later_tape(kind):
    values, flow = _variables(kind)
    x = normal([ROWS, D])
    for variable in values.values():
        before = flow.forward(x), flow.forward_log_det_jacobian(x)
        # Of the diagonals and the centre, all; else the determinant might not change.
        variable.assign_add(0.5 * normal(variable.shape, seed=11))
        after = flow.forward(x), flow.forward_log_det_jacobian(x)
        same = tf.identity(x)
        for old, new, expected in zip(
            before, after, (flow.forward(same), flow.forward_log_det_jacobian(same)), strict=True
        ):
            np.testing.assert_array_equal(new, expected, err_msg=variable.name)
            assert np.any(new != old), variable.name
    y = flow.forward(x)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(flow.inverse(y)) + tf.reduce_sum(flow.inverse_log_det_jacobian(y))
    assert all(gradient is not None for gradient in tape.gradient(total, list(values.values())))


@each_kind
def test_value_and_log_det_come_from_one_evaluation(kind, monkeypatch):
    flow, calls = make(kind), []
    for name in ('_forward_and_log_det', '_inverse_and_log_det'):
        original = getattr(type(flow), name)
        monkeypatch.setattr(
            type(flow), name, lambda *args, original=original, name=name: calls.append(name) or original(*args)
        )
    base = tfd.MultivariateNormalDiag(tf.zeros([ROWS, D], tf.float64), tf.ones([ROWS, D], tf.float64))
    q = tfd.TransformedDistribution(base, flow)
    z = q.sample(seed=(1, 2))
    q.log_prob(z)
    assert calls == ['_forward_and_log_det']


RADIAL = tfp_iaf.RadialFlow([0.0, 0.0], [[0.0], [0.0]], tf.zeros([3, 1, 1]))
ONE, TWO, ZEROS = tf.eye(2), tf.ones([2]), tf.zeros([2])
planar, sylvester = tfp_iaf.PlanarFlow, tfp_iaf.SylvesterFlow


@pytest.mark.parametrize(
    ('make_flow', 'error', 'parts'),
    [
        (lambda: planar(TWO, [1.0], 0.0), ValueError, ['w', '(1,)', '[..., 2]']),
        (lambda: planar(1.0, [1.0], 0.0), ValueError, ['u', '()']),
        (lambda: planar(tf.ones([3, 2]), tf.ones([2, 2]), 0.0), ValueError, ['w', '(2,)', '(3,)', 'broadcasts']),
        (lambda: planar(TWO, tf.ones([2], tf.float64), 0.0), TypeError, ['w', 'float64', 'float32']),
        (lambda: planar(tf.ones([2], tf.float16), TWO, 0.0), TypeError, ['dtype', 'float16']),
        (lambda: RADIAL.forward(tf.ones([4, 3, 2])), ValueError, ['x']),
        (lambda: planar(TWO, TWO, 0.0).forward(tf.ones([3, 1])), ValueError, ['x', '(3, 1)']),
        (lambda: sylvester(ONE, ONE, ZEROS), ValueError, ['q', 'None', '[..., D, M]']),
        (lambda: sylvester(ONE, ONE, ZEROS, ONE, kind='triangular'), ValueError, ['q', 'expected None']),
        (
            lambda: sylvester(tf.eye(3), tf.eye(3), tf.zeros([3]), tf.ones([2, 3])),
            ValueError,
            ['q', '(2, 3)', 'at least 3'],
        ),
        (lambda: sylvester(ONE, ONE, ZEROS, ONE, kind='qr'), ValueError, ['kind', "'qr'", 'householder']),
        (lambda: sylvester(ONE, ONE, ZEROS, ONE, reverse=True), ValueError, ['reverse', 'triangular']),
        (lambda: sylvester(tf.ones([2, 3]), tf.eye(3), tf.zeros([3]), tf.eye(3)), ValueError, ['r', '(2, 3)']),
    ],
)
def test_wrong_arguments(make_flow, error, parts):
    with raises(error, *parts):
        make_flow()
