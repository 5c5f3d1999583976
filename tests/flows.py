"""The registry of flows that the property tests run over, and helpers for tests.

A new constructor, transform or network gets an entry in `FLOWS`; every property test then covers it. A test in
`test_conformance` fails without one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tfp_iaf import transforms
from tfp_iaf.bijectors._chain import UncachedChain
from tfp_iaf.networks import _masks
from tfp_iaf.networks._common import MaskedNetwork

tfb = tfp.bijectors
tfd = tfp.distributions


class Step(tf.Module):
    """Owns a network, and makes the step that it drives; `IAFPosterior` does the same for several steps."""

    def __init__(self, network: Callable, transform='gated', inverse: str = 'auto', inverted: bool = False) -> None:
        super().__init__(name='step')
        self.network, self.transform = network, transforms.get(transform)
        self.inverse, self.inverted = inverse, inverted

    @property
    def networks(self) -> tuple[MaskedNetwork, ...]:
        """The masked networks, as of an `IAFPosterior`."""
        return (self.network,) if isinstance(self.network, MaskedNetwork) else ()

    def bijector(self, context: tf.Tensor | None = None) -> tfb.Bijector:
        step = tfp_iaf.InverseAutoregressiveFlow(
            self.network, context=context, transform=self.transform, inverse=self.inverse
        )
        return tfb.Invert(step) if self.inverted else step


class FunctionStep(Step):
    """A step whose network is a plain function, with a variable that the function closes over."""

    def __init__(self, dtype: tf.DType) -> None:
        self.weight = tf.Variable([0.5, -0.7], dtype=dtype)

        def network(x: tf.Tensor) -> tf.Tensor:
            before = tf.cumsum(tf.tanh(x) + 0.3, axis=-1, exclusive=True)
            return tf.stack([self.weight[0] * (before + 0.1), tf.sin(self.weight[1] * (before + 0.2))], axis=-1)

        super().__init__(network, 'affine')


class FreeParameters(tf.Module):
    """Owns the parameters of a flow that takes tensors; `networks` is empty."""

    networks = ()

    def __init__(
        self, bijector: Callable[..., tfb.Bijector], shapes: dict[str, Sequence[int]], dtype: tf.DType, **kwargs
    ):
        super().__init__(name='free_parameters')
        self.make, self.kwargs = bijector, kwargs
        self.parameters = {
            name: tf.Variable(normal(shape, dtype, seed), name=name)
            for seed, (name, shape) in enumerate(shapes.items())
        }

    def bijector(self, context: tf.Tensor | None = None) -> tfb.Bijector:
        return self.make(**self.parameters, **self.kwargs)


@dataclasses.dataclass(frozen=True)
class Shift(transforms.Transform):
    """A transform of a user's own: one parameter per entry, and no change of volume."""

    @property
    def params(self) -> int:
        return 1

    def forward(self, x, params):
        y = x + params[..., 0]
        return y, tf.zeros_like(y)

    def inverse(self, y, params):
        x = y - params[..., 0]
        return x, tf.zeros_like(x)


def sinh_arcsinh(params: tf.Tensor) -> tfb.Bijector:
    """A scalar bijector of three parameters: a location, a skewness, and the weight of the tails."""
    loc, skewness, tailweight = tf.unstack(params, axis=-1)
    return tfb.Shift(loc)(tfb.SinhArcsinh(skewness, tf.exp(0.5 * tf.tanh(tailweight))))


@dataclasses.dataclass(frozen=True)
class Flow:
    """A named flow.

    Args:
        name: Name of the flow, and of its tests.
        make: Makes, in a dtype, the `tf.Module` that owns the variables; its `bijector(context)` is the flow.
        event_size: D.
        context_size: C, or `None`.
        order: For a single step, its entries as they come.
        transform: The name of the function of `reference` that says what the flow must give, if there is one.
        idle: Variables without effect, by name.
        num_pixels: Of a convolutional flow, whose context is a feature map: how many pixels it has.
    """

    name: str
    make: Callable[[tf.DType], tf.Module]
    event_size: int
    context_size: int | None = None
    order: tuple[int, ...] | None = None
    transform: str | None = None
    idle: tuple[str, ...] = ()
    num_pixels: int | None = None

    def build(self, dtype: tf.DType = tf.float64) -> tf.Module:
        """Makes the flow, away from its initialisation, where it is nearly the identity."""
        owner = self.make(dtype)
        perturb(owner)
        return owner

    def events(self, shape: Sequence[int] = (5,), dtype: tf.DType = tf.float64, seed: int = 1) -> tf.Tensor:
        return normal([*shape, self.event_size], dtype, seed)

    def contexts(self, shape: Sequence[int] = (5,), dtype: tf.DType = tf.float64, seed: int = 2) -> tf.Tensor | None:
        return None if self.context_size is None else normal([*shape, self.context_size], dtype, seed)

    def reach_of_context(self) -> np.ndarray:
        """Which outputs (rows) react to which entries of the context: all, or those of pixels not after their own."""
        reach = np.ones([self.event_size, self.context_size], bool)
        if self.num_pixels is None:
            return reach
        of_outputs, of_context = (np.arange(size) // (size // self.num_pixels) for size in reach.shape)
        before = of_context[np.newaxis, :] - of_outputs[:, np.newaxis]
        return before <= 0 if self.order[0] == 0 else before >= 0


def normal(shape: Sequence[int], dtype: tf.DType = tf.float64, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), dtype)


def perturb(module: tf.Module, scale: float = 0.3, seed: int = 3) -> None:
    rng = np.random.default_rng(seed)
    for variable in module.trainable_variables:
        variable.assign_add(tf.cast(scale * rng.standard_normal(variable.shape), variable.dtype))


def masked_kernels(network: MaskedNetwork) -> list[tuple[tf.Variable, np.ndarray]]:
    """The kernel of each layer, `[..., in, out]`, and which of its weights are permitted."""
    kernels = [variable for variable in network.variables if variable.name.startswith('kernel_')]
    return list(zip(kernels, _masks_of(network), strict=True))


def _masks_of(network: MaskedNetwork) -> list[np.ndarray]:
    if isinstance(network, tfp_iaf.MaskedAutoregressiveNetwork):
        size, conditional = network.event_shape.num_elements(), network.context_shape is not None
        layers = _masks.degrees(size, network.hidden_units, network.params, conditional)
        return [_masks.mask(before, after) for before, after in itertools.pairwise(layers)]
    first, *hidden, last = _masks.degrees(network.event_shape[-1], network.filters, network.params, conditional=True)
    reverse = network.order[0] > 0
    layers = [first[::-1], *hidden, last[::-1]] if reverse else [first, *hidden, last]
    size = network.kernel_size
    return [_masks.convolution_mask(before, after, size, reverse) for before, after in itertools.pairwise(layers)]


def permitted(order: Sequence[int], strictly: bool = False) -> np.ndarray:
    """Where, in the order, output i (row) may depend on input j (column)."""
    rank = np.argsort(order)
    return rank[:, None] > rank[None, :] if strictly else rank[:, None] >= rank[None, :]


def assert_all_close(actual, expected, **tolerance) -> None:
    """`np.testing.assert_allclose` for every tensor in a structure."""
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def jacobian(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> np.ndarray:
    """For each row of `x` the derivatives of its outputs (rows) by its inputs (columns)."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = function(x)
    return tape.batch_jacobian(y, x, experimental_use_pfor=False).numpy()


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[tf.Module]:
    """Keeps account of every evaluation of a `MaskedAutoregressiveNetwork`."""
    calls = []
    evaluate = tfp_iaf.MaskedAutoregressiveNetwork.unchecked_call

    def recorded(network, *args, **kwargs):
        calls.append(network)
        return evaluate(network, *args, **kwargs)

    monkeypatch.setattr(tfp_iaf.MaskedAutoregressiveNetwork, 'unchecked_call', recorded)
    return calls


class Counted:
    """A network that counts its evaluations."""

    def __init__(self, network: Callable) -> None:
        self.network, self.calls = network, 0

    def __call__(self, *args: tf.Tensor) -> tf.Tensor:
        self.calls += 1
        return self.network(*args)


def ops_of(function: tf.types.experimental.ConcreteFunction) -> list[str]:
    """The types of all operations in a graph, and in every function that it calls."""
    graph = function.graph.as_graph_def()
    return [node.op for nodes in (graph.node, *(inner.node_def for inner in graph.library.function)) for node in nodes]


def count_ops(function: tf.types.experimental.ConcreteFunction, op_type: str) -> int:
    """Counts the operations of a type in a graph, and in every function that it calls."""
    return ops_of(function).count(op_type)


@contextlib.contextmanager
def raises(error: type[Exception], *parts: str) -> Iterator[None]:
    """Expects an error whose message has all these parts: the argument, what came, what was expected."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f'{missing} not in the message: {message}'


class InBlocks(tfp_iaf.MaskedAutoregressiveNetwork):
    """A network that multiplies its kernels in four blocks, however small they are."""

    def _num_blocks(self, values: tf.Tensor) -> int:
        return 4


class ImageStep(Step):
    """A step on events and contexts of several axes, shown as one on vectors."""

    def bijector(self, context: tf.Tensor | None = None) -> tfb.Bijector:
        shape, size = self.network.event_shape, self.network.event_shape.num_elements()
        if context is not None:
            context = tf.reshape(context, tf.concat([tf.shape(context)[:-1], self.network.context_shape], axis=0))
        # A tfb.Chain would not notice that variables have changed.
        return UncachedChain([tfb.Reshape([size], shape), super().bijector(context), tfb.Reshape(shape, [size])])


def _step(
    name: str,
    event_shape: int | Sequence[int],
    units: Sequence[int],
    transform='gated',
    context_shape: int | Sequence[int] | None = None,
    order: str | Sequence[int] = 'left-to-right',
    *,
    owner: type[Step] = Step,
    network: type[MaskedNetwork] = tfp_iaf.MaskedAutoregressiveNetwork,
    inverse: str = 'auto',
    inverted: bool = False,
    **kwargs,
) -> Flow:
    """A flow of one step; `kwargs` are those of its network."""
    size = int(np.prod(event_shape))
    orders = {'left-to-right': tuple(range(size)), 'right-to-left': tuple(range(size))[::-1]}
    is_dense = issubclass(network, tfp_iaf.MaskedAutoregressiveNetwork)

    def make(dtype: tf.DType) -> Step:
        made = network(event_shape, units, context_shape=context_shape, order=order, seed=7, dtype=dtype, **kwargs)
        return owner(made, transform, inverse, inverted)

    return Flow(
        name,
        make,
        event_size=size,
        context_size=None if context_shape is None else int(np.prod(context_shape)),
        order=orders[order] if isinstance(order, str) else tuple(order),
        transform=transform if is_dense and isinstance(transform, str) and not inverted else None,
        # With one entry nothing comes before it: the first kernel has no weight that is permitted.
        idle=('kernel_0:0',) if size == 1 else (),
        num_pixels=None if is_dense else int(np.prod(event_shape[:2])),
    )


def _parameters(name: str, bijector: Callable[..., tfb.Bijector], **arguments) -> Flow:
    """A flow whose arguments are shapes of variables, and anything else as it is."""
    shapes = {key: value for key, value in arguments.items() if isinstance(value, list)}
    others = {key: value for key, value in arguments.items() if key not in shapes}
    return Flow(name, functools.partial(FreeParameters, bijector, shapes, **others), 3)


def _chain(dtype: tf.DType) -> tfp_iaf.IAFPosterior:
    return tfp_iaf.IAFPosterior(3, 2, (8,), context_shape=2, seed=7, dtype=dtype)


# Less steep than the default, whose inverse loses digits to rounding as the entries multiply.
GENTLE_SPLINE = transforms.RationalQuadraticSpline(num_bins=3, min_bin_size=0.1, min_slope=0.3)

_ALL = (
    # The fewest hidden units that let every output see all that it may, with a context one more.
    _step('gated', 4, (3, 3)),
    _step('right_to_left', 4, (4, 4), 'affine', 2, 'right-to-left'),
    _step('affine', 4, (8, 8), 'affine', order=(2, 0, 3, 1), network=InBlocks),  # some blocks have no units
    _step('gated_context', 5, (9, 7), 'gated', 3, order=(3, 0, 4, 1, 2)),
    _step('one_entry', 1, (4,), 'affine', 2),
    # Kernels that are multiplied in blocks, as large ones are for many rows. The inverse solves the entries in blocks,
    # too.
    _step('blocks', 17, (21,), 'gated', 2, np.random.default_rng(0).permutation(17).tolist(), network=InBlocks),
    # Events and contexts of more axes than one.
    _step('image', [2, 3], (9, 8), 'affine', [2, 2], 'right-to-left', owner=ImageStep),
    # Convolutions, with so few columns that every pixel is within reach of those that come after it.
    _step('convolutional', [2, 2, 2], (5, 4), owner=ImageStep, network=tfp_iaf.MaskedConvolutionalNetwork),
    _step(
        'convolutional_context',
        [2, 2, 2],
        (3,),
        'affine',
        [2, 2, 1],
        'right-to-left',
        owner=ImageStep,
        network=tfp_iaf.MaskedConvolutionalNetwork,
        kernel_size=5,
    ),
    _step('fixed_point', 4, (8,), 'affine', 2, inverse='fixed_point'),
    _step('inverted', 3, (8,), 'gated', 2, inverted=True),
    _step('own_transform', 3, (8,), Shift(), 2, params=1),
    _step('spline', 3, (8,), 'spline', 2, params=23),
    _step('scalar_bijector', 3, (8,), transforms.ScalarBijector(sinh_arcsinh, params=3), 2, params=3),
    Flow('function', FunctionStep, 3, order=(0, 1, 2)),
    Flow('chain', _chain, 3, 2, transform='gated'),
    _parameters('planar', tfp_iaf.PlanarFlow, u=[3], w=[3], b=[]),
    _parameters('radial', tfp_iaf.RadialFlow, center=[3], alpha=[], beta=[]),
    _parameters('sylvester_orthogonal', tfp_iaf.SylvesterFlow, r=[2, 2], r_tilde=[2, 2], b=[2], q=[3, 2]),
    _parameters(
        'sylvester_householder', tfp_iaf.SylvesterFlow, r=[3, 3], r_tilde=[3, 3], b=[3], q=[2, 3], kind='householder'
    ),
    _parameters(
        'sylvester_triangular', tfp_iaf.SylvesterFlow, r=[3, 3], r_tilde=[3, 3], b=[3], kind='triangular', reverse=True
    ),
)
FLOWS = {flow.name: flow for flow in _ALL}
# One flow for each set of operations, to compile; the others are made of the same operations.
KINDS = (
    'blocks',
    'convolutional_context',
    'spline',
    'scalar_bijector',
    'function',
    'planar',
    'radial',
    'sylvester_orthogonal',
    'sylvester_householder',
)


def _each(flows: Sequence[Flow]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize('flow', [pytest.param(flow, id=flow.name) for flow in flows])


each_flow = _each(_ALL)
each_kind = _each([FLOWS[name] for name in KINDS])
each_step = _each([flow for flow in _ALL if flow.order is not None])
each_conditional = _each([flow for flow in _ALL if flow.context_size is not None])
# Those whose variables TFP can find: it cannot look into a function.
_MASKED = [flow for flow in _ALL if flow.make(tf.float32).networks]
each_masked_step = _each([flow for flow in _MASKED if flow.order is not None])
each_with_reference = _each([flow for flow in _ALL if flow.transform is not None])
each_dtype = pytest.mark.parametrize(
    'dtype', [pytest.param(tf.float32, marks=pytest.mark.slow), tf.float64], ids=['float32', 'float64']
)
