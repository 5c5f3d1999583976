"""The KL term of the layer, in either Keras: its value, free bits, and priors."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.flows import jacobian, normal, perturb, raises, tfd
from tests.keras_models import K2, K3, LATENT, data, each_compiled_kit, each_kit, flow_of, log_laplace, point

STANDARD_NORMAL = tfd.MultivariateNormalDiag(tf.zeros([LATENT]), tf.ones([LATENT]))


def perturbed(flow, inputs, scale=0.3):
    """A layer away from the identity."""
    flow(inputs)
    perturb(flow.posterior(*inputs).bijector, scale)
    flow._kl_metric.reset_state()
    return flow


def with_control_variate(flow, inputs, z, log_q, prior=STANDARD_NORMAL):
    """The KL of each row, from the sample and its density."""
    q = flow.posterior(*inputs)
    base = tfd.MultivariateNormalDiag(inputs[0], tf.exp(0.5 * inputs[1]))
    z_0 = q.bijector.inverse(tf.identity(z))
    log_det = base.log_prob(z_0) - log_q
    return base.kl_divergence(prior) - log_det - prior.log_prob(z) + prior.log_prob(z_0)


def kl_of(flow):
    """The batch's mean KL, as the metric reports it."""
    (metric,) = flow.metrics
    assert metric.name == f'{flow.name}_kl'
    return metric.result().numpy()


# Its value


@each_kit
def test_loss_and_metric(kit):
    inputs = point()[:3]
    flow = perturbed(kit.layer(kl_weight=0.25), inputs)
    z, log_q = flow(inputs)
    expected = np.mean(with_control_variate(flow, inputs, z, log_q))
    assert abs(expected - np.mean(log_q - STANDARD_NORMAL.log_prob(z))) > 0.01
    np.testing.assert_allclose(sum(flow.losses), 0.25 * expected, rtol=1e-4)
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)


@each_kit
def test_it_is_on_by_default(kit):
    flow = kit.layer()
    flow(point()[:3])
    assert flow.kl_weight.numpy() == 1.0
    np.testing.assert_allclose(sum(flow.losses), kl_of(flow), rtol=1e-6)


@each_kit
@pytest.mark.parametrize('transform', ['affine', 'spline'])
def test_at_the_identity_it_is_exact(kit, transform):
    """To the bit, but for the rounding of a spline."""
    z_mean, z_log_var, *_ = point()
    results = []
    for num_flows in (0, 3):
        flow = kit.layer(num_flows, transform=transform)
        flow([z_mean, z_log_var])
        for variable in flow.posterior(z_mean, z_log_var).variables:
            variable.assign(tf.zeros_like(variable))
        flow([z_mean, z_log_var])
        results.append(sum(flow.losses))
    np.testing.assert_allclose(*results, rtol=0 if transform == 'affine' else 1e-5)


@each_kit
def test_it_agrees_with_the_log_ratio_and_varies_less(kit):
    rows = 5000
    inputs = [tf.repeat(value[:1], rows, axis=0) for value in point()[:3]]
    flow = kit.layer(seed=1)
    flow(inputs)
    z, log_q = flow(inputs)
    log_ratio = (log_q - STANDARD_NORMAL.log_prob(z)).numpy()
    by_row = with_control_variate(flow, inputs, z, log_q).numpy()
    np.testing.assert_allclose(sum(flow.losses), np.mean(by_row), rtol=1e-4)
    np.testing.assert_allclose(np.mean(by_row), np.mean(log_ratio), atol=4 * np.std(log_ratio) / np.sqrt(rows))
    assert np.std(by_row) < 0.5 * np.std(log_ratio)


@each_kit
@pytest.mark.parametrize('compiled', [None, False], ids=['eager', 'graph'])
def test_one_evaluation_of_each_network_with_its_gradient(kit, compiled, network_calls):
    flow = kit.layer(free_bits=0.1, free_bits_axis=-1)
    flow(point()[:3])

    def step(*inputs):
        with tf.GradientTape() as tape:
            flow(inputs)
            loss = sum(flow.losses)
        return loss, tape.gradient(loss, flow.trainable_weights)

    network_calls.clear()
    loss, gradients = (step if compiled is None else tf.function(step, jit_compile=compiled))(*point()[:3])
    assert len(network_calls) == len(set(network_calls)) == 2
    assert np.isfinite(loss) and all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.slow
@each_compiled_kit
def test_any_number_of_rows(kit, jit_compile):
    """Without any, the loss is zero, its gradients are too, and the metric stays as it was."""
    flows = [kit.layer(1, free_bits=bits, free_bits_axis=axis) for bits, axis in ((None, None), (0.1, -1))]
    for flow in flows:
        flow(point()[:3])

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, size]) for size in (LATENT, LATENT, 3)])
    def results(*inputs):
        with tf.GradientTape() as tape:
            outputs = [flow(inputs) for flow in flows]
            losses = [sum(flow.losses) for flow in flows]
        weights = [weight for flow in flows for weight in flow.trainable_weights]
        return outputs, losses, tape.gradient(losses, weights, unconnected_gradients='zero')

    for rows in (4, 1, 0):
        before = [kl_of(flow) for flow in flows]
        outputs, losses, gradients = results(*(value[:rows] for value in point()[:3]))
        assert all((z.shape, log_q.shape) == ((rows, LATENT), (rows,)) for z, log_q in outputs)
        assert all(np.isfinite(loss) and (loss == 0) == (rows == 0) for loss in losses)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        assert any(np.any(gradient != 0) for gradient in gradients) == (rows > 0)
        assert all(np.isfinite(kl_of(flow)) for flow in flows)
        assert ([kl_of(flow) for flow in flows] == before) == (rows == 0)


@each_kit
def test_a_metric_that_saw_no_rows(kit):
    flow = kit.layer(1)
    flow([tf.zeros([0, LATENT])] * 2)
    assert kl_of(flow) == 0


@each_kit
def test_a_nan_stays_in_its_row(kit):
    z_mean, z_log_var, context, _ = point()
    flow = kit.layer(kl_weight=1.0)
    flow([z_mean, z_log_var, context])
    z, log_q = flow([tf.tensor_scatter_nd_update(z_mean, [[1, 0]], [np.nan]), z_log_var, context])
    assert np.isnan(log_q).tolist() == [False, True, False, False]
    assert np.isnan(z[1]).any() and np.isfinite(np.delete(z, 1, axis=0)).all()


@each_kit
def test_two_layers_report_a_kl_each(kit):
    inputs = kit.keras.Input([LATENT])
    first, _ = kit.layer(0, name='first')([inputs, inputs])
    second, _ = kit.layer(0, name='second')([first, 3.0 + first])
    model = kit.keras.Model(inputs, second)
    model.compile('sgd', loss=lambda _, z: 0.0 * z, run_eagerly=True)
    x = normal([6, LATENT], tf.float32)
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    assert logs['first_kl'] != logs['second_kl']
    np.testing.assert_allclose(logs['loss'], logs['first_kl'] + logs['second_kl'], rtol=1e-5)


@each_kit
def test_without_a_weight_the_loss_is_the_models_own(kit):
    flow = kit.layer(kl_weight=None)
    flow(point()[:3])
    assert flow.losses == [] and flow.metrics == [] and flow.kl_weight is None


@each_kit
def test_weight_of_zero_reports_the_metric(kit):
    flow = kit.layer(kl_weight=0.0)
    flow(point()[:3])
    assert sum(flow.losses) == 0 and kl_of(flow) != 0


@each_kit
def test_without_flows_it_is_analytic(kit):
    flow = kit.layer(num_flows=0, kl_weight=1.0)
    z_mean, z_log_var, *_ = point()
    flow([z_mean, z_log_var])
    q = tfd.MultivariateNormalDiag(z_mean, tf.exp(z_log_var / 2))
    expected = tf.reduce_mean(tfp.distributions.kl_divergence(q, STANDARD_NORMAL))
    np.testing.assert_allclose(sum(flow.losses), expected, rtol=1e-5)


@each_kit
def test_metric_is_added_up_in_single_precision(kit):
    """In half precision the sum over 2000 rows would be infinite."""
    flow = kit.layer(0, dtype='mixed_float16')
    inputs = [kit.keras.Input([LATENT]) for _ in range(2)]
    model = kit.keras.Model(inputs, flow(inputs)[0])
    model.compile('sgd', loss=lambda _, z: 0.0 * z, run_eagerly=True)
    z_mean = np.full([2000, LATENT], 7.0, np.float32)
    logs = model.evaluate([z_mean, 0 * z_mean], z_mean, batch_size=500, verbose=0, return_dict=True)
    np.testing.assert_allclose([logs['loss'], logs[f'{flow.name}_kl']], [49.0, 49.0], rtol=1e-5)


# Free bits


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize('above', [False, True])
def test_free_bits(kit, num_flows, above):
    parameters = point()[:3]
    parameters[0] += 2.0
    flow = kit.layer(num_flows, kl_weight=0.5, seed=1)
    flow(parameters)
    minimum = kl_of(flow) + (-0.1 if above else 0.1)
    flow = kit.layer(num_flows, kl_weight=0.5, free_bits=minimum, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        flow(parameters)
        loss = sum(flow.losses)
    np.testing.assert_allclose(loss, 0.5 * (kl_of(flow) if above else minimum), rtol=1e-5)
    gradient = tape.gradient(loss, parameters[1])
    assert np.all(gradient != 0) if above else gradient is None or not np.any(gradient)


def by_entry(flow, inputs, z):
    """The summands of the KL by entry, each step's derivatives from automatic differentiation."""
    q = flow.posterior(*inputs)
    base, p = tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1])), tfd.Normal(0.0, 1.0)
    x = z_0 = q.bijector.inverse(tf.identity(z))
    kl = base.kl_divergence(p) - p.log_prob(z) + p.log_prob(z_0)
    size = z[0].shape.num_elements()
    for step in reversed(q.bijector.bijectors):

        def flat(rows, step=step):
            return tf.reshape(step.forward(tf.reshape(rows, z.shape)), [-1, size])

        derivatives = np.diagonal(jacobian(flat, tf.reshape(x, [-1, size])), axis1=1, axis2=2)
        kl -= tf.reshape(np.log(derivatives), z.shape)
        x = step.forward(x)
    return kl.numpy()


@each_kit
@pytest.mark.parametrize('axis', [None, -1, (1, 2), [1, -1], (1, 2, 3)], ids=str)
def test_groups_of_free_bits(kit, axis):
    inputs = [normal([5, 2, 3, 2], tf.float32, seed) for seed in (1, 2)]
    kept = set() if axis is None else {a % 4 for a in np.atleast_1d(axis)}
    minimum = 0.8 * 12 / np.prod([1] + [inputs[0].shape[a] for a in kept])  # close to the mean KL of a group
    flow = perturbed(kit.layer(1, (14,), transform='affine', free_bits=minimum, free_bits_axis=axis), inputs, 0.1)
    z, _ = flow(inputs)
    kl = by_entry(flow, inputs, z)
    np.testing.assert_allclose(kl_of(flow), np.mean(np.sum(kl, axis=(1, 2, 3))), rtol=1e-3)
    groups = np.mean(np.sum(kl, axis=tuple(a for a in (1, 2, 3) if a not in kept), keepdims=True), axis=0)
    assert groups.size == 1 or (np.any(groups < minimum) and np.any(groups > minimum))
    np.testing.assert_allclose(sum(flow.losses), np.sum(np.maximum(groups, minimum)), rtol=1e-3)


@each_kit
def test_a_group_below_the_minimum_gets_no_gradient(kit):
    z_mean = tf.constant([[0.1, 3.0], [-0.1, 2.0]])
    flow = kit.layer(0, free_bits=0.5, free_bits_axis=-1)
    with tf.GradientTape() as tape:
        tape.watch(z_mean)
        flow([z_mean, tf.zeros([2, 2])])
        loss = sum(flow.losses)
    np.testing.assert_allclose(tape.gradient(loss, z_mean), [[0.0, 1.5], [0.0, 1.0]], rtol=1e-6)


@each_kit
@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'free_bits_axis': -1}, ValueError, ['free_bits_axis', '-1', 'without free_bits']),
        ({'free_bits': 0.1, 'free_bits_axis': 0}, ValueError, ['free_bits_axis', '0', 'batch', '-1']),
        ({'free_bits': 0.1, 'free_bits_axis': 'channel'}, TypeError, ['free_bits_axis', "'channel'", 'int']),
        ({'free_bits': 0.1, 'free_bits_axis': [1.5]}, TypeError, ['free_bits_axis', '1.5', 'int']),
        ({'free_bits': 0.1, 'free_bits_axis': 2}, ValueError, ['free_bits_axis', '2', '-1', '1 to 1']),
        (
            {'free_bits': 0.1, 'free_bits_axis': -1, 'prior': log_laplace},
            ValueError,
            ['free_bits_axis', 'log_laplace', 'not a sum over the entries', 'Leave it out'],
        ),
        (
            {'free_bits': 0.1, 'free_bits_axis': -1, 'prior': tfd.MultivariateNormalTriL(tf.zeros([2]), tf.eye(2))},
            ValueError,
            ['free_bits_axis', 'MultivariateNormalTriL', 'not a sum over the entries'],
        ),
    ],
    ids=['alone', 'batch', 'name', 'fraction', 'outside', 'function', 'correlated'],
)
def test_bad_groups_of_free_bits(kit, arguments, error, parts):
    with raises(error, *parts):
        kit.layer(**arguments)(point()[:3])


# Priors


def _learned_prior(kit):
    @kit.keras.saving.register_keras_serializable(package='tests')
    class LearnedPrior(kit.keras.layers.Layer):
        """Normal, with a mean that a sublayer holds, which is made when it is first called."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mean = kit.keras.layers.Dense(LATENT, bias_initializer='ones')

        def call(self, z):
            return -0.5 * tf.reduce_sum((z - self.mean(tf.ones_like(z))) ** 2, axis=-1)

    return LearnedPrior


LEARNED = {kit: _learned_prior(kit) for kit in (K2, K3)}


COVARIANCE = tf.constant([[1.5, 0.0], [-0.7, 0.8]])


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize(
    ('prior', 'as_event'),
    [
        (tfd.MultivariateNormalDiag([1.0, 2.0], [0.5, 3.0]), None),
        (tfd.Normal(0.5, 2.0), tfd.MultivariateNormalDiag([0.5, 0.5], [2.0, 2.0])),
        (tfd.Normal([1.0, 2.0], [3.0]), tfd.MultivariateNormalDiag([1.0, 2.0], [3.0, 3.0])),
        (tfd.Independent(tfd.Normal([1.0, 2.0], [3.0, 1.0]), 1), tfd.MultivariateNormalDiag([1.0, 2.0], [3.0, 1.0])),
        (tfd.Sample(tfd.Normal(0.5, 2.0), [LATENT]), tfd.MultivariateNormalDiag([0.5, 0.5], [2.0, 2.0])),
        (tfd.MultivariateNormalTriL([1.0, 2.0], COVARIANCE), None),
    ],
    ids=['event', 'scalar', 'entries', 'independent', 'sample', 'correlated'],
)
def test_prior_whose_kl_tfp_knows(kit, num_flows, prior, as_event):
    inputs = point()[: 3 if num_flows else 2]
    flow = perturbed(kit.layer(num_flows, kl_weight=2.0, prior=prior), inputs)
    z, log_q = flow(inputs)
    expected = np.mean(with_control_variate(flow, inputs, z, log_q, as_event or prior))
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)
    np.testing.assert_allclose(sum(flow.losses), 2 * expected, rtol=1e-4)
    if not num_flows:
        base = tfd.MultivariateNormalDiag(inputs[0], tf.exp(0.5 * inputs[1]))
        np.testing.assert_allclose(kl_of(flow), np.mean(base.kl_divergence(as_event or prior)), rtol=1e-5)


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize(
    ('prior', 'log_prob'),
    [
        (tfd.Laplace(0.5, 2.0), lambda z: tf.reduce_sum(tfd.Laplace(0.5, 2.0).log_prob(z), axis=-1)),
        (log_laplace, log_laplace),
        (
            tfd.MixtureSameFamily(
                tfd.Categorical([0.0, 1.0]),
                tfd.MultivariateNormalDiag([[1.0, 2.0], [-1.0, 0.0]], [[0.5, 3.0], [1.0, 1.0]]),
            ),
            None,
        ),
    ],
    ids=['scalar', 'function', 'mixture'],
)
def test_any_other_prior(kit, num_flows, prior, log_prob):
    inputs = point()[:3]
    flow = perturbed(kit.layer(num_flows, kl_weight=2.0, prior=prior), inputs)
    z, log_q = flow(inputs)
    expected = tf.reduce_mean(log_q - (log_prob or prior.log_prob)(tf.identity(z)))
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)
    np.testing.assert_allclose(sum(flow.losses), 2 * expected, rtol=1e-4)


@each_kit
def test_correlated_prior_of_a_posterior_that_shares_a_scale(kit):
    """One row of scales for all rows of means."""
    flow = kit.layer(0, prior=tfd.MultivariateNormalTriL([1.0, 2.0], COVARIANCE))
    z_mean, z_log_var = point()[0], point()[1][:1]
    flow([z_mean, z_log_var])
    base = tfd.MultivariateNormalDiag(z_mean, tf.exp(0.5 * z_log_var))
    np.testing.assert_allclose(kl_of(flow), np.mean(base.kl_divergence(flow.prior)), rtol=1e-5)


@each_kit
def test_every_row_has_its_noise_where_the_context_alone_has_rows(kit):
    flow = kit.layer()
    z, _ = flow([tf.zeros([1, 2]), tf.zeros([1, 2]), tf.zeros([6, 3])])
    assert z.shape == (6, 2) and len(np.unique(z[:, 0])) == 6


@each_kit
def test_layer_as_the_prior_is_trained_and_saved(kit, tmp_path):
    model = kit.one_output_model(num_flows=0, prior=LEARNED[kit]())
    model.compile('adam', 'mse', run_eagerly=True)
    kernel, bias = flow_of(model).prior.weights
    before = bias.numpy()
    model.fit(data(), data(), verbose=0)
    assert np.all(bias.numpy() != before)
    assert {id(kernel), id(bias)} <= {id(weight) for weight in model.trainable_weights}
    model.save(tmp_path / 'model.keras')
    loaded = kit.keras.models.load_model(tmp_path / 'model.keras')
    for first, second in zip(flow_of(loaded).prior.weights, (kernel, bias), strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    loaded.run_eagerly = True
    loaded.fit(data(), data(), verbose=0)
    assert np.all(flow_of(loaded).prior.weights[1].numpy() != bias.numpy())


@each_kit
def test_function_as_the_prior_comes_back_from_a_file(kit, tmp_path):
    kit.functional_model(prior=log_laplace).save(tmp_path / 'model.keras')
    assert flow_of(kit.keras.models.load_model(tmp_path / 'model.keras')).prior is log_laplace


@each_kit
@pytest.mark.parametrize(
    ('prior', 'error', 'parts'),
    [
        (3.0, TypeError, ['3.0', 'tfd.Distribution', 'function or Keras layer']),
        (tfd.MultivariateNormalDiag(tf.zeros([3])), ValueError, ['MultivariateNormalDiag', 'event shape [2]']),
        (tfd.MultivariateNormalDiag(tf.zeros([4, 2])), ValueError, ['batch_shape=[4]', 'no batch shape']),
        (tfd.Normal(tf.zeros([3]), 1.0), ValueError, ['batch_shape=[3]', 'broadcasts to [2]']),
        (tfd.Normal(tf.zeros([4, 2]), 1.0), ValueError, ['batch_shape=[4, 2]', 'broadcasts to [2]']),
        (tfd.Normal(tf.zeros([], tf.float64), 1.0), TypeError, ['float64', 'float32']),
        (tfd.Normal(tf.Variable(0.0, name='loc'), 1.0), ValueError, ['loc:0', 'Keras layer']),
        (tf.Module(), TypeError, ['Module', 'does not track']),
        (lambda z: z, ValueError, ['(4, 2)', '(4,)', 'Sum over the entries']),
        (lambda z: tf.zeros([]), ValueError, ['()', '(4,)']),
    ],
    ids=['number', 'event', 'batch', 'entries', 'batch_of_entries', 'dtype', 'variables', 'module', 'matrix', 'scalar'],
)
def test_prior_that_does_not_fit(kit, prior, error, parts):
    with raises(error, 'prior', *parts):
        kit.layer(kl_weight=1.0, prior=prior)(point()[:3])


@pytest.mark.parametrize(('kit', 'other'), [(K3, K2), (K2, K3)], ids=['keras', 'tf_keras'])
def test_layer_of_the_other_keras_as_the_prior(kit, other):
    with raises(TypeError, 'prior', 'LearnedPrior', 'does not track'):
        kit.layer(kl_weight=1.0, prior=LEARNED[other]())


@pytest.mark.parametrize(('argument', 'value'), [('free_bits', 0.5), ('prior', log_laplace)])
def test_without_a_term_to_use_it_in(argument, value):
    with raises(ValueError, argument, 'without a KL term', 'kl_weight'):
        K3.layer(kl_weight=None, **{argument: value})
