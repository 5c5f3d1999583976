"""What each mistake is worth of a blog post that found inverse autoregressive flows to do little.

The post (bjlkeng, 2017, "Variational Autoencoders with Inverse Autoregressive Flows") concludes that the flow "didn't
seem to have a huge affect". Its code has six mistakes that bear on the result; `_blog_flow.py` rebuilds its flow with a
switch for each, and says precisely what they are. `python blog_ablation.py` trains VAEs on 8x8 digits with the post's
flow, with the mistakes mended one after the other, until none is left, with `tfp_iaf`'s own layer of the same sizes
(one network a step, with ELU units), and, as the baseline, with a diagonal Gaussian. Then it puts each mistake alone
into the mended flow. It prints two tables, and writes `results.json` and plots; `--quick` is a try of a minute.

Data, encoder, decoder, number of steps and evaluation are those of `vae_digits.py`, for all alike. So are the sizes of
the flow: 4 steps, two hidden layers of 64 units, 64 numbers of context; the post's own are 10 D units and a context of
D. Finished runs are kept: after an interruption the same command goes on where it was.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import _quiet  # noqa: F401
import _blog_flow
import _datasets
import _digits_vae
import _pictures
import _plots
import _records
import _script
import _summary
import keras
import numpy as np
import sklearn
from _blog_flow import MISTAKES
from absl import app, flags
from matplotlib.figure import Figure

# The mistakes that each posterior makes: the rows of the first table, the baseline of all on top.
MENDED: dict[str, tuple[str, ...]] = {
    'diagonal': (),
    'the post': MISTAKES,
    **{f'{"and " if i else ""}{mistake} mended': MISTAKES[i + 1 :] for i, mistake in enumerate(MISTAKES)},
    'tfp_iaf': (),
}
ALONE: dict[str, tuple[str, ...]] = {f'{mistake} alone': (mistake,) for mistake in MISTAKES[:-1]}
# The posterior that makes each mistake alone: with the last one, that is a row of the first table.
MAKES_ALONE = {mistake: f'{mistake} alone' for mistake in MISTAKES[:-1]} | {MISTAKES[-1]: f'and {MISTAKES[-2]} mended'}
ALL_MENDED = f'and {MISTAKES[-1]} mended'
# Whose posteriors are drawn, and their titles.
DRAWN = {'the post': 'the post', ALL_MENDED: 'all mended', 'tfp_iaf': 'tfp_iaf'}


@dataclasses.dataclass(frozen=True)
class Settings(_digits_vae.Settings):
    """All that a run depends on."""

    mistakes: tuple[str, ...] = ()


# Model and training --------------------------------------------------------------------------------------------------


def make_vae(settings: Settings) -> _digits_vae.VAE:
    """Makes a VAE; with a flow as that of the post, or, by `_digits_vae.make_vae`, without one or with `tfp_iaf`'s."""
    if settings.posterior == 'diagonal':
        return _digits_vae.make_vae(settings)
    if settings.posterior == 'tfp_iaf':
        return _digits_vae.make_vae(dataclasses.replace(settings, posterior='IAF'))

    def inputs(hidden: Any) -> list[Any]:
        context = keras.layers.Dense(settings.context_size, 'sigmoid' if 'context' in settings.mistakes else 'elu')
        return [*(keras.layers.Dense(settings.latent_size)(hidden) for _ in range(2)), context(hidden)]

    sampling = _blog_flow.BlogSampling(settings.num_flows, settings.flow_hidden_units, settings.mistakes, settings.seed)
    return _digits_vae.assemble(settings, inputs, sampling, 0 if 'schedule' in settings.mistakes else None)


def train(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains and evaluates one VAE; writes its weights to `directory`, and returns its figures.

    The schedule of all but those that make that mistake: the rate falls from `learning_rate` to zero along a cosine,
    and the KL's weight grows from 0 to 1 over the first sixth of the steps. The post's: the rate stays at
    `learning_rate` and is halved, at most ten times, when the loss on the test images, after every 100 steps, has not
    fallen for 15 times; the KL's weight is 1. (The post's evaluations are an epoch apart, and its rate starts at 0.001;
    it keeps the last weights, as all do here.)
    """
    rate, callbacks = None, []
    if 'schedule' in settings.mistakes:
        rate = settings.learning_rate
        callbacks = [
            keras.callbacks.ReduceLROnPlateau(monitor='val_loss', factor=0.5, patience=15, min_lr=0.001 * rate)
        ]
    vae, figures = _digits_vae.make_and_train(directory, settings, make_vae, rate, callbacks)
    return {**figures, 'final_rate': float(vae.optimizer.learning_rate), 'penalty': float(sum(vae.losses))}


# Tables and plots ----------------------------------------------------------------------------------------------------


def describe(run: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimates = '-ELBO {neg_elbo:.3f}, NLL {nll:.3f}, {ms_per_step:.2f} ms/step, {seconds:.0f} s'.format(**figures)
    return f'{run.posterior:24s} D = {run.latent_size:<2d} seed {run.seed}: {estimates}'


def difference(row: Mapping[str, Any], other: Mapping[str, Any], key: str = 'neg_elbo') -> dict[str, Any]:
    """Returns the statistics of what a row of `_summary.aggregate` has more than another, seed by seed."""
    pairs = zip(row[key]['by_seed'], other[key]['by_seed'], strict=True)
    return _summary.mean_and_error([value - other_value for value, other_value in pairs])


def _signed(estimate: dict[str, Any]) -> str:
    return f'{"+" if estimate["mean"] >= 0 else ""}{_summary.format_estimate(estimate)}'


def by_size(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    """Returns the rows of `_summary.aggregate` by number of dimensions and posterior."""
    sizes: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        sizes.setdefault(row['latent_size'], {})[row['posterior']] = row
    return sizes


def costs_alone(posteriors: Mapping[str, dict[str, Any]], key: str = 'neg_elbo') -> dict[str, dict[str, Any]]:
    """Returns what each mistake alone has more than no mistake at all; nothing, if that was not tried."""
    if any(label not in posteriors for label in MAKES_ALONE.values()):
        return {}
    return {
        mistake: difference(posteriors[label], posteriors[ALL_MENDED], key) for mistake, label in MAKES_ALONE.items()
    }


def report(rows: Sequence[dict[str, Any]], seeds: int) -> str:
    """Writes the aggregated figures as two tables, with notes."""
    mended, alone, notes = [], [], []
    for size, posteriors in by_size(rows).items():
        above = None
        for label in MENDED:
            row = posteriors[label]
            neg_elbo, nll, kl = (_summary.format_estimate(row[key]) for key in ('neg_elbo', 'nll', 'kl_to_posterior'))
            nll, kl = (nll, kl) if size == 2 else (f'<= {nll}', f'>= {kl}')
            less = [_signed(row['less_baseline']['neg_elbo']), _signed(difference(row, above))] if above else ['', '']
            mended.append([f'D = {size}', label, neg_elbo, *less, nll, kl])
            above = row
        costs = [costs_alone(posteriors, key) for key in ('neg_elbo', 'nll')]
        alone += [[f'D = {size}', mistake, *(_signed(cost[mistake]) for cost in costs)] for mistake in costs[0]]
        notes.append(degrees_note(size, seeds))
    header = ['', 'posterior', '-ELBO', 'less diagonal', 'less row above', 'NLL', 'KL(q || p(z|x))']
    lines = [
        '',
        _summary.format_table(header, mended),
        'Nats per test image, mean ± standard error over seeds; differences are taken seed by seed. With D = 2 NLL and',
        'KL are exact, by quadrature; with more they are bounds, by importance sampling. After "the post", each row',
        "makes one mistake less than the one above. No figure has the post's L2 penalty in it.\n",
    ]
    if alone:
        table = _summary.format_table(['', 'this mistake alone', '-ELBO', 'NLL'], alone)
        lines += [table, f'What each has more than "{ALL_MENDED}", which makes none; otherwise as above.\n']
    return '\n'.join([*lines, *notes])


def degrees_note(size: int, seeds: int) -> str:
    """Writes what the post's degrees come to, in all networks of all seeds."""
    settings = Settings('the post', size, 0)
    useful, missing = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for _ in range(2 * settings.num_flows):
            layers = _blog_flow.degrees(size, settings.flow_hidden_units, MISTAKES, rng)
            useful.append(_blog_flow.useful_units(layers))
            missing.append(_blog_flow.pairs_without_path(layers))
    return (
        f"D = {size}, the post's degrees: {np.mean(useful):.1f} of {settings.flow_hidden_units[-1]} units in the last "
        f'hidden layer reach an output, and\n{np.mean(missing):.1f} of {size * (size - 1) // 2} pairs of an entry and '
        f'an output after it have no path through the hidden layers (means over networks).'
    )


def plot(results: dict[Settings, dict[str, Any]], rows: Sequence[dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes the plots: the differences, and, with two dimensions, posteriors of the first seed's models."""
    plot_differences(rows, output_dir / 'ablation.png')
    vaes = {
        DRAWN[run.posterior]: _digits_vae.trained_parts(output_dir / 'runs', run, make_vae)
        for run in results
        if run.posterior in DRAWN and (run.latent_size, run.seed) == (2, 0)
    }
    if vaes:
        _pictures.plot_posteriors(vaes, _datasets.load_digits().test, output_dir / 'posteriors.png')


def plot_differences(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws a column for each number of dimensions: the rows of the first table, and below each mistake alone."""
    sizes = by_size(rows)
    parts = [
        {
            '-ELBO less that of the diagonal Gaussian (nats)': {
                label: posteriors[label]['less_baseline']['neg_elbo'] for label in list(MENDED)[1:]
            },
            '-ELBO more than with no mistake (nats)': {
                f'{mistake} alone': cost for mistake, cost in costs_alone(posteriors).items()
            },
        }
        for posteriors in sizes.values()
    ]
    parts = [{label: lines for label, lines in part.items() if lines} for part in parts]
    heights = [len(lines) + 1 for lines in parts[0].values()]
    size = (2.2 + 4.0 * len(sizes), 0.8 + 0.33 * sum(heights))
    grid: dict[str, Any] = {'height_ratios': heights}
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(heights), len(sizes), squeeze=False, sharey='row', gridspec_kw=grid)
    for column, latent_size, part in zip(axes.T, sizes, parts, strict=True):
        column[0].set_title(f'{latent_size} latent dimensions')
        for axis, (label, lines) in zip(column, part.items(), strict=True):
            draw_estimates(axis, lines, label)
    _plots.save(figure, path)


def draw_estimates(axis: Any, lines: Mapping[str, dict[str, Any]], label: str) -> None:
    """Draws a line for each name: the seeds' values, and over them their mean with its standard error."""
    for i, estimate in enumerate(lines.values()):
        axis.plot(estimate['by_seed'], np.full(len(estimate['by_seed']), i), 'o', color='0.7', markersize=4)
        axis.errorbar(estimate['mean'], i, xerr=estimate['standard_error'], fmt='o', color='#D55E00', capsize=3)
    axis.axvline(0, color='black', linewidth=0.8)
    axis.set_yticks(range(len(lines)), list(lines))
    axis.set(ylim=(len(lines) - 0.5, -0.5), xlabel=label)
    axis.grid(alpha=0.3)


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {
    'latent_sizes': ['2'],
    'jobs': 1,
    'seeds': 1,
    'steps': 200,
    'evaluation_samples': 100,
    'alone': False,
    'output_dir': 'results/blog_ablation_quick',
}


def define_flags() -> None:
    """Defines the command line."""
    _digits_vae.define_flags(seeds=5, least_latent_size=2)
    flags.DEFINE_bool('alone', True, 'Whether to put each mistake alone into the mended flow too.')
    _script.define_flags('results/blog_ablation', QUICK)


def plan() -> list[Settings]:
    """Returns the runs that the flags describe.

    The first table comes first, and a seed after the other: what an interrupted run leaves is whole for some seeds.
    """
    options = flags.FLAGS
    same = _digits_vae.options_from_flags()
    return [
        Settings(label, size, seed, mistakes=mistakes, **same)
        for table in ([MENDED, ALONE] if options.alone else [MENDED])
        for seed, size in itertools.product(range(options.seeds), map(int, options.latent_sizes))
        for label, mistakes in table.items()
    ]


def conclude(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> dict[str, Any]:
    """Prints the tables, draws the plots, and returns what is written down."""
    rows = _summary.aggregate(results, ['neg_elbo', 'nll', 'kl_to_posterior'], baseline='diagonal')
    print(report(rows, flags.FLAGS.seeds))
    plot(results, rows, output_dir)
    return {'aggregated': rows, 'runs': _records.of_runs(_records.without_lists(results))}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, train, describe, conclude, sklearn)


if __name__ == '__main__':
    define_flags()
    app.run(main)
