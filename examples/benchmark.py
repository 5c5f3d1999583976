"""How fast is the flow? Ours beside TFP's inverse autoregressive flow and beside plain dense layers, in one process.

`python benchmark.py` times chains of gated steps with a context against `tfb.Invert(tfb.MaskedAutoregressiveFlow)` of
the same sizes, and against dense layers of these shapes, which no masked dense network can beat without skipping zeros.
All take turns, so that whatever else the machine does falls on all alike: read the ratios, not the milliseconds. For
each, the better of graph and XLA counts. Prints a table, and writes `results.json` and a plot.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import _common
import matplotlib
import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tqdm
from absl import app, flags

import tfp_iaf

matplotlib.use('Agg')
tfb, tfd = tfp.bijectors, tfp.distributions

# D, H (twice), T, batch
SIZES = ('32x320x4x100', '32x320x4x6400', '32x1920x2x100', '256x1024x2x100', '784x1568x1x100')
QUICK_SIZES = ('8x32x2x16',)
CONTEXT_SIZE = 32
WORKS = {
    'sample': 'sample and log q',
    'sample_gradient': 'sample and log q, gradient',
    'log_prob': 'log q of a new point',
    'log_prob_gradient': 'log q of a new point, gradient',
}
COLOURS = {'tfp_iaf': '#D55E00', 'tfp_iaf, fixed point': '#E69F00', 'TFP': '#0072B2', 'dense': '#777777'}

Distribution = Any
Work = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a chain: D entries, two hidden layers of H units, T steps, B rows."""

    event: int
    hidden: int
    flows: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> 'Size':
        """Reads `32x320x4x100`."""
        return cls(*map(int, text.split('x')))

    def __str__(self) -> str:
        return f'D = {self.event}, H = {self.hidden}, T = {self.flows}, batch {self.batch}'


class Ours(tf.Module):
    """`IAFPosterior`."""

    def __init__(self, size: Size, inverse: str = 'auto') -> None:
        super().__init__()
        self.flow = tfp_iaf.IAFPosterior(
            size.event, size.flows, (size.hidden, size.hidden), context_size=CONTEXT_SIZE, inverse=inverse, seed=0
        )

    def __call__(self, loc: tf.Tensor, scale: tf.Tensor, context: tf.Tensor) -> Distribution:
        """Returns the distribution."""
        return self.flow(loc, scale, context)


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
                conditional_event_shape=[CONTEXT_SIZE],
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
        self.contexts = [kernel(CONTEXT_SIZE, size.hidden) for _ in range(size.flows)]

    def sample_and_log_prob(self, loc: tf.Tensor, scale: tf.Tensor, context: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what a flow's sample and log-density would be, were the layers masked."""
        base = tfd.Independent(tfd.Normal(loc, scale), 1)
        z, log_q = base.experimental_sample_and_log_prob()
        for ((w1, b1), (w2, b2), (w3, b3)), u in zip(self.layers, self.contexts, strict=True):
            hidden = tf.nn.elu(z @ w1 + context @ u + b1)
            hidden = tf.nn.elu(hidden @ w2 + b2)
            m, s = tf.split(hidden @ w3 + b3, 2, axis=-1)
            z = tf.sigmoid(s) * z + tf.sigmoid(-s) * m
            log_q -= tf.reduce_sum(tf.math.log_sigmoid(s), axis=-1)
        return z, log_q


IMPLEMENTATIONS: dict[str, Callable[[Size], tf.Module]] = {
    'tfp_iaf': Ours,
    'tfp_iaf, fixed point': functools.partial(Ours, inverse='fixed_point'),
    'TFP': Tfp,
    'dense': Dense,
}


# What an implementation leaves out: layers without masks are no flow, and the two inverses have one forward direction.
OMITTED = {'dense': ('log_prob', 'log_prob_gradient'), 'tfp_iaf, fixed point': ('sample', 'sample_gradient')}


def make_work(module: tf.Module, size: Size, work: str) -> Work:
    """Returns a function of no arguments that does the work once."""
    rng = np.random.default_rng(0)
    context = tf.constant(rng.standard_normal([size.batch, CONTEXT_SIZE]), tf.float32)
    loc, scale = tf.zeros([size.batch, size.event]), tf.ones([size.batch, size.event])
    point = tf.constant(rng.standard_normal([size.batch, size.event]), tf.float32)

    def sample() -> tuple[tf.Tensor, tf.Tensor]:
        if isinstance(module, Dense):
            return module.sample_and_log_prob(loc, scale, context)
        return module(loc, scale, context).experimental_sample_and_log_prob()

    def log_prob() -> tuple[tf.Tensor, tf.Tensor]:
        y = tf.identity(point)
        return y, module(loc, scale, context).log_prob(y)

    forward = sample if work.startswith('sample') else log_prob

    def gradient() -> Any:
        with tf.GradientTape() as tape:
            z, log_q = forward()
            loss = tf.reduce_mean(log_q + 0.5 * tf.reduce_sum(tf.square(z), axis=-1))
        return tape.gradient(loss, module.trainable_variables)

    return gradient if work.endswith('gradient') else forward


def seconds_of(work: Work, at_least: float) -> float:
    """Returns the mean time of as many calls as take `at_least` seconds."""
    start, calls = time.perf_counter(), 0
    while True:
        tf.nest.map_structure(lambda tensor: tensor.device, work())
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= at_least:
            return elapsed / calls


def count_nodes(function: Any) -> int:
    """Returns the size of a function's graph, with all that it calls."""
    graph = function.get_concrete_function().graph.as_graph_def()
    return len(graph.node) + sum(len(inner.node_def) for inner in graph.library.function)


def measure(
    size: Size, names: Sequence[str], works: Sequence[str], rounds: int, at_least: float
) -> list[dict[str, Any]]:
    """Times every work in every way; a round does each once, and the median over the rounds counts."""
    candidates: list[tuple[dict[str, Any], Work]] = []
    progress = tqdm.tqdm(desc=f'{size}: compiling', unit='function', leave=False, dynamic_ncols=True)
    for name in names:
        module = IMPLEMENTATIONS[name](size)
        for work in [work for work in works if work not in OMITTED.get(name, ())]:
            function = make_work(module, size, work)
            for mode in ('graph', 'xla'):
                compiled = tf.function(function, jit_compile=mode == 'xla', autograph=False)
                start = time.perf_counter()
                compiled()
                row = {**dataclasses.asdict(size), 'implementation': name, 'work': work, 'mode': mode}
                row |= {'first_call_s': time.perf_counter() - start, 'nodes': count_nodes(compiled)}
                candidates.append((row, compiled))
                progress.update()
    progress.close()
    times: list[list[float]] = [[] for _ in candidates]
    for _ in tqdm.trange(rounds, desc=f'{size}: rounds', leave=False, dynamic_ncols=True):
        for collected, (_, function) in zip(times, candidates, strict=True):
            collected.append(seconds_of(function, at_least))
    return [
        {
            **row,
            'ms': 1e3 * float(np.median(collected)),
            'spread': float(np.subtract(*np.percentile(collected, [75, 25])) / np.median(collected)),
        }
        for (row, _), collected in zip(candidates, times, strict=True)
    ]


def best(rows: Sequence[dict[str, Any]], size: Size, implementation: str, work: str) -> float | None:
    """Returns the milliseconds of the better of graph and XLA."""
    key = {**dataclasses.asdict(size), 'implementation': implementation, 'work': work}
    return min((row['ms'] for row in rows if key.items() <= row.items()), default=None)


def ratios(rows: Sequence[dict[str, Any]], sizes: Sequence[Size], works: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what the flow costs against its own forward pass, against TFP and against the dense layers."""
    table = []
    for size in sizes:
        for work in works:
            ours = best(rows, size, 'tfp_iaf', work)
            others = {
                'own_forward': best(rows, size, 'tfp_iaf', 'sample'),
                'TFP': best(rows, size, 'TFP', work),
                'dense': best(rows, size, 'dense', work),
                'fixed_point': best(rows, size, 'tfp_iaf, fixed point', work),
            }
            relative = {f'per_{name}': ours / other if ours and other else None for name, other in others.items()}
            key = {**dataclasses.asdict(size), 'implementation': 'tfp_iaf', 'work': work}
            graph = {row['mode']: row for row in rows if key.items() <= row.items()}
            first = {f'{mode}_first_call_s': row['first_call_s'] for mode, row in graph.items()}
            nodes = graph['graph']['nodes']
            table.append({**dataclasses.asdict(size), 'work': work, 'ms': ours, **relative, **first, 'nodes': nodes})
    return table


def report(table: Sequence[dict[str, Any]]) -> str:
    """Writes the ratios as a table."""

    def cell(value: float | None, digits: int = 2) -> str:
        return '' if value is None else f'{value:.{digits}f}'

    header = [
        'size',
        'work',
        'ms',
        '/ own forward',
        '/ fixed point',
        '/ dense',
        '/ TFP',
        'TFP takes times',
        'nodes',
        'XLA compiles in',
    ]
    lines = []
    for row in table:
        size = Size(row['event'], row['hidden'], row['flows'], row['batch'])
        faster = None if row['per_TFP'] is None else 1 / row['per_TFP']
        figures = [row[key] for key in ('ms', 'per_own_forward', 'per_fixed_point', 'per_dense', 'per_TFP')]
        compiling = [str(row['nodes']), f'{row["xla_first_call_s"]:.1f} s']
        lines.append([str(size), WORKS[row['work']], *map(cell, figures), cell(faster, 1), *compiling])
    return _common.format_table(header, lines)


def plot(rows: Sequence[dict[str, Any]], sizes: Sequence[Size], works: Sequence[str], path: pathlib.Path) -> None:
    """Draws the milliseconds of every work, on a logarithmic axis, for the better of graph and XLA."""
    figure, axes = plt.subplots(1, len(works), figsize=(4.2 * len(works), 4), sharey=True, squeeze=False)
    for axis, work in zip(axes[0], works, strict=True):
        for offset, (name, colour) in enumerate(COLOURS.items()):
            times = [best(rows, size, name, work) for size in sizes]
            places = [i + 0.21 * (offset - 1.5) for i, value in enumerate(times) if value]
            axis.bar(places, [value for value in times if value], width=0.2, color=colour)
        axis.set(title=WORKS[work], yscale='log')
        labels = [f'{size.event}, {size.hidden},\n{size.flows}, {size.batch}' for size in sizes]
        axis.set_xticks(range(len(sizes)), labels, fontsize=7)
        axis.set_xlabel('D, H, T, batch')
    axes[0, 0].set_ylabel('ms')
    # Patches, not the bars: not everyone does every work.
    handles = [matplotlib.patches.Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    axes[0, 0].legend(handles=handles, frameon=False)
    figure.tight_layout()
    with _common.atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format='png')
    plt.close(figure)


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_list('sizes', list(SIZES), 'Sizes to time, each as DxHxTxbatch.')
    flags.DEFINE_list(
        'works', list(WORKS)[:3], f'What to time: of {list(WORKS)}. The last keeps D passes of TFP in memory.'
    )
    flags.DEFINE_list('implementations', list(IMPLEMENTATIONS), 'What to time beside tfp_iaf.')
    flags.DEFINE_integer('rounds', 7, 'Rounds, of which the median counts.', lower_bound=1)
    flags.DEFINE_float('seconds', 0.3, 'Least time of a measurement in a round.', lower_bound=0.0)
    flags.DEFINE_string('output_dir', 'results/benchmark', 'Where results and the plot are written.')
    flags.DEFINE_bool('quick', False, f'A try of half a minute, of sizes {QUICK_SIZES}, where not given.')
    flags.register_validator('works', lambda works: set(works) <= set(WORKS), f'expected some of {list(WORKS)}')


def main(argv: Sequence[str]) -> None:
    """Measures, and writes what came out."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    options = flags.FLAGS
    for name, value in {'sizes': list(QUICK_SIZES), 'rounds': 2, 'seconds': 0.02}.items() if options.quick else ():
        options.set_default(name, value)
    sizes, works, output_dir = list(map(Size.parse, options.sizes)), options.works, pathlib.Path(options.output_dir)
    names = [name for name in IMPLEMENTATIONS if name in ('tfp_iaf', *options.implementations)]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += measure(size, names, works, options.rounds, options.seconds)
        table = ratios(rows, sizes[: sizes.index(size) + 1], works)
        record = {
            'devices': [device.name for device in tf.config.list_physical_devices()],
            'cores': os.cpu_count(),
            'flags': {flag.name: flag.value for flag in options.get_key_flags_for_module(sys.argv[0])},
            'times': rows,
            'ratios': table,
        }
        # After each size, so that what was measured is there if the rest is not waited for.
        _common.write_json(output_dir / 'results.json', record)
    print(report(table))
    plot(rows, sizes, works, output_dir / 'times.png')
    print(f'\nWrote results.json and times.png to {output_dir}.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
