"""The KL term of the layer, in either Keras: its value, free bits, and priors, of the constructor and of the call."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_iaf
from tests.flows import jacobian, normal, perturb, raises, tfd
from tests.keras_models import (
    K2,
    K3,
    LATENT,
    STANDARD_NORMAL,
    called_layer,
    each_kit,
    kl_with_control_variate,
    log_laplace,
    point,
    zeros,
)
from tfp_iaf._layers import _kl

INPUTS = point()[:3]
TRIL = tfd.MultivariateNormalTriL([1.0, 2.0], [[1.5, 0.0], [-0.7, 0.8]])


def gaussian(mean, log_var):
    return tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var))


def perturbed(flow, inputs, scale=0.3, prior=None):
    """A layer away from the identity."""
    flow(inputs, prior=prior)
    perturb(flow.posterior(*inputs).bijector, scale)
    flow._kl_metric.reset_state()
    return flow


def with_control_variate(flow, inputs, z, log_q, prior=STANDARD_NORMAL):
    """The KL of each row, from the sample and its density; by entry, unless the prior correlates the entries."""
    bijector, base = flow.posterior(*inputs).bijector, gaussian(*inputs[:2])
    z_0 = bijector.inverse(tf.identity(z))
    log_derivatives = bijector.forward_log_derivatives(z_0)
    if not isinstance(prior, tfd.MultivariateNormalDiag):
        return kl_with_control_variate(base, prior, z_0, z, base.log_prob(z_0) - log_q, LATENT)
    base, prior = (tfd.Normal(p.mean(), p.stddev()) for p in (base, prior))
    return np.sum(kl_with_control_variate(base, prior, z_0, z, log_derivatives), axis=-1)


def kl_of(flow):
    """The batch's mean KL, as the metric reports it."""
    (metric,) = flow.metrics
    assert metric.name == f'{flow.name}_kl'
    return metric.result().numpy()


# Its value


@each_kit
def test_loss_and_metric(kit):
    flow = perturbed(kit.layer(kl_weight=0.25), INPUTS)
    z, log_q = flow(INPUTS)
    expected = np.mean(with_control_variate(flow, INPUTS, z, log_q))
    assert abs(expected - np.mean(log_q - STANDARD_NORMAL.log_prob(z))) > 0.01
    np.testing.assert_allclose(sum(flow.losses), 0.25 * expected, rtol=1e-4)
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)


@each_kit
def test_weight(kit):
    flow = kit.layer(0)
    flow(INPUTS[:2])
    assert flow.kl_weight.numpy() == 1.0, 'it is on by default'
    np.testing.assert_allclose(sum(flow.losses), kl_of(flow), rtol=1e-6)
    flow = kit.layer(0, kl_weight=0.0)
    flow(INPUTS[:2])
    assert sum(flow.losses) == 0 and kl_of(flow) != 0
    flow = kit.layer(0, kl_weight=None)
    flow(INPUTS[:2])
    assert flow.losses == [] and flow.metrics == [] and flow.kl_weight is None


@pytest.mark.parametrize('transform', ['affine', 'spline'])
def test_at_the_identity_it_is_exact(transform):
    """To the bit, but for the rounding of a spline."""
    losses = []
    for num_flows in (0, 2):
        flow = K3.layer(num_flows, transform=transform)
        flow(INPUTS)
        for variable in flow.posterior(*INPUTS).bijector.variables:
            variable.assign(tf.zeros_like(variable))
        flow(INPUTS)
        losses.append(sum(flow.losses))
    np.testing.assert_allclose(*losses, rtol=0 if transform == 'affine' else 1e-5)


def test_it_agrees_with_the_log_ratio_and_varies_less():
    rows = 5000
    inputs = [tf.repeat(value[:1], rows, axis=0) for value in INPUTS]
    flow = K3.layer(seed=1)
    z, log_q = flow(inputs)
    log_ratio = (log_q - STANDARD_NORMAL.log_prob(z)).numpy()
    by_row = with_control_variate(flow, inputs, z, log_q)
    np.testing.assert_allclose(sum(flow.losses), np.mean(by_row), rtol=1e-4)
    np.testing.assert_allclose(np.mean(by_row), np.mean(log_ratio), atol=4 * np.std(log_ratio) / np.sqrt(rows))
    assert np.std(by_row) < 0.5 * np.std(log_ratio)


def test_noise_of_a_wide_base_does_not_enter_where_the_flow_contracts():
    """With c = 1, trainings ended far from where they could."""
    rows = 2000
    inputs = [tf.zeros([rows, LATENT]), tf.fill([rows, LATENT], float(2 * np.log(20.0))), tf.zeros([rows, 3])]
    flow = K3.layer(4, transform=tfp_iaf.transforms.Gated(gate_bias=0.0), seed=1)
    z, log_q = flow(inputs)
    log_ratio = (log_q - STANDARD_NORMAL.log_prob(z)).numpy()
    by_row = with_control_variate(flow, inputs, z, log_q)
    np.testing.assert_allclose(sum(flow.losses), np.mean(by_row), rtol=1e-4)
    z_0 = flow.posterior(*inputs).bijector.inverse(tf.identity(z))
    assert np.std(by_row) < 1.5 * np.std(log_ratio) < 0.01 * np.std(log_ratio + STANDARD_NORMAL.log_prob(z_0))
    np.testing.assert_allclose(np.mean(by_row), np.mean(log_ratio), atol=4 * np.std(by_row) / np.sqrt(rows))


@pytest.mark.parametrize('prior', [tfd.Normal(0.0, 1.0), TRIL], ids=['by_entry', 'by_row'])
def test_nan_stays_in_its_row(prior):
    flow = perturbed(K3.layer(), INPUTS)
    mean, log_var, context = (value.numpy() for value in INPUTS)
    mean[1] = np.nan
    with tf.GradientTape() as tape:
        kl = _kl.kl_divergence(_kl.draw(flow.posterior(mean, log_var, context), (0, 1)), prior)
        kl = tf.reduce_sum(kl, axis=range(1, kl.shape.rank))
        loss = tf.reduce_sum(tf.where(np.arange(len(mean)) == 1, 0.0, kl))
    assert np.array_equal(np.isnan(kl), np.arange(len(mean)) == 1)
    assert all(np.all(np.isfinite(gradient)) for gradient in tape.gradient(loss, flow.trainable_variables))


def test_one_row_alone_keeps_the_promise_at_the_identity():
    inputs = [value[:1] for value in INPUTS]
    flow = perturbed(K3.layer(), inputs)
    z, _ = flow(inputs)
    q, base = flow.posterior(*inputs), gaussian(*inputs[:2])
    z_0 = q.bijector.inverse(tf.identity(z))
    correction = STANDARD_NORMAL.log_prob(z_0) - STANDARD_NORMAL.log_prob(z) - q.bijector.forward_log_det_jacobian(z_0)
    np.testing.assert_allclose(sum(flow.losses), (base.kl_divergence(STANDARD_NORMAL) + correction)[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kit', [K3, K2], ids=['keras_eager', 'tf_keras_graph'])
def test_one_evaluation_of_each_network_with_its_gradient(kit, network_calls):
    flow = kit.layer(free_bits=0.1, free_bits_axis=-1)
    flow(INPUTS)

    def step(*inputs):
        with tf.GradientTape() as tape:
            flow(inputs)
            loss = sum(flow.losses)
        return loss, tape.gradient(loss, flow.trainable_weights)

    network_calls.clear()
    loss, gradients = (step if kit is K3 else tf.function(step))(*INPUTS)
    assert len(network_calls) == len(set(network_calls)) == 2
    assert np.isfinite(loss) and all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize(('kit', 'jit_compile'), [(K3, True), (K2, False)], ids=['keras_xla', 'tf_keras_graph'])
def test_any_number_of_rows(kit, jit_compile):
    """Without any, the loss is zero, its gradients are too, and the metric stays as it was."""
    flows = [kit.layer(1, free_bits=bits, free_bits_axis=axis) for bits, axis in ((None, None), (0.1, -1))]
    flows[0]([value[:0] for value in INPUTS])
    assert kl_of(flows[0]) == 0
    flows[1](INPUTS)

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, size]) for size in (LATENT, LATENT, 3)])
    def results(*inputs):
        with tf.GradientTape() as tape:
            outputs = [flow(inputs) for flow in flows]
            losses = [sum(flow.losses) for flow in flows]
        weights = [weight for flow in flows for weight in flow.trainable_weights]
        return outputs, losses, tape.gradient(losses, weights, unconnected_gradients='zero')

    for rows in (0,) if jit_compile else (3, 0):
        before = [kl_of(flow) for flow in flows]
        outputs, losses, gradients = results(*(value[:rows] for value in INPUTS))
        assert all((z.shape, log_q.shape) == ((rows, LATENT), (rows,)) for z, log_q in outputs)
        assert all(np.isfinite(loss) and (loss == 0) == (rows == 0) for loss in losses)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        assert any(np.any(gradient != 0) for gradient in gradients) == (rows > 0)
        assert all(np.isfinite(kl_of(flow)) for flow in flows)
        assert ([kl_of(flow) for flow in flows] == before) == (rows == 0)


@pytest.mark.slow
@each_kit
def test_each_layer_of_a_ladder_reports_its_kl(kit):
    """z_1 given x with a prior given z_2."""
    layers = kit.keras.layers
    x = kit.keras.Input([LATENT])
    upper, _ = kit.layer(1, name='upper')([x, x])
    lower, _ = kit.layer(1, name='lower')([x, x], prior=[layers.Dense(LATENT)(upper) for _ in range(2)])
    model = kit.keras.Model(x, lower)
    model.compile('sgd', loss=lambda _, z: 0.0 * z, run_eagerly=True)
    inputs = normal([6, LATENT], tf.float32)
    logs = model.evaluate(inputs, inputs, verbose=0, return_dict=True)
    assert logs['upper_kl'] != logs['lower_kl']
    np.testing.assert_allclose(logs['loss'], logs['upper_kl'] + logs['lower_kl'], rtol=1e-5)


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


@pytest.mark.parametrize('num_flows', [0, 2])
@pytest.mark.parametrize('above', [False, True])
def test_free_bits(num_flows, above):
    parameters = [INPUTS[0] + 2.0, *INPUTS[1:]]
    flow = K3.layer(num_flows, kl_weight=0.5, seed=1)
    flow(parameters)
    minimum = kl_of(flow) + (-0.1 if above else 0.1)
    flow = K3.layer(num_flows, kl_weight=0.5, free_bits=minimum, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        flow(parameters)
        loss = sum(flow.losses)
    np.testing.assert_allclose(loss, 0.5 * (kl_of(flow) if above else minimum), rtol=1e-5)
    gradient = tape.gradient(loss, parameters[1])
    assert np.all(gradient != 0) if above else gradient is None or not np.any(gradient)


def by_entry(flow, inputs, z, p):
    """The summands of the KL by entry, each step's derivatives from automatic differentiation."""
    q = flow.posterior(*inputs)
    base = tfd.Normal(inputs[0], tf.exp(0.5 * inputs[1]))
    x = z_0 = q.bijector.inverse(tf.identity(z))
    size, log_derivatives = z[0].shape.num_elements(), np.zeros(z.shape)
    for step in reversed(q.bijector.bijectors):

        def flat(rows, step=step):
            return tf.reshape(step.forward(tf.reshape(rows, z.shape)), [-1, size])

        derivatives = np.diagonal(jacobian(flat, tf.reshape(x, [-1, size])), axis1=1, axis2=2)
        log_derivatives += np.reshape(np.log(derivatives), z.shape)
        x = step.forward(x)
    return kl_with_control_variate(base, p, z_0, z, log_derivatives)


@pytest.mark.parametrize(
    ('axis', 'arguments', 'with_prior'),
    [
        (None, {'hidden_units': (14,)}, False),
        ((1, 2), {'hidden_units': (14,)}, False),
        ([1, -1], {'hidden_units': (14,)}, False),
        (-1, {'filters': (5, 4)}, True),
    ],
    ids=['none', 'pixels', 'rows_and_maps', 'maps_of_convolutions'],
)
def test_groups_of_free_bits(axis, arguments, with_prior):
    """Mean over the batch, minimum for each group, sum over the groups; the KL adds up to that of the row."""
    shape = [5, 2, 3, 2]
    inputs = [normal(shape, tf.float32, seed) for seed in (1, 2)]
    prior = [normal(shape, tf.float32, seed) for seed in (5, 6)] if with_prior else None
    p = tfd.Normal(prior[0], tf.exp(0.5 * prior[1])) if with_prior else tfd.Normal(0.0, 1.0)
    kept = set() if axis is None else {a % 4 for a in np.atleast_1d(axis)}
    # Close to the mean KL of a group.
    minimum = (28.0 if with_prior else 9.6) / np.prod([1] + [shape[a] for a in kept])
    layer = K3.IAFSampling(1, transform='affine', free_bits=minimum, free_bits_axis=axis, **arguments)
    flow = perturbed(layer, inputs, 0.1, prior)
    z, _ = flow(inputs, prior=prior)
    kl = by_entry(flow, inputs, z, p)
    np.testing.assert_allclose(kl_of(flow), np.mean(np.sum(kl, axis=(1, 2, 3))), rtol=1e-3)
    groups = np.mean(np.sum(kl, axis=tuple(a for a in (1, 2, 3) if a not in kept), keepdims=True), axis=0)
    assert groups.size == 1 or (np.any(groups < minimum) and np.any(groups > minimum)), (groups, minimum)
    np.testing.assert_allclose(sum(flow.losses), np.sum(np.maximum(groups, minimum)), rtol=1e-3)


# Priors of the constructor

NORMAL = tfd.Normal([1.0, 2.0], [3.0, 1.0])
MIXTURE = tfd.MixtureSameFamily(
    tfd.Categorical([0.0, 1.0]), tfd.MultivariateNormalDiag([[1.0, 2.0], [-1.0, 0.0]], [[0.5, 3.0], [1.0, 1.0]])
)
PRIORS = {
    # The prior, and a distribution or a function of all of z that it amounts to.
    'none': (None, STANDARD_NORMAL),
    'event': (tfd.MultivariateNormalDiag([1.0, 2.0], [0.5, 3.0]), None),
    'scalar': (tfd.Normal(0.5, 2.0), tfd.MultivariateNormalDiag([0.5, 0.5], [2.0, 2.0])),
    'entries': (tfd.Normal([1.0, 2.0], [3.0]), tfd.MultivariateNormalDiag([1.0, 2.0], [3.0, 3.0])),
    'independent': (tfd.Independent(NORMAL, 1), tfd.MultivariateNormalDiag([1.0, 2.0], [3.0, 1.0])),
    'sample': (tfd.Sample(tfd.Normal(0.5, 2.0), [LATENT]), tfd.MultivariateNormalDiag([0.5, 0.5], [2.0, 2.0])),
    'correlated': (TRIL, None),
    'laplace': (tfd.Laplace(0.0, 1.0), log_laplace),
    'function': (log_laplace, log_laplace),
    'mixture': (MIXTURE, MIXTURE.log_prob),
}


@pytest.mark.parametrize(
    ('name', 'num_flows'),
    [(name, 0) for name in PRIORS] + [(name, 1) for name in ('scalar', 'correlated', 'laplace', 'function', 'mixture')],
)
def test_prior(name, num_flows):
    """The base's KL, where TFP knows it, as a control variate; the log-ratio elsewhere."""
    prior, as_event = PRIORS[name]
    inputs, as_event = INPUTS if num_flows else INPUTS[:2], as_event or prior
    flow = perturbed(K3.layer(num_flows, kl_weight=2.0, prior=prior), inputs)
    z, log_q = flow(inputs)
    if isinstance(as_event, tfd.Distribution):
        expected = np.mean(with_control_variate(flow, inputs, z, log_q, as_event))
        if not num_flows:
            np.testing.assert_allclose(kl_of(flow), np.mean(gaussian(*inputs).kl_divergence(as_event)), rtol=1e-5)
    else:
        expected = np.mean(log_q - as_event(tf.identity(z)))
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)
    np.testing.assert_allclose(sum(flow.losses), 2 * expected, rtol=1e-4)


def test_correlated_prior_of_a_posterior_that_shares_a_scale():
    """One row of scales for all rows of means."""
    flow = K3.layer(0, prior=TRIL)
    inputs = [INPUTS[0], INPUTS[1][:1]]
    flow(inputs)
    np.testing.assert_allclose(kl_of(flow), np.mean(gaussian(*inputs).kl_divergence(TRIL)), rtol=1e-5)


# Priors at the call

PRIOR = [normal([4, LATENT], tf.float32, seed) for seed in (11, 12)]


@each_kit
@pytest.mark.parametrize('num_flows', [0, 1])
def test_a_prior_at_the_call_takes_the_place_of_the_standard_normal(kit, num_flows):
    inputs = INPUTS if num_flows else INPUTS[:2]
    flow, p = perturbed(kit.layer(num_flows), inputs), gaussian(*PRIOR)
    with tf.GradientTape() as tape:
        tape.watch(PRIOR)
        z, log_q = flow(inputs, prior=PRIOR)
        loss = sum(flow.losses)
    expected = np.mean(with_control_variate(flow, inputs, z, log_q, p))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(kl_of(flow), expected, rtol=1e-4)
    assert all(np.all(gradient != 0) and np.all(np.isfinite(gradient)) for gradient in tape.gradient(loss, PRIOR))


def test_one_row_of_a_prior_for_all_with_groups_of_free_bits_in_other_dtypes():
    prior = [value[:1] for value in PRIOR]
    q, p = (tfd.Normal(mean, tf.exp(0.5 * log_var)) for mean, log_var in (INPUTS[:2], prior))
    expected = np.sum(np.maximum(np.mean(q.kl_divergence(p), axis=0), 1.5))
    for dtype, rtol in (('float32', 1e-5), ('mixed_float16', 1e-2), ('float64', 1e-2)):
        flow = K3.layer(0, free_bits=1.5, free_bits_axis=-1, dtype=dtype)
        cast = prior if dtype == 'float32' else [tf.cast(value, tf.float16) for value in prior]
        flow(INPUTS[:2], prior=cast)
        np.testing.assert_allclose(sum(flow.losses), expected, rtol=rtol, err_msg=dtype)


WRONG_PRIORS = {
    'mean': ({}, zeros([4, 3], [4, 2]), ValueError, ['prior', 'mean', '(4, 3)', '[batch, 2]']),
    'log_var': ({}, zeros([4, 2], [4, 3]), ValueError, ['prior', 'log_var', '(4, 3)', '[batch, 2]']),
    'one': ({}, zeros([4, 2]), ValueError, ['prior', 'list of two tensors', '[mean, log_var]', 'constructor']),
    'three': ({}, zeros(*[[4, 2]] * 3), ValueError, ['prior', 'list of two tensors', '[mean, log_var]']),
    'rows': ({}, zeros([3, 2], [3, 2]), ValueError, ['prior: mean', '(3, 2)', '4 rows']),
    'int': ({}, [PRIOR[0], *zeros([4, 2], dtype=tf.int32)], TypeError, ['prior: log_var', 'int32', 'floating']),
    'both': ({'prior': log_laplace}, PRIOR, ValueError, ['prior', 'at the call', 'log_laplace', 'Leave out one']),
    'no_kl': ({'kl_weight': None}, PRIOR, ValueError, ['prior', 'without a KL term', 'kl_weight']),
    'function': ({}, log_laplace, ValueError, ['prior', 'list of two tensors', 'constructor']),
    'distribution': ({}, tfd.Normal(0.0, 1.0), ValueError, ['prior', 'list of two tensors', 'constructor']),
    'tensor': ({}, tf.zeros([4, 2]), ValueError, ['prior', 'list of two tensors', 'constructor']),
    'numbers': ({}, [0.0, 1.0], ValueError, ['prior', 'list of two tensors', 'constructor']),
}


@each_kit
@pytest.mark.parametrize('symbolic', [False, True], ids=['eager', 'symbolic'])
@pytest.mark.parametrize('case', WRONG_PRIORS)
def test_wrong_priors_at_the_call(kit, case, symbolic):
    arguments, prior, error, parts = WRONG_PRIORS[case]
    flow, inputs = called_layer(kit, **arguments), INPUTS
    if symbolic:
        if not isinstance(prior, list) or not tf.is_tensor(prior[0]):
            pytest.skip('the same check as of a list')
        inputs, prior = (
            [kit.keras.Input(batch_shape=value.shape, dtype=value.dtype.name) for value in values]
            for values in (inputs, prior)
        )
    with raises(error, *parts):
        flow(inputs, prior=prior)
