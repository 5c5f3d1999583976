"""The benchmark: a tiny run of the script itself, and what its ratios mean."""

import json
import math
import subprocess
import sys

import benchmark
import pytest


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('elsewhere')
    flags = ['--quick', '--sizes=4x8x1x5', '--rounds=1', '--seconds=0', f'--works={",".join(benchmark.WORKS)}']
    command = [sys.executable, benchmark.__file__, '--output_dir=out', *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / 'out' / 'times.png').stat().st_size > 1000
    return json.loads((folder / 'out' / 'results.json').read_text())


@pytest.mark.slow
def test_times_every_work_in_every_way(results):
    done = {(row['implementation'], row['work'], row['mode']) for row in results['times']}
    for name in benchmark.IMPLEMENTATIONS:
        for work in benchmark.WORKS:
            for mode in ('graph', 'xla'):
                assert ((name, work, mode) in done) == (work not in benchmark.OMITTED.get(name, ()))
    assert all(row['ms'] > 0 and math.isfinite(row['spread']) for row in results['times'])


@pytest.mark.slow
def test_ratios_are_those_of_the_times(results):
    (row,) = [row for row in results['ratios'] if row['work'] == 'log_prob']
    size = benchmark.Size(4, 8, 1, 5)
    ours, forward = (benchmark.best(results['times'], size, 'tfp_iaf', work) for work in ('log_prob', 'sample'))
    assert row['ms'] == ours and row['per_own_forward'] == pytest.approx(ours / forward)
    assert row['per_TFP'] == pytest.approx(ours / benchmark.best(results['times'], size, 'TFP', 'log_prob'))
    assert row['per_dense'] is None


def test_the_better_of_graph_and_xla_counts():
    size = benchmark.Size(4, 8, 1, 5)
    common = {'event': 4, 'hidden': 8, 'flows': 1, 'batch': 5, 'implementation': 'TFP', 'work': 'sample'}
    rows = [{**common, 'mode': 'graph', 'ms': 2.0}, {**common, 'mode': 'xla', 'ms': 3.0}]
    assert benchmark.best(rows, size, 'TFP', 'sample') == 2.0
    assert benchmark.best(rows, size, 'dense', 'sample') is None


@pytest.mark.parametrize('make', [benchmark.Ours, benchmark.Tfp], ids=['tfp_iaf', 'TFP'])
def test_compares_networks_of_the_same_size(make):
    """Their kernels; TFP's context has a bias besides."""
    size = benchmark.Size(4, 8, 2, 5)
    module = make(size)
    benchmark.make_work(module, size, 'sample')()
    kernels = sorted(tuple(v.shape) for v in module.trainable_variables if v.shape.rank == 2 and 4 <= v.shape[0] <= 8)
    assert kernels == sorted(2 * [(4, 8), (8, 8), (8, 8)])
