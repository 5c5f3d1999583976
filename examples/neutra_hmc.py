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

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import _common
import _plots
import _records
import numpy as np
import surrogate_posterior
import tensorflow as tf
import tensorflow_probability as tfp
from _targets import TARGETS
from absl import app, flags

import tfp_iaf

tfd = tfp.distributions

FUNNEL = TARGETS['funnel']
COLORS = {'HMC': '#0072B2', 'NeuTra': '#D55E00'}


@dataclasses.dataclass(frozen=True)
class Sampler:
    """HMC, with a flow or without, its leapfrog steps, and the share of accepted proposals that the step aims at."""

    method: str
    leapfrogs: int
    target_accept_prob: float = 0.8

    @classmethod
    def parse(cls, text: str) -> 'Sampler':
        """Reads such as `HMC:30:0.95`, or raises ValueError."""
        method, leapfrogs, target_accept_prob = text.split(':')
        sampler = cls(method, int(leapfrogs), float(target_accept_prob))
        if method not in COLORS or sampler.leapfrogs < 1 or not 0 < sampler.target_accept_prob < 1:
            raise ValueError(text)
        return sampler

    def __str__(self) -> str:
        return f'{self.method}:{self.leapfrogs}:{self.target_accept_prob}'


SAMPLERS = ('HMC:10:0.8', 'HMC:30:0.8', 'HMC:100:0.8', 'HMC:30:0.95', 'HMC:100:0.95', 'NeuTra:2:0.8', 'NeuTra:4:0.8')


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. Of the transitions the first quarter is warm-up."""

    sampler: Sampler
    seed: int = 0
    gradients: int = 640000
    chains: int = 16
    fit_steps: int = 4000

    def __post_init__(self) -> None:
        if not self.warm_up:
            least = 4 * self.chains * self.sampler.leapfrogs
            raise ValueError(f'gradients: got {self.gradients}, expected at least {least}: four transitions a chain.')

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        digest = _records.digest(self)
        return f'{self.sampler}-seed{self.seed}-{digest}'.replace(':', '-')

    @property
    def warm_up(self) -> int:
        """Number of transitions of each chain in which the step size is adapted, and whose states are dropped."""
        return self.gradients // (self.chains * self.sampler.leapfrogs) // 4

    @property
    def transitions(self) -> int:
        """Number of transitions of each chain whose states are kept."""
        return self.gradients // (self.chains * self.sampler.leapfrogs) - self.warm_up


# Sampling ------------------------------------------------------------------------------------------------------------


def sample_chains(q: Any, settings: Settings) -> tuple[Any, float, float, float]:
    """Runs HMC on the noise that q turns into its samples, so that they have the funnel's distribution.

    That takes a pass through the flow and its gradient for each leapfrog step, and never an inverse.
    (`tfp.mcmc.TransformedTransitionKernel` does the same with one bijector for each part of the state; q's takes a
    single vector to all parts.)

    Returns:
        The states, with a leading shape `[transitions, chains]`, the share of proposals accepted, the step size after
        the warm-up, and the seconds that it took, warm-up included and compiling left out.
    """
    sampler, bijector = settings.sampler, q.bijector  # from standard normal noise

    def log_prob(noise: tf.Tensor) -> tf.Tensor:
        return FUNNEL.joint.log_prob(bijector.forward(noise)) + bijector.forward_log_det_jacobian(noise, event_ndims=1)

    @tf.function(jit_compile=True, autograph=False)
    def sample(seed: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        start_seed, chain_seed = tf.unstack(tfp.random.split_seed(seed))
        kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size=0.1, num_leapfrog_steps=sampler.leapfrogs)
        # The rest of the warm-up is there to forget where the steps of other sizes led.
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            kernel, int(0.8 * settings.warm_up), target_accept_prob=sampler.target_accept_prob
        )
        noise, (accepted, step_sizes) = tfp.mcmc.sample_chain(
            settings.transitions,
            tf.random.stateless_normal([settings.chains, *q.distribution.event_shape], start_seed),
            kernel=kernel,
            num_burnin_steps=settings.warm_up,
            trace_fn=lambda _, results: (results.inner_results.is_accepted, results.new_step_size),
            seed=chain_seed,
        )
        return bijector.forward(noise), tf.reduce_mean(tf.cast(accepted, tf.float32)), step_sizes[-1]

    sample(tf.constant([settings.seed, 0]))  # compiles
    started = time.perf_counter()
    states, accepted, step_size = sample(tf.constant([settings.seed, 1]))
    return states, float(accepted), float(step_size), time.perf_counter() - started


def run(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Runs one sampler; writes what is drawn of its chains to `directory`, and returns its figures."""
    started = time.perf_counter()
    fit = surrogate_posterior.Settings('funnel', 'IAF affine', settings.seed, settings.fit_steps)
    if settings.sampler.method == 'NeuTra':
        q = surrogate_posterior.make_posterior(fit)
        surrogate_posterior.fit(q, fit)
        gradients_to_fit = fit.steps * fit.sample_size
    else:
        # A flow of no steps takes a vector to the parts of the model, and leaves the numbers as they are.
        q = tfp_iaf.build_iaf_surrogate_posterior(FUNNEL.joint.event_shape_tensor(), num_flows=0)
        gradients_to_fit = 0
    seconds_to_fit = time.perf_counter() - started if gradients_to_fit else 0.0

    states, acceptance, step_size, seconds_to_sample = sample_chains(q, settings)
    figures = statistics(tf.concat([states.v[..., tf.newaxis], states.x], axis=-1))

    # A leapfrog step is one gradient; the first transition needs that of the start besides.
    transitions = settings.warm_up + settings.transitions
    gradients = settings.chains * (transitions * settings.sampler.leapfrogs + 1)
    ess = figures['smallest_ess']
    coordinates = FUNNEL.coordinates(states)
    with _common.atomic(directory / f'{settings.name}.npz') as path:
        thinned = coordinates.reshape(-1, coordinates.shape[-1])[:: -(-settings.transitions * settings.chains // 20000)]
        np.savez_compressed(path, coordinates=thinned, trace=coordinates[:, 0, 0])
    return {
        **figures,
        'acceptance': acceptance,
        'step_size': step_size,
        'gradients': gradients,
        'gradients_to_fit': gradients_to_fit,
        'ess_per_1000_gradients': 1e3 * ess / gradients,
        'ess_per_1000_gradients_with_fit': 1e3 * ess / (gradients + gradients_to_fit),
        'ess_per_second': ess / seconds_to_sample,
        'ess_per_second_with_fit': ess / (seconds_to_sample + seconds_to_fit),
        'seconds_to_sample': seconds_to_sample,
        'seconds_to_fit': seconds_to_fit,
        'seconds': time.perf_counter() - started,
    }


def statistics(values: tf.Tensor) -> dict[str, Any]:
    """Returns how well chains have mixed, and how far their v is from N(0, 3^2).

    Args:
        values: v and x, `[transitions, chains, D]`.
    """
    r_hat = tfp.mcmc.potential_scale_reduction(values, independent_chain_ndims=1, split_chains=True)
    ess = tfp.mcmc.effective_sample_size(values, filter_beyond_positive_pairs=True, cross_chain_dims=1).numpy()
    v = np.sort(values[..., 0].numpy().astype(np.float64), axis=None)
    exact = tfd.Normal(np.float64(0), np.float64(3)).cdf(v).numpy()
    steps = np.arange(len(v) + 1) / len(v)
    return {
        'smallest_ess': float(ess.min()),
        'ess': ess.tolist(),
        'largest_r_hat': float(np.max(r_hat)),
        'v_mean': float(v.mean()),
        'v_stddev': float(v.std()),
        'v_quantiles': np.quantile(v, [0.01, 0.99]).tolist(),
        # Kolmogorov and Smirnov's: the largest difference of the distribution functions, on either side of a step.
        'v_ks_distance': float(max(np.max(steps[1:] - exact), np.max(exact - steps[:-1]))),
    }


# Table and plot ------------------------------------------------------------------------------------------------------

AVERAGED = (
    'smallest_ess',
    'ess_per_1000_gradients',
    'ess_per_1000_gradients_with_fit',
    'ess_per_second',
    'ess_per_second_with_fit',
    'step_size',
    'acceptance',
    'v_mean',
    'v_stddev',
    'v_ks_distance',
    'seconds_to_sample',
    'seconds_to_fit',
)


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    text = 'smallest ESS {smallest_ess:.0f}, R-hat {largest_r_hat:.2f}, {seconds:.0f} s'.format(**figures)
    return f'{settings.sampler!s:12s} seed {settings.seed}: {text}'


def aggregate(results: dict[Settings, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the statistics over seeds for every sampler."""
    groups: dict[Sampler, list[dict[str, Any]]] = {}
    for settings, figures in results.items():
        groups.setdefault(settings.sampler, []).append(figures)
    return [
        {
            'sampler': str(sampler),
            **dataclasses.asdict(sampler),
            **{key: runs[0][key] for key in ('gradients', 'gradients_to_fit')},
            **{key: _common.mean_and_error([figures[key] for figures in runs]) for key in AVERAGED},
            'largest_r_hat': max(figures['largest_r_hat'] for figures in runs),
        }
        for sampler, runs in groups.items()
    ]


def best_of(rows: Sequence[dict[str, Any]], method: str, key: str) -> dict[str, Any]:
    """Returns the row of a method's best settings, by the mean of a figure."""
    return max((row for row in rows if row['method'] == method), key=lambda row: row[key]['mean'])


def gains(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns by how much NeuTra at its best betters HMC at its best: the ratios of their mean figures."""
    keys = [key for key in AVERAGED if key.startswith('ess_per')]
    return {key: best_of(rows, 'NeuTra', key)[key]['mean'] / best_of(rows, 'HMC', key)[key]['mean'] for key in keys}


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the aggregated figures as a table, with notes below."""
    cells = []
    for row in rows:
        means = {key: row[key]['mean'] for key in AVERAGED}
        cells.append([
            row['method'],
            f'{row["leapfrogs"]}',
            f'{row["target_accept_prob"]}',
            f'{means["acceptance"]:.2f}',
            f'{means["step_size"]:.2f}',
            f'{row["largest_r_hat"]:.3f}',
            f'{means["smallest_ess"]:.0f}',
            _common.format_estimate(row['ess_per_1000_gradients']),
            _common.format_estimate(row['ess_per_1000_gradients_with_fit']),
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
        ratio = {key: f'{value:.0f}' for key, value in gains(rows).items()}
        notes += [
            '',
            'NeuTra at its best against HMC at its best: {ess_per_1000_gradients} times the ESS per gradient '
            '({ess_per_1000_gradients_with_fit} with the fit),'.format(**ratio),
            '{ess_per_second} times per second ({ess_per_second_with_fit} with the fit).'.format(**ratio),
        ]
    return '\n'.join(['', _common.format_table(header, cells), *notes])


def plot(results: dict[Settings, dict[str, Any]], rows: Sequence[dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Draws the chains of each method at its best settings, for the first seed."""
    best: dict[str, _plots.Chains] = {}
    for method in dict.fromkeys(row['method'] for row in rows):
        row = best_of(rows, method, 'ess_per_1000_gradients')
        settings = next(run for run in results if str(run.sampler) == row['sampler'])
        with np.load(output_dir / 'runs' / f'{settings.name}.npz') as arrays:
            title = f'{method}, {row["leapfrogs"]} leapfrog steps for a transition'
            best[method] = _plots.Chains(title, arrays['trace'], row['leapfrogs'], arrays['coordinates'])
    _plots.plot_chains(best, surrogate_posterior.exact(FUNNEL), COLORS, output_dir / 'chains.png')


# Command line --------------------------------------------------------------------------------------------------------

QUICK = {
    'seeds': 1,
    'gradients': 64000,
    'samplers': ['HMC:10:0.8', 'NeuTra:2:0.8'],
    'fit_steps': 1000,
    'output_dir': 'results/neutra_hmc_quick',
}


def define_flags() -> None:
    """Defines the command line; in a function, since worker processes and tests import this module too."""
    flags.DEFINE_integer('seeds', 3, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('gradients', 640000, 'Gradients of log p for each run, over all chains.', lower_bound=1)
    flags.DEFINE_list('samplers', list(SAMPLERS), 'Methods, with their leapfrog steps and the acceptance aimed at.')
    flags.DEFINE_integer('fit_steps', 4000, 'Training steps of the flow.', lower_bound=1)
    flags.DEFINE_integer('jobs', 2, 'Number of runs at a time, each in a process with one thread.', lower_bound=1)
    flags.DEFINE_string('output_dir', 'results/neutra_hmc', 'Where results, plots and finished runs are written.')
    flags.DEFINE_bool('fresh', False, 'Run anew what output_dir already has.')
    flags.DEFINE_bool('quick', False, f'A try of half a minute: {QUICK}, where not given.')
    flags.register_validator('samplers', are_samplers, f'expected such as {",".join(SAMPLERS[-2:])}')


def are_samplers(names: Sequence[str]) -> bool:
    """Returns whether all names are those of samplers, and there are some."""
    try:
        return bool([Sampler.parse(name) for name in names])
    except ValueError:
        return False


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    started = time.perf_counter()
    options = flags.FLAGS
    for name, value in QUICK.items() if options.quick else ():
        options.set_default(name, value)
    same = {name: options[name].value for name in ('gradients', 'fit_steps')}
    kinds = itertools.product(map(Sampler.parse, options.samplers), range(options.seeds))
    runs = [Settings(sampler, seed, **same) for sampler, seed in kinds]
    output_dir = pathlib.Path(options.output_dir)
    print(f'{len(runs)} runs, {options.jobs} at a time, {options.gradients} gradients each.')

    results = _common.run_cached(run, runs, output_dir / 'runs', options.jobs, options.fresh, describe)
    rows = aggregate(results)
    print(report(rows))
    plot(results, rows, output_dir)
    record = {
        'flags': _records.used_flags(),
        'versions': _records.versions(),
        'aggregated': rows,
        'runs': [{**dataclasses.asdict(settings), **figures} for settings, figures in results.items()],
        'seconds': time.perf_counter() - started,
    }
    _common.write_json(output_dir / 'results.json', record)
    print(f'\nWrote results.json and chains.png to {output_dir} in {record["seconds"]:.0f} s.')


if __name__ == '__main__':
    define_flags()
    app.run(main)
