"""The schematic figures of the documentation: `python docs/figures.py` writes them to docs/images in half a minute.

What they show is computed, not drawn: masks, degrees and blocks are those of a network, Jacobians are derivatives of
real steps, and the flow that bends a Gaussian into an arch is fitted here. The other figures come from the examples;
docs/figures.md says from which.
"""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Callable, Sequence

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before TensorFlow is imported: its notes on the hardware

import keras
import matplotlib
import matplotlib.colors
import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import tensorflow as tf
import tensorflow_probability as tfp
from absl import app, flags
from matplotlib.figure import Figure

import tfp_iaf
from tfp_iaf import transforms
from tfp_iaf.networks import _masks

matplotlib.use('Agg')

BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#777777'


# The arch: a Gaussian, step by step -----------------------------------------------------------------------------------

RADIUS, RADIUS_SCALE, ANGLE_SCALE = 2.0, 0.25, 0.9


def log_arch(z: tf.Tensor) -> tf.Tensor:
    """Returns the log-density of an arch: Gaussian in radius and in angle, measured from the top.

    Normalised, but for what lies beyond half a turn, 0.05 % of the mass.
    """
    x, y = tf.unstack(z, axis=-1)
    radius, angle = tf.norm(z, axis=-1), tf.atan2(x, y)
    normal = tfp.distributions.Normal
    return (
        normal(RADIUS, RADIUS_SCALE).log_prob(radius) + normal(0.0, ANGLE_SCALE).log_prob(angle) - tf.math.log(radius)
    )


class Surrogate(tf.Module):
    """Affine steps on a Gaussian that is trained with them."""

    def __init__(self, num_flows: int) -> None:
        super().__init__()
        self.flow = tfp_iaf.IAFPosterior(2, num_flows, (64, 64), transform='affine', seed=0)
        self.loc = tf.Variable([0.0, 1.0])
        self.scale = tfp.util.TransformedVariable([1.0, 1.0], tfp.bijectors.Softplus())

    def __call__(self) -> tfp.distributions.TransformedDistribution:
        return self.flow(self.loc, self.scale)


def fit(surrogate: Surrogate, steps: int) -> float:
    """Minimises KL(q || p), and returns it."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps), global_clipnorm=10.0)
    variables = surrogate.trainable_variables
    optimizer.build(variables)

    def kl(count: int) -> tf.Tensor:
        z, log_q = surrogate().experimental_sample_and_log_prob(count)
        return tf.reduce_mean(log_q - log_arch(z))

    @tf.function(jit_compile=True)
    def train() -> None:
        with tf.GradientTape() as tape:
            loss = kl(512)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(steps):
        train()
    return float(kl(100000))


def draw_arch(num_flows: int = 4, steps: int = 4000) -> Figure:
    """The same samples after each step of a flow, and the density that it was fitted to."""
    keras.utils.set_random_seed(0)
    surrogate = Surrogate(num_flows)
    kl = fit(surrogate, steps)
    q = surrogate()
    samples = [q.distribution.sample(5000)]
    for step in reversed(q.bijector.bijectors):  # a Chain applies its last bijector first
        samples.append(step.forward(samples[-1]))
    grid = np.linspace(-4, 4, 200, dtype=np.float32)
    density = np.exp(log_arch(tf.stack(tf.meshgrid(grid, grid), axis=-1)).numpy())
    noise = (samples[0] - surrogate.loc) / surrogate.scale
    # Every sample keeps the colour of the direction in which it lay at first.
    colors = matplotlib.colormaps['hsv'](np.arctan2(noise[:, 1], noise[:, 0]) / (2 * np.pi) + 0.5)
    colors[:, :3] *= 0.85
    figure, axes = plt.subplots(1, num_flows + 2, figsize=(13, 2.3), layout='constrained')
    titles = ['Gaussian', *(f'after step {t}' for t in range(1, num_flows)), f'after step {num_flows}: q', 'target p']
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlim=(-3.4, 3.4), ylim=(-2.7, 3.6), xticks=[], yticks=[], aspect='equal')
        axis.set_title(title, fontsize=11)
    for axis, points in zip(axes, samples, strict=False):
        axis.scatter(*points.numpy().T, s=1.2, c=colors, linewidths=0)
    axes[-2].text(0, -2.4, f'KL {kl:.3f} nats', ha='center', fontsize=10)
    axes[-1].contourf(grid, grid, density, levels=12, cmap='Greys')
    return figure


# Which direction is one pass ------------------------------------------------------------------------------------------


def draw_directions() -> Figure:
    """What has to wait for what: sampling an IAF, and inverting it; a MAF has it the other way round."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout='constrained')
    size = 5

    def nodes(axis: plt.Axes, row: float, name: str, colors: Sequence[str]) -> None:
        for i in range(size):
            axis.add_patch(matplotlib.patches.Circle((i, row), 0.24, color=colors[i], zorder=2))
            axis.text(i, row, f'${name}_{i + 1}$', ha='center', va='center', color='white', fontsize=12, zorder=3)

    def arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float) -> None:
        style = {'arrowstyle': '-|>', 'color': color, 'lw': width, 'shrinkA': 16, 'shrinkB': 16, 'zorder': 1}
        axis.annotate('', end, start, arrowprops=style)

    for axis in axes:
        axis.set(xlim=(-0.6, size - 0.4), ylim=(-0.75, 2.15), aspect='equal')
        axis.axis('off')
    forward, inverse = axes
    forward.set_title('forward: every $x$ is known, one network pass', fontsize=12)
    nodes(forward, 1.6, 'x', [BLUE] * size)
    nodes(forward, 0, 'y', [ORANGE] * size)
    for i in range(size):
        for j in range(i):
            arrow(forward, (j, 1.6), (i, 0), '#c8c8c8', 1)
        arrow(forward, (i, 1.6), (i, 0), 'black', 1.6)
    forward.text(2, -0.6, '$y_i = t(x_i;\\ \\mathrm{params}_i(x_1, \\dots, x_{i-1}))$', ha='center', fontsize=12)

    inverse.set_title('inverse: each $x$ waits for the ones before it', fontsize=12)
    shades = matplotlib.colormaps['Blues'](np.linspace(0.95, 0.45, size))
    nodes(inverse, 1.6, 'x', [matplotlib.colors.to_hex(shade) for shade in shades])
    nodes(inverse, 0, 'y', [ORANGE] * size)
    for i in range(size):
        arrow(inverse, (i, 0), (i, 1.6), 'black', 1.6)
        if i:
            arrow(inverse, (i - 1, 1.6), (i, 1.6), BLUE, 1.6)
        inverse.text(i, 2.02, f'pass {i + 1}', ha='center', va='center', fontsize=9, color=GREY)
    inverse.text(2, -0.6, '$x_i = t^{-1}(y_i;\\ \\mathrm{params}_i(x_1, \\dots, x_{i-1}))$', ha='center', fontsize=12)
    return figure


# Masks, degrees and blocks --------------------------------------------------------------------------------------------


def draw_masks(event_size: int = 8, units: int = 24) -> Figure:
    """The masks of a network with one hidden layer, and how a wide kernel is multiplied."""
    entries, hidden, outputs = _masks.degrees(event_size, [units], params=1, conditional=True)
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 4.4), layout='constrained', gridspec_kw={'width_ratios': [1, 1, 1.35]}
    )
    permitted = matplotlib.colors.ListedColormap(['#f0f0f0', BLUE])
    for axis, before, after, title in (
        (axes[0], entries, hidden, 'from the entries\nto the hidden units'),
        (axes[1], hidden, outputs, 'from the hidden units\nto the outputs'),
    ):
        axis.imshow(_masks.mask(before, after).T, cmap=permitted, aspect='auto', interpolation='nearest')
        axis.set_title(title, fontsize=11)
        axis.set_xlabel('degree of the unit before')
        axis.set_ylabel('degree of the unit after')
        for set_ticks, degrees in ((axis.set_xticks, before), (axis.set_yticks, after)):
            set_ticks([float(np.flatnonzero(degrees == d).mean()) for d in np.unique(degrees)], np.unique(degrees))
    alone = int(np.sum(hidden == 0))
    axes[0].axhspan(-0.5, alone - 0.5, facecolor='none', edgecolor=ORANGE, lw=2.5)
    axes[0].text(
        3.5,
        (alone - 1) / 2,
        'see the context alone',
        ha='center',
        va='center',
        color=ORANGE,
        weight='bold',
        fontsize=10,
    )
    draw_blocks(axes[2], num_blocks=4)
    return figure


def draw_blocks(axis: plt.Axes, num_blocks: int, event_size: int = 32, units: int = 128) -> None:
    """One kernel between hidden layers: what needs no mask, what is masked, and what is skipped."""
    layers = _masks.degrees(event_size, [units, units], params=1, conditional=True)
    _, before, after, _ = _masks.runs(layers, num_blocks)
    kind = np.zeros([units, units])
    for rows, columns in zip(before, after, strict=True):
        kind[: rows.start, columns] = 2
        kind[rows, columns] = 1
    kind[(kind == 1) & _masks.mask(layers[1], layers[2])] = 3
    colors = matplotlib.colors.ListedColormap(['white', '#f3c9a8', GREEN, ORANGE])
    axis.imshow(kind.T, cmap=colors, interpolation='nearest', vmin=0, vmax=3)
    axis.set_title(f'a kernel between hidden layers, in {num_blocks} blocks', fontsize=11)
    axis.set(xticks=[], yticks=[], xlabel='units before, sorted by degree', ylabel='units after, sorted by degree')
    labels = ('skipped', 'square: forbidden', 'strip: no mask', 'square: permitted')
    patches = [
        matplotlib.patches.Patch(facecolor=colors(i), edgecolor=GREY, label=label) for i, label in enumerate(labels)
    ]
    axis.legend(handles=[patches[2], patches[3], patches[1], patches[0]], loc='upper right', fontsize=9)


# Jacobians ------------------------------------------------------------------------------------------------------------


def jacobian(function: Callable[[tf.Tensor], tf.Tensor], size: int) -> np.ndarray:
    """Returns the derivatives of outputs (rows) by inputs (columns), at one point."""
    x = tf.constant(np.random.default_rng(0).standard_normal([1, size]), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.batch_jacobian(y, x)[0].numpy()


def draw_jacobians(size: int = 8) -> Figure:
    """Where the Jacobian of a step is zero, for three orders, and that of two steps in a row."""
    orders = {'left-to-right': 'left to right', 'right-to-left': 'right to left', 'random': 'random order'}
    steps = []
    for order in orders:
        network = tfp_iaf.MaskedAutoregressiveNetwork(size, (64,), order=order, seed=3, dtype=tf.float64)
        for variable in network.variables:  # away from the identity, for all entries to show
            variable.assign_add(0.12 * np.random.default_rng(1).standard_normal(variable.shape))
        steps.append(tfp_iaf.InverseAutoregressiveFlow(network, transform='affine'))
    functions = [*(step.forward for step in steps), lambda x: steps[1].forward(steps[0].forward(x))]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout='constrained')
    for axis, function, title in zip(axes, functions, [*orders.values(), 'first, then second'], strict=True):
        values = jacobian(function, size)
        image = np.ma.masked_equal(values, 0.0)  # exactly: the masks leave no rounding behind
        axis.imshow(image, cmap='RdBu_r', norm=matplotlib.colors.SymLogNorm(0.03, vmin=-2, vmax=2))
        axis.set_title(title, fontsize=11)
        axis.set(xticks=range(size), yticks=range(size), xlabel='input', ylabel='output')
        axis.set_xticklabels(range(1, size + 1))
        axis.set_yticklabels(range(1, size + 1))
        axis.set_facecolor('#eeeeee')
    return figure


# Transforms -----------------------------------------------------------------------------------------------------------


def draw_transforms() -> Figure:
    """Gated, affine and spline: the maps, and their slopes."""
    spline = transforms.RationalQuadraticSpline(num_bins=8, bound=4.0)
    rng = np.random.default_rng(2)
    kinds: list[tuple[str, transforms.Transform, list[np.ndarray]]] = [
        ('gated: slope below 1', transforms.Gated(), [np.array([m, s]) for m, s in ((0, 0), (2, -2), (-3, -3))]),
        ('affine: any slope', transforms.Affine(), [np.array([m, a]) for m, a in ((0, 0), (1, -1), (-1, 0.9))]),
        ('spline: bends, in an interval', spline, [np.zeros(23), *(0.8 * rng.standard_normal([2, 23]))]),
    ]
    x = tf.constant(np.linspace(-5, 5, 801), tf.float32)
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 5), sharex=True, layout='constrained', gridspec_kw={'height_ratios': [2, 1]}
    )
    for (title, transform, settings), (above, below) in zip(kinds, axes.T, strict=True):
        above.plot(x, x, color='#bbbbbb', lw=1, ls='--')
        below.axhline(1, color='#bbbbbb', lw=1, ls='--')
        for params, color in zip(settings, (GREY, BLUE, ORANGE), strict=True):
            tiled = tf.broadcast_to(tf.constant(params, tf.float32), [801, transform.params])
            y, log_slope = transform.forward(x, tiled)
            above.plot(x, y, color=color, lw=2)
            below.plot(x, np.exp(log_slope), color=color, lw=2)
        above.set(title=title, ylim=(-6, 6))
        below.set(yscale='log', ylim=(0.05, 20), xlabel='x')
    axes[0, 0].set_ylabel('y')
    axes[1, 0].set_ylabel('dy/dx')
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    'arch.png': draw_arch,
    'directions.png': draw_directions,
    'masks.png': draw_masks,
    'jacobians.png': draw_jacobians,
    'transforms.png': draw_transforms,
}


def main(argv: Sequence[str]) -> None:
    """Draws the figures that the flags name."""
    output_dir = pathlib.Path(flags.FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in flags.FLAGS.figures:
        figure = FIGURES[name]()
        # Colours of a palette: a third of the bytes, and no difference to the eye.
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, bbox_inches='tight', format='png')
        plt.close(figure)
        PIL.Image.open(buffer).convert('RGB').quantize(256).save(output_dir / name, optimize=True)
        print(f'Wrote {output_dir / name}.')


if __name__ == '__main__':
    flags.DEFINE_list('figures', list(FIGURES), 'Which to draw.')
    flags.DEFINE_string('output_dir', str(pathlib.Path(__file__).parent / 'images'), 'Where figures are written.')
    app.run(main)
