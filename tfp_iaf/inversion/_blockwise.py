"""The inverse of a step with a masked dense network, one block of entries after the other.

Kernels are block triangular (see `networks._kernels`). For each block of entries, each layer has a strip, which leads
from the blocks before, and a masked square on the diagonal. The strips are multiplied once; only the squares are
iterated until nothing moves. All products together are those of about one network pass. The transposed system of the
gradient has the same structure, from the last block to the first. See Eq. `blockwise`, `implicit-gradient` and
`transposed-system` of the mathematics page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfp_iaf import _compat
from tfp_iaf._devices import runs_on_cpu
from tfp_iaf._numerics import are_in_range
from tfp_iaf._shapes import rows_of
from tfp_iaf.inversion._implicit import first_order_only, guarded, refuse_forward_mode
from tfp_iaf.inversion._iteration import confined, iterated, largest, sizes
from tfp_iaf.networks._base import MaskedLayers
from tfp_iaf.networks._kernels import gather, product, scaled
from tfp_iaf.transforms import Transform

__all__ = ['blockwise']

Gradient = Callable[..., tuple[tf.Tensor, ...]]

# Measured for 32 to 3072 entries: fewer blocks iterate larger squares, more cost overhead and time to compile.
_MOST_BLOCKS = 8
_SMALLEST_BLOCK = 8


def blockwise(
    layers: MaskedLayers, transform: Transform, y: tf.Tensor, num_blocks: int | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    r"""Inverts a step exactly, at about the arithmetic of one network pass.

    $$x_b = t^{-1}(y_b;\ \mathrm{params}_b(x_{<b}, x_b)) \quad \text{for each block } b$$

    Within a block, iteration k makes the first k entries exact, so as many iterations as the block has entries
    suffice; near the identity a few do.

    Args:
        layers: The layers of the network of the step, with its context.
        transform: The elementwise transform.
        y: `[..., D]`.
        num_blocks: In how many blocks. By default, on a CPU, 8, or as many as leave 8 entries to a block; on a GPU,
            where launches and waiting cost more than arithmetic, one.

    Returns:
        x: `[..., D]`, the leading shapes of `y` and the context broadcast.
        log_derivatives: `[..., D]`, those of the step at x, from the same evaluations.
        image: `[..., D]`, the transform's value at x, which is `y` if its inverse is exact. It has no gradient.

    Gradients are those of the implicit function theorem, with the transposed system solved in the same way; memory is
    that of one network pass. A second derivative raises an error. While `tf.vectorized_map` traces, which drops custom
    gradients, blocks have 8 entries and all their iterations are made, and autodiff goes through them.

    Cost: the arithmetic of one pass and of the iterations, each of which is an eighth of that. A gradient costs as much
    again, and the products that the gradient of a network pass has.

    >>> import tfp_iaf
    >>> network = tfp_iaf.MaskedAutoregressiveNetwork(20, hidden_units=(32,), seed=0)
    >>> gated = tfp_iaf.transforms.Gated()
    >>> x = tf.random.normal([5, 20])
    >>> y, log_derivatives = gated.forward(x, network(x))
    >>> inverse, _, image = blockwise(network.masked_layers(), gated, y)
    >>> bool(tf.reduce_all(tf.abs(inverse - x) < 1e-4))
    True
    """
    event_size = layers.order.size
    differentiable = _compat.is_vectorizing()
    if num_blocks is None:
        num_blocks = max(event_size // _SMALLEST_BLOCK, 1)
        if not differentiable:
            num_blocks = min(num_blocks, _MOST_BLOCKS) if runs_on_cpu(y) else 1
    y = gather(y, layers.order, axis=-1)
    first = layers.offsets[0]
    # To a common leading shape, in which all is a list of rows.
    lead = tf.broadcast_dynamic_shape(tf.shape(y)[:-1], tf.shape(first)[:-1])
    static_lead = tf.broadcast_static_shape(y.shape[:-1], first.shape[:-1])

    def rows(value: tf.Tensor, size: int) -> tf.Tensor:
        if value.shape.rank == 2 and static_lead.rank == 1 and value.shape[0] == static_lead[0] is not None:
            return value
        return rows_of(tf.broadcast_to(value, tf.concat([lead, [size]], axis=0)), size)

    def restored(value: tf.Tensor) -> tf.Tensor:
        value = tf.reshape(value, tf.concat([lead, [event_size]], axis=0))
        value = tf.ensure_shape(value, static_lead.concatenate([event_size]))
        return gather(value, np.argsort(layers.order), axis=-1)

    solve = _solver(layers, transform, num_blocks, differentiable)
    arguments = rows(y, event_size), rows(first, layers.weights[0].shape[1]), *layers.weights, *layers.offsets[1:]
    x, log_derivatives, image = solve(*arguments)
    return restored(x), restored(log_derivatives), restored(tf.stop_gradient(image))


def _solver(
    layers: MaskedLayers, transform: Transform, num_blocks: int, differentiable: bool
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns a function of y, of what the first layer gets besides it, of weights and of biases, for sorted entries.

    It returns x, the log-derivatives, and the step's value at x.
    """
    num_layers = len(layers.kernels)

    def solved(y: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        first, weights, biases = tensors[0], tensors[1 : 1 + num_layers], tensors[1 + num_layers :]
        x, sums = _solve(layers, weights, (first, *biases), transform, y, num_blocks, differentiable)
        # What overflowed will be NaN; with zeros in its place, it leaves no NaN in the gradients of other rows.
        in_range = are_in_range(x)
        x, *sums = (tf.where(in_range, value, tf.zeros([], y.dtype)) for value in (x, *sums))
        return in_range, x, _by_entry(sums[-1], layers.params), sums[:-1]

    def evaluated(in_range: tf.Tensor, x: tf.Tensor, params: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, log_derivatives = transform.forward(x, params)
        return tf.where(in_range, image, image.dtype.max), log_derivatives

    if differentiable:

        def solve(y: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            in_range, x, params, _ = solved(y, *tensors)
            image, log_derivatives = evaluated(in_range, x, params)
            return x, log_derivatives, image

        return solve

    @tf.custom_gradient
    def solve_implicitly(y: tf.Tensor, *tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Gradient]:
        in_range, x, params, hidden = solved(y, *tensors)
        image, log_derivatives = evaluated(in_range, x, params)

        def gradient(
            dx: tf.Tensor, dlog_derivatives: tf.Tensor, _: tf.Tensor, variables: Sequence[tf.Variable] = ()
        ) -> tuple[tf.Tensor, ...]:
            if variables:
                raise ValueError(
                    f'transform: got {transform!r}, or an activation, with the variables '
                    f'{[variable.name for variable in variables]}, expected functions of their arguments alone. Make '
                    f"parameters of what is to be trained, or use inverse='fixed_point'."
                )
            refuse_forward_mode(x)
            weights = tensors[1 : 1 + num_layers]
            transposed = _Transposed(layers, weights, transform, (x, params, hidden), (dx, dlog_derivatives))
            w, cotangents = transposed.solve(num_blocks)
            w, *cotangents = (first_order_only(value, dx, dlog_derivatives, y, *tensors) for value in (w, *cotangents))
            of_weights = [
                kernel.whole(tf.matmul(value, scaled(cotangent, scale), transpose_a=True))
                for kernel, value, cotangent, scale in zip(
                    layers.kernels, transposed.values, cotangents, layers.scales, strict=True
                )
            ]
            of_biases = [tf.reduce_sum(cotangent, axis=0) for cotangent in cotangents[1:]]
            return w, cotangents[0], *of_weights, *of_biases

        return (guarded(x), guarded(log_derivatives), guarded(image)), gradient

    return solve_implicitly


def _solve(
    layers: MaskedLayers,
    weights: Sequence[tf.Tensor],
    offsets: Sequence[tf.Tensor],
    transform: Transform,
    y: tf.Tensor,
    num_blocks: int,
    differentiable: bool,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns x and the pre-activations of every layer, by forward substitution."""
    runs = [kernel.runs(num_blocks) for kernel in layers.kernels]
    size, scale = sizes(y), largest(y)
    solution: list[tf.Tensor] = []
    # Of each layer, by blocks: what goes into it, and what comes out.
    inputs: list[list[tf.Tensor]] = [[] for _ in runs]
    outputs: list[list[tf.Tensor]] = [[] for _ in runs]
    for b, entries in enumerate(runs[0][0]):
        across, squares = [], []
        for kernel, weight, scales, offset, known, (rows, columns) in zip(
            layers.kernels, weights, layers.scales, offsets, inputs, runs, strict=True
        ):
            share = offset[..., columns[b]]
            if b:
                share += scaled(product(_joined(known), weight[: rows[b].start, columns[b]]), scales, columns[b])
            across.append(share)
            square = kernel.permitted(weight[rows[b], columns[b]], rows[b], columns[b])
            squares.append(scaled(square, scales, columns[b]))
        target = y[:, entries]

        def update(
            x: tf.Tensor,
            across: Sequence[tf.Tensor] = across,
            squares: Sequence[tf.Tensor] = squares,
            target: tf.Tensor = target,
        ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
            values = x
            sums: list[tf.Tensor] = []
            for layer, (share, square) in enumerate(zip(across, squares, strict=True)):
                if layer:
                    values = layers.activation(sums[-1])
                sums.append(share + product(values, square))
            new = transform.inverse(target, _by_entry(sums[-1], layers.params))[0]
            return tf.ensure_shape(new, target.shape), tuple(sums)

        count = entries.stop - entries.start
        x, sums = iterated(update, target, count, scale, size[:, entries], differentiable, _zeros(target, squares))
        solution.append(x)
        for layer, total in enumerate(sums):
            outputs[layer].append(total)
            inputs[layer].append(layers.activation(sums[layer - 1]) if layer else confined(x, scale))
    return _joined(solution), [_joined(parts) for parts in outputs]


class _Transposed:
    """The system J^T w = g of the gradient, and the cotangents of every layer that its solution determines.

    The cotangents of the parameters are -w times the derivatives of y by them, by the implicit function theorem, and
    what reaches the log-det directly.
    """

    def __init__(
        self,
        layers: MaskedLayers,
        weights: Sequence[tf.Tensor],
        transform: Transform,
        solution: tuple[tf.Tensor, tf.Tensor, Sequence[tf.Tensor]],
        upstream: tuple[tf.Tensor, tf.Tensor],
    ) -> None:
        self._layers, self._weights = layers, weights
        # Tensors of this graph: in the gradient of a loop, a tape would not see one that was captured before it began.
        x, params, sums = tf.nest.map_structure(tf.identity, solution)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, params, *sums])
            y, log_derivatives = transform.forward(x, params)
            activations = [layers.activation(value) for value in sums]
        # What goes into each layer, and the derivatives of the activations.
        self.values = [x, *activations]
        self._slopes_of_units = [tape.gradient(value, total) for value, total in zip(activations, sums, strict=True)]
        dx, dlog_derivatives = upstream
        self._y_by_params = tape.gradient(y, params, unconnected_gradients='zero')
        by_params = tape.gradient(log_derivatives, params, unconnected_gradients='zero')
        self._direct = by_params * dlog_derivatives[..., tf.newaxis]
        by_x = tape.gradient(log_derivatives, x, unconnected_gradients='zero')
        self._right_side = dx + dlog_derivatives * by_x
        self._slope = tf.exp(log_derivatives)

    def solve(self, num_blocks: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns w, and the cotangents of the pre-activations of every layer, from the last block to the first."""
        kernels = self._layers.kernels
        runs = [kernel.runs(num_blocks) for kernel in kernels]
        start = self._right_side / self._slope
        size, scale = sizes(start), largest(start)
        solution: list[tf.Tensor] = []
        cotangents: list[list[tf.Tensor]] = [[] for _ in kernels]
        for b in reversed(range(num_blocks)):
            entries = runs[0][0][b]
            across, squares = [], []
            for kernel, weight, scales, later, (rows, columns) in zip(
                kernels, self._weights, self._layers.scales, cotangents, runs, strict=True
            ):
                end = columns[b].stop
                total = scaled(_joined(later), scales, slice(end, None)) if later else None
                across.append(None if total is None else product(total, weight[rows[b], end:], transposed=True))
                square = kernel.permitted(weight[rows[b], columns[b]], rows[b], columns[b])
                squares.append(scaled(square, scales, columns[b]))

            def update(
                w: tf.Tensor,
                b: int = b,
                entries: slice = entries,
                across: Sequence[tf.Tensor | None] = across,
                squares: Sequence[tf.Tensor] = squares,
            ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
                upstream = self._direct[:, entries] - self._y_by_params[:, entries] * w[..., tf.newaxis]
                totals = [rows_of(upstream, squares[-1].shape[1])]
                for layer in reversed(range(len(kernels))):
                    total = product(totals[0], squares[layer], transposed=True)
                    total = total if across[layer] is None else total + across[layer]
                    if layer:
                        total *= self._slopes_of_units[layer - 1][:, runs[layer][0][b]]
                    totals.insert(0, total)
                return (self._right_side[:, entries] + totals[0]) / self._slope[:, entries], tuple(totals[1:])

            # Units of the lowest degree depend on the unknown that comes out last: their sums take one more.
            count = entries.stop - entries.start + 1
            rest = _zeros(start, squares)
            w, totals = iterated(update, start[:, entries], count, scale, size[:, entries], rest=rest)
            solution.insert(0, w)
            for parts, total in zip(cotangents, totals, strict=True):
                parts.insert(0, total)
        return _joined(solution), [_joined(parts) for parts in cotangents]


def _joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def _zeros(rows: tf.Tensor, squares: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """Returns one value of zero for each row and each unit that comes out of a square, layer by layer."""
    count = rows.shape[0] or tf.shape(rows)[0]
    return tuple(tf.zeros([count, square.shape[1]], rows.dtype) for square in squares)


def _by_entry(outputs: tf.Tensor, params: int) -> tf.Tensor:
    """Returns the parameters by entry, `[N, D, P]`, from outputs `[N, D * P]`."""
    return tf.reshape(outputs, [-1, outputs.shape[-1] // params, params])
