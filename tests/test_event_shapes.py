"""Events and contexts of any shape, any network, and the log-derivatives by entry."""

import copy
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.flows import jacobian, normal, perturb, raises, tfb, tfd
from tfp_iaf import InverseAutoregressiveFlow, MaskedAutoregressiveNetwork

SHAPES = {'scalar': ([], None), 'vector': ([3], [2]), 'matrix': ([2, 3], [4]), 'image': ([2, 2, 3], [2, 2, 1])}

each_shape = pytest.mark.parametrize(('event', 'context'), SHAPES.values(), ids=SHAPES)
each_inverse = pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])


def posterior(event, context, **kwargs):
    settings = {'num_flows': 2, 'hidden_units': (14, 13), 'seed': 0, 'dtype': tf.float64, 'transform': 'affine'}
    made = tfp_iaf.IAFPosterior(event, context_shape=context, **{**settings, **kwargs})
    perturb(made, 0.2)
    return made


def distribution(made, batch=(5,)):
    event, context = made.event_shape.as_list(), made.context_shape
    h = None if context is None else normal([*batch, *context], seed=3)
    return made(normal([*batch, *event], seed=1), 1 + tf.abs(normal([*batch, *event], seed=2)), h)


@each_shape
@each_inverse
def test_a_posterior_of_any_shape_equals_the_one_of_vectors(event, context, inverse):
    """An event of several axes is one of vectors, in the order of tf.reshape."""
    made = posterior(event, context, inverse=inverse)
    size = int(np.prod(event, dtype=int))
    flat = posterior(size, None if context is None else int(np.prod(context)), inverse=inverse)
    for variable, other in zip(made.variables, flat.variables, strict=True):
        other.assign(variable)
    q = distribution(made)
    z, log_q = q.experimental_sample_and_log_prob(7, seed=(1, 2))
    assert (z.shape, log_q.shape) == ([7, 5, *event], [7, 5])
    assert (q.event_shape, q.batch_shape) == (event, [5])
    of_vectors = flat(
        *(
            tf.reshape(value, [5, size])
            for value in (q.distribution.distribution.loc, q.distribution.distribution.scale)
        ),
        None if context is None else tf.reshape(normal([5, *context], seed=3), [5, -1]),
    )
    np.testing.assert_allclose(of_vectors.log_prob(tf.reshape(z, [7, 5, size])), log_q, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-9, atol=1e-9)


@each_shape
@each_inverse
def test_log_derivatives_by_entry_are_the_diagonal_of_the_jacobian(event, context, inverse):
    made = posterior(event, context, inverse=inverse, num_flows=1)
    chain = distribution(made).bijector
    x, size, axes = normal([5, *event]), int(np.prod(event, dtype=int)), list(range(1, 1 + len(event)))

    def flat(function):
        return lambda rows: tf.reshape(function(tf.reshape(rows, [5, *event])), [5, size])

    for direction in ('forward', 'inverse'):
        derivatives = jacobian(flat(getattr(chain, direction)), tf.reshape(x, [5, size]))
        actual = getattr(chain, f'{direction}_log_derivatives')(x)
        assert actual.shape == x.shape
        diagonal = np.log(np.diagonal(derivatives, axis1=1, axis2=2)).reshape(x.shape)
        np.testing.assert_allclose(actual, diagonal, rtol=1e-8, atol=1e-8)
        log_det = getattr(chain, f'{direction}_log_det_jacobian')(x, event_ndims=len(event))
        np.testing.assert_allclose(tf.reduce_sum(actual, axis=axes) if axes else actual, log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('in_function', [False, True], ids=['eager', 'graph'])
def test_log_derivatives_of_a_sample_take_no_pass_of_their_own(in_function, network_calls):
    made = posterior([2, 3], [4])

    def compute():
        q = distribution(made)
        x = q.distribution.sample(seed=(1, 2))
        z = q.bijector.forward(x)
        return (
            q.bijector.forward_log_derivatives(x),
            q.bijector.forward_log_det_jacobian(x, event_ndims=2),
            q.log_prob(z),
        )

    (tf.function(compute, autograph=False) if in_function else compute)()
    assert network_calls == list(made.networks)


def test_log_derivatives_through_other_bijectors_are_refused():
    joint = tfd.JointDistributionNamed({'a': tfd.Normal(0.0, 1.0), 'b': tfd.Gamma(1.0, 1.0)})
    q = tfp_iaf.build_iaf_surrogate_posterior(
        joint.event_shape_tensor(), joint.experimental_default_event_space_bijector(), seed=0
    )
    with raises(ValueError, 'bijectors', 'log-derivatives', 'forward_log_det_jacobian'):
        q.bijector.forward_log_derivatives(q.distribution.sample(seed=0))


# Networks of others


@dataclasses.dataclass(eq=False)
class Before:
    """A network by the protocol alone: each entry of an image reacts to the one before it, in raster order."""

    weight: tf.Variable
    event_shape = tf.TensorShape([2, 3])
    context_shape = None
    params = 2
    dtype = tf.float64

    @property
    def variables(self):
        return (self.weight,)

    def __call__(self, x, context=None):
        lead = tf.shape(x)[:-2]
        flat = tf.reshape(x, tf.concat([lead, [6]], axis=0))
        before = tf.pad(flat, [[0, 0]] * (flat.shape.rank - 1) + [[1, 0]])[..., :-1]
        params = self.weight * tf.stack([tf.sin(before), tf.tanh(before)], axis=-1)
        return tf.reshape(params, tf.concat([lead, [2, 3, 2]], axis=0))


class BeforeWithAnInverse(Before):
    """The same, with an inverse of its own, entry by entry."""

    inversions = 0

    def invert_step(self, transform, y, context):
        self.inversions += 1
        x = y
        for _ in range(6):
            x, log_derivatives = transform.inverse(y, self(x))
        return x, log_derivatives


def test_a_step_takes_the_event_rank_of_its_network():
    step = InverseAutoregressiveFlow(Before(tf.Variable(0.5, dtype=tf.float64)), transform='affine')
    assert step.forward_min_event_ndims == step.inverse_min_event_ndims == 2
    x = normal([5, 2, 3])
    y, log_det = step.forward(x), step.forward_log_det_jacobian(x)
    assert log_det.shape == [5]
    np.testing.assert_allclose(step.inverse(tf.identity(y)), x, rtol=1e-10)


def test_a_posterior_of_given_networks():
    networks = [
        Before(tf.Variable(0.5, dtype=tf.float64)),
        MaskedAutoregressiveNetwork([2, 3], (9,), context_shape=2, dtype=tf.float64, seed=0),
    ]
    made = tfp_iaf.IAFPosterior(networks=networks, transform='affine')
    assert (made.event_shape, made.context_shape, made.num_flows, made.dtype) == ([2, 3], [2], 2, tf.float64)
    q = made(tf.zeros([5, 2, 3], tf.float64), tf.ones([5, 2, 3], tf.float64), normal([5, 2]))
    z, log_q = q.experimental_sample_and_log_prob(4, seed=(1, 2))
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-10)


def test_inverse_of_the_network_itself_is_used_unless_told_otherwise():
    network = BeforeWithAnInverse(tf.Variable(0.5, dtype=tf.float64))
    y = normal([5, 2, 3])
    own = InverseAutoregressiveFlow(network, transform='affine')
    x = own.inverse(y)
    np.testing.assert_allclose(own.forward(tf.identity(x)), y, rtol=1e-10)
    assert network.inversions == 1
    by_iterations = InverseAutoregressiveFlow(network, transform='affine', inverse='fixed_point')
    np.testing.assert_allclose(by_iterations.inverse(tf.identity(y)), x, rtol=1e-10)
    assert network.inversions == 1


def test_event_rank_of_a_function():
    def network(x):
        return tf.zeros([*x.shape, 2], x.dtype)

    step = InverseAutoregressiveFlow(network, event_ndims=2)
    assert step.forward_log_det_jacobian(normal([5, 2, 3])).shape == [5]
    assert InverseAutoregressiveFlow(network).forward_min_event_ndims == 1
    with raises(ValueError, 'event_ndims', 'got 2', 'expected 1'):
        InverseAutoregressiveFlow(MaskedAutoregressiveNetwork(3, (8,)), event_ndims=2)


def test_a_network_of_tfp():
    network = tfb.AutoregressiveNetwork(params=2, hidden_units=[8], event_shape=[3], activation='elu')
    step = InverseAutoregressiveFlow(network, transform='affine')
    x = normal([5, 3], tf.float32)
    np.testing.assert_allclose(step.inverse(tf.identity(step.forward(x))), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('networks', 'kwargs', 'error', 'parts'),
    [
        ([], {}, ValueError, ['networks', '[]', 'one per step']),
        ([lambda x: x], {}, TypeError, ['networks', 'event_shape', 'tfp_iaf.networks.Network']),
        ('masked', {'event_shape': 3}, ValueError, ['event_shape', '3', 'networks']),
        ('masked', {'hidden_units': (8,)}, ValueError, ['hidden_units', '(8,)', 'networks']),
        ('of two shapes', {}, ValueError, ['networks', 'event_shape', 'the same for all']),
    ],
    ids=['none', 'function', 'event_shape', 'hidden_units', 'shapes'],
)
def test_networks_that_do_not_fit(networks, kwargs, error, parts):
    made = {
        'masked': [MaskedAutoregressiveNetwork(3, (8,))],
        'of two shapes': [MaskedAutoregressiveNetwork(size, (8,)) for size in (3, 4)],
    }
    with raises(error, *parts):
        tfp_iaf.IAFPosterior(networks=made[networks] if isinstance(networks, str) else networks, **kwargs)


@pytest.mark.parametrize('shape', ['32', [2, None], [2, 0], [2.5], tf.TensorShape(None)], ids=str)
def test_event_shape_that_is_none(shape):
    with raises((TypeError, ValueError), 'event_shape', 'got'):
        MaskedAutoregressiveNetwork(shape)


@each_shape
def test_deep_copy_of_a_distribution(event, context):
    q = distribution(posterior(event, context))
    z = q.sample(seed=0)
    copied = copy.deepcopy(q)
    np.testing.assert_allclose(copied.log_prob(tf.identity(z)), q.log_prob(z), rtol=1e-9)
    assert not {id(v) for v in copied.trainable_variables} & {id(v) for v in q.trainable_variables}


def test_context_is_checked_once_a_step(monkeypatch):
    from tfp_iaf.bijectors import _inverse_autoregressive_flow as steps
    from tfp_iaf.distributions import _posterior
    from tfp_iaf.networks import _common

    made, checks = posterior([3], [2], num_flows=4), []
    for module in (steps, _posterior, _common):
        check = module.checked_context
        monkeypatch.setattr(module, 'checked_context', lambda *args, check=check: checks.append(1) or check(*args))
    q = distribution(made)
    z = q.sample(seed=0)
    q.log_prob(z)
    assert len(checks) == 1 + 4


def test_variables_of_a_given_network_are_those_of_the_cache():
    """A change of a variable of any network makes the cache forget."""
    network = Before(tf.Variable(0.5, dtype=tf.float64))
    made = tfp_iaf.IAFPosterior(networks=[network], transform='affine')
    q = made(tf.zeros([2, 3], tf.float64), tf.ones([2, 3], tf.float64))
    y = normal([2, 3])
    before = q.log_prob(y)
    network.weight.assign(0.9)
    assert abs(float(q.log_prob(y) - before)) > 1e-3


def test_a_surrogate_of_a_float64_model_takes_its_dtype():
    model = tfd.JointDistributionNamed(
        {'a': tfd.Normal(tf.zeros([], tf.float64), 1.0), 'y': lambda a: tfd.Normal(a, tf.ones([], tf.float64))}
    ).experimental_pin(y=tf.ones([], tf.float64))
    q = tfp_iaf.build_iaf_surrogate_posterior(
        model.event_shape_tensor(), model.experimental_default_event_space_bijector(), seed=0
    )
    assert q.sample(seed=0)['a'].dtype == tf.float64
    losses = tfp.vi.monte_carlo_variational_loss(model.unnormalized_log_prob, q, sample_size=3, seed=1)
    assert np.isfinite(losses)


def test_keras_model_as_a_network():
    """Its methods have common names, which a step must not take for those of the protocol."""
    import keras

    inputs = keras.Input([3])
    hidden = keras.layers.Dense(6, kernel_initializer='zeros', bias_initializer='ones')(inputs)
    model = keras.Model(inputs, keras.layers.Reshape([3, 2])(hidden))
    step = InverseAutoregressiveFlow(model, transform='affine')
    x = normal([5, 3], tf.float32)
    np.testing.assert_allclose(step.inverse(tf.identity(step.forward(x))), x, atol=1e-5)


class WrongInverse(BeforeWithAnInverse):
    def invert_step(self, transform, y, context):
        return 7 * y, tf.zeros_like(y)


def test_a_wrong_inverse_of_a_network_gives_nan():
    step = InverseAutoregressiveFlow(WrongInverse(tf.Variable(0.5, dtype=tf.float64)), transform='affine')
    assert np.all(np.isnan(step.inverse(normal([5, 2, 3]))))


@pytest.mark.parametrize('method', ['forward', 'inverse', 'forward_log_derivatives', 'inverse_log_derivatives'])
def test_a_chain_refuses_keywords_that_are_not_names_of_its_steps(method):
    chain = posterior([3], [2]).bijector(normal([5, 2]))
    with raises(TypeError, 'context', "['flow_1', 'flow_0']", 'expected'):
        getattr(chain, method)(normal([5, 3]), context=normal([5, 2]))


def test_log_derivatives_of_a_list():
    chain = posterior([3], None).bijector()
    assert chain.forward_log_derivatives([[0.0, 0.0, 0.0]]).dtype == tf.float64


@pytest.mark.parametrize('size', [1e16, 3e38])
def test_points_out_of_range_are_nan_in_either_direction(size):
    chain = tfp_iaf.IAFPosterior(2, 1, (8,), seed=0).bijector()
    for direction in ('forward', 'inverse'):
        assert np.any(np.isnan(getattr(chain, direction)(tf.constant([0.0, size]))))
        assert np.isnan(getattr(chain, f'{direction}_log_det_jacobian')(tf.constant([0.0, size])))
