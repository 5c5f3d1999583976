"""What each mistake costs of a blog post that found inverse autoregressive flows to do little.

The post (bjlkeng, 2017, "Variational Autoencoders with Inverse Autoregressive Flows") concludes that the flow "didn't
seem to have a huge affect". Its code has six mistakes that bear on the result; `blog_flow.py` rebuilds its flow with a
switch for each, and says precisely what they are. VAEs of 8x8 digits are trained with the post's flow, with one mistake
after the other mended, with `tfp_iaf`'s own layer of the same sizes, and with a diagonal Gaussian. `--alone` also
puts each mistake alone into the mended flow.

Data, encoder, decoder, number of steps and evaluation are those of `digits`, for all. So are the sizes of the flow: 4
steps, two hidden layers of 64 units, 64 numbers of context; the post's own are 10 D units and a context of D.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from . import blog_flow, comparison, digits, evaluation, plots, reports, runs, vae
from .blog_flow import MISTAKES
from .commands import Command
from .comparison import Group

Groups = dict[str, Group]

# The posterior and the mistakes of each row of the first table, and of those of the second.
MENDED: dict[str, tuple[str, tuple[str, ...]]] = {
    'diagonal': ('diagonal', ()),
    'the post': ('blog', MISTAKES),
    **{f'{"and " if i else ""}{name} mended': ('blog', MISTAKES[i + 1 :]) for i, name in enumerate(MISTAKES)},
    'tfp_iaf': ('IAF', ()),
}
ALL_MENDED = f'and {MISTAKES[-1]} mended'
ALONE: dict[str, tuple[str, tuple[str, ...]]] = {f'{mistake} alone': ('blog', (mistake,)) for mistake in MISTAKES}
_DRAWN = ('the post', ALL_MENDED, 'tfp_iaf')  # whose posteriors are


def report(size: int, groups: Groups) -> str:
    """Writes the figures of a number of latent dimensions as a table, or as two, with notes."""
    values, seeds = comparison.values, len(groups['diagonal'])
    rows, costs, above = [], [], ''
    for label in MENDED:
        text = {key: reports.estimate(values(groups[label], key)) for key in ('neg_elbo', 'nll', 'gap')}
        neg_elbo = values(groups[label], 'neg_elbo')
        less = {name: neg_elbo - values(groups[name], 'neg_elbo') for name in ('diagonal', above) if above}
        rows.append({
            f'{size} latent dimensions': label,
            '-ELBO': text['neg_elbo'],
            'minus diagonal': reports.estimate(less['diagonal'], sign=True) if above else '',
            'minus row above': reports.estimate(less[above], sign=True) if above else '',
            'NLL': text['nll'] if size == 2 else f'≤ {text["nll"]}',
            'KL(q ‖ p(z|x))': text['gap'] if size == 2 else f'≥ {text["gap"]}',
        })  # fmt: skip
        above = label
    for label in ALONE if ALONE.keys() <= groups.keys() else ():
        more = {key: values(groups[label], key) - values(groups[ALL_MENDED], key) for key in ('neg_elbo', 'nll')}
        costs.append({
            f'{size} latent dimensions': label,
            '-ELBO': reports.estimate(more['neg_elbo'], sign=True),
            'NLL': reports.estimate(more['nll'], sign=True),
        })  # fmt: skip
    parts = [reports.table(rows)]
    if costs:
        parts += [reports.table(costs), f'What each has more than "{ALL_MENDED}", which makes no mistake.']
    return '\n\n'.join([*parts, degrees_note(size, seeds)])


def degrees_note(size: int, seeds: int) -> str:
    """Writes what the post's degrees come to, in all networks of all seeds."""
    useful, missing = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for _ in range(2 * digits.SETTINGS.flows):
            layers = blog_flow.degrees(size, digits.SETTINGS.flow_units, MISTAKES, rng)
            useful.append(blog_flow.useful_units(layers))
            missing.append(blog_flow.pairs_without_path(layers))
    return (
        f"The post's degrees: {np.mean(useful):.1f} of {digits.SETTINGS.flow_units[-1]} units in the last hidden layer "
        f'reach an output, and {np.mean(missing):.1f} of {size * (size - 1) // 2} pairs of an entry and a later output '
        f'have no path through the hidden layers (means over networks).'
    )


def columns(sizes: Mapping[int, Groups]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Returns what is drawn: by number of dimensions, by axis and by row of a table, values by seed."""
    result = {}
    for size, groups in sizes.items():
        neg_elbo = {label: comparison.values(members, 'neg_elbo') for label, members in groups.items()}
        less = {label: neg_elbo[label] - neg_elbo['diagonal'] for label in list(MENDED)[1:]}
        more = {label: neg_elbo[label] - neg_elbo[ALL_MENDED] for label in ALONE if label in neg_elbo}
        result[f'{size} latent dimensions'] = {'-ELBO less that of the diagonal Gaussian (nats)': less} | (
            {'-ELBO more than with no mistake (nats)': more} if more else {}
        )
    return result


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    data = comparison.load('digits')
    # The KL is estimated as in the post, for all.
    defaults = dataclasses.replace(digits.SETTINGS, sampled_kl=True, fingerprint=data.fingerprint)
    options_of = {'epochs', 'steps_per_epoch', 'elbo_samples', 'nll_samples'}
    fixed = {field.name for field in dataclasses.fields(defaults)} - options_of
    command = Command('ablation', __doc__, defaults, {'latent_size': (2, 10)}, seeds=5, fixed=fixed)
    command.add_switch('alone', 'put each mistake alone into the mended flow too')
    options = command.parse(argv, digits.QUICK)
    cases = [
        (label, dataclasses.replace(settings, posterior=posterior, mistakes=mistakes))
        for settings, (label, (posterior, mistakes)) in itertools.product(
            command.plan(options), (MENDED | (ALONE if options.alone else {})).items()
        )
    ]
    results = runs.run_all(evaluation.evaluate, [settings for _, settings in cases], options.output_dir, options.jobs)
    sizes: dict[int, Groups] = {size: {} for size in options.latent_size}
    for label, settings in cases:  # a row of one table may be one of the other
        sizes[settings.latent_size].setdefault(label, {})[settings] = results[settings]
    plots.differences(columns(sizes), options.output_dir / 'ablation.png')
    if 2 in sizes:
        store, images, vaes = runs.Store(options.output_dir / 'runs'), evaluation.test_images(defaults), {}
        for label in _DRAWN:
            vaes[label] = vae.parts(vae.trained(store, next(iter(sizes[2][label])), images.shape[1:])[0])
        plots.posteriors(vaes, images, options.output_dir / 'posteriors.png')
    note = (
        'Nats per test image, mean ± standard error over seeds; differences are paired by seed. With two dimensions '
        'NLL and KL are exact, by quadrature; with more they are bounds, by importance sampling. After "the post", '
        "each row has one mistake less than the row above. No figure includes the post's L2 penalty."
    )
    text = '\n\n'.join([*(report(size, groups) for size, groups in sizes.items()), note])
    reports.write(options.output_dir, 'ablation', text, results)
