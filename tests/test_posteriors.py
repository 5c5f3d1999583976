"""The posterior: a distribution that TFP's users know how to handle, exact, and with one pass of each network."""

import copy
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
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


@pytest.mark.parametrize('transform', ['gated', 'affine'])
def test_sample_and_density_equal_the_papers_equations(transform):
    made, (loc, scale, context) = posterior(transform=transform), arguments()
    layers = [(reference.weights_of(network), network.order, 2) for network in made.networks]
    gated = functools.partial(reference.gated, gate_bias=2.6 + np.log(STEPS))
    step = {'gated': gated, 'affine': reference.affine}[transform]
    z, log_q = made(loc, scale, context).experimental_sample_and_log_prob(seed=SEED)
    z0 = made.bijector(context).inverse(tf.identity(z)).numpy()
    for i in range(5):
        expected, log_det = reference.chain(layers, step, z0[i], context[i].numpy())
        np.testing.assert_allclose(z[i], expected, rtol=1e-9)
        expected = reference.gaussian_log_density(z0[i], loc[i].numpy(), scale[i].numpy()) - log_det
        np.testing.assert_allclose(log_q[i], expected, rtol=1e-9)


# Shapes


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
    made = posterior(event_shape, context_shape=context_shape, inverse=inverse)
    size = made.event_shape.num_elements()
    flat = posterior(size, context_shape=None if context_shape is None else made.context_shape.num_elements())
    shapes = [event_shape, event_shape] if context_shape is None else [event_shape, event_shape, context_shape]
    tensors = [tf.abs(normal([6, 5, *shape], seed=i)) for i, shape in enumerate(shapes)]
    q, same = made(*tensors), flat(*(tf.reshape(tensor, [6, 5, -1]) for tensor in tensors))
    assert (q.batch_shape, q.event_shape) == ([6, 5], event_shape)
    z, log_q = q.experimental_sample_and_log_prob(7, seed=SEED)
    assert (z.shape, log_q.shape) == ([7, 6, 5, *event_shape], [7, 6, 5])
    rows = tf.reshape(z, [7, 6, 5, size])
    np.testing.assert_allclose(same.log_prob(rows), log_q, rtol=1e-9)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-9)
    np.testing.assert_allclose(same.sample(7, seed=SEED), rows, rtol=1e-9, atol=1e-10)


def test_batch_shape_is_that_of_all_arguments():
    made = posterior()
    for batches, batch in (
        [((), (), ()), ()],
        [((), (), (5,)), (5,)],
        [((5,), (), ()), (5,)],
        [((), (5,), (5,)), (5,)],
        [((6, 1), (5,), (1,)), (6, 5)],
    ):
        tensors = [arguments(shape)[i] for i, shape in enumerate(batches)]
        q = made(*tensors)
        z = q.sample((7, 2), seed=SEED)
        assert (q.batch_shape, q.event_shape, z.shape) == (batch, [EVENT], [7, 2, *batch, EVENT]), batches
        full = [tf.broadcast_to(tensor, [*batch, tensor.shape[-1]]) for tensor in tensors]
        np.testing.assert_allclose(q.log_prob(tf.identity(z)), made(*full).log_prob(z), rtol=1e-9, err_msg=str(batches))
        # Of a base without a batch, TFP would draw one noise for all rows.
        assert len(np.unique(z.numpy()[..., 0])) == 14 * np.prod(batch), batches


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
    made = posterior()
    loc, scale, context = arguments((3, 4))
    for index in [0, (Ellipsis, slice(2)), (0, 1), (slice(None), None)]:
        q = made(loc, scale, context)[index]
        if isinstance(index, tuple) and Ellipsis in index:
            index = (*index, slice(None))  # the dimension of the event is not that of the batch
        expected = made(loc[index], scale[index], context[index])
        z = expected.sample(seed=SEED)
        assert q.batch_shape == expected.batch_shape, index
        np.testing.assert_allclose(q.log_prob(tf.identity(z)), expected.log_prob(z), rtol=1e-9, err_msg=str(index))


def test_copies():
    """Of the distribution: a copy shares the variables, a deep copy has its own."""
    made = posterior([2, 3], context_shape=None)
    q = made(tf.zeros([2, 3], tf.float64), tf.ones([2, 3], tf.float64))
    z = q.sample(seed=SEED)
    copied, deep = q.copy(name='copy'), copy.deepcopy(q)
    assert copied.name == 'copy'
    before = q.log_prob(z.numpy())
    perturb(made)
    np.testing.assert_array_equal(copied.log_prob(z.numpy()), q.log_prob(z.numpy()))
    np.testing.assert_array_equal(deep.log_prob(z.numpy()), before)


# One pass of each network


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


def _gradient(way, made):
    def gradient(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            z, log_q = way(made, *tensors)
            total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
        return tape.gradient(total, [tensors, made.trainable_variables])

    return gradient


@pytest.mark.slow
@pytest.mark.parametrize('way', [_sample_then_log_prob, _jointly, _with_a_new_distribution])
def test_each_network_is_evaluated_once(way, network_calls):
    """With the gradient, eagerly, in a graph and for XLA: as many matrix products as by hand."""
    made = posterior()

    def products(work):
        graph, program = (tf.function(work, autograph=False, jit_compile=jit_compile) for jit_compile in (False, True))
        graph = graph.get_concrete_function(*arguments())
        hlo = program.experimental_get_compiler_ir(*arguments())(stage='hlo')
        return count_ops(graph, 'MatMul'), count_ops(graph, 'BatchMatMulV2'), hlo.count(' dot(')

    _gradient(way, made)(*arguments())
    assert network_calls == list(made.networks)
    network_calls.clear()
    counts = products(_gradient(way, made))
    assert network_calls == 2 * list(made.networks)
    assert counts == products(_gradient(_by_hand, made)) and counts[0] > STEPS * LAYERS


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


# Variables


def test_mean_scale_and_context_given_as_variables_are_tracked_and_trained():
    """As TFP's own distributions do: a surrogate posterior is often made once, of variables, outside of any tape."""
    made = posterior()
    variables = [tf.Variable(tensor) for tensor in arguments()]
    q = made(*variables)
    tracked = {id(v) for v in q.trainable_variables}
    assert {id(v) for v in variables} <= tracked
    with tf.GradientTape() as tape:
        z, log_q = q.experimental_sample_and_log_prob(seed=SEED)
        total = tf.reduce_sum(z**2) + tf.reduce_sum(log_q)
    for gradient in tape.gradient(total, variables):
        assert gradient is not None and np.all(gradient != 0)


def test_log_prob_of_a_sample_has_gradients_in_a_later_tape_and_follows_an_update():
    """The estimators that hold samples fixed need the former; TFP caches by tensor, against the latter."""
    made = posterior()
    q = made(*arguments())
    z, before = q.experimental_sample_and_log_prob(seed=SEED)
    with tf.GradientTape() as tape:
        log_q = q.log_prob(z)
    assert all(np.any(gradient != 0) for gradient in tape.gradient(log_q, made.trainable_variables))
    perturb(made)
    after = q.log_prob(z)
    np.testing.assert_allclose(after, q.log_prob(tf.identity(z)), rtol=1e-9)
    assert np.all(after != before)


# How it is made


def test_orders_alternate():
    forward, backward = [0, 1, 2], [2, 1, 0]
    orders = [network.order.tolist() for network in posterior(num_flows=4).networks]
    assert orders == [forward, backward, forward, backward]
    orders = [network.order.tolist() for network in posterior(alternate_order=False).networks]
    assert orders == [forward] * 3


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

    def kernels(seed, global_seed=None):
        if global_seed is not None:
            tf.random.set_seed(global_seed)
        made = IAFPosterior(2, 2, (8,), alternate_order=False, seed=seed)
        return [network.trainable_variables[-1].numpy() for network in made.networks]

    for same, other in ((kernels(1), kernels(2)), (kernels(None, 1), kernels(None, 2))):
        assert np.any(same[0] != same[1])
        assert np.any(same[0] != other[0])
    np.testing.assert_array_equal(kernels(1), kernels(1))
    np.testing.assert_array_equal(kernels(None, 1), kernels(None, 1))


def test_names_are_stable_when_called_twice_in_a_function():
    made, names = posterior(), []

    @tf.function
    def twice(*tensors):
        for _ in range(2):
            q = made(*tensors)
            names.append([q.bijector.name, *(step.name for step in q.bijector.bijectors)])
        return q.sample()

    twice(*arguments())
    assert names[0] == names[1]
    assert names[0] == ['iaf_posterior', 'flow_2', 'flow_1', 'flow_0']


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
    assert posterior(context_shape=None).context_shape is None
    for part in ('IAFPosterior', 'mine', 'event_shape=[3]', 'num_flows=3', 'context_shape=[2]', 'Affine', 'float64'):
        assert part in repr(made)


# Log-derivatives


def test_log_derivatives_are_summed_over_the_steps_without_an_evaluation_of_their_own(network_calls, inversions):
    made, context = posterior(), arguments()[2]
    flow, z = made.bijector(context), normal([7, 5, EVENT], seed=4)
    y = flow.forward(z)
    log_derivatives, of_inverse = flow.forward_log_derivatives(z), flow.inverse_log_derivatives(y)
    assert (network_calls, inversions) == (list(made.networks), [])
    assert log_derivatives.shape == z.shape
    np.testing.assert_allclose(of_inverse, -log_derivatives, rtol=1e-12)
    expected, value = 0.0, z
    for network in made.networks:
        value, of_step = made.transform.forward(value, network(value, context))
        expected += of_step
    np.testing.assert_allclose(log_derivatives, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flow.inverse_log_derivatives(tf.identity(y)), -expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(tf.reduce_sum(expected, -1), flow.forward_log_det_jacobian(tf.identity(z)), rtol=1e-10)
    keywords = {f'flow_{t}': {'context': context} for t in range(STEPS)}
    for method in ('forward_log_derivatives', 'inverse_log_derivatives'):
        by_keyword = getattr(made.bijector(), method)(z.numpy().tolist(), **keywords)
        np.testing.assert_allclose(by_keyword, getattr(flow, method)(z), rtol=1e-10, atol=1e-12)


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


# Bad input


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


@pytest.mark.parametrize('num_flows', [0, 2])
def test_bad_calls(num_flows):
    conditional, plain = posterior(num_flows=num_flows), posterior(num_flows=num_flows, context_shape=None)
    images = posterior(num_flows=num_flows, context_shape=[2, 2])
    names = ('loc', 'scale_diag', 'context')
    given = dict(zip(names, arguments(), strict=True))
    for made, changed, error, parts in (
        *(
            (conditional, {name: tf.ones(shape, tf.float64)}, ValueError, [f'{name}:', str(shape), '[..., 3]'])
            for name in names[:2]
            for shape in [(), (5, 4), (1,)]
        ),
        *(
            (conditional, {name: tf.cast(given[name], dtype)}, TypeError, [f'{name}:', dtype.name, 'expected float64'])
            for name in names
            for dtype in (tf.float32, tf.int32)
        ),
        (conditional, {'context': None}, ValueError, ['context', 'None', '[..., 2]', 'Pass context=']),
        (plain, {}, ValueError, ['context', 'pass context_shape']),
        (conditional, {'context': tf.zeros([5, 3], tf.float64)}, ValueError, ['context', '(5, 3)', '[..., 2]']),
        (images, {}, ValueError, ['context', '(5, 2)', '[..., 2, 2]']),
        (conditional, {'context': arguments((4,))[2]}, ValueError, ['context', '(4,)', 'loc', '(5,)']),
    ):
        with raises(error, *parts):
            made(**{**given, **changed}).sample()
