"""What the mistakes cost of a blog post that found inverse autoregressive flows to do little.

The post (bjlkeng, 2017, "Variational Autoencoders with Inverse Autoregressive Flows") concludes that the flow "didn't
seem to have a huge affect". Its code has six mistakes that bear on the result; `blog_flow.py` rebuilds its flow with a
switch for each, and says precisely what they are. VAEs of 8x8 digits are trained with the post's flow, with one mistake
after the other mended, with `tfp_iaf`'s own layer of the same sizes, and with a diagonal Gaussian.

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

# The posterior and the mistakes of each row of the table.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    'diagonal': ('diagonal', ()),
    'the post': ('blog', MISTAKES),
    **{f'{"and " if i else ""}{name} mended': ('blog', MISTAKES[i + 1 :]) for i, name in enumerate(MISTAKES)},
    'tfp_iaf': ('IAF', ()),
}
_DRAWN = ('the post', f'and {MISTAKES[-1]} mended', 'tfp_iaf')  # whose posteriors are


def report(size: int, groups: Mapping[str, Group]) -> str:
    """Writes the figures of a number of latent dimensions as a table, with a note on the post's degrees."""
    (upper, lower), above, rows = ('', '') if size == 2 else ('≤ ', '≥ '), '', []
    for label, group in groups.items():
        neg_elbo, nll, gap = (comparison.values(group, key) for key in ('neg_elbo', 'nll', 'gap'))
        row = {f'{size} latent dimensions': label, '-ELBO': reports.estimate(neg_elbo)}
        for column, other in (('minus diagonal', 'diagonal'), ('minus row above', above)):
            less = neg_elbo - comparison.values(groups[other], 'neg_elbo') if above else None
            row[column] = '' if less is None else reports.estimate(less, sign=True)
        row |= {'NLL': upper + reports.estimate(nll), 'KL(q ‖ p(z|x))': lower + reports.estimate(gap)}
        rows.append(row)
        above = label
    useful, missing = [], []
    for seed in range(len(group)):
        rng = np.random.default_rng(seed)
        for _ in range(2 * digits.SETTINGS.flows):
            layers = blog_flow.degrees(size, digits.SETTINGS.flow_units, MISTAKES, rng)
            useful.append(blog_flow.useful_units(layers))
            missing.append(blog_flow.pairs_without_path(layers))
    note = (
        f"The post's degrees: {np.mean(useful):.1f} of {digits.SETTINGS.flow_units[-1]} units in the last hidden layer "
        f'reach an output, and {np.mean(missing):.1f} of {size * (size - 1) // 2} pairs of an entry and a later output '
        f'have no path through the hidden layers (means over networks).'
    )
    return f'{reports.table(rows)}\n\n{note}'


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    data = comparison.load('digits')
    # The KL is estimated as in the post, for all.
    defaults = dataclasses.replace(digits.SETTINGS, sampled_kl=True, fingerprint=data.fingerprint)
    options_of = {'epochs', 'steps_per_epoch', 'elbo_samples', 'nll_samples'}
    fixed = {field.name for field in dataclasses.fields(defaults)} - options_of
    command = Command('ablation', __doc__, defaults, {'latent_size': (2, 10)}, seeds=5, fixed=fixed)
    options = command.parse(argv, digits.QUICK)
    cases = {
        dataclasses.replace(settings, posterior=posterior, mistakes=mistakes): label
        for settings, (label, (posterior, mistakes)) in itertools.product(command.plan(options), ROWS.items())
    }
    results = runs.run_all(evaluation.evaluate, list(cases), options.output_dir, options.jobs)
    sizes: dict[int, dict[str, Group]] = {size: {} for size in options.latent_size}
    for settings, label in cases.items():
        sizes[settings.latent_size].setdefault(label, {})[settings] = results[settings]
    columns = {}
    for size, groups in sizes.items():
        neg_elbo = {label: comparison.values(group, 'neg_elbo') for label, group in groups.items()}
        columns[f'{size} latent dimensions'] = {
            label: values - neg_elbo['diagonal'] for label, values in neg_elbo.items() if label != 'diagonal'
        }
    label = '-ELBO less that of the diagonal Gaussian (nats)'
    plots.differences(columns, label, options.output_dir / 'ablation.png')
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
    reports.write(options, text, results)
