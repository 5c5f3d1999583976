"""The benchmark: who does what in turns, what the ratios mean, and a run of the whole."""

import math
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from benchmark import cases, flows, packages, peers, profile, report, steps, timing
from benchmark.cases import Size

from tests.flows import raises

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.slow

CHAIN, SURROGATE, MANY = Size(4, 8, 2, 5, 3), Size(4, 8, 2, 5, 0), Size(4, 8, 2, 5, 3, 2)
IN_TENSORFLOW = [name for name in cases.NAMES if name not in (*peers.PEERS, 'other')]


class TestTurns:
    def test_everyone_is_first_in_turn(self):
        calls = []
        turns = timing.take_turns({name: lambda name=name: calls.append(name) for name in 'abc'}, 4, 0.0)
        assert [(key, i) for key, i, _ in turns] == [(key, i // 3) for i, key in enumerate('abcbcacababc')]
        assert ''.join(calls) == 'abcbcacababc'

    def test_a_time_is_the_median_of_calls(self):
        now = iter([0, 9, 10, 11, 20, 22, 30, 31])
        assert timing.seconds_per_call(lambda: None, 12.5, clock=lambda: next(now)) == 1.5
        assert timing.seconds_per_call(lambda: None, 0.0, clock=iter([3, 7]).__next__) == 4


def measurements(**seconds):
    """A table with the seconds in each round, by `implementation_mode`."""
    rows = [
        ('log_prob', '4x8x2x5', *name.rsplit('_', 1), i, value, 3)
        for name, values in seconds.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=['work', 'size', 'implementation', 'mode', 'round', 'seconds', 'nodes'])


class TestReport:
    def test_ratios_are_taken_round_by_round(self):
        # The machine is three times as slow in two rounds, which is no difference between the two.
        measured = measurements(tfp_iaf_xla=[1.0, 3.0, 1.0, 3.0, 1.0], TFP_xla=[2.0, 6.0, 2.0, 6.0, 4.0])
        (ratio,) = report.ratios(measured).to_dict('records')
        assert ratio == {'median': 0.5, 'low': 0.5, 'high': 0.5}

    def test_the_faster_mode_of_each_counts_and_eager_apart(self):
        measured = measurements(
            tfp_iaf_graph=[5.0, 5.0],
            tfp_iaf_xla=[2.0, 4.0],
            TFP_graph=[4.0, 8.0],
            TFP_xla=[9.0, 9.0],
            zuko_torch=[10.0, 20.0],
            own_sample_eager=[1.0, 1.0],
            tfp_iaf_eager=[20.0, 20.0],
        )
        medians = {key[2:]: value for key, value in report.ratios(measured)['median'].items()}
        expected = {('graph or XLA', 'TFP'): 0.5, ('graph or XLA', 'zuko'): 0.2}
        assert medians == pytest.approx({**expected, ('eager', 'zuko'): 1.5, ('eager', 'own_sample'): 20.0})
        table = report.ratio_table(measured)
        assert list(table) == ['work', 'size', 'compared', '/ own_sample', '/ TFP', '/ zuko']
        assert table['/ TFP'].tolist() == ['0.5 (0.5-0.5)', '']
        assert report.time_table(measured)['ms'][1] == '3000 (2500-3500)'

    def test_nobody_to_compare_with(self):
        assert report.ratio_table(measurements(tfp_iaf_xla=[1.0])).empty


class TestPlan:
    @pytest.mark.parametrize('suite', cases.SUITES)
    def test_suites_have_work_for_us(self, suite):
        plan = cases.plan([suite], [], [], [], quick=False)
        assert all(any(name == 'tfp_iaf' for name, _ in candidates) for candidates in plan.values())
        for candidates in plan.values():
            assert len(set(candidates)) == len(candidates) >= 2

    def test_options_replace_what_a_suite_has(self):
        plan = cases.plan(['chains'], ['4x8x2x5x3'], ['log_prob'], ['xla'], quick=False)
        names = [name for name in cases.NAMES if cases.does(name, CHAIN, 'log_prob')]
        torch = ('Pyro', 'zuko')
        assert plan == {(CHAIN, 'log_prob'): [(name, 'torch' if name in torch else 'xla') for name in names]}
        assert names == ['tfp_iaf', 'other', 'own_sample', 'fixed_point', 'TFP', 'Pyro', 'zuko', 'flowjax']
        assert cases.plan(['chains'], ['4x8x2x5'], ['fit'], [], quick=False) == {}

    def test_sizes(self):
        for text in ('4x8x2x5', '4x8x2x5x3', '4x8x2x5x0', '4x8x2x5x3x2', '4x8x2x5x32x2'):
            assert str(Size.parse(text)) == text
        for text in ('', '4x8x1', '4x8x1xa', '4x8x1x0', '4x8x1x5x3x2x1'):
            with raises(ValueError, 'sizes', repr(text), 'expected'):
                Size.parse(text)


@pytest.mark.parametrize('size', [CHAIN, SURROGATE], ids=str)
@pytest.mark.parametrize('name', ['tfp_iaf', 'TFP'])
def test_networks_have_the_same_kernels(name, size):
    variables = flows.make(name, size).trainable_variables
    kernels = [tuple(v.shape) for v in variables if v.shape.rank == 2 and v.shape[0] in (4, 8)]
    assert sorted(kernels) == sorted(2 * [(4, 8), (8, 8), (8, 8)])


@pytest.mark.parametrize(
    ('name', 'size', 'work'),
    [
        pytest.param(name, size, work, id=f'{name}-{size}-{work}')
        for name in IN_TENSORFLOW
        for size in (CHAIN, SURROGATE, MANY)
        for work in ('sample', 'sample_adam', 'log_prob')
        if cases.does(name, size, work)
    ],
)
def test_steps(name, size, work, inversions):
    """They give log q of all samples, or a loss; a point is inverted, and a sample not."""
    result = steps.prepare(name, size, work, 'eager', 1).step()
    shape = (size.samples, size.batch) if size.samples else (size.batch,)
    shape = (10,) if name == 'repeated' else shape
    assert np.all(np.isfinite(result)) and result.shape == (shape if work in ('sample', 'log_prob') else ())
    assert bool(inversions) == (name == 'tfp_iaf' and work.startswith('log_prob'))


@pytest.mark.parametrize('work', ['sample_gradient', 'log_prob_gradient'])
def test_gradients_are_for_all_weights_and_inputs(work):
    function, arguments = steps.make_work('tfp_iaf', CHAIN, work)
    _, (of_variables, of_inputs) = function(*arguments)
    assert len(of_inputs) == len(arguments) == 3 + work.startswith('log_prob')
    assert all(np.any(gradient != 0) for gradient in (*of_variables, *of_inputs))


@pytest.mark.parametrize('fit', [steps.fit_by_tfp, steps.fit_by_hand])
def test_fits_train(fit):
    """Adam's first step moves every weight by the learning rate."""
    model = flows.make('tfp_iaf', SURROGATE)
    before = [variable.numpy() for variable in model.trainable_variables]
    assert np.all(np.isfinite(fit(model, SURROGATE, 1, jit=False)()))
    moved = [np.max(np.abs(v - old)) for v, old in zip(model.trainable_variables, before, strict=True)]
    np.testing.assert_allclose(moved, cases.LEARNING_RATE, rtol=0.01)


@pytest.mark.parametrize('name', peers.PEERS)
def test_peers(name):
    pytest.importorskip(peers.PEERS[name][0])
    size = SURROGATE if name == 'NumPyro' else CHAIN
    for work in (work for work in cases.WORKS if cases.does(name, size, work)):
        result = peers.prepare(name, size, work, cases.mode_of(name, work, 'xla'), fit_steps=2)()
        shapes = {'sample': (5,), 'log_prob': (5,), 'fit': (2,)}
        assert np.all(np.isfinite(result)) and result.shape == shapes.get(work, ())


def test_another_checkout_takes_part(monkeypatch):
    made = []
    other = types.SimpleNamespace(IAFPosterior=lambda *args, **kwargs: made.append(args))
    monkeypatch.setitem(packages.PACKAGES, 'other', other)
    flows.make('other', CHAIN)
    assert made == [(4, 2)]
    with raises(ValueError, '--other', "'nowhere'", 'expected'):
        packages.load_other('nowhere')


def test_profile():
    kinds = {'_MklFusedMatMul': 'matrix products', 'EluGrad': 'activations', 'SelectV2': 'masks'}
    kinds |= {'Mul': 'other operations', 'StatelessWhile': 'control flow'}
    assert {op_type: profile.kind_of(op_type) for op_type in kinds} == kinds
    function, x = tf.function(lambda x: tf.reduce_sum(x @ x)), tf.ones([50, 50])
    found = profile.profile(lambda: function(x).numpy(), calls=3)
    assert found['matrix products'] > 0 and found[:-1].sum() == pytest.approx(found['all'])


def test_run(tmp_path):
    """The command, beside a checkout of another version."""
    shutil.copytree(ROOT / 'tfp_iaf', tmp_path / 'other' / 'tfp_iaf')
    (tmp_path / 'other' / 'tfp_iaf' / '_version.py').write_text("__version__ = '0.0.0'\n")
    command = '-m benchmark --quick --works log_prob vae_step --beside other own_sample no_flow'
    done = subprocess.run(
        [sys.executable, *command.split(), '--other', tmp_path / 'other', '--output-dir', tmp_path],
        cwd=ROOT / 'examples',
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / 'results.csv')
    beside = {'log_prob': {'own_sample'}, 'vae_step': {'no_flow'}}
    expected = {work: {'tfp_iaf', 'other', *names} for work, names in beside.items()}
    assert rows.groupby('work').implementation.apply(set).to_dict() == expected
    assert all(0 < seconds < math.inf for seconds in rows.seconds)
    assert 'other 0.0.0' in done.stdout and '/ own_sample' in done.stdout and 'skipped' not in done.stdout
