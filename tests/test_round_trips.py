"""How exact the inverse is: through long chains, after training, and where the gates nearly shut."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import count_ops, normal
from tfp_iaf import transforms

D, HIDDEN, CONTEXT = 20, (32, 32), 3

LIMITS = {tf.float32: 1e-5, tf.float64: 1e-11}


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


@pytest.mark.slow
@pytest.mark.parametrize(('transform', 'dtype'), [(transforms.Gated(), tf.float32), ('affine', tf.float64)], ids=str)
def test_after_training(transform, dtype):
    """Towards a banana in every pair of neighbours: the networks must depend strongly on the entries before."""
    made, x, context = chain(3, dtype, transform)
    optimizer = tf.optimizers.Adam(1e-2)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            z, log_q = made(tf.zeros_like(x), tf.ones_like(x), context).experimental_sample_and_log_prob()
            bent = tf.concat([z[:, :1], z[:, 1:] - 0.3 * z[:, :-1] ** 2], axis=-1)
            loss = tf.reduce_mean(log_q + 0.5 * tf.reduce_sum(bent**2, axis=-1))
        gradients = tape.gradient(loss, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))
        return loss

    losses = [float(step()) for _ in range(80)]
    assert np.mean(losses[-10:]) < losses[0] - 1
    assert np.max(relative_error(made, x, context)) < LIMITS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(('num_flows', 'dtype'), [(1, tf.float32), (16, tf.float32), (16, tf.float64)], ids=str)
def test_where_gates_nearly_shut(num_flows, dtype):
    made, x, context = chain(num_flows, dtype, transforms.Gated())
    kernels = [last_kernel(network).numpy() for network in made.networks]
    low, high = 1.0, 100.0
    for _ in range(8):
        scale = np.sqrt(low * high)
        for network, kernel in zip(made.networks, kernels, strict=True):
            last_kernel(network).assign(scale * kernel)
        low, high = (low, scale) if smallest_gate(made, x, context) < 1e-3 else (scale, high)
    assert smallest_gate(made, x, context) < 2e-3
    error = relative_error(made, x, context)
    # Rounding y moves its preimage by the reciprocals of all gates. In float32 that can be so far that the preimage is
    # no number any more, which float64 confirms for the same y; NaN is the right answer then.
    assert np.mean(np.isnan(error)) <= (0.2 if dtype == tf.float32 else 0.0)
    assert np.nanmax(error) < LIMITS[dtype]


@pytest.mark.parametrize('inverse', ['auto', 'fixed_point'])
def test_gradient_takes_no_memory_for_the_iterations(inverse):
    """A loop that is differentiated keeps every iteration in a list; this one must not."""
    network = tfp_iaf.MaskedAutoregressiveNetwork(D, HIDDEN, seed=0)
    step = tfp_iaf.InverseAutoregressiveFlow(network, inverse=inverse)

    @tf.function(autograph=False)
    def gradient(y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(step.inverse(y)) + tf.reduce_sum(step.inverse_log_det_jacobian(y))
        return tape.gradient(loss, network.trainable_variables)

    graph = gradient.get_concrete_function(normal([7, D], tf.float32))
    assert count_ops(graph, 'TensorListPushBack') == 0
    assert count_ops(graph, 'While') + count_ops(graph, 'StatelessWhile') > 0
