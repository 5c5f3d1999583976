"""The blog post's flow: its density, and each mistake as it shows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from experiments import ablation, blog_flow, vae
from experiments.blog_flow import MISTAKES

import tfp_iaf.keras
from tests.experiments import small

SIZE, CONTEXT = 4, 3
NOTHING: tuple[str, ...] = ()
SETS = pytest.mark.parametrize('mistakes', [MISTAKES, MISTAKES[1:], ('degrees',), NOTHING], ids=str)


def rows(count):
    rng = np.random.default_rng(1)
    return [tf.constant(rng.normal(size=[count, n]), tf.float32) for n in (SIZE, SIZE, CONTEXT)]


def sampling(mistakes, num_flows=4, scale=1.0):
    """A layer that is built, with weights `scale` times as large as they start."""
    layer = blog_flow.BlogSampling(num_flows, (32, 32), mistakes, seed=0)
    layer([keras.Input([n]) for n in (SIZE, SIZE, CONTEXT)])
    for weight in layer.trainable_weights:
        weight.assign(scale * weight)
    return layer


def jacobian(function, x):
    """d function(x)[n, i] / d x[n, j], `[N, I, J]`."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = tf.unstack(function(x), axis=-1)
    return np.stack([tape.gradient(y, x, unconnected_gradients='zero') for y in outputs], axis=-2)


@SETS
def test_density(mistakes):
    layer, (x, log_var, context) = sampling(mistakes), rows(6)
    bijector = layer.bijector(context)
    _, exact = np.linalg.slogdet(jacobian(bijector.forward, x).astype(np.float64))
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(x), exact, rtol=1e-4, atol=1e-4)
    assert np.ptp(exact) > 1e-3
    z, log_q = layer([x, log_var, context])
    log_prob = layer.posterior(x, log_var, context).log_prob(tf.identity(z))
    np.testing.assert_allclose(log_prob, log_q, rtol=1e-4, atol=1e-4)


def test_orders_alternate():
    x, _, context = rows(6)
    lower = np.tri(SIZE, dtype=bool)
    for t, network in enumerate(sampling(NOTHING, num_flows=3).steps):
        step = tfp_iaf.InverseAutoregressiveFlow(network, context=context)
        reacts = np.any(jacobian(step.forward, x) != 0, axis=0)
        np.testing.assert_array_equal(reacts, lower.T if t % 2 else lower)


def test_output_activation_confines_the_gate_and_m():
    def gates_and_shifts(mistakes):
        x, _, context = rows(200)
        # Much larger weights, and entries far out: as far as the outputs can go.
        params = sampling(mistakes, scale=10.0).steps[0](100 * x, context)
        return tf.sigmoid(params[..., 1]).numpy(), params[..., 0].numpy()

    gates, shifts = gates_and_shifts(MISTAKES)
    assert gates.min() == pytest.approx(0.5, abs=1e-3) and gates.max() == pytest.approx(0.7311, abs=1e-3)
    assert shifts.min() >= 0 and shifts.max() <= 1
    gates, shifts = gates_and_shifts(MISTAKES[1:])
    assert gates.min() < 0.01 and gates.max() > 0.99 and shifts.min() < -1 and shifts.max() > 1


class TestDegrees:
    SIZE, UNITS = 10, (64, 64)

    def of(self, mistakes, seed=0):
        return blog_flow.degrees(self.SIZE, self.UNITS, mistakes, np.random.default_rng(seed))

    def test_of_the_post_reach_far_too_high(self):
        drawn = [self.of(MISTAKES, seed) for seed in range(20)]
        # Drawn from 1 to 63, of which 1 to 9 reach an output; the second layer's from the least of the first.
        assert 3 < np.mean([blog_flow.useful_units(layers) for layers in drawn]) < 12
        assert min(layer.min() for layers in drawn for layer in layers[1:-1]) == 1
        assert max(layer.max() for layers in drawn for layer in layers[1:-1]) == 63
        assert all(layers[2].min() >= layers[1].min() for layers in drawn)

    def test_mended_all_units_reach_an_output_and_all_pairs_have_a_path(self):
        for mistakes in (NOTHING, ('context',), MISTAKES[2:]):
            assert blog_flow.useful_units(self.of(mistakes)) == 64
            assert blog_flow.pairs_without_path(self.of(mistakes)) == 0

    @pytest.mark.parametrize('mistakes', [MISTAKES, MISTAKES[2:]], ids=['the post', 'mended'])
    def test_count_of_pairs_is_seen_in_the_jacobian(self, mistakes):
        network = blog_flow.MaskedNetwork(self.SIZE, self.UNITS, CONTEXT, mistakes, np.random.default_rng(0))
        x = tf.random.normal([20, self.SIZE])
        direct = np.any(jacobian(lambda x: network(x, tf.zeros([20, CONTEXT])), x) != 0, axis=0)
        # With the direct connections, every output reacts to all entries before it, and to no other.
        np.testing.assert_array_equal(direct, np.tri(self.SIZE, k=-1, dtype=bool))
        network._direct_kernel.assign(tf.zeros([self.SIZE, self.SIZE]))
        hidden = np.any(jacobian(lambda x: network(x, tf.zeros([20, CONTEXT])), x) != 0, axis=0)
        missing = blog_flow.pairs_without_path(self.of(mistakes))
        assert np.sum(direct & ~hidden) == missing and (missing > 0) == ('degrees' in mistakes)


@pytest.mark.parametrize('mistakes', [MISTAKES, ('context',), NOTHING], ids=str)
def test_context_comes_to_the_first_entry_only_when_mended(mistakes):
    x, _, context = rows(6)
    network = sampling(mistakes).steps[0]
    for parameter in range(2):
        reacts = np.any(jacobian(lambda h: network(x, h)[..., parameter], context) != 0, axis=(0, 2))  # noqa: B023
        assert reacts[0] == ('context' not in mistakes)


def test_gates_start_near_one_only_when_mended():
    def gates(mistakes):
        x, _, context = rows(100)
        step = sampling(mistakes).bijector(context).bijectors[-1]
        return np.exp(step.transform.forward(x, step.network(x, context))[1])

    assert gates(MISTAKES).max() < 0.7311 and np.abs(gates(MISTAKES[1:]) - 0.5).max() > 0.1
    assert np.abs(gates(NOTHING) - 1 / (1 + np.exp(-2))).max() < 0.05


def test_penalty_is_in_the_loss_and_in_nothing_else():
    images = np.random.default_rng(0).integers(0, 2, [20, 8, 8, 1]).astype(np.float32)
    losses = {}
    for mistakes in (('penalty',), NOTHING):
        model = vae.make(small.settings('blog', mistakes=mistakes, flows=1), [8, 8, 1])
        vae.compile_model(model, small.settings('blog', mistakes=mistakes, ema=0.0), 1)
        result = model.evaluate(images, images, verbose=0, return_dict=True)
        losses[mistakes] = result['loss'] - result['reconstruction'] - result['sampling_kl']
    weights = model.get_layer('sampling').trainable_variables
    assert len(weights) == 2 * 7 and losses[NOTHING] == pytest.approx(0, abs=1e-3)
    exact = 0.001 * sum(float(tf.reduce_sum(tf.square(weight))) for weight in weights)
    assert losses['penalty',] == pytest.approx(exact, rel=0.2) and exact > 0.01


def test_rows_mend_one_mistake_after_the_other():
    rows = list(ablation.ROWS.items())
    assert rows[0] == ('diagonal', ('diagonal', ())) and rows[1][1] == ('blog', MISTAKES) and rows[-1][0] == 'tfp_iaf'
    for mistake, (_, (_, before)), (_, (_, after)) in zip(MISTAKES, rows[1:-2], rows[2:-1], strict=True):
        assert set(before) - set(after) == {mistake}
    assert rows[-2] == (f'and {MISTAKES[-1]} mended', ('blog', ()))
