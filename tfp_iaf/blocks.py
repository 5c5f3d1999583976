"""The inverse of a step with a `MaskedAutoregressiveNetwork`, one block of entries after the other.

Kernels are block triangular (see `kernels`). What the second half of the entries needs of the first half is one product
with the corner of each kernel, and each half is solved in the same way. Only the small squares on the diagonals are
swept until they stand still. All products together are those of about one network pass. The transposed system of the
gradient has the same structure, from the last block to the first. This is Eq. (18), (19) of the mathematics page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfp_iaf.checks import check_batches
from tfp_iaf.inversion import first_order_only, largest, nan_unless_solved, refuse_forward_mode, sizes
from tfp_iaf.kernels import Block, Triangle
from tfp_iaf.networks import MaskedAutoregressiveNetwork
from tfp_iaf.passes import Pass
from tfp_iaf.transforms import Transform

__all__ = ['blockwise']

Gradient = Callable[..., tuple[tf.Tensor, ...]]

# Measured for 32 to 3072 entries: fewer blocks sweep larger squares, more cost overhead and time to compile.
_MOST_BLOCKS = 8
_SMALLEST_BLOCK = 8


def blockwise(
    network: MaskedAutoregressiveNetwork,
    transform: Transform,
    y: tf.Tensor,
    context: tf.Tensor | None = None,
    num_blocks: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Inverts a step exactly, at about the arithmetic of one network pass.

    $$x_b = t^{-1}(y_b;\ \mathrm{params}_b(x_{<b}, x_b)) \quad \text{for each block } b$$

    Within a block, sweep k makes the first k entries exact, so that as many sweeps as the block has entries suffice;
    near the identity a few do.

    Args:
        network: The network of the step.
        transform: What each entry goes through.
        y: `[..., D]`.
        context: `[..., C]`, or `None`.
        num_blocks: In how many blocks, a power of two; by default 8, or as many as leave 8 entries to a block.

    Returns:
        x: `[..., D]`, the leading shapes of `y` and `context` broadcast. An event is NaN as a whole if an entry of it
            leaves the range of the dtype, or if rounding keeps the transform from taking it back to `y`.
        log_det: `[..., D]`, the log-derivatives of the step at x, from the same evaluations.

    Gradients are those of the implicit function theorem, with the transposed system solved in the same way; memory is
    that of one network pass. A second derivative raises an error.

    Cost: the arithmetic of one pass without its masks, and of the sweeps, each of which is an eighth of that. A
    gradient costs as much again, and the products that the gradient of a network pass has.

    >>> from tfp_iaf import transforms
    >>> network = MaskedAutoregressiveNetwork(20, hidden_units=(32,), seed=0)
    >>> x = tf.random.normal([5, 20])
    >>> y, log_det = transforms.Gated().forward(x, network(x))
    >>> inverse, log_det_of_inverse = blockwise(network, transforms.Gated(), y)
    >>> bool(tf.reduce_all(tf.abs(inverse - x) < 1e-4))
    True
    """
    first = network.offset(context)
    y = network.ranked(network.checked_event('y', y), axis=-1)
    check_batches(first.shape, 'y', y.shape)
    lead = tf.broadcast_dynamic_shape(tf.shape(y)[:-1], tf.shape(first)[:-1])
    static_lead = tf.broadcast_static_shape(y.shape[:-1], first.shape[:-1])

    def flat(value: tf.Tensor, size: int) -> tf.Tensor:
        return tf.reshape(tf.broadcast_to(value, tf.concat([lead, [size]], axis=0)), [-1, size])

    def restored(value: tf.Tensor) -> tf.Tensor:
        value = tf.reshape(value, tf.concat([lead, [network.event_size]], axis=0))
        return network.unranked(tf.ensure_shape(value, static_lead.concatenate([network.event_size])), axis=-1)

    if num_blocks is None:
        num_blocks = 1
        while num_blocks < _MOST_BLOCKS and network.event_size >= 2 * num_blocks * _SMALLEST_BLOCK:
            num_blocks *= 2
    solve = _differentiable_solver(network, transform, num_blocks)
    # Tensors, not the variables: the gradient of a function with arguments alone needs no search for variables.
    weights = [tf.convert_to_tensor(variable) for variable in (*network.kernels, *network.biases[1:])]
    flat_y = flat(y, network.event_size)
    x, log_det, image = solve(flat_y, flat(first, network.hidden_units[0]), *weights)
    x, log_det = nan_unless_solved(x, log_det, image, flat_y)
    return restored(x), restored(log_det)


def _differentiable_solver(
    network: MaskedAutoregressiveNetwork, transform: Transform, num_blocks: int
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns a function of y, of what the first layer gets beside it, and of the weights, for sorted entries.

    It returns x, the log-derivatives, and the step's value at x, which should be y.
    """
    layouts = network.layouts

    @tf.custom_gradient
    def solve(y: tf.Tensor, first: tf.Tensor, *weights: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Gradient]:
        kernels = [layout.triangle(weight) for layout, weight in zip(layouts, weights, strict=False)]
        offsets = (first, *weights[len(layouts) :])
        x, (*hidden, outputs), _ = _Forward(network, transform, kernels, offsets, y).solve(num_blocks)
        params = _split(outputs, network.params)
        image, log_det = transform.forward(x, params)

        def grad(
            dx: tf.Tensor, dlog_det: tf.Tensor, _: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> tuple[tf.Tensor, ...]:
            if variables:
                raise ValueError(
                    f'transform: got {transform!r}, or an activation, with the variables '
                    f'{[variable.name for variable in variables]}, expected functions of their arguments alone. Let '
                    f"the network make a parameter of what shall be trained, or take inverse='fixed_point'."
                )
            refuse_forward_mode(x)
            backward = _Backward(network, transform, kernels, (x, params, hidden), (dx, dlog_det))
            w, _, cotangents = backward.solve(num_blocks)
            sources = dx, dlog_det, y, first, *weights
            w, *cotangents = (first_order_only(value, *sources) for value in (w, *cotangents[::-1]))
            kernel_gradients = [
                layout.gradient(value, cotangent)
                for layout, value, cotangent in zip(layouts, (x, *backward.values), cotangents, strict=True)
            ]
            bias_gradients = [tf.reduce_sum(cotangent, axis=0) for cotangent in cotangents[1:]]
            return w, cotangents[0], *kernel_gradients, *bias_gradients

        # The image is there for a check, and has no gradient.
        return (x, log_det, image), grad

    return solve


class _Forward(Pass):
    """From x, through the network, to the parameters at which the transform takes x to y."""

    backwards = False

    def __init__(
        self,
        network: MaskedAutoregressiveNetwork,
        transform: Transform,
        kernels: Sequence[Triangle],
        offsets: Sequence[tf.Tensor],
        y: tf.Tensor,
    ) -> None:
        self._network, self._transform, self._y = network, transform, y
        self.kernels, self.offsets, self.scale, self.sizes = kernels, offsets, largest(y), sizes(y)

    def start(self, block: Block) -> tf.Tensor:
        return self._y[:, block.runs[0]]

    def features(self, block: Block, unknowns: tf.Tensor) -> tf.Tensor:
        return unknowns

    def activation(self, layer: int, block: Block, sums: tf.Tensor) -> tf.Tensor:
        return self._network.activation(sums)

    def update(self, block: Block, results: tf.Tensor) -> tf.Tensor:
        return self._transform.inverse(self._y[:, block.runs[0]], _split(results, self._network.params))[0]


class _Backward(Pass):
    """From the cotangents of the parameters, back through the network, to those of x.

    The unknowns w solve J^T w = g. They determine the cotangents of the parameters: -w times the derivatives of y, by
    the implicit function theorem, and what reaches the log-det directly.
    """

    backwards = True

    def __init__(
        self,
        network: MaskedAutoregressiveNetwork,
        transform: Transform,
        kernels: Sequence[Triangle],
        solution: tuple[tf.Tensor, tf.Tensor, Sequence[tf.Tensor]],
        cotangents: tuple[tf.Tensor, tf.Tensor],
    ) -> None:
        self.kernels = kernels[::-1]
        x, params, sums = solution
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, params, *sums])
            y, log_det = transform.forward(x, params)
            self.values = [network.activation(value) for value in sums]
        dx, self._dlog_det = cotangents[0], cotangents[1][..., tf.newaxis]
        self._derivatives = [tape.gradient(value, sum_) for value, sum_ in zip(self.values, sums, strict=True)]
        self._y_by_params = tape.gradient(y, params, unconnected_gradients='zero')
        self._log_det_by_params = tape.gradient(log_det, params, unconnected_gradients='zero')
        self._right_side = dx + cotangents[1] * tape.gradient(log_det, x, unconnected_gradients='zero')
        self._slope = tf.exp(log_det)
        self._start = self._right_side / self._slope
        self.scale, self.sizes = largest(self._start), sizes(self._start)
        self.offsets = [tf.zeros([kernel.block.sizes[kernel.layer]], x.dtype) for kernel in self.kernels]

    def start(self, block: Block) -> tf.Tensor:
        return self._start[:, block.runs[0]]

    def features(self, block: Block, unknowns: tf.Tensor) -> tf.Tensor:
        entries = block.runs[0]
        cotangents = self._log_det_by_params[:, entries] * self._dlog_det[:, entries]
        cotangents -= self._y_by_params[:, entries] * unknowns[..., tf.newaxis]
        return tf.reshape(cotangents, [-1, block.sizes[-1]])

    def activation(self, layer: int, block: Block, sums: tf.Tensor) -> tf.Tensor:
        return sums * self._derivatives[-layer][:, block.runs[-1 - layer]]

    def update(self, block: Block, results: tf.Tensor) -> tf.Tensor:
        entries = block.runs[0]
        return (self._right_side[:, entries] + results) / self._slope[:, entries]


def _split(outputs: tf.Tensor, params: int) -> tf.Tensor:
    """Returns the parameters by entry, `[N, D, P]`, from outputs `[N, D * P]`."""
    return tf.reshape(outputs, [-1, outputs.shape[-1] // params, params])
