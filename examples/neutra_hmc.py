"""Hamiltonian Monte Carlo on Neal's funnel: in its own coordinates, and through a fitted flow (NeuTra).

No step size suits both the neck of the funnel and its mouth: a sampler stays in the one and misses the other.
`python neutra_hmc.py` fits an inverse autoregressive flow by variational inference, and runs HMC on the noise that the
flow turns into the posterior's coordinates, where the posterior is close to a standard normal distribution. The chain
is exact however good the flow is; the flow only makes it quick. Both samplers get the same number of gradients, and the
cost of the fit is counted too. Prints a table, and writes `results.json` and a plot. Finished runs are kept.

References:
    Hoffman, Sountsov, Dillon, Langmore, Tran and Vasudevan 2019, "NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo
    Using Neural Transport".
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _hmc
import _hmc_statistics
import _plots
import _records
import _script
import _summary
import _surrogates
import numpy as np
from _hmc import Sampler, Settings
from absl import app, flags

COLORS = {'HMC': '#0072B2', 'NeuTra': '#D55E00'}
SAMPLERS = ('HMC:10:0.8', 'HMC:30:0.8', 'HMC:100:0.8', 'HMC:30:0.95', 'HMC:100:0.95', 'NeuTra:2:0.8', 'NeuTra:4:0.8')


# Table and plot ------------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    text = 'smallest ESS {smallest_ess:.0f}, R-hat {largest_r_hat:.2f}, {seconds:.0f} s'.format(**figures)
    return f'{settings.sampler!s:12s} seed {settings.seed}: {text}'


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the aggregated figures as a table, with notes below."""
    cells = []
    for row in rows:
        means = {key: row[key]['mean'] for key in _hmc_statistics.AVERAGED}
        cells.append([
            row['method'],
            f'{row["leapfrogs"]}',
            f'{row["target_accept_prob"]}',
            f'{means["acceptance"]:.2f}',
            f'{means["step_size"]:.2f}',
            f'{row["largest_r_hat"]:.3f}',
            f'{means["smallest_ess"]:.0f}',
            _summary.format_estimate(row['ess_per_1000_gradients']),
            _summary.format_estimate(row['ess_per_1000_gradients_with_fit']),
            f'{means["ess_per_second"]:.0f}',
            f'{means["v_mean"]:+.2f}',
            f'{means["v_stddev"]:.2f}',
            f'{means["v_ks_distance"]:.3f}',
            f'{means["seconds_to_sample"]:.1f}',
            f'{means["seconds_to_fit"]:.1f}',
        ])  # fmt: skip
    header = ['method', 'leapfrogs', 'to accept', 'accepted', 'step', 'R-hat', 'ESS', 'ESS/1000 gradients']
    header += ['with the fit', 'ESS/s', 'mean of v', 'sd of v', 'KS of v', 's', 's to fit']
    count = len(rows[0]['acceptance']['by_seed'])
    gradients = max(row['gradients'] for row in rows)
    notes = [
        f'Means ± standard error over {count} seeds; R-hat: the worst of them. ESS: the effective sample size of the',
        'worst of ten coordinates, from all chains. Where no chain saw the neck it says too much: look first at R-hat,',
        'and at v, which should be N(0, 3^2). KS: the largest difference of the distribution functions.',
        f'Each run takes {gradients} gradients of log p, warm-up included; "with the fit" adds those of the',
        'variational inference. Seconds include the warm-up, and those of the fit compiling; runs share the machine. A',
        'gradient of the funnel costs next to nothing, so that the flow dominates; that of a real model does not.',
    ]
    if {row['method'] for row in rows} == set(COLORS):
        ratio = {key: f'{value:.0f}' for key, value in _hmc_statistics.gains(rows).items()}
        notes += [
            '',
            f'At their best, of the settings with an R-hat below {_hmc_statistics.CONVERGED}, NeuTra has against HMC',
            '{ess_per_1000_gradients} times the ESS per gradient '
            '({ess_per_1000_gradients_with_fit} with the fit),'.format(**ratio),
            '{ess_per_second} times per second ({ess_per_second_with_fit} with the fit).'.format(**ratio),
        ]
        for method in COLORS:
            best = _hmc_statistics.best_of(rows, method, 'ess_per_1000_gradients')
            if not _hmc_statistics.has_converged(best):
                r_hat = f'R-hat {best["largest_r_hat"]:.3f} at its best'
                notes.append(f'{method} has converged with no settings: {r_hat}. Its ESS says too much.')
    return '\n'.join(['', _summary.format_table(header, cells), *notes])


def plot(results: dict[Settings, dict[str, Any]], rows: Sequence[dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Draws the chains of each method at its best settings, for the first seed."""
    best: dict[str, _plots.Chains] = {}
    for method in dict.fromkeys(row['method'] for row in rows):
        row = _hmc_statistics.best_of(rows, method, 'ess_per_1000_gradients')
        settings = next(run for run in results if str(run.sampler) == row['sampler'])
        with np.load(output_dir / 'runs' / f'{settings.name}.npz') as arrays:
            title = f'{method}, {row["leapfrogs"]} leapfrog steps for a transition'
            best[method] = _plots.Chains(title, arrays['trace'], row['leapfrogs'], arrays['coordinates'])
    _plots.plot_chains(best, _surrogates.exact(_hmc.FUNNEL), COLORS, output_dir / 'chains.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {
    'seeds': 1,
    'gradients': 64000,
    'samplers': ['HMC:10:0.8', 'NeuTra:2:0.8'],
    'fit_steps': 1000,
    'output_dir': 'results/neutra_hmc_quick',
}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_integer('seeds', 3, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('gradients', 640000, 'Gradients of log p for each run, over all chains.', lower_bound=1)
    flags.DEFINE_list('samplers', list(SAMPLERS), 'Methods, with their leapfrog steps and the acceptance aimed at.')
    flags.DEFINE_integer('fit_steps', 4000, 'Training steps of the flow.', lower_bound=1)
    _script.define_flags('results/neutra_hmc', QUICK)
    flags.register_validator('samplers', are_samplers, f'expected such as {",".join(SAMPLERS[-2:])}')


def are_samplers(names: Sequence[str]) -> bool:
    """Returns whether all names are those of samplers, and there are some."""
    try:
        return bool([Sampler.parse(name) for name in names])
    except ValueError:
        return False


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    options = flags.FLAGS
    same = {name: options[name].value for name in ('gradients', 'fit_steps')}
    kinds = itertools.product(map(Sampler.parse, options.samplers), range(options.seeds))
    return [Settings(sampler, seed, **same) for sampler, seed in kinds]


def conclude(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> dict[str, Any]:
    """Prints the table, draws the plot, and returns what is written down."""
    rows = _hmc_statistics.aggregate(results)
    print(report(rows))
    plot(results, rows, output_dir)
    return {'aggregated': rows, 'runs': _records.of_runs(results)}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, _hmc.run, describe, conclude)


if __name__ == '__main__':
    define_flags()
    app.run(main)
