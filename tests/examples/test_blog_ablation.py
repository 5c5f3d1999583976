"""The ablation of a blog post's flow: its densities, each mistake as it shows, and a tiny run of the script itself."""

import dataclasses
import json
import math
import re

import _blog_flow
import _digits_vae
import _records
import _summary
import blog_ablation
import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from _blog_flow import MISTAKES

import tfp_iaf.keras
from tests.examples import scripts

SIZE, CONTEXT = 4, 3
NOTHING: tuple[str, ...] = ()
SETS = [MISTAKES, MISTAKES[1:], ['degrees'], NOTHING]


def rows(count, size=SIZE):
    rng = np.random.default_rng(1)
    return [tf.constant(rng.normal(size=[count, n]), tf.float32) for n in (size, size, CONTEXT)]


def sampling(mistakes, size=SIZE, num_flows=4, scale=1.0):
    """A layer that is built, with weights `scale` times as large as they start."""
    layer = _blog_flow.BlogSampling(num_flows, (32, 32), mistakes, seed=0)
    layer([keras.Input([n]) for n in (size, size, CONTEXT)])
    for weight in layer.weights:
        weight.assign(scale * weight)
    return layer


def jacobian(function, x):
    """d function(x)[n, i] / d x[n, j], `[N, I, J]`."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = tf.unstack(function(x), axis=-1)
    return np.stack([tape.gradient(y, x, unconnected_gradients='zero') for y in outputs], axis=-2)


@pytest.mark.parametrize('mistakes', SETS, ids=str)
class TestDensity:
    def test_log_det_is_that_of_the_jacobian(self, mistakes):
        x, _, context = rows(6)
        bijector = sampling(mistakes).bijector(context)
        _, exact = np.linalg.slogdet(jacobian(bijector.forward, x).astype(np.float64))
        np.testing.assert_allclose(bijector.forward_log_det_jacobian(x), exact, rtol=1e-4, atol=1e-4)
        assert np.ptp(exact) > 1e-3

    def test_log_q_is_the_density_of_the_sample(self, mistakes):
        layer, inputs = sampling(mistakes), rows(6)
        z, log_q = layer(inputs)
        assert z.shape == (6, SIZE) and log_q.shape == (6,)
        np.testing.assert_allclose(layer.posterior(*inputs).log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)

    def test_each_network_is_evaluated_once(self, mistakes, monkeypatch):
        layer, calls, call = sampling(mistakes), [], _blog_flow.StepNetwork.call
        monkeypatch.setattr(_blog_flow.StepNetwork, 'call', lambda self, *args: calls.append(self) or call(self, *args))
        layer.posterior(*rows(6)).experimental_sample_and_log_prob(3)
        assert calls == list(layer.steps)


def test_z_is_reversed_before_all_steps_but_the_first():
    x, _, context = rows(6)
    layer = sampling(MISTAKES, num_flows=2)
    first, second = (
        tfp_iaf.InverseAutoregressiveFlow(
            network, context=context, transform=tfp_iaf.transforms.Gated(gate_bias=0.0)
        ).forward
        for network in layer.steps
    )
    np.testing.assert_allclose(layer.bijector(context).forward(x), second(first(x)[:, ::-1]), rtol=1e-5)


class TestOutputActivation:
    def gates_and_shifts(self, mistakes):
        x, _, context = rows(200)
        # Much larger weights, and entries far out: as far as the outputs can go.
        params = sampling(mistakes, scale=10.0).steps[0](100 * x, context)
        return tf.sigmoid(params[..., 1]).numpy(), params[..., 0].numpy()

    def test_confines_the_gate_and_m(self):
        gates, shifts = self.gates_and_shifts(MISTAKES)
        assert gates.min() == pytest.approx(0.5, abs=1e-3) and gates.max() == pytest.approx(0.7311, abs=1e-3)
        assert gates.min() >= 0.5 and gates.max() < 0.7311 and shifts.min() >= 0 and shifts.max() <= 1

    def test_mended_they_are_free(self):
        gates, shifts = self.gates_and_shifts(MISTAKES[1:])
        assert gates.min() < 0.01 and gates.max() > 0.99 and shifts.min() < -1 and shifts.max() > 1


class TestDegrees:
    SIZE, UNITS = 10, (64, 64)

    def of(self, mistakes, seed=0):
        return _blog_flow.degrees(self.SIZE, self.UNITS, mistakes, np.random.default_rng(seed))

    def test_of_the_post_reach_far_too_high(self):
        drawn = [self.of(MISTAKES, seed) for seed in range(20)]
        useful = [_blog_flow.useful_units(layers) for layers in drawn]
        # Drawn from 1 to 63, of which 1 to 9 reach an output; the second layer's from the least of the first.
        assert 3 < np.mean(useful) < 12
        assert {layers[0].max() for layers in drawn} == {self.SIZE}
        assert min(layer.min() for layers in drawn for layer in layers[1:-1]) == 1
        assert max(layer.max() for layers in drawn for layer in layers[1:-1]) == 63
        assert all(layers[2].min() >= layers[1].min() for layers in drawn)
        assert np.mean([_blog_flow.pairs_without_path(layers) for layers in drawn]) > 3

    def test_mended_all_units_reach_an_output_and_all_pairs_have_a_path(self):
        for mistakes in (NOTHING, ['context'], MISTAKES[2:]):
            assert _blog_flow.useful_units(self.of(mistakes)) == 64
            assert _blog_flow.pairs_without_path(self.of(mistakes)) == 0

    @pytest.mark.parametrize('mistakes', [MISTAKES, MISTAKES[2:]], ids=['the post', 'mended'])
    def test_count_of_pairs_is_seen_in_the_jacobian(self, mistakes):
        network = _blog_flow.MaskedNetwork(self.SIZE, self.UNITS, CONTEXT, mistakes, np.random.default_rng(0))
        x = tf.random.normal([20, self.SIZE])
        direct = np.any(jacobian(lambda x: network(x, tf.zeros([20, CONTEXT])), x) != 0, axis=0)
        # With the direct connections, every output reacts to all entries before it, and to no other.
        np.testing.assert_array_equal(direct, np.tri(self.SIZE, k=-1, dtype=bool))
        network._direct_kernel.assign(tf.zeros([self.SIZE, self.SIZE]))
        hidden = np.any(jacobian(lambda x: network(x, tf.zeros([20, CONTEXT])), x) != 0, axis=0)
        missing = _blog_flow.pairs_without_path(self.of(mistakes))
        assert np.sum(direct & ~hidden) == missing
        assert (missing > 0) == ('degrees' in mistakes)


@pytest.mark.parametrize('mistakes', [MISTAKES, ['context'], NOTHING], ids=str)
def test_context_comes_to_the_first_entry_only_when_mended(mistakes):
    x, _, context = rows(6)
    network = sampling(mistakes).steps[0]
    for parameter in range(2):
        reacts = np.any(jacobian(lambda h: network(x, h)[..., parameter], context) != 0, axis=(0, 2))  # noqa: B023
        assert reacts[0] == ('context' not in mistakes)


class TestStart:
    def gates(self, layer):
        x, _, context = rows(100)
        shift = layer.bijector(context).bijectors[-1]
        _, log_gates = shift.transform.forward(x, shift.network(x, context))
        return np.exp(log_gates)

    def test_gates_start_near_one_only_when_mended(self):
        assert self.gates(sampling(MISTAKES)).max() < 0.7311
        assert np.abs(self.gates(sampling(MISTAKES[1:])) - 0.5).max() > 0.1
        assert np.abs(self.gates(sampling(NOTHING)) - 1 / (1 + np.exp(-2))).max() < 0.05

    def test_all_mended_is_where_tfp_iaf_starts(self):
        x, log_var, context = rows(100)
        ours = tfp_iaf.keras.IAFSampling(4, (32, 32), transform=tfp_iaf.transforms.Gated(gate_bias=2.0), seed=0)
        ours([x, log_var, context])
        posteriors = [layer.posterior(x, log_var, context) for layer in (sampling(NOTHING), ours)]
        entropies = [-np.mean(q.experimental_sample_and_log_prob(50, seed=1)[1]) for q in posteriors]
        assert entropies[0] == pytest.approx(entropies[1], abs=0.1)


def small(posterior, mistakes, **settings):
    return blog_ablation.Settings(posterior, 2, 0, mistakes=tuple(mistakes), **{'flow_hidden_units': (8,), **settings})


class TestPenalty:
    def test_is_in_the_training_loss_and_in_nothing_else(self):
        vae = blog_ablation.make_vae(small('the post', ['penalty'], num_flows=1))
        vae.compile('sgd')
        weights = vae.sampling.trainable_variables
        assert len(weights) == 2 * 7 and len(vae.trainable_variables) > len(weights)
        exact = 0.001 * sum(float(tf.reduce_sum(tf.square(weight))) for weight in weights)
        parts = tf.constant([3.0, 5.0]), tf.constant([0.0, 0.0])
        losses = [float(vae.compute_loss(None, None, parts, training=training)) for training in (True, False)]
        assert losses[1] == 4.0 and losses[0] - losses[1] == pytest.approx(exact, rel=1e-3) and exact > 0
        assert float(vae.neg_elbo.result()) == 4.0

    def test_there_is_none_when_mended(self):
        assert blog_ablation.make_vae(small('all mended', NOTHING, num_flows=1)).losses == []


def test_rows_mend_one_mistake_after_the_other():
    mended = list(blog_ablation.MENDED.items())
    assert mended[0] == ('diagonal', ()) and mended[1][1] == MISTAKES and mended[-1][0] == 'tfp_iaf'
    steps = zip(MISTAKES, mended[1:-2], mended[2:-1], strict=True)
    assert all(set(before) - set(after) == {mistake} for mistake, (_, before), (_, after) in steps)
    assert mended[-2] == (blog_ablation.ALL_MENDED, ())
    makers = blog_ablation.MENDED | blog_ablation.ALONE
    assert {mistake: makers[label] for mistake, label in blog_ablation.MAKES_ALONE.items()} == {
        mistake: (mistake,) for mistake in MISTAKES
    }


def settings(sizes, seeds, variants, **same):
    return [
        blog_ablation.Settings(label, size, seed, mistakes=mistakes, **same)
        for seed in range(seeds)
        for size in sizes
        for label, mistakes in variants.items()
    ]


def made_up(runs):
    rng = np.random.default_rng(0)
    return {run: {key: rng.uniform(20, 30) for key in ('neg_elbo', 'nll', 'kl_to_posterior')} for run in runs}


class TestReport:
    def test_differences_are_paired(self, tmp_path):
        results = made_up(settings([2, 10], 3, blog_ablation.MENDED | blog_ablation.ALONE))
        rows = _summary.aggregate(results, ['neg_elbo', 'nll', 'kl_to_posterior'], baseline='diagonal')
        output = blog_ablation.report(rows, seeds=3)
        values = {}
        for run, figures in results.items():
            values.setdefault((run.latent_size, run.posterior), []).append(figures['neg_elbo'])
        lines = [line for line in output.splitlines() if re.match(r'D = \d+ +[a-z]', line)]
        assert len(lines) == 2 * (len(blog_ablation.MENDED) + len(MISTAKES))
        for size, label, other in [(2, 'and degrees mended', 'output activation mended'), (10, 'tfp_iaf', 'diagonal')]:
            less = np.subtract(values[size, label], values[size, other])
            (line,) = (line for line in lines if line.startswith(f'D = {size:<2d}  {label} '))
            assert f'{less.mean():+.3f} ± {less.std(ddof=1) / np.sqrt(3):.3f}' in line
        cost = np.subtract(values[10, 'degrees alone'], values[10, blog_ablation.ALL_MENDED])
        (line,) = (line for line in lines if line.startswith('D = 10  degrees '))
        assert f'{cost.mean():+.3f} ± {cost.std(ddof=1) / np.sqrt(3):.3f}' in line
        blog_ablation.plot_differences(rows, tmp_path / 'ablation.png')
        height, width, _ = matplotlib.image.imread(tmp_path / 'ablation.png').shape
        assert height > 400 and width > 800

    def test_one_seed_and_no_second_table(self, tmp_path):
        results = made_up(settings([10], 1, blog_ablation.MENDED))
        rows = _summary.aggregate(results, ['neg_elbo', 'nll', 'kl_to_posterior'], baseline='diagonal')
        assert 'alone' not in blog_ablation.report(rows, seeds=1)
        blog_ablation.plot_differences(rows, tmp_path / 'ablation.png')


@pytest.mark.slow
def test_tiny_run(tmp_path):
    # All runs are there already but the one with all mistakes, and one with none.
    tiny = {'steps': 4, 'evaluation_samples': 20, 'grid_size': 50}
    runs = settings([2], 1, blog_ablation.MENDED, **tiny)
    missing = ['the post', blog_ablation.ALL_MENDED]
    for run, figures in made_up([run for run in runs if run.posterior not in missing]).items():
        _records.write_json(tmp_path / 'out' / 'runs' / f'{run.name}.json', figures)
    blog_ablation.make_vae(runs[-1]).save_weights(tmp_path / 'out' / 'runs' / f'{runs[-1].name}.weights.h5')
    directory, output = scripts.run(blog_ablation, tmp_path, '--noalone', latent_sizes=2, seeds=1, jobs=1, **tiny)
    assert 'Resuming: 7 of 9 runs' in output
    record = json.loads((directory / 'results.json').read_text())
    assert [run['posterior'] for run in record['runs']] == list(blog_ablation.MENDED)
    trained = {run['posterior']: run for run in record['runs'] if run['posterior'] in missing}
    for label, run in trained.items():
        assert math.isfinite(run['nll']) and f'{run["neg_elbo"]:.3f}' in output
        # The cosine ends at zero; the post's rate stays.
        assert run['final_rate'] == pytest.approx(2e-3 if label == 'the post' else 0, abs=1e-9)
        assert (run['penalty'] > 0) == (label == 'the post')
    for name in ('ablation', 'posteriors'):
        assert matplotlib.image.imread(directory / f'{name}.png').shape[1] > 600


def test_only_the_schedule_of_the_post_has_no_warm_up():
    vaes = [blog_ablation.make_vae(small('x', mistakes, num_flows=1)) for mistakes in (NOTHING, ['schedule'])]
    assert [vae.warm_up_steps for vae in vaes] == [1000, 0]


def test_other_mistakes_have_other_names():
    runs = settings([2], 1, blog_ablation.MENDED | blog_ablation.ALONE)
    others = [dataclasses.replace(run, mistakes=(*run.mistakes, 'none')) for run in runs]
    assert len({run.name for run in (*runs, *others)}) == 2 * len(runs)
    assert isinstance(runs[0], _digits_vae.Settings)
