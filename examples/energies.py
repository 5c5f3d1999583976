"""Inverse autoregressive flows fitted to the 2-D energies U1 to U4 of Rezende and Mohamed 2015: how far steps help.

`python energies.py` fits, by variational inference, a diagonal Gaussian and flows of 1, 2, 4 and 8 steps with gated,
affine and spline transforms to four densities known up to a constant, with several seeds, and with the same training
for all. (Orders alternate, but for splines, of which one order was found to be better.) It prints a table, and writes
`results.json` and plots. The constant is known by quadrature, and so KL(q || p) = log Z - ELBO is known too. Finished
runs are kept: after an interruption the same command goes on.

Three of the paper's energies have no end along one axis; `_energies` says how they are closed.

The KL is an expectation under q: what q leaves out costs it little, and a lost branch of p no more than minus the log
of the share that is left. Two figures beside it tell: how much of each branch q has, and the mean of p / q under q.
That is below 1 where samples of q miss a part of p, but a few samples from a thin tail of q can hide it. Fewer branches
are lost with the paper's annealing (Eq. 20), by which all q are fitted here.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import _quiet  # noqa: F401
import _plots
import _records
import _script
import _summary
import _variational
import numpy as np
import tensorflow as tf
from _energies import ENERGIES
from absl import app, flags

import tfp_iaf

TRANSFORMS = {  # with their colours in plots
    'gated': '#CC79A7',
    'affine': '#D55E00',
    'spline': '#009E73',
}
DIAGONAL = 'diagonal'


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. With no steps the posterior is a diagonal Gaussian, whatever the transform."""

    energy: str
    transform: str = 'affine'
    num_flows: int = 4
    seed: int = 0
    steps: int = 3000
    sample_size: int = 100
    learning_rate: float = 1e-2
    annealing: float = 0.5
    evaluation_samples: int = 100000

    @property
    def posterior(self) -> str:
        """What q is called in tables and plots."""
        if not self.num_flows:
            return DIAGONAL
        return f'IAF {self.transform}, {self.num_flows} step{"s" * (self.num_flows > 1)}'

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        kind = f'{self.transform}{self.num_flows}' if self.num_flows else DIAGONAL
        return f'{self.energy}-{kind}-seed{self.seed}-{_records.digest(self)}'


# Inference -----------------------------------------------------------------------------------------------------------


def make_posterior(settings: Settings) -> Any:
    """Returns a trainable q over the plane: noise through the steps, and then through a trainable location and scale.

    The order of the entries alternates from step to step, except with splines. In one order the first entry, z1, never
    hears of the other, and is what gated and affine steps leave of a Gaussian: a Gaussian. A spline bends it to any
    density of one dimension, and z2 given z1 to another. That is all that these densities ask for.

    A bounded activation keeps the inverse of a point far from q's samples finite.
    """
    # By name, the gate would start nearer the identity than in the runs that were published.
    transform = tfp_iaf.transforms.Gated(gate_bias=2.0) if settings.transform == 'gated' else settings.transform
    return tfp_iaf.build_iaf_surrogate_posterior(
        [2],
        num_flows=settings.num_flows,
        transform=transform,
        activation='tanh',
        alternate_order=settings.transform != 'spline',
        seed=settings.seed,
    )


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Fits one q; writes its density on the energy's window to `directory`, and returns its figures."""
    started = time.perf_counter()
    energy = ENERGIES[settings.energy]
    q = make_posterior(settings)
    _variational.fit(energy.log_density, q, settings, settings.annealing)
    fitted = time.perf_counter()

    sample, log_weights = _variational.draw(energy.log_density, q, settings)
    log_z = energy.log_z
    shares = energy.branch_shares(sample)
    # Of points that q did not sample: by the inverse of every step.
    log_prob = tf.function(q.log_prob, input_signature=[tf.TensorSpec([None, 2])])
    log_q = log_prob(energy.window.points).numpy()
    with _records.atomic(directory / f'{settings.name}.npz') as path:
        np.savez_compressed(path, density=np.exp(log_q).reshape(energy.window.size, -1))
    return {
        **_variational.statistics(log_weights, log_z),
        'mass_found': float(np.mean(np.exp(log_weights - log_z))),  # the mean of p / q: below 1 where q misses a part
        'branch_shares': [float(share) for share in shares],
        'least_branch': float(np.min(shares / energy.exact_branch_shares)),
        'integral_over_window': float(np.exp(energy.window.log_integral(log_q))),
        'parameters': int(sum(np.prod(variable.shape) for variable in q.trainable_variables)),
        'seconds_to_fit': fitted - started,
        'seconds': time.perf_counter() - started,
    }


# Table and plots -----------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimate = 'KL {kl:.4f} ± {standard_error:.4f}, mean p / q {mass_found:.3f}, {seconds:.0f} s'.format(**figures)
    return f'{settings.energy} {settings.posterior:19s} seed {settings.seed}: {estimate}'


def aggregate(results: dict[Settings, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the statistics over seeds for every energy and posterior."""
    groups = _summary.group_by(results, lambda settings: dataclasses.replace(settings, seed=0))
    return [
        {
            'energy': settings.energy,
            'posterior': settings.posterior,
            'transform': settings.transform,
            'num_flows': settings.num_flows,
            'log_z': runs[0]['log_evidence'],
            'parameters': runs[0]['parameters'],
            'largest_standard_error': max(figures['standard_error'] for figures in runs),
            **{
                key: _summary.mean_and_error([figures[key] for figures in runs])
                for key in ('kl', 'mass_found', 'least_branch')
            },
            'seconds_to_fit': float(np.median([figures['seconds_to_fit'] for figures in runs])),
        }
        for settings, runs in groups.items()
    ]


def report(rows: Sequence[dict[str, Any]], evaluation_samples: int) -> str:
    """Writes the aggregated figures as a table, with notes below."""
    cells = []
    for row in rows:
        kl = _summary.format_estimate(row['kl'])
        worst = f'{max(row["kl"]["by_seed"]):.3f}'
        weight, branch = (f'{np.mean(row[key]["by_seed"]):.3f}' for key in ('mass_found', 'least_branch'))
        sizes = [f'{row["parameters"]}', f'{row["seconds_to_fit"]:.1f}']
        cells.append([row['energy'], row['posterior'], f'{row["log_z"]:.3f}', kl, worst, weight, branch, *sizes])
    error = max(row['largest_standard_error'] for row in rows)
    notes = [
        f'Nats, mean ± standard error over {len(rows[0]["kl"]["by_seed"])} seeds; KL = log Z - ELBO from',
        f"{evaluation_samples} new samples of q, with a standard error of at most {error:.4f} for each seed's.",
        'log Z: by quadrature. p / q: its mean under q, Z by importance sampling over Z; below 1 where samples miss p,',
        'though a few from a thin tail of q can hide that.',
        'Least branch: the share of a branch in q over that in p, for the branch where it is least; 1 is the best.',
        's/fit: median, with compiling; runs share the machine.',
    ]
    header = ['p', 'q', 'log Z', 'KL(q || p)', 'worst seed', 'mean p / q', 'least branch', 'parameters', 's/fit']
    return '\n'.join(['', _summary.format_table(header, cells), *notes])


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes the densities of q for the first seed beside those of p, and the KL by number of steps."""
    first = {(run.energy, run.posterior): run for run in reversed(results)}
    energies = list(dict.fromkeys(run.energy for run in results))
    flows = list(dict.fromkeys((run.transform, run.num_flows) for run in results if run.num_flows))
    transforms = list(dict.fromkeys(transform for transform, _ in flows))
    depths = sorted({depth for _, depth in flows})

    def draw(posteriors: Iterable[str], name: str) -> None:
        rows = {}
        for energy in energies:
            window = ENERGIES[energy].window
            log_p = ENERGIES[energy].log_density(tf.constant(window.points)).numpy()
            panels = {'p': ('', np.exp(log_p - ENERGIES[energy].log_z).reshape(window.size, -1))}
            for posterior in posteriors:
                run = first[energy, posterior]
                with np.load(output_dir / 'runs' / f'{run.name}.npz') as arrays:
                    panels[posterior] = f'KL {results[run]["kl"]:.3f}', arrays['density']
            rows[energy] = _plots.Panels(window.axes, panels)
        _plots.plot_panels(rows, output_dir / name)

    for transform in transforms:
        draw([DIAGONAL, *(Settings('', transform, depth).posterior for depth in depths)], f'{transform}.png')
    middle = 4 if 4 in depths else depths[-1]
    draw([Settings('', transform, middle).posterior for transform in transforms], 'transforms.png')

    kls: dict[str, dict[str, dict[int, list[float]]]] = {}
    for run, figures in results.items():
        lines = kls.setdefault(run.energy, {})
        for name in [run.transform] if run.num_flows else transforms:
            lines.setdefault(name, {}).setdefault(run.num_flows, []).append(figures['kl'])
    _plots.plot_by_depth(kls, TRANSFORMS, 'KL(q || p) in nats', output_dir / 'kl_by_steps.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {
    'seeds': 1,
    'num_flows': ['1', '4'],
    'transforms': ['affine'],
    'steps': 500,
    'evaluation_samples': 10000,
    'output_dir': 'results/energies_quick',
}


def define_flags() -> None:
    """Defines the command line."""
    _script.define_some_of('energies', ENERGIES, 'Densities to approximate.')
    _script.define_some_of('transforms', TRANSFORMS, 'Transforms of the flows.')
    flags.DEFINE_list('num_flows', ['1', '2', '4', '8'], 'Numbers of steps of the flows.')
    flags.DEFINE_integer('seeds', 3, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('steps', 3000, 'Training steps of a run.', lower_bound=1)
    flags.DEFINE_integer('evaluation_samples', 100000, 'Samples that KL is estimated with.', lower_bound=2)
    _script.define_flags('results/energies', QUICK)
    text = 'expected numbers of at least 1'
    flags.register_validator('num_flows', lambda texts: texts and all(t.isdecimal() and int(t) for t in texts), text)


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    options = flags.FLAGS
    same = {name: options[name].value for name in ('steps', 'evaluation_samples')}
    flows = itertools.product(options.transforms, map(int, options.num_flows))
    kinds = itertools.product(range(options.seeds), options.energies, [(Settings.transform, 0), *flows])
    return [Settings(energy, transform, depth, seed, **same) for seed, energy, (transform, depth) in kinds]


def conclude(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> dict[str, Any]:
    """Prints the table, draws the plots, and returns what is written down."""
    rows = aggregate(results)
    print(report(rows, flags.FLAGS.evaluation_samples))
    plot(results, output_dir)
    return {'aggregated': rows, 'runs': _records.of_runs(results)}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    _script.run(argv, QUICK, plan, run, describe, conclude)


if __name__ == '__main__':
    define_flags()
    app.run(main)
