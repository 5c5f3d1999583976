"""What can be proved of a GPU without one: kernels, launches, waits, and that XLA can lower every job for it."""

import pytest
import tensorflow as tf
from benchmark import flows
from benchmark.cases import Size

import tfp_iaf
from tests import gpu_graphs
from tfp_iaf.inversion import _blockwise, _iteration

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not gpu_graphs.is_known_here(), reason='this TensorFlow has no kernels for a GPU'),
]

SMALL, LARGE = Size(32, 320, 4, 100), Size(256, 1024, 2, 100)


def sample(flow, *inputs):
    return flow(*inputs).experimental_sample_and_log_prob(seed=[0, 1])


def log_prob(flow, loc, scale, context):
    return flow(loc, scale, context).log_prob(2 * loc)


def gradient_of(job):
    def gradient(flow, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.add_n([tf.reduce_mean(value) for value in tf.nest.flatten(job(flow, *inputs))])
        return tape.gradient(loss, [*inputs, *flow.trainable_variables])

    return gradient


JOBS = {'sample': sample, 'log_prob': log_prob}


def traced(job, flow, size):
    @tf.function(autograph=False)
    def on_gpu(*inputs):
        with tf.device('/GPU:0'):
            return job(flow, *inputs)

    return on_gpu.get_concrete_function(
        *(tf.TensorSpec([size.batch, n]) for n in (size.event, size.event, size.context))
    )


@pytest.mark.parametrize('transform', ['gated', 'affine', 'spline'])
@pytest.mark.parametrize('job', JOBS)
def test_every_operation_has_a_kernel_and_none_scatters(job, transform):
    """Of a job and of its gradient."""
    params = tfp_iaf.transforms.get(transform).params
    network = tfp_iaf.MaskedAutoregressiveNetwork(5, (12,), context_shape=4, params=params, order='random', seed=0)
    flow = tfp_iaf.IAFPosterior(networks=[network], transform=transform)
    nodes = list(gpu_graphs.nodes_of(traced(gradient_of(JOBS[job]), flow, Size(5, 12, 1, 3, 4)).graph.as_graph_def()))
    assert len(nodes) > 50
    assert not {node.op for node in nodes if not gpu_graphs.has_gpu_kernel(node)}
    assert not {node.op for node in nodes if 'Scatter' in node.op or 'Segment' in node.op}


def test_gradient_of_a_sample_launches_fewer_products_than_that_of_tfp():
    """TFP evaluates each network twice. What guards against NaN and applies masks costs some of what this saves."""
    ours, theirs = (
        gpu_graphs.launches(traced(gradient_of(sample), flows.make(name, LARGE), LARGE)) for name in ('tfp_iaf', 'TFP')
    )
    # Of three layers and a context, each network's products are made once, and twice again for the gradient.
    assert ours['MatMul'] == LARGE.flows * 4 * 3 < theirs['MatMul']
    assert ours.total() <= 1.2 * theirs.total()


@pytest.mark.parametrize('size', [SMALL, LARGE], ids=str)
def test_log_prob_of_a_new_point_waits_twice_a_step_at_most(size, monkeypatch):
    """Each look at a condition makes the host wait; a check of the result is none."""
    for module in (_blockwise, _iteration):
        monkeypatch.setattr(module, 'runs_on_cpu', lambda value: False)
    looks = []

    def counted(cond, *args, **kwargs):
        def looked(*state):
            looks.append(1)
            return cond(*state)

        return while_loop(looked, *args, **kwargs)

    while_loop = tf.while_loop
    monkeypatch.setattr(tf, 'while_loop', counted)
    flow = flows.make('tfp_iaf', size)
    inputs = [tf.random.stateless_normal([20, n], [0, n]) for n in (size.event, size.event, size.context)]
    inputs[1] = tf.exp(0.1 * inputs[1])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        density = log_prob(flow, *inputs)
    assert size.flows <= len(looks) <= 2 * size.flows
    looks.clear()
    tape.gradient(density, inputs)
    assert size.flows <= len(looks) <= 2 * size.flows


def test_xla_lowers_every_job_and_its_gradient_for_a_gpu():
    size = Size(4, 8, 2, 3, 3)
    flow = flows.make('tfp_iaf', size)

    def weights_of(network):
        return network._context_kernel, network._kernels, network._biases

    @tf.function(jit_compile=True, autograph=False)
    def on_gpu(inputs, weights):
        # Variables belong to a device, which has to be there; tensors do not.
        for network, of_network in zip(flow.networks, weights, strict=True):
            network._context_kernel, network._kernels, network._biases = of_network
        with tf.GradientTape() as tape:
            tape.watch([inputs, weights])
            values = [job(flow, *inputs) for job in JOBS.values()]
            loss = tf.add_n([tf.reduce_mean(value) for value in tf.nest.flatten(values)])
        return values, tape.gradient(loss, [inputs, weights])

    weights = [tf.nest.map_structure(tf.convert_to_tensor, weights_of(network)) for network in flow.networks]
    inputs = [tf.ones([3, n]) for n in (4, 4, 3)]
    lowered = on_gpu.experimental_get_compiler_ir(inputs, weights)(stage='hlo', platform_name='GPU')
    # For each job, of two networks: one product for the context and one for each layer, and their gradients.
    assert lowered.count(' dot(') >= 2 * 2 * 4 * 2
