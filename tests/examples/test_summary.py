"""Means over seeds with their errors, differences seed by seed, and tables."""

from typing import NamedTuple

import _summary
import pytest


class Run(NamedTuple):
    latent_size: int
    posterior: str
    seed: int


def test_estimates():
    three, one = _summary.mean_and_error([1.0, 2.0, 3.0]), _summary.mean_and_error([1.5])
    assert three == {'mean': 2.0, 'standard_error': pytest.approx(3**-0.5), 'by_seed': [1.0, 2.0, 3.0]}
    assert one == {'mean': 1.5, 'standard_error': None, 'by_seed': [1.5]}
    assert _summary.format_estimate(three) == '2.000 ± 0.577' and _summary.format_estimate(one) == '1.500'


def test_groups_are_in_the_order_of_their_runs():
    results = {Run(2, posterior, seed): seed for posterior, seed in (('b', 0), ('a', 1), ('b', 2))}
    groups = _summary.group_by(results, lambda run: run.posterior)
    assert list(groups.items()) == [('b', [0, 2]), ('a', [1])]


def test_differences_from_the_baseline_are_taken_seed_by_seed():
    values = {'diagonal': [5.0, 9.0, 1.0], 'IAF': [4.0, 7.0, 1.0]}
    results = {
        Run(2, posterior, seed): {'neg_elbo': value, 'kl_to_posterior': 0.1 * value, 'other': 0.0}
        for posterior, seeds in values.items()
        for seed, value in enumerate(seeds)
    }
    results[Run(10, 'diagonal', 0)] = {'neg_elbo': 3.0, 'kl_to_posterior': 1.0}
    baseline, flow, other = _summary.aggregate(results, ['neg_elbo', 'kl_to_posterior'], baseline='diagonal')
    assert (flow['latent_size'], flow['posterior'], flow['seeds']) == (2, 'IAF', 3)
    assert flow['neg_elbo'] == _summary.mean_and_error(values['IAF'])
    assert flow['less_baseline']['neg_elbo'] == _summary.mean_and_error([-1.0, -2.0, 0.0])
    assert baseline['less_baseline']['neg_elbo']['by_seed'] == [0.0, 0.0, 0.0]
    assert other['seeds'] == 1 and other['neg_elbo']['mean'] == 3.0
    # 0.4 for 0.5 on average.
    line = 'D = 2, IAF less diagonal: -ELBO -1.000 ± 0.577 (by seed -1.000, -2.000, +0.000)'
    assert _summary.format_difference(flow, 'diagonal', with_kl=False) == line
    assert _summary.format_difference(flow, 'diagonal', with_kl=True) == f'{line}, KL -20 %'


def test_table_lines_up():
    table = _summary.format_table(['', 'name', 'x'], [['a', 'b', '1.0'], ['c', 'long name', '10.25']])
    assert table.splitlines() == [
        '   name           x',
        '-------------------',
        'a  b            1.0',
        'c  long name  10.25',
    ]
