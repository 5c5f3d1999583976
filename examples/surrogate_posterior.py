"""Variational inference on posteriors with a known answer: Neal's funnel, a banana, and the eight schools.

`python surrogate_posterior.py` fits Gaussians and inverse autoregressive flows to each with several seeds, by
`tfp.vi.fit_surrogate_posterior` and with the same optimizer and steps for all. It prints a table, and writes
`results.json` and plots. The evidence is known, exactly or by quadrature, and so KL(q || p) = log evidence - ELBO is
known too, not just up to a constant. Finished runs are kept: after an interruption the same command goes on.

Which flow is best depends on p. One affine step can be the funnel, and the banana, exactly. Gated steps only narrow
what the base distribution has made wide, and splines change nothing beyond their bounds, where much of a funnel lies.

To use a flow instead of a mean field is to call another builder:

    tfp_iaf.build_iaf_surrogate_posterior(joint.event_shape_tensor(), joint.experimental_default_event_space_bijector())

Here it is told not to alternate the order of the entries, as it does by default; `_surrogates.make_posterior` says why.
"""

import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _plots
import _records
import _script
import _summary
import _surrogates
import _variational
import numpy as np
from _surrogates import POSTERIORS, Settings
from _targets import TARGETS
from absl import app, flags

CURVE_POINTS = 100


# Inference -----------------------------------------------------------------------------------------------------------


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Fits one q; writes samples of what is drawn of it to `directory`, and returns its figures."""
    started = time.perf_counter()
    target = TARGETS[settings.target]
    q = _surrogates.make_posterior(settings)
    losses = _surrogates.fit(q, settings)
    fitted = time.perf_counter()

    sample, log_weights = _variational.draw(target.joint.unnormalized_log_prob, q, settings)
    log_evidence = target.log_evidence()
    with _records.atomic(directory / f'{settings.name}.npz') as path:
        np.savez_compressed(path, coordinates=target.coordinates(sample)[:20000])
    curve = [float(piece.mean()) for piece in np.array_split(losses, min(CURVE_POINTS, len(losses)))]
    return {
        **_variational.statistics(log_weights, log_evidence),
        'parameters': int(sum(np.prod(variable.shape) for variable in q.trainable_variables)),
        'curve_kl': [log_evidence + value for value in curve],
        'seconds_to_fit': fitted - started,
        'seconds': time.perf_counter() - started,
    }


# Table and plots -----------------------------------------------------------------------------------------------------


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimate = 'KL {kl:.4f} ± {standard_error:.4f}, {seconds:.0f} s'.format(**figures)
    return f'{settings.target:13s} {settings.posterior:15s} seed {settings.seed}: {estimate}'


def aggregate(results: dict[Settings, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the statistics over seeds for every target and posterior."""
    groups = _summary.group_by(results, lambda settings: (settings.target, settings.posterior))
    return [
        {
            'target': target,
            'posterior': posterior,
            'log_evidence': runs[0]['log_evidence'],
            'best_mean_field_kl': TARGETS[target].mean_field_kl,
            'parameters': runs[0]['parameters'],
            'largest_standard_error': max(figures['standard_error'] for figures in runs),
            **{key: _summary.mean_and_error([figures[key] for figures in runs]) for key in ('elbo', 'kl')},
            'seconds_to_fit': float(np.median([figures['seconds_to_fit'] for figures in runs])),
        }
        for (target, posterior), runs in groups.items()
    ]


def report(rows: Sequence[dict[str, Any]], evaluation_samples: int) -> str:
    """Writes the aggregated figures as a table, with notes below."""
    cells, known = [], {}
    for row in rows:
        elbo, kl = (_summary.format_estimate(row[key]) for key in ('elbo', 'kl'))
        worst = f'{max(row["kl"]["by_seed"]):.3f}'
        sizes = [f'{row["parameters"]}', f'{row["seconds_to_fit"]:.1f}']
        cells.append([row['target'], row['posterior'], f'{row["log_evidence"]:.3f}', elbo, kl, worst, *sizes])
        if row['best_mean_field_kl'] is not None:
            known[row['target']] = f'{row["best_mean_field_kl"]:.4f} on the {row["target"]}'
    error = max(row['largest_standard_error'] for row in rows)
    notes = [
        f'Nats, mean ± standard error over {len(rows[0]["kl"]["by_seed"])} seeds; ELBO and KL = log evidence - ELBO',
        f"from {evaluation_samples} new samples of q, with a standard error of at most {error:.4f} for each seed's.",
        *([f'No Gaussian with independent coordinates can have a KL below {", ".join(known.values())}.'] * bool(known)),
        's/fit: median, with compiling; runs share the machine.',
    ]
    header = ['p', 'q', 'log evidence', 'ELBO', 'KL(q || p)', 'worst seed', 'parameters', 's/fit']
    return '\n'.join(['', _summary.format_table(header, cells), *notes])


def plot(results: dict[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes a corner plot for each target, of q for the first seed beside the exact p, and all learning curves."""
    corners: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    curves: dict[str, dict[str, _plots.Curve]] = {}
    for settings, figures in results.items():
        models = corners.setdefault(settings.target, {})
        if settings.posterior not in models:
            with np.load(output_dir / 'runs' / f'{settings.name}.npz') as arrays:
                models[settings.posterior] = f'{settings.posterior}, KL {figures["kl"]:.3f}', arrays['coordinates']
        seeds = [other for other in results if (other.target, other.posterior) == (settings.target, settings.posterior)]
        values = np.array([results[seed]['curve_kl'] for seed in seeds])
        steps = np.arange(1, values.shape[1] + 1) * settings.steps / values.shape[1]
        curves.setdefault(settings.target, {})[settings.posterior] = _plots.Curve(steps, values)
    for target, models in corners.items():
        path = output_dir / f'corner_{target.replace(" ", "_")}.png'
        _plots.plot_corners(_surrogates.exact(TARGETS[target]), models, POSTERIORS, path)
    _plots.plot_learning_curves(curves, POSTERIORS, 'KL(q || p) in training (nats)', output_dir / 'learning_curves.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {'seeds': 1, 'steps': 500, 'evaluation_samples': 10000, 'output_dir': 'results/surrogate_posterior_quick'}


def define_flags() -> None:
    """Defines the command line."""
    _script.define_some_of('targets', TARGETS, 'Posteriors to approximate.')
    _script.define_some_of('posteriors', POSTERIORS, 'Families to fit.')
    flags.DEFINE_integer('seeds', 3, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('steps', 4000, 'Training steps of a run.', lower_bound=1)
    flags.DEFINE_integer('evaluation_samples', 100000, 'Samples that KL is estimated with.', lower_bound=2)
    _script.define_flags('results/surrogate_posterior', QUICK)


def plan() -> list[Settings]:
    """Returns the runs that the flags describe."""
    options = flags.FLAGS
    same = {name: options[name].value for name in ('steps', 'evaluation_samples')}
    kinds = itertools.product(options.targets, options.posteriors, range(options.seeds))
    return [Settings(target, posterior, seed, **same) for target, posterior, seed in kinds]


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
