"""What TensorFlow and TFP expect of a module, asked of every kind of module that the package makes.

A new kind gets an entry in `MODULES`. What holds for flows alone is in `test_properties`.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import FLOWS, KINDS, Flow, assert_all_close, normal, perturb, tfb, tfd
from tfp_iaf import bijectors, distributions, networks, transforms


@dataclasses.dataclass(frozen=True)
class Module:
    """A kind of module.

    Args:
        name: Its name, and that of its tests.
        make: Makes it, in a dtype.
        call: From it and its inputs, what it computes: a structure of tensors.
        sizes: Of the inputs, which are `[batch, size]`.
        views: What else holds its variables, and no others: what is made of it, for given inputs.
        tracked: Whether TensorFlow can find all variables: it cannot look into a function.
    """

    name: str
    make: Callable[[tf.DType], tf.Module]
    call: Callable
    sizes: tuple[int, ...]
    views: Callable
    tracked: bool = True

    def build(self, dtype=tf.float64, seed=3):
        """Makes it, away from its initialisation, where it is nearly the identity."""
        module = self.make(dtype)
        perturb(module, seed=seed)
        return module

    def inputs(self, batch=5, dtype=tf.float64):
        return [normal([batch, size], dtype, seed=1 + i) for i, size in enumerate(self.sizes)]

    def signature(self, dtype=tf.float64):
        return [tf.TensorSpec([None, size], dtype) for size in self.sizes]


def _flow(flow: Flow):
    def call(owner, x, context=None):
        bijector = owner.bijector(context)
        y, y_log_det = bijector.forward(x), bijector.forward_log_det_jacobian(x)
        # A new tensor, which TFP's cache does not know.
        x = tf.identity(x)
        return y, y_log_det, bijector.inverse(x), bijector.inverse_log_det_jacobian(x)

    def views(owner, x, context=None):
        bijector = owner.bijector(context)
        base = tfd.MultivariateNormalDiag(tf.zeros_like(x), tf.ones_like(x))
        return [
            bijector,
            tfb.Invert(bijector),
            tfb.Chain([tfb.Exp(), bijector]),
            tfd.TransformedDistribution(base, bijector),
        ]

    sizes = (flow.event_size,) if flow.context_size is None else (flow.event_size, flow.context_size)
    return Module(flow.name, flow.make, call, sizes, views, tracked=bool(flow.make(tf.float32).networks))


def _network():
    return Module(
        'network',
        lambda dtype: tfp_iaf.MaskedAutoregressiveNetwork(
            3, (8, 8), context_shape=2, order='random', seed=0, dtype=dtype
        ),
        lambda network, x, context: network(x, context),
        (3, 2),
        lambda network, x, context: [tfp_iaf.InverseAutoregressiveFlow(network, context=context)],
    )


def _evaluated(q, noise):
    """What the bijector makes of the noise, its density, and its density as that of a point from elsewhere."""
    z = q.bijector.forward(noise)  # not a sample: XLA draws other numbers
    return z, q.log_prob(z), q.log_prob(tf.nest.map_structure(tf.identity, z))


def _posterior():
    def distribution(posterior, loc, scale_diag, context):
        return posterior(loc, tf.math.softplus(scale_diag), context)

    def views(posterior, noise, *inputs):
        q = distribution(posterior, *inputs)
        return [q, q.bijector]

    return Module(
        'posterior',
        lambda dtype: tfp_iaf.IAFPosterior(3, 2, (8,), context_shape=2, seed=0, dtype=dtype),
        lambda posterior, noise, *inputs: _evaluated(distribution(posterior, *inputs), noise),
        (3, 3, 3, 2),
        views,
    )


def _surrogate():
    def make(dtype):
        bijector = {'location': None, 'scale': tfb.Softplus()}
        return tfp_iaf.build_iaf_surrogate_posterior(
            {'location': 2, 'scale': []}, bijector, hidden_units=(8,), seed=0, dtype=dtype
        )

    return Module('surrogate', make, _evaluated, (3,), lambda q, noise: [q.bijector])


_OTHERS = (_network(), _posterior(), _surrogate())
MODULES = (*(_flow(flow) for flow in FLOWS.values()), *_OTHERS)


def _each(modules):
    return pytest.mark.parametrize('module', [pytest.param(module, id=module.name) for module in modules])


def _named(*names):
    return _each([module for module in MODULES if module.name in names])


each_module = _each(MODULES)
each_tracked_module = _each([module for module in MODULES if module.tracked])
# To compile takes seconds. The surrogate is made of a posterior.
COMPILED = (*KINDS, 'network', 'surrogate')
IN_FLOAT32 = ('blocks', 'surrogate')


@functools.cache
def expected_of(module):
    """What the module computes when it is newly built."""
    return module.call(module.build(), *module.inputs())


def test_every_class_of_the_package_has_an_entry():
    found = set()
    for module in MODULES:
        if module.name in (*COMPILED, 'posterior'):
            owner = module.make(tf.float64)
            parts = [owner, *vars(owner).values(), *module.views(owner, *module.inputs())]
            found |= {type(part) for value in parts for part in (value, *getattr(value, 'networks', ()))}
    public = {
        getattr(folder, name) for folder in (bijectors, distributions, networks, transforms) for name in folder.__all__
    }
    protocols = {networks.Network, transforms.Transform}
    assert {value for value in public if inspect.isclass(value)} - protocols <= found


# Variables


@each_tracked_module
def test_variables_are_tracked_by_identity(module):
    owner = module.build()
    holder = tf.Module()
    holder.attribute = [owner]
    expected = {id(v) for v in owner.trainable_variables}
    assert expected
    for view in (owner, holder, *module.views(owner, *module.inputs())):
        assert {id(v) for v in view.trainable_variables} == {id(v) for v in view.variables} == expected, view


# Eager execution, graphs, XLA


def compiled_equals_eager(module, *, jit_compile, persistent=False, dtype=tf.float64, tolerance=1e-10):
    """Compares the values and their gradients, with an unknown batch size."""
    owner = module.build(dtype)

    def everything(*inputs):
        with tf.GradientTape(persistent) as tape:
            tape.watch(inputs)
            results = module.call(owner, *inputs)
            total = tf.add_n([tf.reduce_sum(tf.sin(value)) for value in tf.nest.flatten(results)])
        return results, tape.gradient(total, [inputs, owner.trainable_variables], unconnected_gradients='zero')

    compiled = tf.function(
        everything, input_signature=module.signature(dtype), jit_compile=jit_compile, autograph=False
    )
    for batch in [4] if jit_compile else [1, 4]:
        inputs = module.inputs(batch, dtype=dtype)
        assert_all_close(compiled(*inputs), everything(*inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@_named(*(name for name in COMPILED if name not in IN_FLOAT32))
def test_xla_equals_eager(module):
    """With a persistent tape TensorFlow records every loop, which XLA refuses without a bound on its passes."""
    compiled_equals_eager(module, jit_compile=True, persistent=True)


@pytest.mark.slow
@_named(*IN_FLOAT32)
def test_xla_equals_eager_in_float32(module):
    compiled_equals_eager(module, jit_compile=True, dtype=tf.float32, tolerance=2e-4)


@pytest.mark.slow
@_named('blocks', 'function', 'chain')
@pytest.mark.usefixtures('optimized_graphs')
def test_graph_equals_eager(module):
    """Of others, the tests of XLA and of the SavedModel compare the values."""
    compiled_equals_eager(module, jit_compile=False)


@_each(_OTHERS)
@pytest.mark.parametrize('dtype', [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_results_have_the_dtype(module, dtype):
    results = module.call(module.build(dtype), *module.inputs(dtype=dtype))
    assert {value.dtype for value in tf.nest.flatten(results)} == {dtype}
    assert all(np.all(np.isfinite(value)) for value in tf.nest.flatten(results))


# Saving


@pytest.mark.slow
@each_module
def test_checkpoint_brings_every_value_back(module, tmp_path):
    saved, restored = module.build(), module.build(seed=4)
    path = tf.train.Checkpoint(module=saved).write(str(tmp_path / 'checkpoint'))
    tf.train.Checkpoint(module=restored).read(path).assert_consumed()
    assert_all_close(module.call(restored, *module.inputs()), expected_of(module), rtol=0, atol=0)


@pytest.mark.slow
@_named(
    'blocks', 'convolutional_context', 'spline', 'function', 'planar', 'sylvester_householder', 'network', 'surrogate'
)
def test_saved_model_computes_the_same(module, tmp_path):
    holder = tf.Module()
    holder.owner = module.build()
    holder.call = tf.function(lambda *inputs: module.call(holder.owner, *inputs), input_signature=module.signature())
    tf.saved_model.save(holder, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert_all_close(loaded.call(*module.inputs()), expected_of(module), rtol=1e-11, atol=1e-11)


# Copying, printing


@pytest.mark.slow
@each_tracked_module
def test_deepcopy_has_variables_of_its_own(module):
    owner = module.build()
    copied = copy.deepcopy(owner)
    perturb(owner, seed=5)
    assert_all_close(module.call(copied, *module.inputs()), expected_of(module), rtol=0, atol=0)


@_each(_OTHERS)
def test_copy_shares_the_variables(module):
    owner, inputs = module.build(), module.inputs()
    copied = copy.copy(owner)
    assert [id(v) for v in copied.trainable_variables] == [id(v) for v in owner.trainable_variables]
    perturb(owner, seed=5)
    assert_all_close(module.call(copied, *inputs), module.call(owner, *inputs), rtol=0, atol=0)


@_named(*COMPILED, 'posterior')
def test_repr_names_the_class_or_the_object(module):
    owner = module.build()
    for made in (owner, *module.views(owner, *module.inputs())):
        assert type(made).__name__ in repr(made) or made.name in repr(made)


# Sampling


@_named('posterior')
def test_samples_agree_with_log_prob(module):
    """The volume of a ball, by importance sampling."""
    # Of unit scale, so that no part of the ball is out of reach.
    q, _ = module.views(module.build(), *(tf.ones([size], tf.float64) for size in module.sizes))
    samples = q.sample(50_000, seed=(1, 2)).numpy()
    is_inside = np.linalg.norm(samples - np.mean(samples, axis=0), axis=-1) < 1
    volumes = np.where(is_inside, np.exp(-q.log_prob(tf.constant(samples))), 0)
    error = np.std(volumes) / np.sqrt(volumes.size)
    assert abs(np.mean(volumes) - 4 / 3 * np.pi) < 4 * error < 0.3
