"""How exact the inverse is: through long chains, after training, and where the gates nearly shut."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import count_ops, normal
from tfp_iaf import transforms
from tfp_iaf.inversion import blockwise

D, HIDDEN, CONTEXT = 20, (32, 32), 3


def chain(num_flows, dtype, transform='gated'):
    made = tfp_iaf.IAFPosterior(D, num_flows, HIDDEN, context_shape=CONTEXT, transform=transform, seed=1, dtype=dtype)
    return made, normal([50, D], dtype, seed=1), normal([50, CONTEXT], dtype, seed=2)


def relative_error(made, x, context):
    """Of f(g(y)) for y = f(x), beside y; NaN where g(y) is."""
    bijector = made.bijector(context)
    y = bijector.forward(x)
    again = bijector.forward(tf.identity(bijector.inverse(tf.identity(y))))
    return np.max(np.abs(again - y) / (1 + np.abs(y)), axis=-1)


def smallest_gate(made, x, context):
    smallest = 1.0
    for network in made.networks:
        params = network(x, context)
        smallest = min(smallest, np.min(tf.sigmoid(params[..., 1] + made.transform.gate_bias)))
        x, _ = made.transform.forward(x, params)
    return smallest


def last_kernel(network):
    return next(v for v in network.variables if v.name == f'kernel_{len(HIDDEN)}:0')


@pytest.fixture(params=[tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def dtype(request):
    return request.param


@pytest.fixture
def limit(dtype):
    return {tf.float32: 1e-5, tf.float64: 1e-11}[dtype]


@pytest.mark.parametrize('transform', ['gated', transforms.Gated(), 'affine'], ids=str)
@pytest.mark.parametrize('num_flows', [1, 4, 16])
def test_at_initialisation(num_flows, transform, dtype, limit):
    assert np.max(relative_error(*chain(num_flows, dtype, transform))) < limit


# Gates that start nearly open start close to the target, and move away from one slowly.
@pytest.mark.parametrize(
    ('transform', 'gain'), [('gated', 0.4), (transforms.Gated(), 1.0), ('affine', 1.0)], ids=['open', 'gated', 'affine']
)
def test_after_training(transform, gain, dtype, limit):
    """Towards a banana in every pair of neighbours: the networks must depend strongly on the entries before."""
    made, x, context = chain(4, dtype, transform)
    optimizer = tf.optimizers.Adam(5e-3)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            z, log_q = made(tf.zeros_like(x), tf.ones_like(x), context).experimental_sample_and_log_prob()
            bent = tf.concat([z[:, :1], z[:, 1:] - 0.3 * z[:, :-1] ** 2], axis=-1)
            loss = tf.reduce_mean(log_q + 0.5 * tf.reduce_sum(bent**2, axis=-1))
        gradients = tape.gradient(loss, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))
        return loss

    losses = [float(step()) for _ in range(150)]
    assert np.mean(losses[-10:]) < losses[0] - gain
    assert np.max(relative_error(made, x, context)) < limit


@pytest.mark.parametrize('num_flows', [1, 4, 16])
def test_where_gates_nearly_shut(num_flows, dtype, limit):
    made, x, context = chain(num_flows, dtype, transforms.Gated())
    kernels = [last_kernel(network).numpy() for network in made.networks]
    low, high = 1.0, 100.0
    for _ in range(12):
        scale = np.sqrt(low * high)
        for network, kernel in zip(made.networks, kernels, strict=True):
            last_kernel(network).assign(scale * kernel)
        low, high = (low, scale) if smallest_gate(made, x, context) < 1e-3 else (scale, high)
    assert smallest_gate(made, x, context) < 2e-3
    error = relative_error(made, x, context)
    # Rounding y moves its preimage by the reciprocals of all gates. In float32 that can be so far that the preimage is
    # no number any more, which float64 confirms for the same y; NaN is the right answer then.
    assert np.mean(np.isnan(error)) <= (0.2 if dtype == tf.float32 else 0.0)
    assert np.nanmax(error) < limit


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
@pytest.mark.parametrize('jit_compile', [False, True])
def test_gradient_takes_no_memory_for_the_iterations(inverse, jit_compile):
    """A loop that is differentiated keeps every iteration in a list; this one must not."""
    network = tfp_iaf.MaskedAutoregressiveNetwork(D, HIDDEN, seed=0)
    step = tfp_iaf.InverseAutoregressiveFlow(network, inverse=inverse)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def gradient(y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(step.inverse(y)) + tf.reduce_sum(step.inverse_log_det_jacobian(y))
        return tape.gradient(loss, network.trainable_variables)

    graph = gradient.get_concrete_function(normal([7, D], tf.float32))
    assert count_ops(graph, 'TensorListPushBack') == 0
    assert count_ops(graph, 'While') + count_ops(graph, 'StatelessWhile') > 0


def test_gradient_equals_that_of_unrolled_iterations():
    network = tfp_iaf.MaskedAutoregressiveNetwork(6, (14, 13), context_shape=CONTEXT, seed=0, dtype=tf.float64)
    transform, y, context = transforms.Affine(), normal([4, 6]), normal([4, CONTEXT], seed=1)
    sources = [y, context, *network.trainable_variables]

    def unrolled():
        x = y
        for _ in range(6):
            x, _ = transform.inverse(y, network(x, context))
        return x, transform.forward(x, network(x, context))[1]

    def gradients(invert):
        with tf.GradientTape() as tape:
            tape.watch(sources[:2])
            x, log_derivatives, *_ = invert()
            loss = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(log_derivatives**2)
        return tape.gradient(loss, sources)

    expected = gradients(unrolled)
    for num_blocks in (1, 2, 3, 6):
        actual = gradients(lambda count=num_blocks: blockwise(network.masked_layers(context), transform, y, count))
        for value, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-12)


def test_graph_does_not_grow_with_the_event():
    def nodes(event_size):
        network = tfp_iaf.MaskedAutoregressiveNetwork(event_size, (64,), seed=0)
        function = tf.function(lambda y: blockwise(network.masked_layers(), transforms.Gated(), y), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec([None, event_size])).graph.as_graph_def()
        return len(graph.node) + sum(len(inner.node_def) for inner in graph.library.function)

    assert nodes(512) == nodes(64)
