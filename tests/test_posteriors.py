"""The posterior: a distribution that TFP's users know how to handle, exact, and with one pass of each network."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from tests import reference
from tests.flows import count_ops, normal, perturb, raises, tfd
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


# Values


@pytest.mark.parametrize('transform', ['gated', 'affine'])
def test_sample_and_density_equal_the_papers_equations(transform):
    made, (loc, scale, context) = posterior(transform=transform), arguments()
    layers = [(reference.weights_of(network), network.order, 2) for network in made.networks]
    z0 = normal([5, EVENT], seed=4).numpy()
    q = made(loc, scale, context)
    gated = functools.partial(reference.gated, gate_bias=2.6 + np.log(STEPS))
    step = {'gated': gated, 'affine': reference.affine}[transform]
    for i in range(5):
        z, log_det = reference.chain(layers, step, z0[i], context[i].numpy())
        expected = reference.gaussian_log_density(z0[i], loc[i].numpy(), scale[i].numpy()) - log_det
        fresh = tf.constant(np.broadcast_to(z, [5, EVENT]))
        np.testing.assert_allclose(made.bijector(context[i]).forward(z0[i]), z, rtol=1e-11)
        np.testing.assert_allclose(q.log_prob(fresh)[i], expected, rtol=1e-10)


def test_density_of_a_sample_equals_that_of_a_fresh_point():
    q = posterior()(*arguments())
    z, log_q = q.experimental_sample_and_log_prob([7, 2], seed=SEED)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-9)


def test_sampling_alone_and_with_its_density_agree():
    made = posterior()
    z, log_q = made(*arguments()).experimental_sample_and_log_prob([7], seed=SEED)
    q = made(*arguments())
    again = q.sample([7], seed=SEED)
    np.testing.assert_array_equal(again, z)
    np.testing.assert_allclose(q.log_prob(again), log_q, rtol=1e-12)


def test_no_flow_is_the_diagonal_gaussian():
    loc, scale, _ = arguments()
    q = posterior(num_flows=0, context_shape=None)(loc, scale)
    z, log_q = q.experimental_sample_and_log_prob([4], seed=SEED)
    np.testing.assert_allclose(tfd.MultivariateNormalDiag(loc, scale).log_prob(z), log_q, rtol=1e-12)


def _grid(limit, points):
    """Points [N, 2] of a square grid, and the area that each stands for."""
    side = 2 * limit / points
    line = -limit + side * (np.arange(points) + 0.5)
    return tf.constant(np.stack(np.meshgrid(line, line, indexing='ij'), axis=-1).reshape([-1, 2])), side**2


def _planar(transform):
    return posterior(2, 3, context_shape=None, transform=transform)(
        tf.constant([0.3, -0.2], tf.float64), tf.constant([1.0, 0.7], tf.float64)
    )


@pytest.mark.parametrize('transform', ['gated', 'affine'])
def test_density_integrates_to_one(transform):
    points, area = _grid(12.0, 480)
    density = tf.exp(_planar(transform).log_prob(points))
    np.testing.assert_allclose(tf.reduce_sum(density) * area, 1.0, atol=1e-4)


@pytest.mark.parametrize('transform', ['gated', 'affine'])
def test_samples_have_the_density(transform):
    q, count = _planar(transform), 100_000
    points, area = _grid(12.0, 480)
    cells = np.linspace(-3.0, 3.0, 13)
    mass = tf.exp(q.log_prob(points)) * area
    probability, *_ = np.histogram2d(*points.numpy().T, bins=cells, weights=mass.numpy())
    found, *_ = np.histogram2d(*q.sample(count, seed=SEED).numpy().T, bins=cells)
    assert probability.sum() > 0.8
    # Five standard errors of a count, and the error of the quadrature.
    error = 5 * np.sqrt(probability * (1 - probability) / count) + 0.01 * probability + 1e-4
    assert np.all(np.abs(found / count - probability) < error)


# Shapes


@pytest.mark.parametrize('sample_shape', [(), (7,), (7, 4)], ids=str)
def test_shapes(sample_shape):
    q = posterior()(*arguments((6, 5)))
    z, log_q = q.experimental_sample_and_log_prob(sample_shape, seed=SEED)
    assert (q.batch_shape, q.event_shape) == ([6, 5], [EVENT])
    assert z.shape == [*sample_shape, 6, 5, EVENT]
    assert log_q.shape == [*sample_shape, 6, 5]


@pytest.mark.parametrize(
    ('event_shape', 'context_shape'), [([2, 3], [2]), ([2, 3], [2, 1, 2]), ([4], [2, 1]), ([], []), ([2, 1, 2], None)]
)
def test_events_and_contexts_of_any_rank(event_shape, context_shape):
    """Give what their entries in one axis give."""
    made = posterior(event_shape, context_shape=context_shape)
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


@pytest.mark.parametrize(
    ('loc_batch', 'scale_batch', 'context_batch', 'batch'),
    [
        ((), (), (), ()),
        ((), (), (5,), (5,)),
        ((5,), (), (), (5,)),
        ((), (5,), (5,), (5,)),
        ((6, 1), (5,), (1,), (6, 5)),
    ],
    ids=str,
)
def test_batch_shape_is_that_of_all_arguments(loc_batch, scale_batch, context_batch, batch):
    made = posterior()
    tensors = [arguments(shape)[i] for i, shape in enumerate((loc_batch, scale_batch, context_batch))]
    q = made(*tensors)
    z = q.sample(7, seed=SEED)
    assert q.batch_shape == batch
    assert z.shape == [7, *batch, EVENT]
    full = [tf.broadcast_to(tensor, [*batch, tensor.shape[-1]]) for tensor in tensors]
    np.testing.assert_allclose(q.log_prob(z), made(*full).log_prob(tf.identity(z)), rtol=1e-9)


def test_rows_get_noise_of_their_own_when_only_the_context_has_a_batch():
    """Of a base without a batch, TFP would draw one noise for all rows."""
    loc, scale, context = arguments(())
    z = posterior()(loc, scale, tf.broadcast_to(context, [4, CONTEXT])).sample(seed=SEED)
    assert len(np.unique(z.numpy()[:, 0])) == 4


def test_one_point_against_a_batch_of_contexts():
    q = posterior()(*arguments())
    z = normal([EVENT], seed=6)
    rows = tf.constant(np.broadcast_to(z, [5, EVENT]))
    np.testing.assert_allclose(q.log_prob(z), q.log_prob(rows), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize('jit_compile', [False, True], ids=['graph', 'xla'])
def test_unknown_batch_size(jit_compile):
    made = posterior()
    signature = [tf.TensorSpec([None, size], tf.float64) for size in (EVENT, EVENT, CONTEXT)]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def sample_and_log_prob(loc, scale, context):
        q = made(loc, scale, context)
        z = q.sample(4, seed=SEED)
        return z, q.log_prob(z), q.log_prob(tf.identity(z))

    z, log_q, log_q_of_fresh_point = sample_and_log_prob(*arguments())
    expected = made(*arguments()).log_prob(z)
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)
    np.testing.assert_allclose(log_q_of_fresh_point, expected, rtol=1e-9)


@pytest.mark.parametrize('index', [0, slice(1, 3), (Ellipsis, slice(2)), (0, 1), (slice(None), None)], ids=str)
def test_slicing(index):
    made = posterior()
    loc, scale, context = arguments((3, 4))
    q = made(loc, scale, context)[index]
    if isinstance(index, tuple) and Ellipsis in index:
        index = (*index, slice(None))  # the dimension of the event is not that of the batch
    expected = made(loc[index], scale[index], context[index])
    z = expected.sample(seed=SEED)
    assert q.batch_shape == expected.batch_shape
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), expected.log_prob(z), rtol=1e-9)


def test_copy():
    q = posterior()(*arguments())
    z = q.sample(seed=SEED)
    np.testing.assert_array_equal(q.copy(name='copy').log_prob(tf.identity(z)), q.log_prob(tf.identity(z)))
    assert q.copy(name='copy').name == 'copy'


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


each_way = pytest.mark.parametrize('way', [_sample_then_log_prob, _jointly, _with_a_new_distribution])


def _objective(way, made):
    return lambda *tensors: tf.reduce_sum(tf.square((result := way(made, *tensors))[0])) + tf.reduce_sum(result[1])


def _gradient(way, made):
    def gradient(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total = _objective(way, made)(*tensors)
        return tape.gradient(total, [tensors, made.trainable_variables])

    return gradient


@pytest.mark.slow
@each_way
@pytest.mark.parametrize('work', [_objective, _gradient])
@pytest.mark.parametrize('mode', ['eager', 'graph', 'xla'])
def test_each_network_is_evaluated_once(way, work, mode, network_calls):
    made = posterior()
    function = work(way, made)
    if mode != 'eager':
        function = tf.function(function, jit_compile=mode == 'xla')
    function(*arguments())
    assert network_calls == list(made.networks)


@each_way
def test_graph_has_the_matrix_products_of_one_pass_each(way):
    made = posterior()
    graph = tf.function(_objective(way, made)).get_concrete_function(*arguments())
    assert count_ops(graph, 'MatMul') == STEPS * (LAYERS + 1)
    assert count_ops(graph, 'BatchMatMulV2') == 0


@each_way
def test_graph_of_the_gradient_has_no_more_matrix_products_than_by_hand(way):
    made = posterior()
    counts = [
        count_ops(tf.function(_gradient(each, made)).get_concrete_function(*arguments()), 'MatMul')
        for each in (way, _by_hand)
    ]
    assert counts[0] == counts[1]


@pytest.mark.slow
@each_way
@pytest.mark.parametrize('work', [_objective, _gradient])
def test_xla_has_no_more_matrix_products_than_by_hand(way, work):
    made = posterior()
    programs = [tf.function(work(each, made), jit_compile=True) for each in (way, _by_hand)]
    counts = [each.experimental_get_compiler_ir(*arguments())(stage='hlo').count(' dot(') for each in programs]
    assert counts[0] == counts[1] > 0


# Variables


def test_variables_are_those_of_the_networks():
    made = posterior()
    q = made(*arguments())
    expected = {id(v) for network in made.networks for v in network.trainable_variables}
    assert len(expected) == STEPS * (2 * LAYERS + 1)
    for owner in (made, q, q.bijector, made.bijector(arguments()[2])):
        assert {id(v) for v in owner.trainable_variables} == expected


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


def test_log_prob_of_a_sample_follows_an_update_of_the_variables():
    """TFP caches by tensor: what was stored with the sample must not outlive the variables' values."""
    made = posterior()
    q = made(*arguments())
    z, log_q = q.experimental_sample_and_log_prob(seed=SEED)
    perturb(made)
    after = q.log_prob(z)
    np.testing.assert_allclose(after, q.log_prob(tf.identity(z)), rtol=1e-9)
    assert np.all(after != log_q)


def test_log_prob_of_a_sample_drawn_outside_of_the_tape_has_gradients():
    """The estimators that hold samples fixed, such as the score function's, need them."""
    made = posterior()
    q = made(*arguments())
    z = q.sample(seed=SEED)
    with tf.GradientTape() as tape:
        log_q = q.log_prob(z)
    assert all(gradient is not None for gradient in tape.gradient(log_q, made.trainable_variables))


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e200])
def test_lost_rows_leave_the_gradients_of_others_alone(bad):
    """Where a mask keeps their log-densities out of the loss."""
    made, tensors, z = posterior(), arguments(), normal([5, EVENT], seed=4).numpy()

    def gradients(z, tensors, good):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            log_q = made(*tensors).log_prob(tf.constant(z))
            loss = tf.reduce_sum(tf.where(good, log_q, 0.0))
        return log_q, *tape.gradient(loss, [*tensors, *made.trainable_variables])

    rest = [0, 2, 3, 4]
    expected = gradients(z[rest], [tf.gather(tensor, rest) for tensor in tensors], tf.fill([4], True))
    z[1, 1] = bad
    log_q, *actual = gradients(z, list(tensors), tf.constant([True, False, True, True, True]))
    assert np.isnan(log_q).tolist() == [False, True, False, False, False]
    for value, other in zip([log_q, *actual], expected, strict=True):
        value = tf.gather(value, rest) if value.shape[0] == 5 else value
        np.testing.assert_allclose(value, other, rtol=1e-8, atol=1e-11)


def test_training_in_tfp_reaches_the_target():
    """A banana that one shift can make: the IAF's best KL is zero, a Gaussian's is 0.7."""
    noise = tfd.Normal(tf.zeros([], tf.float64), 1.0)

    def target_log_prob(z):
        return noise.log_prob(z[..., 0]) + noise.log_prob(2.0 * (z[..., 1] - 0.5 * z[..., 0] ** 2)) + np.log(2.0)

    made = IAFPosterior(2, 2, (16,), transform='affine', seed=0, dtype=tf.float64)
    before = [v.numpy() for v in made.trainable_variables]
    losses = tfp.vi.fit_surrogate_posterior(
        target_log_prob,
        made(tf.zeros([2], tf.float64), tf.ones([2], tf.float64)),
        optimizer=tf_keras.optimizers.Adam(0.02),
        num_steps=300,
        sample_size=64,
        seed=1,
    )
    assert np.mean(losses[-20:]) < 0.2 < np.mean(losses[:5])
    for variable, value in zip(made.trainable_variables, before, strict=True):
        assert np.any(variable != value), variable.name


# How it is made


def test_orders_alternate():
    forward, backward = [0, 1, 2], [2, 1, 0]
    orders = [network.order.tolist() for network in posterior(num_flows=4).networks]
    assert orders == [forward, backward, forward, backward]
    orders = [network.order.tolist() for network in posterior(alternate_order=False).networks]
    assert orders == [forward] * 3


def test_networks_act_in_their_order():
    made, z = posterior(), normal([5, EVENT])
    context = arguments()[2]
    expected = z
    for network in made.networks:
        expected, _ = made.transform.forward(expected, network(expected, context))
    np.testing.assert_allclose(made.bijector(context).forward(z), expected, rtol=1e-12)


@pytest.mark.parametrize('transform', ['affine', 'gated'])
@pytest.mark.parametrize('num_flows', [1, 4, 32])
def test_steps_start_close_to_the_identity(transform, num_flows):
    made = IAFPosterior(8, num_flows, (32, 32), context_shape=4, transform=transform, seed=0)
    z = normal([100, 8], tf.float32)
    moved = made.bijector(normal([100, 4], tf.float32, seed=1)).forward(z) - z
    # The affine steps have nothing that depends on their number.
    assert 0 < np.std(moved) < {'affine': 0.25 * np.sqrt(num_flows), 'gated': 0.1}[transform]


@pytest.mark.parametrize('num_flows', [0, 1, 4, 32])
def test_gates_are_as_open_as_the_number_of_steps_asks_for(num_flows):
    made = posterior(num_flows=num_flows)
    assert (
        made.transform == transforms.Gated(2.6 + np.log(max(num_flows, 1))) == transforms.Gated.near_identity(num_flows)
    )
    assert all(step.transform == made.transform for step in made.bijector().bijectors)
    np.testing.assert_allclose(tf.sigmoid(made.transform.gate_bias) ** max(num_flows, 1), 0.93, atol=0.01)


def test_networks_differ_and_the_seed_fixes_them():
    def kernel(seed, step):
        return IAFPosterior(2, 2, (8,), alternate_order=False, seed=seed).networks[step].trainable_variables[-1].numpy()

    np.testing.assert_array_equal(kernel(1, 0), kernel(1, 0))
    assert np.any(kernel(1, 0) != kernel(2, 0))
    assert np.any(kernel(1, 0) != kernel(1, 1))


def test_without_a_seed_weights_follow_the_global_seed():
    def values(seed):
        tf.random.set_seed(seed)
        return [v.numpy() for v in IAFPosterior(2, 2, (8,)).trainable_variables]

    assert all(np.array_equal(a, b) for a, b in zip(values(1), values(1), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(values(1), values(2), strict=True))


def test_transform_object_reaches_the_steps():
    made = posterior(transform=transforms.Affine(2.0))
    assert [step.transform for step in made.bijector().bijectors] == [transforms.Affine(2.0)] * STEPS


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


def test_context_nested_by_name():
    made, (_, _, context) = posterior(), arguments()
    z = normal([5, EVENT])
    keywords = {f'flow_{t}': {'context': context} for t in range(STEPS)}
    np.testing.assert_allclose(made.bijector().forward(z, **keywords), made.bijector(context).forward(z), rtol=1e-12)


def test_variables_come_from_the_factory_under_the_names_of_the_steps():
    names = []

    def factory(name, value):
        names.append(name)
        return tf.Variable(value)

    IAFPosterior(2, 2, (8,), variable_factory=factory)
    layer = ['kernel_0', 'bias_0', 'kernel_1', 'bias_1']
    assert names == [f'flow_{t}/{name}' for t in range(2) for name in layer]


@pytest.mark.parametrize('dtype', [tf.float32, 'float64', np.float32], ids=str)
def test_dtype(dtype):
    made = posterior(dtype=dtype)
    z, log_q = made(*arguments(dtype=made.dtype)).experimental_sample_and_log_prob(seed=SEED)
    assert made.dtype == z.dtype == log_q.dtype == tf.as_dtype(dtype)


def test_numpy_arrays_and_lists_take_the_dtype():
    made = posterior(dtype=tf.float32)
    tensors = arguments()
    expected = made(*arguments(dtype=tf.float32)).sample(seed=SEED)
    np.testing.assert_allclose(made(*(t.numpy() for t in tensors)).sample(seed=SEED), expected, rtol=1e-5)
    np.testing.assert_allclose(made(*(t.numpy().tolist() for t in tensors)).sample(seed=SEED), expected, rtol=1e-5)


def test_properties_and_repr():
    made = posterior(transform='affine', name='mine')
    assert made.event_shape.as_list() == [EVENT] and made.context_shape.as_list() == [CONTEXT]
    assert (made.num_flows, len(made.networks), made.transform) == (STEPS, STEPS, transforms.Affine())
    assert posterior(context_shape=None).context_shape is None
    for part in ('IAFPosterior', 'mine', 'event_shape=[3]', 'num_flows=3', 'context_shape=[2]', 'Affine', 'float64'):
        assert part in repr(made)


# Log-derivatives


@pytest.mark.parametrize('transform', ['gated', 'affine'])
def test_log_derivatives_are_summed_over_the_steps(transform):
    made, context = posterior(transform=transform), arguments()[2]
    flow, z = made.bijector(context), normal([7, 5, EVENT], seed=4)
    y = flow.forward(z)
    log_derivatives = flow.forward_log_derivatives(z)
    assert log_derivatives.shape == z.shape
    expected, value = 0.0, z
    for network in made.networks:
        value, of_step = made.transform.forward(value, network(value, context))
        expected += of_step
    np.testing.assert_allclose(log_derivatives, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flow.inverse_log_derivatives(tf.identity(y)), -expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(tf.reduce_sum(expected, -1), flow.forward_log_det_jacobian(tf.identity(z)), rtol=1e-10)


@pytest.mark.parametrize('mode', ['eager', 'graph', 'xla'])
def test_log_derivatives_take_no_evaluation_of_their_own(mode, network_calls, inversions):
    made = posterior()
    loc, scale, context = arguments()

    def everything():
        q = made(loc, scale, context)
        z = q.distribution.sample(seed=SEED)
        y = q.bijector.forward(z)
        return y, q.bijector.forward_log_derivatives(z), q.bijector.inverse_log_derivatives(y), q.log_prob(y)

    function = everything if mode == 'eager' else tf.function(everything, jit_compile=mode == 'xla')
    _, forward, inverse, _ = function()
    assert network_calls == list(made.networks)
    assert inversions == []
    np.testing.assert_allclose(inverse, -forward, rtol=1e-12)


def test_log_derivatives_with_a_context_by_keyword():
    made, context, z = posterior(), arguments()[2], normal([5, EVENT], seed=4)
    keywords = {f'flow_{t}': {'context': context} for t in range(STEPS)}
    for method in ('forward_log_derivatives', 'inverse_log_derivatives'):
        expected = getattr(made.bijector(context), method)(z)
        np.testing.assert_allclose(getattr(made.bijector(), method)(z, **keywords), expected, rtol=1e-10, atol=1e-12)


# Networks that are there already


def _networks(**kwargs):
    return [
        MaskedAutoregressiveNetwork(EVENT, (8, 6 + t), seed=t, dtype=tf.float64, order='random', **kwargs)
        for t in range(2)
    ]


def test_networks_of_ones_own():
    networks = _networks(context_shape=CONTEXT)
    made = IAFPosterior(networks=networks)
    perturb(made)
    assert made.networks == tuple(networks)
    assert (made.event_shape, made.context_shape, made.dtype) == ([EVENT], [CONTEXT], tf.float64)
    assert made.transform == transforms.Gated.near_identity(2)
    loc, scale, context = arguments()
    z, log_q = made(loc, scale, context).experimental_sample_and_log_prob(4, seed=SEED)
    np.testing.assert_allclose(made(loc, scale, context).log_prob(tf.identity(z)), log_q, rtol=1e-9)
    expected = made.bijector(context).forward(loc)
    value = loc
    for network in networks:
        value, _ = made.transform.forward(value, network(value, context))
    np.testing.assert_allclose(expected, value, rtol=1e-10)


def test_a_network_without_a_context_gets_none():
    networks = [*_networks(context_shape=CONTEXT), *_networks()]
    made = IAFPosterior(networks=networks, transform='affine')
    perturb(made)
    assert made.context_shape == [CONTEXT]
    q = made(*arguments())
    z, log_q = q.experimental_sample_and_log_prob(4, seed=SEED)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-9)


@pytest.mark.parametrize(
    ('keywords', 'error', 'parts'),
    [
        ({'networks': []}, ValueError, ['networks', '[]', 'a list of networks']),
        ({'networks': 3}, ValueError, ['networks', '3', 'a list of networks']),
        (
            {'networks': [lambda x: x]},
            TypeError,
            ['networks', 'callable with event_shape', 'MaskedAutoregressiveNetwork'],
        ),
        (
            {'networks': [*_networks(), MaskedAutoregressiveNetwork(4, (8,), dtype=tf.float64)]},
            ValueError,
            ['networks', 'event_shape', '3', '4', 'the same for all'],
        ),
        (
            {'networks': [*_networks(), MaskedAutoregressiveNetwork(EVENT, (8,))]},
            ValueError,
            ['networks', 'dtype', 'float64', 'float32', 'the same for all'],
        ),
        (
            {'networks': [*_networks(context_shape=2), *_networks(context_shape=3)]},
            ValueError,
            ['networks', 'context_shape', '2', '3', 'the same for all'],
        ),
        ({'networks': _networks(), 'event_shape': 3}, ValueError, ['event_shape', '3', 'networks', 'Leave it out']),
        ({'networks': _networks(), 'num_flows': 2}, ValueError, ['num_flows', '2', 'networks', 'Leave it out']),
        ({'networks': _networks(), 'seed': 0}, ValueError, ['seed', '0', 'networks', 'Leave it out']),
        ({}, ValueError, ['event_shape', 'None', 'without networks', 'an int or a sequence of ints']),
        # The networks have two parameters per entry.
        ({'networks': _networks(), 'transform': 'spline'}, ValueError, ['network', '2 parameters', 'expected 23']),
    ],
    ids=['empty', 'int', 'function', 'event', 'dtype', 'context', 'event_shape', 'num_flows', 'seed', 'none', 'params'],
)
def test_networks_that_do_not_fit(keywords, error, parts):
    with raises(error, *parts):
        IAFPosterior(**keywords).bijector()


# Bad input


@pytest.mark.parametrize(
    ('keywords', 'error', 'parts'),
    [
        ({'event_shape': 0}, ValueError, ['event_shape', '0', 'at least 1']),
        ({'event_shape': '2'}, TypeError, ['event_shape', "'2'", 'int']),
        ({'num_flows': -1}, ValueError, ['num_flows', '-1', 'at least 0']),
        ({'num_flows': 1.5}, TypeError, ['num_flows', '1.5', 'int']),
        ({'hidden_units': []}, ValueError, ['hidden_units', 'at least one']),
        ({'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints']),
        ({'context_shape': 0}, ValueError, ['context_shape', '0', 'at least 1']),
        ({'transform': 'cubic'}, ValueError, ['transform', "'cubic'", "'gated'", "'affine'"]),
        ({'activation': 'elou'}, ValueError, ['activation', "'elou'", "'elu'"]),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative']),
        ({'dtype': tf.int32}, TypeError, ['dtype', 'int32', 'float32', 'float64']),
        ({'dtype': tf.float16}, TypeError, ['dtype', 'float16', 'float32', 'float64']),
        ({'dtype': 'floaty'}, TypeError, ['dtype:', 'floaty', 'float32', 'float64']),
        # Without a step there is no network to complain.
        ({'num_flows': 0, 'dtype': tf.float16}, TypeError, ['dtype', 'float16', 'float32', 'float64']),
        ({'num_flows': 0, 'context_shape': 0}, ValueError, ['context_shape', '0', 'at least 1']),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(keywords, error, parts):
    with raises(error, *parts):
        IAFPosterior(**{'event_shape': 2, 'num_flows': 2, 'hidden_units': (8,), **keywords})


@pytest.mark.parametrize('argument', ['loc', 'scale_diag'])
@pytest.mark.parametrize('shape', [[], [5, 4], [1]], ids=str)
def test_mean_or_scale_of_another_size(argument, shape):
    loc, scale, context = arguments()
    tensors = {'loc': loc, 'scale_diag': scale, argument: tf.ones(shape, tf.float64)}
    with raises(ValueError, f'{argument}:', str(tuple(shape)), 'expected [..., 3]'):
        posterior()(**tensors, context=context)


@pytest.mark.parametrize('argument', ['loc', 'scale_diag', 'context'])
@pytest.mark.parametrize('dtype', [tf.float32, tf.int32], ids=lambda dtype: dtype.name)
def test_tensor_of_another_dtype(argument, dtype):
    loc, scale, context = arguments()
    tensors = {'loc': loc, 'scale_diag': scale, 'context': context}
    tensors[argument] = tf.cast(tensors[argument], dtype)
    with raises(TypeError, f'{argument}:', dtype.name, 'expected float64'):
        posterior()(**tensors).sample()


@pytest.mark.parametrize('num_flows', [0, 2])
def test_missing_context(num_flows):
    with raises(ValueError, 'context', 'None', '[..., 2]', 'Pass context='):
        posterior(num_flows=num_flows)(*arguments()[:2]).sample()


@pytest.mark.parametrize('num_flows', [0, 2])
def test_unexpected_context(num_flows):
    with raises(ValueError, 'context', 'pass context_shape'):
        posterior(num_flows=num_flows, context_shape=None)(*arguments()).sample()


def test_context_of_another_size():
    with raises(ValueError, 'context', '(5, 3)', '[..., 2]'):
        posterior()(*arguments()[:2], tf.zeros([5, 3], tf.float64)).sample()
    with raises(ValueError, 'context', '(5, 2)', '[..., 2, 2]'):
        posterior(context_shape=[2, 2])(*arguments()).sample()


def test_context_with_a_batch_that_does_not_fit():
    with raises(ValueError, 'context', '(4,)', 'loc', '(5,)'):
        posterior()(*arguments()[:2], arguments((4,))[2]).sample()


@pytest.mark.parametrize('argument', ['inverse', 'activation'])
def test_arguments_are_checked_without_a_step(argument):
    with raises(ValueError, argument, "'foo'"):
        IAFPosterior(2, 0, **{argument: 'foo'})


# Batches without rows


@pytest.mark.slow
@pytest.mark.parametrize('rows', [0, 4])
@pytest.mark.parametrize('place', ['base', 'context', 'both', 'neither'])
@pytest.mark.parametrize('num_flows', [0, 1])
def test_unknown_number_of_rows(place, rows, num_flows):
    """TFP divides by the number of rows of the base."""
    conditional = place in ('context', 'both')
    made = posterior(num_flows=num_flows, context_shape=CONTEXT if conditional else None)

    @tf.function(input_signature=[tf.TensorSpec([None, EVENT], tf.float64), tf.TensorSpec([None, CONTEXT], tf.float64)])
    def results(loc, context):
        loc = loc if place in ('base', 'both') else tf.zeros([EVENT], tf.float64)
        q = made(loc, tf.ones_like(loc), *([context] if conditional else []))
        z, log_q = q.experimental_sample_and_log_prob(7)
        return q.sample(), z, log_q, q.log_prob(tf.identity(z))

    batch = [] if place == 'neither' or (place == 'context' and num_flows == 0) else [rows]
    shapes = [
        value.shape for value in results(tf.zeros([rows, EVENT], tf.float64), tf.ones([rows, CONTEXT], tf.float64))
    ]
    assert shapes == [[*batch, EVENT], [7, *batch, EVENT], [7, *batch], [7, *batch]]


def test_factory_of_networks():
    def make(event_shape, hidden_units, **kwargs):
        return MaskedAutoregressiveNetwork(event_shape, (5, *hidden_units), **kwargs)

    made = IAFPosterior(EVENT, 2, (8,), context_shape=CONTEXT, network=make, transform='spline', seed=1)
    assert [network.hidden_units for network in made.networks] == [(5, 8)] * 2
    assert [network.order.tolist() for network in made.networks] == [[0, 1, 2], [2, 1, 0]]
    assert made.context_shape == [CONTEXT]
