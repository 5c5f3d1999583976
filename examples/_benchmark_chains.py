"""What the benchmark times in TensorFlow: our flow, TFP's, dense layers of the same shapes, and a VAE."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')  # other libraries' processes need some of a GPU's memory

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from _benchmark_timing import Prepared, Size, make_inputs

import tfp_iaf
import tfp_iaf.keras

tfb, tfd = tfp.bijectors, tfp.distributions

tf.config.experimental.enable_tensor_float_32_execution(False)  # on a GPU, as PyTorch

VERSION = str(tf.__version__)
MODES = ('eager', 'graph', 'xla')
Distribution = Any
Inputs = Sequence[tf.Tensor]  # loc and scale of the base distribution, context


class Ours(tf.Module):
    """`IAFPosterior`."""

    def __init__(self, size: Size, inverse: str = 'auto') -> None:
        super().__init__()
        self.flow = tfp_iaf.IAFPosterior(
            size.event, size.flows, (size.hidden, size.hidden), context_shape=size.context, inverse=inverse, seed=0
        )

    def __call__(self, loc: tf.Tensor, scale: tf.Tensor, context: tf.Tensor) -> Distribution:
        """Returns the distribution."""
        return self.flow(loc, scale, context)


class FixedPoint(Ours):
    """The same, with the inverse that iterates over all entries at once."""

    def __init__(self, size: Size) -> None:
        super().__init__(size, inverse='fixed_point')


class Repeated(Ours):
    """The same, for contexts that are repeated rather than shared by the samples; see `make_inputs`."""


class Tfp(tf.Module):
    """The same with TFP's own bijectors: affine steps, and a permutation between them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.networks = [
            tfb.AutoregressiveNetwork(
                params=2,
                event_shape=[size.event],
                hidden_units=[size.hidden, size.hidden],
                activation='elu',
                conditional=True,
                conditional_event_shape=[size.context],
                conditional_input_layers='first_layer',  # as ours: less work than its default
            )
            for _ in range(size.flows)
        ]
        for network in self.networks:
            network.build([None, size.event])
            # As small an output as ours at the start, so that the scales stay moderate.
            network.weights[-2].assign(0.1 * network.weights[-2])
        self.reverse = list(range(size.event))[::-1]

    def __call__(self, loc: tf.Tensor, scale: tf.Tensor, context: tf.Tensor) -> Distribution:
        """Returns the distribution."""

        def conditioned(network: tf.Module) -> Callable[[tf.Tensor], tf.Tensor]:
            return lambda x: network(x, conditional_input=context)

        bijectors = []
        for t, network in enumerate(self.networks):
            bijectors += [tfb.Permute(self.reverse)] if t else []
            bijectors += [tfb.Invert(tfb.MaskedAutoregressiveFlow(conditioned(network)))]
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(loc, scale), tfb.Chain(bijectors[::-1]))


class Dense(tf.Module):
    """Layers of the same shapes with no mask: no flow, but the least work for sampling without skipping zeros."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        shapes = [(size.event, size.hidden), (size.hidden, size.hidden), (size.hidden, 2 * size.event)]
        rng = np.random.default_rng(0)

        def kernel(rows: int, columns: int) -> tf.Variable:
            return tf.Variable(0.3 * rng.standard_normal([rows, columns]) / np.sqrt(rows), dtype=tf.float32)

        self.layers = [
            [(kernel(*shape), tf.Variable(tf.zeros([shape[1]]))) for shape in shapes] for _ in range(size.flows)
        ]
        self.contexts = [kernel(size.context, size.hidden) for _ in range(size.flows)]

    def sample_and_log_prob(self, inputs: Inputs, sample_shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what a flow's sample and log-density would be, were the layers masked."""
        loc, scale, context = inputs
        base = tfd.Independent(tfd.Normal(loc, scale), 1)
        z, log_q = base.experimental_sample_and_log_prob(sample_shape)
        for ((w1, b1), (w2, b2), (w3, b3)), u in zip(self.layers, self.contexts, strict=True):
            hidden = tf.reshape(tf.reshape(z, [-1, z.shape[-1]]) @ w1, [*z.shape[:-1], w1.shape[1]])
            hidden = tf.reshape(tf.nn.elu(hidden + (context @ u + b1)), [-1, w1.shape[1]])
            hidden = tf.nn.elu(hidden @ w2 + b2)
            m, s = (tf.reshape(part, z.shape) for part in tf.split(hidden @ w3 + b3, 2, axis=-1))
            z = tf.sigmoid(s) * z + tf.sigmoid(-s) * m
            log_q -= tf.reduce_sum(tf.math.log_sigmoid(s), axis=-1)
        return z, log_q


IMPLEMENTATIONS: dict[str, Callable[[Size], tf.Module]] = {
    'tfp_iaf': Ours,
    'fixed_point': FixedPoint,
    'repeated': Repeated,
    'TFP': Tfp,
    'dense': Dense,
}
VAES = {'tfp_iaf': True, 'no_flow': False}  # whether they have flows


def merged_samples(y: np.ndarray) -> np.ndarray:
    """Returns samples `[K, batch, D]` as rows, those of one context together."""
    return np.swapaxes(y, 0, 1).reshape([-1, y.shape[-1]])


def make_work(name: str, size: Size, work: str) -> tuple[Callable[..., Any], Inputs]:
    """Returns a function, the first of whose results is a small one, and its arguments."""
    module = IMPLEMENTATIONS[name](size)
    arrays, y, sample_shape = make_inputs(size)
    if name == 'repeated':
        arrays, y, sample_shape = [np.repeat(array, size.samples, axis=0) for array in arrays], merged_samples(y), ()
    inputs, point = [tf.constant(array) for array in arrays], tf.constant(y)

    def sample(*inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if isinstance(module, Dense):
            z, log_q = module.sample_and_log_prob(inputs, sample_shape)
        else:
            z, log_q = module(*inputs).experimental_sample_and_log_prob(sample_shape)
        return log_q, z

    def log_prob(*inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = tf.identity(inputs[-1])  # that no cache knows
        return module(*inputs[:-1]).log_prob(y), y

    forward = sample if work.startswith('sample') else log_prob

    def gradient(*inputs: tf.Tensor) -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            log_q, z = forward(*inputs)
            loss = tf.reduce_mean(log_q + 0.5 * tf.reduce_sum(tf.square(z), axis=-1))
        return loss, tape.gradient(loss, (module.trainable_variables, inputs))

    arguments = inputs if work.startswith('sample') else [*inputs, point]
    return gradient if work.endswith('gradient') else forward, arguments


def prepare(name: str, size: Size, work: str, mode: str) -> Prepared:
    """Returns the step, compiled, with the seconds that this took and the size of the graph."""
    keras.utils.set_random_seed(0)
    if work == 'vae_step':
        return prepare_vae(size, VAES[name], mode)
    function, arguments = make_work(name, size, work)
    figures: dict[str, Any] = {'device': device()}
    if mode != 'eager':
        function = tf.function(function, jit_compile=mode == 'xla', autograph=False)
        start = time.perf_counter()
        concrete = function.get_concrete_function(*arguments)
        figures |= {'tracing_s': time.perf_counter() - start, 'nodes': count_nodes(concrete.graph)}

    def step() -> np.ndarray:
        return np.asarray(function(*arguments)[0])  # on the host: a GPU's work is done

    start = time.perf_counter()
    step()
    return step, {**figures, 'first_call_s': time.perf_counter() - start}


def count_nodes(graph: tf.Graph) -> int:
    """Returns the size of a graph, with all functions that it calls."""
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(inner.node_def) for inner in definition.library.function)


def prepare_vae(size: Size, with_flows: bool, mode: str) -> Prepared:
    """Returns a step of `fit` for a VAE of MNIST's shape, with the flows or with a diagonal Gaussian."""
    images = hidden = keras.Input([784])
    for _ in range(2):
        hidden = keras.layers.Dense(300, activation='elu')(hidden)
    inputs = [keras.layers.Dense(size.event)(hidden) for _ in range(2)]
    if with_flows:
        inputs.append(keras.layers.Dense(size.context, activation='elu')(hidden))
    num_flows = size.flows if with_flows else 0
    sampling = tfp_iaf.keras.IAFSampling(num_flows, (size.hidden, size.hidden), seed=0)
    hidden, _ = sampling(inputs)
    for _ in range(2):
        hidden = keras.layers.Dense(300, activation='elu')(hidden)
    vae = keras.Model(images, keras.layers.Dense(784)(hidden))

    def neg_log_likelihood(pixels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(pixels, logits), axis=-1)

    vae.compile('adam', neg_log_likelihood, jit_compile=mode == 'xla', run_eagerly=mode == 'eager')
    vae.optimizer.build(vae.trainable_variables)  # or else the step is traced twice
    pixels = np.random.default_rng(0).integers(0, 2, [size.batch, 784]).astype(np.float32)
    batches = iter(tf.data.Dataset.from_tensors((pixels, pixels)).cache().repeat())
    vae.make_train_function()

    def step() -> np.ndarray:
        return np.asarray(vae.train_function(batches)['loss'])

    start = time.perf_counter()
    step()
    return step, {'first_call_s': time.perf_counter() - start, 'device': device()}


def device() -> str:
    """Returns `gpu` or `cpu`: where TensorFlow computes."""
    return 'gpu' if tf.config.list_physical_devices('GPU') else 'cpu'


def gpu_memory(step: Callable[[], Any]) -> float:
    """Returns how many MB of a GPU's memory a step needs at its peak, above what was held before it."""
    step()
    before = tf.config.experimental.get_memory_info('GPU:0')['current']
    tf.config.experimental.reset_memory_stats('GPU:0')
    step()
    return (tf.config.experimental.get_memory_info('GPU:0')['peak'] - before) / 1e6
