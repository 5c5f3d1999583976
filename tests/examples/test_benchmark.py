"""The benchmark: a tiny run of the script itself, and what its ratios, its memory and its peers mean."""

import contextlib
import dataclasses
import importlib.util
import math
import sys

import _benchmark_cases
import _benchmark_chains
import _benchmark_peers
import _benchmark_profile
import _benchmark_remote
import _benchmark_report
import _benchmark_timing
import benchmark
import numpy as np
import pytest
import tensorflow as tf
from _benchmark_timing import Size
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import scripts
from tests.flows import raises

TINY = Size(4, 8, 1, 5)
PEERS = {name: importlib.util.find_spec(module) is not None for name, (_, module, _) in _benchmark_peers.PEERS.items()}


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else."""
    values = {'sizes': '4x8x1x5x3x2', 'works': 'sample_gradient,log_prob,vae_step', 'modes': 'graph'}
    return scripts.run(benchmark, tmp_path_factory.mktemp('elsewhere'), rounds=2, seconds=0, threads=1, **values)


@pytest.mark.slow
class TestTinyRun:
    def test_times_everyone_at_every_work(self, tiny_run):
        record = scripts.read_record(tiny_run[0])
        size = Size(4, 8, 1, 5, 3, 2)
        installed = [name for name, there in PEERS.items() if there]
        for case in record['cases']:
            assert Size(**case['size']) == size and case['skipped'] == []
            timed = {row['implementation'] for row in case['rows'] if row['work'] == case['work']}
            known = [*_benchmark_chains.IMPLEMENTATIONS, *_benchmark_chains.VAES, *installed]
            assert timed == {name for name in known if _benchmark_cases.does(name, size, case['work'])}
            for row in case['rows']:
                assert len(row['seconds']) == 2 and 0 < row['ms']['low'] <= row['ms']['median'] < math.inf
                assert row['mode'] in ('graph', _benchmark_peers.PEERS.get(row['implementation'], ' ' * 3)[2])
            assert case['eager'] is None and set(timed) <= {'tfp_iaf', *case['compiled']['ratios']}
        assert [case['work'] for case in record['cases']] == ['sample_gradient', 'log_prob', 'vae_step']

    def test_writes_tables_plots_and_cases(self, tiny_run):
        directory, output = tiny_run
        assert (directory / 'ratios.png').stat().st_size > 1000
        assert len(list((directory / 'cases').glob('4x8x1x5x3x2-*.json'))) == 3
        for text in ('/ own sample', '/ repeated', '/ fixed_point', '/ TFP', '/ dense', '/ no_flow', 'traced in s'):
            assert text in output

    def test_says_why_a_peer_is_missing(self, tiny_run):
        missing = scripts.read_record(tiny_run[0])['missing']
        assert set(missing) == {name for name, there in PEERS.items() if not there}
        for name, reason in missing.items():
            assert 'is not installed' in reason and f'Skipped {name}: {reason}.' in tiny_run[1]


class TestTurns:
    def test_calls_that_are_not_counted_come_first(self):
        calls = []
        timers = {name: lambda at_least, name=name: calls.append((name, at_least)) or 1.0 for name in 'ab'}
        assert _benchmark_timing.take_turns(timers, 1, 0.5, math.inf) == {'a': [1.0], 'b': [1.0]}
        assert calls == [('a', 0.0), ('b', 0.0), ('a', 0.5), ('b', 0.5)]

    def test_everyone_is_first_in_turn(self):
        calls, rounds = [], []
        timers = {name: lambda _, name=name: calls.append(name) or 1.0 for name in 'abc'}
        _benchmark_timing.take_turns(timers, 4, 0.0, math.inf, lambda: rounds.append(len(calls)))
        assert ''.join(calls) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc' and rounds == [6, 9, 12, 15]

    def test_the_slow_are_left_out_of_later_rounds(self):
        timers = {'fast': lambda _: 0.1, 'slow': lambda _: 2.0}
        times = _benchmark_timing.take_turns(timers, 4, 0.5, patience=3.0)
        assert times == {'fast': 4 * [0.1], 'slow': [2.0, 2.0, None, None]}
        # What a fast one takes is the time of all its calls.
        assert _benchmark_timing.take_turns(timers, 4, 2.0, patience=3.0)['fast'] == [0.1, 0.1, None, None]
        assert _benchmark_timing.take_turns(timers, 2, 0.0, patience=0.0)['fast'] == [0.1, None]

    def test_a_time_is_the_median_of_calls(self):
        now = iter([0, 9, 10, 11, 20, 22, 30, 31])
        assert _benchmark_timing.seconds_per_call(lambda: None, 12.5, clock=lambda: next(now)) == 1.5
        assert _benchmark_timing.seconds_per_call(lambda: None, 0.0, clock=iter([3, 7]).__next__) == 4


class TestRatios:
    def test_are_taken_round_by_round(self):
        # The machine is three times as slow in two rounds: that is no difference between the two.
        ratio = _benchmark_timing.ratio([1.0, 3.0, 1.0, 3.0, 1.0], [2.0, 6.0, 2.0, 6.0, 4.0])
        assert ratio == {'low': 0.5, 'median': 0.5, 'high': 0.5}

    def test_leave_out_rounds_that_only_one_has(self):
        assert _benchmark_timing.ratio([1.0, 2.0, 9.0], [2.0, 2.0, None])['median'] == 0.75
        assert _benchmark_timing.ratio([1.0, None], [None, 1.0]) is None

    def test_quartiles(self):
        assert _benchmark_timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == {'low': 2.0, 'median': 3.0, 'high': 4.0}
        assert _benchmark_timing.quartiles([7.0]) == {'low': 7.0, 'median': 7.0, 'high': 7.0}


def row(name, mode, seconds, work='sample'):
    ms = _benchmark_timing.quartiles([1e3 * s for s in seconds])
    found = {'implementation': name, 'work': work, 'mode': mode, 'seconds': seconds, 'ms': ms}
    return {**found, 'compile_s': 0.25, 'device': 'cpu'}


class TestReport:
    rows = (
        row('tfp_iaf', 'eager', [9.0, 9.0]),
        row('tfp_iaf', 'graph', [3.0, 3.0]),
        row('tfp_iaf', 'xla', [2.0, 4.0], 'log_prob'),
        row('tfp_iaf', 'graph', [5.0, 5.0], 'log_prob'),
        row('TFP', 'eager', [90.0, 90.0], 'log_prob'),
        row('TFP', 'xla', [8.0, 8.0], 'log_prob'),
        row('TFP', 'graph', [4.0, 8.0], 'log_prob'),
        row('zuko', 'eager', [20.0, 40.0], 'log_prob'),
        row('flowjax', 'xla', [1.0, 1.0], 'log_prob'),
    )

    def test_the_faster_mode_of_each_counts(self):
        found = _benchmark_report.compare(self.rows, 'log_prob', eager=False)
        assert found['mode'] == 'xla' and found['ms']['median'] == 3000
        medians = {name: (spread['mode'], spread['median']) for name, spread in found['ratios'].items()}
        own = ('graph', pytest.approx(1.0))
        expected = {
            'TFP': ('graph', 0.5),
            'zuko': ('eager', 0.1),
            'flowjax': ('xla', 3.0),
            _benchmark_report.OWN_SAMPLE: own,
        }
        assert medians == expected

    def test_eager_is_compared_with_eager(self):
        assert _benchmark_report.compare(self.rows, 'log_prob', eager=True) is None
        assert _benchmark_report.compare(self.rows, 'sample', eager=True) == {
            'mode': 'eager',
            'ms': {'low': 9000, 'median': 9000, 'high': 9000},
            'ratios': {},
        }
        rows = (*self.rows, row('tfp_iaf', 'eager', [10.0, 10.0], 'log_prob'))
        ratios = _benchmark_report.compare(rows, 'log_prob', eager=True)['ratios']
        assert set(ratios) == {'TFP', 'zuko', _benchmark_report.OWN_SAMPLE} and ratios['TFP'][
            'median'
        ] == pytest.approx(1 / 9)

    def test_sweeps_differ_in_one_quantity(self):
        sweeps = _benchmark_report.sweeps([Size.parse(text) for text in benchmark.CURVE_SIZES])
        assert {label: [str(size) for size in sizes] for label, sizes in sweeps.items()} == {
            label: list(sizes) for label, sizes in benchmark.CURVES.items()
        }
        assert (
            _benchmark_report.sweeps([TINY, dataclasses.replace(TINY, hidden=9), dataclasses.replace(TINY, batch=9)])
            == {}
        )

    def test_tables_and_plots(self, tmp_path):
        results = {make_case(size, 'log_prob'): {'rows': self.rows, 'skipped': []} for size in benchmark.CURVES['H']}
        for draw in _benchmark_report.plot_ratios, _benchmark_report.plot_costs:
            assert draw(results, tmp_path / 'drawn.png') and not draw({}, tmp_path / 'not drawn.png')
            assert (tmp_path / 'drawn.png').stat().st_size > 1000 and not (tmp_path / 'not drawn.png').exists()
            (tmp_path / 'drawn.png').unlink()
        table = _benchmark_report.ratio_table(results, 'log_prob').splitlines()
        assert len(table) == 2 + len(results) and '0.5 (0.5-0.5)' in table[2]
        assert _benchmark_report.time_table(results).count('log q of a new point') == 7 * len(results)
        assert '0.50 of TFP' in _benchmark_report.describe(next(iter(results)), {'rows': self.rows})


def make_case(size, work, **changes):
    settings = {'implementations': ('tfp_iaf', 'TFP', 'dense', 'zuko'), 'modes': ('graph', 'xla'), 'rounds': 2}
    settings |= {'seconds': 0.0, 'patience': 1.0, 'memory': False, 'threads': 1, 'versions': (), **changes}
    return _benchmark_cases.Case(Size.parse(size), work, **settings)


class TestCases:
    def test_our_forward_pass_takes_turns_too(self):
        graph_and_xla = [('tfp_iaf', 'sample', mode) for mode in ('graph', 'xla')]
        candidates = make_case('4x8x1x5', 'log_prob').candidates
        assert candidates[-2:] == graph_and_xla and ('zuko', 'log_prob', 'eager') in candidates
        assert not any(name == 'dense' for name, _, _ in candidates)
        assert make_case('4x8x1x5', 'sample').candidates.count(graph_and_xla[0]) == 1

    def test_other_settings_have_another_name(self):
        case = make_case('4x8x1x5', 'sample')
        others = [make_case('4x8x1x6', 'sample'), make_case('4x8x1x5', 'log_prob'), make_case('4x8x1x5x3', 'sample')]
        changes = {'memory': True, 'rounds': 3, 'threads': 2, 'modes': ('xla',), 'versions': (('zuko', '1'),)}
        others += [make_case('4x8x1x5', 'sample', **{key: value}) for key, value in changes.items()]
        assert len({case.name, *(other.name for other in others)}) == 1 + len(others)
        assert case.name == make_case('4x8x1x5', 'sample').name

    def test_what_fails_is_skipped_with_a_reason(self, monkeypatch):
        def fail(name, *args):
            if name == 'TFP':
                raise tf.errors.ResourceExhaustedError(None, None, 'too large')
            return (lambda: 0.0), {'first_call_s': 1.0}

        monkeypatch.setattr(_benchmark_chains, 'prepare', fail)
        case = make_case('4x8x1x5', 'sample', implementations=('tfp_iaf', 'TFP'), modes=('graph',))
        found = _benchmark_cases.measure({}, sys.executable, None, case)
        assert [row['implementation'] for row in found['rows']] == ['tfp_iaf']
        assert [(entry['implementation'], entry['reason']) for entry in found['skipped']] == [('TFP', 'too large')]
        assert 0.9 < found['rows'][0]['compile_s'] <= 1.0


class Options(dict):
    """Flags as absl has them, without a command line."""

    __getattr__ = dict.__getitem__
    set_default = dict.__setitem__


class TestPlan:
    @pytest.mark.parametrize('preset', benchmark.PRESETS)
    def test_presets_have_work_for_us(self, preset):
        options = Options(preset=preset, sizes=[], works=[])
        plan = benchmark.planned(options)
        assert len({(size, work) for size, work, _ in plan}) == len(plan) >= 5
        assert all(
            _benchmark_cases.does('tfp_iaf', size, work) and work in _benchmark_timing.WORKS for size, work, _ in plan
        )
        assert ('rounds' in options) == (preset in ('quick', 'curves'))

    def test_sizes_and_works_take_the_place_of_the_preset(self):
        plan = benchmark.planned(Options(preset='full', sizes=['4x8x1x5'], works=[]))
        assert [(size, work) for size, work, _ in plan] == [(TINY, work) for work in benchmark.PLAIN_WORKS]
        plan = benchmark.planned(Options(preset='full', sizes=[], works=['sample']))
        assert [str(size) for size, _, _ in plan] == list(benchmark.SIZES)


class TestSize:
    @given(st.lists(st.integers(1, 9999), min_size=4, max_size=6))
    def test_reads_what_it_writes(self, numbers):
        size = Size(*numbers)
        assert Size.parse(str(size)) == Size.parse('x'.join(map(str, numbers))) == size

    @pytest.mark.parametrize('text', ['', '4x8x1', '4x8x1xa', '4x8x1x0', '4x8x1x5x3x2x1', '4x8x1x5x0'])
    def test_names_what_is_wrong(self, text):
        with raises(ValueError, 'sizes', repr(text), 'expected'):
            Size.parse(text)


class TestChains:
    @pytest.mark.parametrize('name', ['tfp_iaf', 'TFP'])
    def test_have_networks_of_the_same_size(self, name):
        """Their kernels; TFP's context has a bias besides."""
        module = _benchmark_chains.IMPLEMENTATIONS[name](Size(4, 8, 2, 5))
        kernels = [tuple(v.shape) for v in module.trainable_variables if v.shape.rank == 2 and 4 <= v.shape[0] <= 8]
        assert sorted(kernels) == sorted(2 * [(4, 8), (8, 8), (8, 8)])

    @pytest.mark.parametrize(
        ('name', 'samples'),
        [
            (name, samples)
            for name in _benchmark_chains.IMPLEMENTATIONS
            for samples in (0, 2)
            if samples or name != 'repeated'
        ],
    )
    def test_return_a_log_density_a_sample(self, name, samples):
        size = Size(4, 8, 1, 5, 3, samples)
        shape = (10,) if name == 'repeated' else (2, 5) if samples else (5,)
        step, _ = _benchmark_chains.prepare(name, size, 'sample', 'eager')
        assert step().shape == shape and np.all(np.isfinite(step())) and not np.array_equal(step(), step())

    @pytest.mark.parametrize('work', ['sample_gradient', 'log_prob_gradient'])
    def test_take_the_gradient_for_all_weights_and_inputs(self, work):
        function, arguments = _benchmark_chains.make_work('tfp_iaf', TINY, work)
        loss, (weights, inputs) = function(*arguments)
        assert loss.shape == () and len(inputs) == len(arguments)
        assert all(np.any(gradient != 0) for gradient in tf.nest.flatten([weights, inputs[:3]]))

    def test_repeat_each_context_for_its_samples(self):
        """The same points, so the same log-densities."""
        shared, repeated = (
            _benchmark_chains.prepare(name, Size(4, 8, 1, 5, 3, 2), 'log_prob', 'eager')[0]()
            for name in ('tfp_iaf', 'repeated')
        )
        assert shared.shape == (2, 5)
        np.testing.assert_allclose(np.transpose(shared), np.reshape(repeated, [5, 2]), rtol=1e-4)


class TestMemory:
    def test_is_the_peak_of_a_step(self):
        def step():
            return np.ones(10_000_000)[0]  # 80 MB, freed at once

        peak, how = _benchmark_timing.peak_memory(lambda: (step, {}))
        assert how != 'VmHWM' or 70 < peak < 100

    @pytest.mark.slow
    def test_of_tensorflow(self):
        size = Size(32, 1920, 1, 10)
        found = _benchmark_remote.measure_memory('dense', size, 'sample_gradient', 'graph', sys.executable, 'cpu')
        gradient = 4e-6 * 1920 * (32 + 32 + 1920 + 64)
        # Linux counts memory a little late.
        assert found['memory_by'] != 'VmHWM' or 0.7 * gradient < found['peak_mb'] < 2 * gradient


class TestPeers:
    @pytest.mark.parametrize('name', PEERS)
    def test_run_where_installed(self, name):
        with contextlib.ExitStack() as stack:
            remotes, missing = _benchmark_cases.start_peers([name], sys.executable, stack)
            if not PEERS[name]:
                assert remotes == {} and 'is not installed for' in missing[name]
                return
            timer, found = remotes[name].prepare(Size(4, 8, 1, 5, 3, 2), 'log_prob', _benchmark_peers.PEERS[name][2])
            assert timer(0.0) > 0 and found['first_call_s'] > 0

    def test_a_process_that_ends_is_an_error(self, tmp_path):
        python = tmp_path / 'python'
        python.write_text('#!/bin/sh\necho boom >&2\nexit 3\n')
        python.chmod(0o755)
        for program, reason in (python, 'the process ended with status 3. boom'), (tmp_path / 'none', 'No such file'):
            with contextlib.ExitStack() as stack:
                remotes, missing = _benchmark_cases.start_peers(['zuko'], str(program), stack)
            assert remotes == {} and reason in missing['zuko']


class TestProfile:
    def test_time_within_another_operation_is_not_its_own(self):
        events = [
            ('While', 0.0, 10.0),
            ('MatMul', 1.0, 4.0),
            ('Elu', 5.0, 1.0),
            ('MatMul', 7.0, 2.0),
            ('Sum', 10.0, 1.0),
        ]
        assert _benchmark_profile.self_times(events) == {
            'While': (1, 3.0),
            'MatMul': (2, 6.0),
            'Elu': (1, 1.0),
            'Sum': (1, 1.0),
        }

    def test_kinds(self):
        kinds = {'_MklFusedMatMul': 'matrix products', 'EluGrad': 'activations', 'BiasAddGrad': 'sums', 'Mul': None}
        for op_type, kind in kinds.items():
            assert _benchmark_profile.kind_of(op_type) == (kind or 'arithmetic per entry')
        assert _benchmark_profile.kind_of('SelectV2') == 'masks'
        assert _benchmark_profile.kind_of('ReadVariableOp') == list(_benchmark_profile.KINDS)[-1]

    def test_of_a_step(self):
        function = tf.function(lambda x: tf.reduce_sum(x @ x))
        x = tf.ones([50, 50])
        found = _benchmark_profile.profile(lambda: function(x).numpy(), calls=3)
        assert found['kinds']['matrix products']['calls'] == 1 and found['kinds']['sums']['calls'] == 1
        total = sum(entry['ms'] for entry in found['kinds'].values())
        assert total == pytest.approx(found['recorded_ms'])
        header, lines = _benchmark_profile.table_of({'one': found})
        assert all(len(line) == len(header) for line in lines) and lines[0][0] == 'matrix products'
