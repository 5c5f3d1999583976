"""The posteriors of VAEs as layers."""

import _posteriors
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from _posteriors import Flow, FullCovarianceSampling

import tfp_iaf.keras
from tests.flows import raises

tfd = tfp.distributions


@pytest.mark.parametrize('size', [1, 2, 10])
class TestFullCovarianceSampling:
    def inputs(self, size, batch=4):
        rng = np.random.default_rng(size)
        return [rng.normal(size=[batch, n]).astype(np.float32) for n in (size, size, size * size)]

    def test_log_density_is_that_of_tfp(self, size):
        mean, log_var, lower = self.inputs(size)
        z, log_q = FullCovarianceSampling()([mean, log_var, lower])
        scale = np.tril(lower.reshape(-1, size, size), -1) + np.exp(0.5 * log_var)[:, :, None] * np.eye(size)
        reference = tfd.MultivariateNormalTriL(mean, scale.astype(np.float32))
        np.testing.assert_allclose(log_q, reference.log_prob(z), rtol=1e-4, atol=1e-3)
        posterior = FullCovarianceSampling().posterior(mean, log_var, lower)
        np.testing.assert_allclose(posterior.log_prob(z), reference.log_prob(z), rtol=1e-4, atol=1e-3)

    def test_samples_have_its_moments(self, size):
        layer = FullCovarianceSampling(seed=0)
        rows = [np.repeat(value, 40000, axis=0) for value in self.inputs(size, batch=1)]
        z = layer(rows)[0].numpy()
        posterior = layer.posterior(*self.inputs(size, batch=1))
        scale = np.sqrt(posterior.variance().numpy().max())
        np.testing.assert_allclose(z.mean(axis=0), posterior.mean()[0], atol=0.03 * scale)
        np.testing.assert_allclose(np.atleast_2d(np.cov(z.T)), posterior.covariance()[0], atol=0.05 * scale**2)

    def test_its_kl_is_that_of_the_full_covariance(self, size):
        layer = FullCovarianceSampling(kl_weight=0.5, seed=0)
        inputs = self.inputs(size, batch=1)
        layer([np.repeat(value, 40000, axis=0) for value in inputs])
        exact = tfd.kl_divergence(layer.posterior(*inputs), tfd.MultivariateNormalDiag(tf.zeros([1, size])))
        assert float(layer.losses[0]) == pytest.approx(0.5 * float(exact[0]), rel=0.02)


@pytest.mark.parametrize('posterior', list(_posteriors.POSTERIORS))
def test_one_interface(posterior, tmp_path):
    flow = Flow(2, (8,), context_size=4) if posterior == 'IAF' else None
    hidden = keras.Input([6])
    inputs = _posteriors.posterior_inputs(hidden, posterior, 3, flow)
    layer = _posteriors.make_sampling(posterior, flow, seed=0)
    model = keras.Model(hidden, layer(inputs)[0])
    x = np.random.default_rng(0).normal(size=[5, 6]).astype(np.float32)
    z, log_q = layer(keras.Model(hidden, inputs)(x))
    q = layer.posterior(*keras.Model(hidden, inputs)(x))
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-4, atol=1e-4)
    # Its KL can be warmed up, from a weight of 0 in the one step made here, and it is saved and read.
    model.compile('sgd', 'mse', metrics=[keras.metrics.MeanSquaredError(name='error')])
    history = model.fit(x, np.zeros([5, 3]), callbacks=[tfp_iaf.keras.KLWarmup(4)], verbose=0).history
    assert history['loss'] == pytest.approx(history['error']) and history['sampling_kl'][0] > 0.1
    assert layer.kl_weight.numpy() == 1
    model.save(tmp_path / 'model.keras')
    read = keras.saving.load_model(tmp_path / 'model.keras')
    log_q, log_q_read = (
        each.get_layer('sampling').posterior(*keras.Model(each.input, each.get_layer('sampling').input)(x)).log_prob(z)
        for each in (model, read)
    )
    np.testing.assert_array_equal(log_q_read, log_q)


def test_the_flow_is_as_asked_for():
    layer = _posteriors.make_sampling('IAF', Flow(3, (8, 8), gate_start=0.5))
    assert (layer.num_flows, layer.hidden_units, layer.transform.gate_bias) == (3, (8, 8), 0.5)
    assert layer.kl_weight.numpy() == 1
    assert _posteriors.make_sampling('IAF', Flow(), kl_weight=None).kl_weight is None
    affine = _posteriors.make_sampling('IAF', Flow(transform='affine', gate_start=None)).transform
    assert isinstance(affine, tfp_iaf.transforms.Affine)
    with raises(ValueError, 'flow: got None', 'expected a Flow'):
        _posteriors.make_sampling('IAF', None)
