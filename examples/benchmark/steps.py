"""What TensorFlow does in a step: a sample, a density, a gradient, an update, a fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from benchmark import flows, vae
from benchmark.cases import LEARNING_RATE, Size
from benchmark.timing import Step


class Prepared(NamedTuple):
    """A step, and the size of its graph, if it has one."""

    step: Step
    nodes: int | None = None


def prepare(name: str, size: Size, work: str, mode: str, fit_steps: int) -> Prepared:
    """Returns the step of an implementation in TensorFlow."""
    keras.utils.set_random_seed(0)
    if work == 'vae_step':
        return Prepared(vae.make_step(name, size, mode))
    if work == 'fit':
        fit = fit_by_hand if name == 'loop' else fit_by_tfp
        num_steps = 1 if mode == 'compile' else fit_steps
        return Prepared(fit(flows.make(name, size), size, num_steps, jit=mode != 'graph'))
    function, arguments = make_work(name, size, 'sample' if name == 'own_sample' else work)
    if mode == 'eager':
        return Prepared(lambda: to_host(function(*arguments)))

    def compiled() -> Any:
        return tf.function(function, jit_compile=mode != 'graph', autograph=False)

    if mode == 'compile':
        return Prepared(lambda: to_host(compiled()(*arguments)))
    of_graph = compiled()
    return Prepared(lambda: to_host(of_graph(*arguments)), count_nodes(of_graph.get_concrete_function(*arguments)))


def to_host(results: Any) -> np.ndarray:
    """Returns the first result, which is small, once a device has computed it."""
    return np.asarray(tf.nest.flatten(results)[0])


def count_nodes(function: Any) -> int:
    """Returns the size of a graph, with all functions that it calls."""
    definition = function.graph.as_graph_def()
    return len(definition.node) + sum(len(inner.node_def) for inner in definition.library.function)


def log_normal(z: tf.Tensor) -> tf.Tensor:
    """Returns the log-density of a standard normal, the target of every loss, up to a constant."""
    return -0.5 * tf.reduce_sum(tf.square(z), axis=-1)


def make_work(name: str, size: Size, work: str) -> tuple[Callable[..., Any], list[tf.Tensor]]:
    """Returns a function, the first of whose results is log q or the loss, and its arguments."""
    model = flows.make(name, size)
    arrays, y, sample_shape = size.inputs()
    if name == 'repeated':
        arrays, sample_shape = [np.repeat(array, size.samples, axis=0) for array in arrays], ()
    inputs, points = [tf.constant(array) for array in arrays], [tf.constant(y)] if 'log_prob' in work else []

    def forward(*arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        q = model(*arguments[: len(inputs)])
        if points:
            y = tf.identity(arguments[-1])  # which no cache knows
            return q.log_prob(y), y
        z, log_q = q.experimental_sample_and_log_prob(sample_shape)
        return log_q, z

    def gradient(*arguments: tf.Tensor) -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            log_q, z = forward(*arguments)
            loss = tf.reduce_mean(log_q - log_normal(z))
        return loss, tape.gradient(loss, (model.trainable_variables, arguments))

    if work in ('sample', 'log_prob'):
        return forward, inputs + points
    if work.endswith('gradient'):
        return gradient, inputs + points
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(model.trainable_variables)

    def update(*arguments: tf.Tensor) -> tuple[tf.Tensor, Any]:
        loss, (of_variables, of_inputs) = gradient(*arguments)
        optimizer.apply(of_variables, model.trainable_variables)
        return loss, of_inputs

    return update, inputs


def fit_by_tfp(model: Any, size: Size, steps: int, jit: bool) -> Step:
    """Returns a call of `tfp.vi.fit_surrogate_posterior`, which compiles each time."""
    variables = model.trainable_variables
    settings = {'sample_size': size.batch, 'trainable_variables': variables, 'jit_compile': jit}

    def fit(optimizer: Any) -> tf.Tensor:
        return tfp.vi.fit_surrogate_posterior(log_normal, model(), optimizer, steps, **settings)

    def step() -> np.ndarray:
        optimizer = keras.optimizers.Adam(LEARNING_RATE)
        optimizer.build(variables)
        return np.asarray(fit(optimizer) if jit else tf.function(fit, autograph=False)(optimizer))

    return step


def fit_by_hand(model: Any, size: Size, steps: int, jit: bool) -> Step:
    """Returns the shortest fit that TensorFlow can do: one loop, with Adam written out."""
    variables = model.trainable_variables
    moments = [[tf.Variable(tf.zeros_like(variable)) for variable in variables] for _ in range(2)]

    def update(i: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            z, log_q = model().experimental_sample_and_log_prob(size.batch)
            loss = tf.reduce_mean(log_q - log_normal(z))
        t = tf.cast(i + 1, tf.float32)
        rate = LEARNING_RATE * tf.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        for gradient, variable, first, second in zip(tape.gradient(loss, variables), variables, *moments, strict=True):
            first.assign_add(0.1 * (gradient - first))
            second.assign_add(0.001 * (tf.square(gradient) - second))
            variable.assign_sub(rate * first / (tf.sqrt(second) + 1e-7))
        return i + 1, loss

    def loop() -> Any:
        return tf.while_loop(lambda i, _: i < steps, update, [0, 0.0])[1]

    def step() -> np.ndarray:
        return np.asarray(tf.function(loop, jit_compile=jit, autograph=False)())

    return step
