"""The posterior: a distribution that TFP's users know how to handle, exact, and with one pass of each network."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.flows import count_ops, normal, perturb, raises, tfb, tfd
from tfp_iaf import IAFPosterior, MaskedAutoregressiveNetwork, transforms

EVENT, CONTEXT, STEPS, LAYERS = 3, 2, 3, 3
SEED = (1, 2)  # a stateless seed, which gives the same sample every time


def posterior(event_shape=EVENT, num_flows=STEPS, hidden_units=(8, 8), *, context_shape=CONTEXT, **kwargs):
    made = IAFPosterior(
        event_shape, num_flows, hidden_units, context_shape=context_shape, **{'seed': 0, 'dtype': tf.float64, **kwargs}
    )
    perturb(made)
    return made


def arguments(batch=(5,), dtype=tf.float64):
    """A mean, a standard deviation and a context."""
    loc = normal([*batch, EVENT], dtype, seed=1)
    return loc, 0.5 + tf.abs(normal([*batch, EVENT], dtype, seed=2)), normal([*batch, CONTEXT], dtype, seed=3)


def test_density_is_that_of_the_base_less_the_log_det():
    made, (loc, scale, context) = posterior(), arguments()
    z, log_q = made(loc, scale, context).experimental_sample_and_log_prob(seed=SEED)
    z0 = made.bijector(context).inverse(tf.identity(z))
    of_base = tf.reduce_sum(-0.5 * ((z0 - loc) / scale) ** 2 - tf.math.log(scale) - 0.5 * np.log(2 * np.pi), axis=-1)
    np.testing.assert_allclose(log_q, of_base - made.bijector(context).forward_log_det_jacobian(z0), rtol=1e-9)


@pytest.mark.parametrize(
    ('event_shape', 'context_shape', 'inverse'),
    [
        ([2, 3], [2], 'auto'),
        ([2, 3], [2, 1, 2], 'fixed_point'),
        ([], [], 'auto'),
        ([], None, 'fixed_point'),
        ([2, 1, 2], None, 'auto'),
    ],
    ids=str,
)
def test_events_and_contexts_of_any_rank(event_shape, context_shape, inverse):
    """Give what their entries in one axis give."""
    made = posterior(event_shape, num_flows=2, context_shape=context_shape, inverse=inverse)
    size = made.event_shape.num_elements()
    flat = posterior(
        size, num_flows=2, context_shape=None if context_shape is None else made.context_shape.num_elements()
    )
    shapes = [event_shape, event_shape] if context_shape is None else [event_shape, event_shape, context_shape]
    tensors = [tf.abs(normal([6, 5, *shape], seed=i)) for i, shape in enumerate(shapes)]
    q, same = made(*tensors), flat(*(tf.reshape(tensor, [6, 5, -1]) for tensor in tensors))
    assert (q.batch_shape, q.event_shape) == ([6, 5], event_shape)
    z, log_q = q.experimental_sample_and_log_prob(7, seed=SEED)
    assert (z.shape, log_q.shape) == ([7, 6, 5, *event_shape], [7, 6, 5])
    rows = tf.reshape(z, [7, 6, 5, size])
    for density in (same.log_prob(rows), q.log_prob(tf.identity(z))):
        np.testing.assert_allclose(density, log_q, rtol=1e-9)
    np.testing.assert_allclose(same.sample(7, seed=SEED), rows, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ('batches', 'batch'),
    [
        ([(), (), ()], ()),
        ([(), (), (5,)], (5,)),
        ([(5,), (), ()], (5,)),
        ([(), (5,), (5,)], (5,)),
        ([(6, 1), (5,), (1,)], (6, 5)),
    ],
    ids=str,
)
def test_batch_shape_is_that_of_all_arguments(batches, batch):
    made = posterior(num_flows=1)
    tensors = [arguments(shape)[i] for i, shape in enumerate(batches)]
    q = made(*tensors)
    z = q.sample((7, 2), seed=SEED)
    assert (q.batch_shape, q.event_shape, z.shape) == (batch, [EVENT], [7, 2, *batch, EVENT])
    full = [tf.broadcast_to(tensor, [*batch, tensor.shape[-1]]) for tensor in tensors]
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), made(*full).log_prob(z), rtol=1e-9)
    # Of a base without a batch, TFP would draw one noise for all rows.
    assert len(np.unique(z.numpy()[..., 0])) == 14 * np.prod(batch)


@pytest.mark.slow
@pytest.mark.parametrize(('place', 'num_flows'), [('both', 1), ('context', 1), ('context', 0), ('base', 0)])
def test_unknown_number_of_rows(place, num_flows):
    """TFP divides by the number of rows of the base, which may be none."""
    made = posterior(num_flows=num_flows, context_shape=None if place == 'base' else CONTEXT)

    def distribution(loc, context):
        loc = tf.zeros([EVENT], tf.float64) if place == 'context' else loc
        return made(loc, tf.ones_like(loc), *([] if place == 'base' else [context]))

    @tf.function(input_signature=[tf.TensorSpec([None, size], tf.float64) for size in (EVENT, CONTEXT)])
    def results(loc, context):
        q = distribution(loc, context)
        z, log_q = q.experimental_sample_and_log_prob(7)
        return q.sample(), z, log_q, q.log_prob(tf.identity(z))

    for rows in (0, 4):
        tensors = normal([rows, EVENT]), normal([rows, CONTEXT])
        first, z, *log_qs = results(*tensors)
        batch = [] if (place, num_flows) == ('context', 0) else [rows]
        assert (first.shape, z.shape) == ([*batch, EVENT], [7, *batch, EVENT])
        for log_q in log_qs:
            np.testing.assert_allclose(log_q, distribution(*tensors).log_prob(z), rtol=1e-9)


def test_slicing():
    made = posterior(num_flows=1)
    loc, scale, context = arguments((3, 4))
    for index in [0, (Ellipsis, slice(2)), (0, 1), (slice(None), None)]:
        q = made(loc, scale, context)[index]
        if isinstance(index, tuple) and Ellipsis in index:
            index = (*index, slice(None))  # the dimension of the event is not that of the batch
        expected = made(loc[index], scale[index], context[index])
        z = expected.sample(seed=SEED)
        assert q.batch_shape == expected.batch_shape, index
        np.testing.assert_allclose(q.log_prob(tf.identity(z)), expected.log_prob(z), rtol=1e-9, err_msg=str(index))


def _sample_then_log_prob(made, *tensors):
    q = made(*tensors)
    z = q.sample(4, seed=SEED)
    return z, q.log_prob(z)


def _jointly(made, *tensors):
    return made(*tensors).experimental_sample_and_log_prob(4, seed=SEED)


def _with_a_new_distribution(made, *tensors):
    return (z := made(*tensors).sample(4, seed=SEED)), made(*tensors).log_prob(z)


def _by_hand(made, loc, scale, context):
    z = loc + scale * tf.random.stateless_normal([4, *loc.shape], SEED, dtype=loc.dtype)
    log_q = tf.reduce_sum(tfd.Normal(loc, scale).log_prob(z), axis=-1)
    for network in made.networks:
        z, log_derivatives = made.transform.forward(z, network(z, context))
        log_q -= tf.reduce_sum(log_derivatives, axis=-1)
    return z, log_q


def _gradient(way, made, *tensors):
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        z, log_q = way(made, *tensors)
        total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
    return tape.gradient(total, [tensors, made.trainable_variables])


def _products(way, made):
    """The numbers of matrix products in a graph, and in the program that XLA makes of it."""
    traced = tf.function(functools.partial(_gradient, way, made), autograph=False, jit_compile=True)
    graph, hlo = traced.get_concrete_function(*arguments()), traced.experimental_get_compiler_ir(*arguments())
    return count_ops(graph, 'MatMul'), count_ops(graph, 'BatchMatMulV2'), hlo(stage='hlo').count(' dot(')


@pytest.fixture(scope='module')
def products_by_hand():
    return _products(_by_hand, posterior())


@pytest.mark.slow
@pytest.mark.parametrize('way', [_sample_then_log_prob, _jointly, _with_a_new_distribution])
def test_each_network_is_evaluated_once(way, products_by_hand, network_calls):
    """With the gradient, eagerly, in a graph and for XLA: as many matrix products as by hand."""
    made = posterior()
    _gradient(way, made, *arguments())
    assert network_calls == list(made.networks)
    network_calls.clear()
    assert _products(way, made) == products_by_hand and products_by_hand[0] > STEPS * LAYERS
    assert network_calls == list(made.networks)


def test_context_is_checked_once_a_step(monkeypatch):
    from tfp_iaf.bijectors import _inverse_autoregressive_flow as steps
    from tfp_iaf.distributions import _posterior
    from tfp_iaf.networks import _common

    made, checks = posterior(), []
    for module in (steps, _posterior, _common):
        check = module.checked_context
        monkeypatch.setattr(module, 'checked_context', lambda *args, check=check: checks.append(1) or check(*args))
    q = made(*arguments())
    q.log_prob(q.sample(seed=SEED))
    assert len(checks) == 1 + STEPS


def test_mean_scale_and_context_given_as_variables_are_tracked_and_trained():
    """As TFP's own distributions do: a surrogate posterior is often made once, of variables, outside of any tape."""
    variables = [tf.Variable(tensor) for tensor in arguments()]
    q = posterior()(*variables)
    assert {id(v) for v in variables} <= {id(v) for v in q.trainable_variables}
    with tf.GradientTape() as tape:
        z, log_q = q.experimental_sample_and_log_prob(seed=SEED)
        total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
    for gradient in tape.gradient(total, variables):
        assert gradient is not None and np.all(gradient != 0)


def test_orders_alternate():
    for keywords, expected in (
        ({'num_flows': 4}, [[0, 1, 2], [2, 1, 0]] * 2),
        ({'alternate_order': False}, [[0, 1, 2]] * 3),
    ):
        assert [network.order.tolist() for network in posterior(**keywords).networks] == expected


@pytest.mark.parametrize('num_flows', [1, 32])
def test_steps_start_close_to_the_identity(num_flows):
    # The affine steps have nothing that depends on their number.
    for transform, limit in (('affine', 0.25 * np.sqrt(num_flows)), ('gated', 0.1)):
        made = IAFPosterior(8, num_flows, (32, 32), context_shape=4, transform=transform, seed=0)
        z = normal([100, 8], tf.float32)
        moved = made.bijector(normal([100, 4], tf.float32, seed=1)).forward(z) - z
        assert 0 < np.std(moved) < limit, transform


def test_seeds():
    """Networks differ, and the seed fixes them; without one, TensorFlow's global seed does."""

    def kernels(seed, global_seed=0):
        tf.random.set_seed(global_seed)
        made = IAFPosterior(2, 2, (8,), alternate_order=False, seed=seed)
        return [network.trainable_variables[-1].numpy() for network in made.networks]

    for first, again, other in (
        (kernels(1), kernels(1, 1), kernels(2)),
        (kernels(None, 1), kernels(None, 1), kernels(None, 2)),
    ):
        assert np.any(first[0] != first[1]) and np.any(first[0] != other[0])
        np.testing.assert_array_equal(first, again)


def test_names_are_stable_when_called_twice_in_a_function():
    made, names = posterior(), []

    @tf.function(autograph=False)
    def twice(*tensors):
        for _ in range(2):
            q = made(*tensors)
            names.append([q.bijector.name, *(step.name for step in q.bijector.bijectors)])

    twice(*arguments())
    assert names == [['iaf_posterior', 'flow_2', 'flow_1', 'flow_0']] * 2


def test_variables_come_from_the_factory_under_the_names_of_the_steps():
    names = []

    def factory(name, value):
        names.append(name)
        return tf.Variable(value)

    IAFPosterior(2, 2, (8,), variable_factory=factory)
    layer = ['kernel_0', 'bias_0', 'kernel_1', 'bias_1']
    assert names == [f'flow_{t}/{name}' for t in range(2) for name in layer]


def test_dtypes():
    for dtype in (tf.float32, 'float64', np.float32):
        made = posterior(dtype=dtype)
        z, log_q = made(*arguments(dtype=made.dtype)).experimental_sample_and_log_prob(seed=SEED)
        assert made.dtype == z.dtype == log_q.dtype == tf.as_dtype(dtype)
    # NumPy's float64 and lists take the dtype.
    for tensors in ([t.numpy() for t in arguments()], [t.numpy().tolist() for t in arguments()]):
        np.testing.assert_allclose(made(*tensors).sample(seed=SEED), z, rtol=1e-5)


def test_properties_and_repr():
    made = posterior(transform=transforms.Affine(2.0), name='mine')
    assert (made.event_shape, made.context_shape) == ([EVENT], [CONTEXT])
    assert (made.num_flows, len(made.networks), made.transform) == (STEPS, STEPS, transforms.Affine(2.0))
    assert posterior().transform == transforms.Gated.near_identity(STEPS)
    assert posterior(context_shape=None).context_shape is None
    for part in ('IAFPosterior', 'mine', 'event_shape=[3]', 'num_flows=3', 'context_shape=[2]', 'Affine', 'float64'):
        assert part in repr(made)


def test_log_derivatives_are_summed_over_the_steps_without_an_evaluation_of_their_own(network_calls, inversions):
    made, context = posterior(), arguments()[2]
    flow, z = made.bijector(context), normal([7, 5, EVENT], seed=4)
    y = flow.forward(z)
    log_derivatives, of_inverse = flow.forward_log_derivatives(z), flow.inverse_log_derivatives(y)
    assert (network_calls, inversions) == (list(made.networks), [])
    expected, value = 0.0, z
    for network in made.networks:
        value, of_step = made.transform.forward(value, network(value, context))
        expected += of_step
    keywords = {f'flow_{t}': {'context': context} for t in range(STEPS)}
    by_keyword = made.bijector().forward_log_derivatives(z.numpy().tolist(), **keywords)
    back_by_keyword = made.bijector().inverse_log_derivatives(y.numpy().tolist(), **keywords)
    of_new = flow.inverse_log_derivatives(tf.identity(y))
    for actual in (log_derivatives, by_keyword, -of_inverse, -of_new, -back_by_keyword):
        np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(tf.reduce_sum(expected, -1), flow.forward_log_det_jacobian(tf.identity(z)), rtol=1e-10)


def test_chain_refuses_what_it_would_ignore():
    chain, x = posterior().bijector(arguments()[2]), normal([5, EVENT])
    for method in ('forward', 'inverse', 'forward_log_derivatives', 'inverse_log_derivatives'):
        with raises(TypeError, 'context', "['flow_2', 'flow_1', 'flow_0']", 'expected'):
            getattr(chain, method)(x, context=arguments()[2])
    mixed = type(chain)([tfb.Softplus(), *chain.bijectors])
    with raises(ValueError, 'bijectors', 'log-derivatives', 'forward_log_det_jacobian'):
        mixed.forward_log_derivatives(x)


class Before(tf.Module):
    """A network by the protocol alone: each entry reacts to the one before it, and none to the context."""

    event_shape, context_shape, params, dtype = tf.TensorShape([EVENT]), None, 2, tf.float64

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(0.5, dtype=tf.float64)

    def __call__(self, x, context=None):
        before = tf.concat([tf.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
        return self.weight * tf.stack([tf.sin(before), tf.tanh(before)], axis=-1)


def masked(event_shape=EVENT, dtype=tf.float64, **kwargs):
    return MaskedAutoregressiveNetwork(event_shape, (8,), seed=0, dtype=dtype, order='random', **kwargs)


def test_networks_of_ones_own():
    networks = [masked(context_shape=CONTEXT), Before()]
    made = IAFPosterior(networks=networks)
    perturb(made)
    assert made.networks == tuple(networks)
    assert (made.event_shape, made.context_shape, made.dtype) == ([EVENT], [CONTEXT], tf.float64)
    assert made.transform == transforms.Gated.near_identity(2)
    loc, scale, context = arguments()
    q = made(loc, scale, context)
    z, log_q = q.experimental_sample_and_log_prob(4, seed=SEED)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-9)
    first, _ = made.transform.forward(loc, networks[0](loc, context))
    expected, _ = made.transform.forward(first, networks[1](first))
    np.testing.assert_allclose(made.bijector(context).forward(loc), expected, rtol=1e-10)
    networks[1].weight.assign(0.9)
    assert np.all(q.log_prob(z) != log_q)


def test_factory_of_networks():
    def make(event_shape, hidden_units, **kwargs):
        return MaskedAutoregressiveNetwork(event_shape, (5, *hidden_units), **kwargs)

    made = IAFPosterior(EVENT, 2, (8,), context_shape=CONTEXT, network=make, transform='spline', seed=1)
    assert [network.hidden_units for network in made.networks] == [(5, 8)] * 2
    assert [network.order.tolist() for network in made.networks] == [[0, 1, 2], [2, 1, 0]]
    assert made.context_shape == [CONTEXT]


def test_networks_that_do_not_fit():
    in_common, not_beside = ['networks', 'the same for all'], ['networks', 'Leave it out']
    for keywords, error, parts in (
        ({'networks': []}, ValueError, ['networks', '[]', 'a list of networks', 'one per step']),
        ({'networks': 3}, ValueError, ['networks', '3', 'a list of networks']),
        ({'networks': [lambda x: x]}, TypeError, ['networks', 'callable with event_shape', 'tfp_iaf.networks.Network']),
        ({'networks': [masked(), masked(4)]}, ValueError, ['event_shape', '3', '4', *in_common]),
        ({'networks': [masked(), masked(dtype=tf.float32)]}, ValueError, ['dtype', 'float64', 'float32', *in_common]),
        (
            {'networks': [masked(context_shape=2), masked(context_shape=3)]},
            ValueError,
            ['context_shape', '2', '3', *in_common],
        ),
        ({'networks': [masked()], 'event_shape': 3}, ValueError, ['event_shape', '3', *not_beside]),
        ({'networks': [masked()], 'num_flows': 2}, ValueError, ['num_flows', '2', *not_beside]),
        ({'networks': [masked()], 'hidden_units': (8,)}, ValueError, ['hidden_units', '(8,)', *not_beside]),
        ({'networks': [masked()], 'seed': 0}, ValueError, ['seed', '0', *not_beside]),
        ({'networks': [masked()], 'transform': 'spline'}, ValueError, ['network', '2 parameters', 'expected 23']),
        ({}, ValueError, ['event_shape', 'None', 'without networks', 'an int or a sequence of ints']),
    ):
        with raises(error, *parts):
            IAFPosterior(**keywords)


@pytest.mark.parametrize(
    ('keywords', 'error', 'parts'),
    [
        ({'num_flows': -1}, ValueError, ['num_flows', '-1', 'at least 0']),
        ({'num_flows': 1.5}, TypeError, ['num_flows', '1.5', 'int']),
        # Without a step there is no network to complain.
        ({'num_flows': 0, 'event_shape': 0}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'num_flows': 0, 'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints']),
        ({'num_flows': 0, 'seed': -1}, ValueError, ['seed', '-1', 'non-negative']),
        ({'num_flows': 0, 'transform': 'cubic'}, ValueError, ['transform', "'cubic'", "'gated'", "'affine'"]),
        ({'num_flows': 0, 'dtype': tf.float16}, TypeError, ['dtype', 'float16', 'float32', 'float64']),
        ({'num_flows': 0, 'context_shape': 0}, ValueError, ['context_shape', '0', 'at least 1']),
        ({'num_flows': 0, 'inverse': 'foo'}, ValueError, ['inverse', "'foo'"]),
        ({'num_flows': 0, 'activation': 'foo'}, ValueError, ['activation', "'foo'", "'elu'"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(keywords, error, parts):
    with raises(error, *parts):
        IAFPosterior(**{'event_shape': 2, 'num_flows': 2, 'hidden_units': (8,), **keywords})


@pytest.mark.parametrize('num_flows', [0, 1])
def test_bad_calls(num_flows):
    conditional, plain = posterior(num_flows=num_flows), posterior(num_flows=num_flows, context_shape=None)
    images = posterior(num_flows=num_flows, context_shape=[2, 2])
    given = dict(zip(('loc', 'scale_diag', 'context'), arguments(), strict=True))
    shapes = [(name, shape) for name in ('loc', 'scale_diag') for shape in [(), (5, 4), (1,)]]
    dtypes = [(name, dtype) for name in given for dtype in (tf.float32, tf.int32)]
    for made, changed, error, parts in (
        *((conditional, {n: tf.ones(s, tf.float64)}, ValueError, [f'{n}:', str(s), '[..., 3]']) for n, s in shapes),
        *(
            (conditional, {n: tf.cast(given[n], d)}, TypeError, [f'{n}:', d.name, 'expected float64'])
            for n, d in dtypes
        ),
        (conditional, {'context': None}, ValueError, ['context', 'None', '[..., 2]', 'Pass context=']),
        (plain, {}, ValueError, ['context', 'pass context_shape']),
        (conditional, {'context': tf.zeros([5, 3], tf.float64)}, ValueError, ['context', '(5, 3)', '[..., 2]']),
        (images, {}, ValueError, ['context', '(5, 2)', '[..., 2, 2]']),
        (conditional, {'context': arguments((4,))[2]}, ValueError, ['context', '(4,)', 'loc', '(5,)']),
    ):
        with raises(error, *parts):
            made(**{**given, **changed}).sample()
