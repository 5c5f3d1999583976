"""What TensorFlow and TFP expect of a module, asked of every kind of module that the package makes.

A new kind gets an entry in `MODULES`. What holds for flows alone is in `test_properties`.
"""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import absltest
from tensorflow_probability.python.internal import test_util

import tfp_iaf
from tests.flows import FLOWS, GENTLE_SPLINE, KINDS, Flow, normal, perturb, sinh_arcsinh, tfb, tfd
from tfp_iaf import transforms

SEED = (1, 2)  # a stateless seed, which gives the same sample every time


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


# The networks


def _network(name, **kwargs):
    def make(dtype):
        return tfp_iaf.MaskedAutoregressiveNetwork(3, (8, 8), seed=0, dtype=dtype, **kwargs)

    sizes = (3, kwargs['context_shape']) if 'context_shape' in kwargs else (3,)
    return Module(
        name,
        make,
        lambda network, *inputs: network(*inputs),
        sizes,
        lambda network, *inputs: [tfp_iaf.InverseAutoregressiveFlow(network)],
    )


# The flows of the registry


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


# The distributions


def _evaluated(q, noise):
    """What the bijector makes of the noise, its density, and its density as that of a point from elsewhere."""
    z = q.bijector.forward(noise)  # not a sample: XLA draws other numbers
    return z, q.log_prob(z), q.log_prob(tf.nest.map_structure(tf.identity, z))


def _posterior(name, transform, num_flows=1):
    def make(dtype):
        return tfp_iaf.IAFPosterior(3, num_flows, (8,), context_shape=2, transform=transform, seed=0, dtype=dtype)

    def distribution(posterior, loc, scale_diag, context):
        return posterior(loc, tf.math.softplus(scale_diag), context)

    def views(posterior, noise, *inputs):
        q = distribution(posterior, *inputs)
        return [q, q.bijector]

    return Module(
        name,
        make,
        lambda posterior, noise, *inputs: _evaluated(distribution(posterior, *inputs), noise),
        (3, 3, 3, 2),
        views,
    )


def _surrogate(name, **kwargs):
    def make(dtype):
        return tfp_iaf.build_iaf_surrogate_posterior(
            {'location': 2, 'scale': []},
            {'location': None, 'scale': tfb.Softplus()},
            hidden_units=(8,),
            seed=0,
            dtype=dtype,
            **kwargs,
        )

    return Module(name, make, _evaluated, (3,), lambda q, noise: [q.bijector])


POSTERIORS = (
    _posterior('posterior_gated', 'gated', num_flows=2),
    _posterior('posterior_affine', 'affine'),
    _posterior('posterior_spline', GENTLE_SPLINE),
    _posterior('posterior_scalar_bijector', transforms.ScalarBijector(sinh_arcsinh, params=3)),
)
DISTRIBUTIONS = (*POSTERIORS, _surrogate('surrogate'))
_OTHERS = (_network('network'), _network('network_context', context_shape=2, order='random'), *DISTRIBUTIONS)
MODULES = (*(_flow(flow) for flow in FLOWS.values()), *_OTHERS)


def _each(modules):
    return pytest.mark.parametrize('module', [pytest.param(module, id=module.name) for module in modules])


each_module = _each(MODULES)
each_tracked_module = _each([module for module in MODULES if module.tracked])
# To compile takes seconds, so of flows one of each kind, and of distributions the one that holds all the others.
each_compiled = _each([module for module in MODULES if module.name in (*KINDS, 'network_context', 'surrogate')])
each_representative = _each(
    [module for module in MODULES if module.name in ('function', 'blocks', 'inverted', 'surrogate')]
)


def assert_all_close(actual, expected, **tolerance):
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Variables


@each_tracked_module
def test_variables_are_tracked_by_identity(module):
    owner = module.build()
    holder = tf.Module()
    holder.attribute = [owner]
    expected = {id(v) for v in owner.trainable_variables}
    assert expected
    for view in (holder, *module.views(owner, *module.inputs())):
        assert {id(v) for v in view.trainable_variables} == expected, view


# Eager execution, graphs, XLA


def compiled_equals_eager(module, jit_compile, batches, dtype=tf.float64, tolerance=1e-10):
    """Compares the values and their gradients, with an unknown batch size."""
    owner = module.build(dtype)

    def everything(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            results = module.call(owner, *inputs)
            total = tf.add_n([tf.reduce_sum(tf.sin(value)) for value in tf.nest.flatten(results)])
        return results, tape.gradient(total, [inputs, owner.trainable_variables], unconnected_gradients='zero')

    compiled = tf.function(
        everything, input_signature=module.signature(dtype), jit_compile=jit_compile, autograph=False
    )
    for batch in batches:
        inputs = module.inputs(batch, dtype=dtype)
        assert_all_close(compiled(*inputs), everything(*inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@each_compiled
def test_xla_equals_eager(module):
    compiled_equals_eager(module, jit_compile=True, batches=[4])


@pytest.mark.slow
@each_representative
def test_xla_equals_eager_in_float32(module):
    compiled_equals_eager(module, jit_compile=True, batches=[4], dtype=tf.float32, tolerance=2e-4)


@pytest.mark.slow
@each_representative
@pytest.mark.usefixtures('optimized_graphs')
def test_graph_equals_eager(module):
    """Of the others, the test of the SavedModel compares the values."""
    compiled_equals_eager(module, jit_compile=False, batches=[1, 4])


@_each(_OTHERS)
@pytest.mark.parametrize('dtype', [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_results_have_the_dtype(module, dtype):
    results = module.call(module.build(dtype), *module.inputs(dtype=dtype))
    assert {value.dtype for value in tf.nest.flatten(results)} == {dtype}
    assert all(np.all(np.isfinite(value)) for value in tf.nest.flatten(results))


# Saving


@each_module
def test_checkpoint_brings_every_value_back(module, tmp_path):
    saved, restored = module.build(), module.build(seed=4)
    path = tf.train.Checkpoint(module=saved).write(str(tmp_path / 'checkpoint'))
    tf.train.Checkpoint(module=restored).read(path).assert_consumed()
    expected = module.call(saved, *module.inputs())
    assert_all_close(module.call(restored, *module.inputs()), expected, rtol=0, atol=0)


@pytest.mark.slow
@each_compiled
def test_saved_model_computes_the_same(module, tmp_path):
    holder = tf.Module()
    holder.owner = module.build()
    holder.call = tf.function(lambda *inputs: module.call(holder.owner, *inputs), input_signature=module.signature())
    tf.saved_model.save(holder, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    expected = module.call(holder.owner, *module.inputs())
    assert_all_close(loaded.call(*module.inputs()), expected, rtol=1e-11, atol=1e-11)


# Copying, printing


@each_tracked_module
def test_deepcopy_has_variables_of_its_own(module):
    owner, inputs = module.build(), module.inputs()
    copied, before = copy.deepcopy(owner), module.call(owner, *inputs)
    perturb(owner, seed=5)
    assert_all_close(module.call(copied, *inputs), before, rtol=0, atol=0)
    after = module.call(owner, *inputs)
    assert np.any(tf.nest.flatten(after)[0] != tf.nest.flatten(before)[0])


@_each(_OTHERS)
def test_copy_shares_the_variables(module):
    owner, inputs = module.build(), module.inputs()
    copied = copy.copy(owner)
    assert [id(v) for v in copied.trainable_variables] == [id(v) for v in owner.trainable_variables]
    perturb(owner, seed=5)
    assert_all_close(module.call(copied, *inputs), module.call(owner, *inputs), rtol=0, atol=0)


@each_module
def test_repr_names_the_classes(module):
    owner, inputs = module.build(), module.inputs()
    for made in (owner, *module.views(owner, *inputs)):
        assert type(made).__name__ in repr(made) or made.name in repr(made)


# TFP's own tests


class TestConsistency(absltest.TestCase, test_util.VectorDistributionTestHelpers):
    """Of a sample and its density: the volume of a ball, by importance sampling."""

    def assertAllClose(self, actual, expected, rtol, atol):  # noqa: N802
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)

    @pytest.mark.slow
    def test_samples_agree_with_log_prob(self):
        flags.FLAGS.mark_as_parsed()  # TFP reads a seed from them
        for module in POSTERIORS:
            # Of unit scale, so that no part of the ball is out of reach.
            q, _ = module.views(module.build(), *(tf.ones([size], tf.float64) for size in module.sizes))
            center = tf.reduce_mean(q.sample(1000, seed=SEED), axis=0)
            with self.subTest(module.name):
                self.run_test_sample_consistent_log_prob(
                    lambda tensors: tensors, q, num_samples=200_000, radius=1.0, center=center, rtol=0.06, seed=1
                )
