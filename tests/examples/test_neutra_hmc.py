"""HMC through a fitted flow: a tiny run of the script, and its parts against what is known of them."""

import types

import _hmc
import _hmc_statistics
import matplotlib.image
import neutra_hmc
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
from tests.examples import scripts

tfd = tfp.distributions

TINY = {'gradients': 32000, 'fit_steps': 300}
SAMPLERS = ('HMC:10:0.8', 'NeuTra:2:0.7')
RUNS = [_hmc.Settings(_hmc.Sampler.parse(sampler), **TINY) for sampler in SAMPLERS]


@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """The output directory and the output of the script, called from somewhere else."""
    folder = tmp_path_factory.mktemp('elsewhere')
    return scripts.run(neutra_hmc, folder, '--quick', jobs=2, samplers=','.join(SAMPLERS), **TINY)


@pytest.mark.slow
class TestTinyRun:
    def test_writes_what_it_says(self, tiny_run):
        directory, output = tiny_run
        record = scripts.read_record(directory)
        assert record['flags']['gradients'] == TINY['gradients']
        assert [row['sampler'] for row in record['aggregated']] == list(SAMPLERS)
        for run, settings, row in zip(record['runs'], RUNS, record['aggregated'], strict=True):
            # All that were asked for, and one at each chain's start.
            assert run['gradients'] == TINY['gradients'] + settings.chains
            assert run['smallest_ess'] == min(run['ess']) and len(run['ess']) == 10
            assert run['ess_per_1000_gradients'] == pytest.approx(1e3 * run['smallest_ess'] / run['gradients'])
            assert 0.4 < run['acceptance'] <= 1 and run['step_size'] > 0
            assert row['ess_per_1000_gradients']['by_seed'] == [run['ess_per_1000_gradients']]
            assert f'{run["ess_per_1000_gradients"]:.3f}' in output
        hmc, neutra = record['runs']
        assert (hmc['gradients_to_fit'], neutra['gradients_to_fit']) == (0, 100 * TINY['fit_steps'])
        with_fit = neutra['smallest_ess'] / (neutra['gradients'] + neutra['gradients_to_fit'])
        assert neutra['ess_per_1000_gradients_with_fit'] == pytest.approx(1e3 * with_fit)

    def test_a_flow_helps(self, tiny_run):
        hmc, neutra = scripts.read_record(tiny_run[0])['runs']
        assert neutra['smallest_ess'] > 2 * hmc['smallest_ess']
        assert neutra['v_ks_distance'] < 0.1 and neutra['largest_r_hat'] < hmc['largest_r_hat']

    def test_draws(self, tiny_run):
        height, width, _ = matplotlib.image.imread(tiny_run[0] / 'chains.png').shape
        assert height > 700 and width > 1200

    def test_keeps_the_chains_that_the_figures_are_of(self, tiny_run):
        for settings, run in zip(RUNS, scripts.read_record(tiny_run[0])['runs'], strict=True):
            with np.load(tiny_run[0] / 'runs' / f'{settings.name}.npz') as arrays:
                coordinates, trace = arrays['coordinates'], arrays['trace']
            v = coordinates[:, 0].reshape(settings.transitions, settings.chains)  # so few that none is left out
            assert v.mean() == pytest.approx(run['v_mean'], abs=1e-3)
            assert v.std() == pytest.approx(run['v_stddev'], abs=1e-3)
            np.testing.assert_array_equal(trace, v[:, 0])

    def test_goes_on_without_repeating(self, tiny_run, capsys):
        scripts.check_goes_on(tiny_run[0], RUNS, capsys)

    def test_leaves_no_temporary_file(self, tiny_run):
        scripts.check_files(tiny_run[0], RUNS, 'npz', ['results.json', 'chains.png'])


@pytest.mark.slow
def test_chains_are_exact_whatever_the_flow(monkeypatch):
    """Through a flow that was never fitted, and bends a lot: without its log-det they would be far off."""

    def model():
        a = yield tfd.JointDistributionCoroutine.Root(tfd.Normal(1.0, 2.0, name='a'))
        yield tfd.Normal(0.5 * a, 1.0, name='b')

    joint = tfd.JointDistributionCoroutine(model)
    monkeypatch.setattr(_hmc, 'FUNNEL', types.SimpleNamespace(joint=joint))
    # Bounded, or else chance makes corners that no chain comes out of.
    q = tfp_iaf.build_iaf_surrogate_posterior(joint.event_shape_tensor(), hidden_units=(8,), activation='tanh', seed=0)
    rng = np.random.default_rng(0)
    for variable in q.trainable_variables:
        variable.assign_add(0.4 * rng.normal(size=variable.shape))
    noise = rng.normal(size=[1000, 2]).astype(np.float32)
    assert np.std(q.bijector.forward_log_det_jacobian(noise, event_ndims=1)) > 0.2

    settings = _hmc.Settings(_hmc.Sampler('NeuTra', 3), gradients=192000)
    states, acceptance, _, _ = _hmc.sample_chains(q, settings)
    assert states.a.shape == [settings.transitions, settings.chains]
    assert acceptance == pytest.approx(0.8, abs=0.1)
    np.testing.assert_allclose([np.mean(states.a), np.mean(states.b)], [1.0, 0.5], atol=0.08)
    np.testing.assert_allclose(np.cov(np.ravel(states.a), np.ravel(states.b)), [[4.0, 2.0], [2.0, 2.0]], atol=0.2)


class TestStatistics:
    def chains(self, transitions=4000, memory=0.0):
        """Four chains with v from N(0, 3^2), each state `memory` times the one before, and noise."""
        rng = np.random.default_rng(0)
        values = np.zeros([transitions, 4, 10], np.float32)
        state = rng.normal(size=[4, 10])
        for values_now in values:
            state = memory * state + np.sqrt(1 - memory**2) * rng.normal(size=[4, 10])
            values_now[...] = 3 * state
        return values

    def test_independent_draws(self):
        figures = _hmc_statistics.of_chains(tf.constant(self.chains()))
        assert figures['smallest_ess'] == pytest.approx(16000, rel=0.1)
        assert figures['largest_r_hat'] == pytest.approx(1, abs=0.01)
        assert figures['v_mean'] == pytest.approx(0, abs=0.1) and figures['v_stddev'] == pytest.approx(3, abs=0.1)
        np.testing.assert_allclose(figures['v_quantiles'], [-6.98, 6.98], atol=0.3)
        assert figures['v_ks_distance'] < 0.015

    def test_correlated_draws(self):
        # Autocorrelations 0.9^k: a tenth of the states over 1.9.
        figures = _hmc_statistics.of_chains(tf.constant(self.chains(memory=0.9)))
        np.testing.assert_allclose(figures['ess'], 16000 * 0.1 / 1.9, rtol=0.35)
        assert figures['smallest_ess'] == min(figures['ess'])

    def test_chains_that_do_not_meet(self):
        apart = self.chains() + np.array([0, 0, 9, 9], np.float32)[:, np.newaxis]
        figures = _hmc_statistics.of_chains(tf.constant(apart))
        assert figures['largest_r_hat'] > 1.5 and figures['smallest_ess'] < 100
        # Half of them from N(9, 3^2): the distribution functions differ by (2 F(1.5) - 1) / 2 at 4.5.
        assert figures['v_ks_distance'] == pytest.approx(0.433, abs=0.02)


class TestSettings:
    def test_sampler_is_read_as_it_is_written(self):
        sampler = _hmc.Sampler('HMC', 30, 0.95)
        assert _hmc.Sampler.parse('HMC:30:0.95') == sampler and str(sampler) == 'HMC:30:0.95'
        assert neutra_hmc.are_samplers(neutra_hmc.SAMPLERS)

    @pytest.mark.parametrize('text', ['', 'HMC', 'HMC:0:0.8', 'HMC:x:0.8', 'NUTS:3:0.8', 'HMC:3:1.0', 'HMC:3:0.8:1'])
    def test_no_sampler(self, text):
        assert not neutra_hmc.are_samplers(['HMC:3:0.8', text])

    def test_no_samplers(self):
        assert not neutra_hmc.are_samplers([])

    def test_gradients_are_those_of_warm_up_and_of_what_is_kept(self):
        settings = _hmc.Settings(_hmc.Sampler('HMC', 10), gradients=64000)
        assert settings.warm_up == 100 and settings.transitions == 300

    def test_too_few_gradients(self):
        with pytest.raises(ValueError, match='gradients: got 639, expected at least 640'):
            _hmc.Settings(_hmc.Sampler('HMC', 10), gradients=639)
        assert _hmc.Settings(_hmc.Sampler('HMC', 10), gradients=640).transitions == 3

    def test_other_settings_have_other_names(self):
        others = [_hmc.Settings(RUNS[0].sampler, seed=1), _hmc.Settings(RUNS[0].sampler), *RUNS]
        assert len({settings.name for settings in others}) == len(others)


class TestGain:
    def results(self, r_hat):
        """By sampler: R-hat and the ESS for one seed, and an ESS of 2 more for another."""
        values = {'HMC:10:0.8': (1.01, 1.0), 'HMC:30:0.8': (1.04, 2.0), 'HMC:100:0.8': (1.06, 90.0)}
        values |= {'NeuTra:2:0.8': (1.0, 44.0), 'NeuTra:4:0.8': (1.0, 14.0)}
        return {
            _hmc.Settings(_hmc.Sampler.parse(sampler), seed): {
                **dict.fromkeys(_hmc_statistics.AVERAGED, ess + 2 * seed),
                'largest_r_hat': max(least, r_hat) if seed and sampler.startswith('HMC') else 1.0,
                'gradients': 64000,
                'gradients_to_fit': 0,
            }
            for sampler, (least, ess) in values.items()
            for seed in (0, 1)
        }

    def test_is_that_of_the_best_settings_that_have_converged(self):
        rows = _hmc_statistics.aggregate(self.results(r_hat=1.0))
        keys = [key for key in _hmc_statistics.AVERAGED if key.startswith('ess_per')]
        assert _hmc_statistics.gains(rows) == dict.fromkeys(keys, 15.0)
        text = neutra_hmc.report(rows)
        assert '15 times the ESS per gradient' in text and 'has converged with no settings' not in text

    def test_says_where_none_has_converged(self):
        text = neutra_hmc.report(_hmc_statistics.aggregate(self.results(r_hat=1.05)))
        assert 'HMC has converged with no settings: R-hat 1.060 at its best' in text
        assert 'NeuTra has converged' not in text
