"""What the layer takes, in either Keras: shapes, dtypes, arguments, networks, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
from tests.flows import normal, perturb, raises, tfd
from tests.keras_models import (
    CONTEXT,
    K2,
    K3,
    LATENT,
    called_layer,
    each_kit,
    log_laplace,
    narrow_at_first,
    point,
    variables_of,
    zeros,
)

# Shapes


PAIR = zeros((5, 2), (5, 2))


@each_kit
@pytest.mark.parametrize(
    ('shapes', 'expected'),
    [
        ([(None, 3), (None, 3)], ((None, 3), (None,))),
        ([(None, 4, 4, 2)] * 2, ((None, 4, 4, 2), (None,))),
        ([(1, 2), (None, 2)], ((None, 2), (None,))),
        ([(1, 2), (1, 2), (5, 3)], ((5, 2), (5,))),
        ([(None, 2), (5, 2)], ((5, 2), (5,))),
        ([(1, 2), (1, 2)], ((1, 2), (1,))),
        ([(1, 2), (0, 2)], ((0, 2), (0,))),
    ],
    ids=str,
)
def test_output_shapes(kit, shapes, expected):
    """An input with one row has it for all."""
    layer = kit.layer(0, kl_weight=None)
    assert layer.compute_output_shape(shapes) == expected
    inputs = [kit.keras.Input(batch_shape=shape) for shape in shapes]
    assert tuple(tuple(value.shape) for value in layer(inputs)) == expected
    outputs = layer([tf.zeros([1 if size is None else size for size in shape]) for shape in shapes])
    for value, shape in zip(outputs, expected, strict=True):
        assert value.shape.is_compatible_with(shape)


def test_every_row_has_its_noise_where_the_context_alone_has_rows():
    z, _ = K3.layer()(zeros([1, 2], [1, 2], [6, 3]))
    assert z.shape == (6, 2) and len(np.unique(z[:, 0])) == 6


@each_kit
def test_feature_maps_are_flattened(kit, network_calls):
    maps, context = normal([5, 3, 2, 2], tf.float32), normal([5, 2, 4], tf.float32)
    flow = kit.layer(2, (14,))
    flow([maps, 0.1 * maps, context])
    q = flow.posterior(maps, 0.1 * maps, context)
    perturb(q.bijector)
    network_calls.clear()
    z, log_q = flow([maps, 0.1 * maps, context])
    assert len(network_calls) == 2
    assert (q.batch_shape, q.event_shape) == ([5], [3, 2, 2])
    flat = tfp_iaf.IAFPosterior(12, 2, (14,), context_shape=8)
    for variable, value in zip(flat.variables, flow._flow.posterior().variables, strict=True):
        variable.assign(value)
    q = flat(tf.reshape(maps, [5, 12]), tf.exp(tf.reshape(0.05 * maps, [5, 12])), tf.reshape(context, [5, 8]))
    np.testing.assert_allclose(q.log_prob(tf.reshape(z, [5, 12])), log_q, rtol=1e-4, atol=1e-3)


@each_kit
def test_none_is_no_context(kit):
    z, _ = kit.layer(seed=1)([*PAIR, None])
    np.testing.assert_array_equal(z, kit.layer(seed=1)(PAIR)[0])
    if kit is K3:
        inputs = [keras.Input([LATENT]), keras.Input([LATENT])]
        model = keras.Model(inputs, K3.layer()([*inputs, None]))
        assert model(PAIR)[0].shape == (5, LATENT)


def test_time_distributed_of_tf_keras_without_a_kl_term():
    inputs = [tf_keras.Input([5, 2]) for _ in range(2)]
    z, log_q = tf_keras.layers.TimeDistributed(K2.layer(1, kl_weight=None))(inputs)
    assert (tuple(z.shape), tuple(log_q.shape)) == ((None, 5, 2), (None, 5))
    assert tf_keras.Model(inputs, z)(zeros([4, 5, 2], [4, 5, 2])).shape == (4, 5, 2)


# Wrong inputs

BOTH = '[z_mean, z_log_var] or [z_mean, z_log_var, context]'
TRIPLE = point()[:3]
WRONG_INPUTS = {
    # Whether the first call of the layer, if any, had a context, the inputs of the next, and the error.
    'tensor': (None, tf.zeros([2, 2]), ValueError, ['inputs', '2, 2', BOTH]),
    'tensor_built': (False, tf.zeros([2, 2]), ValueError, ['inputs', '2, 2', BOTH]),
    'dict': (None, {'z_mean': tf.zeros([2, 2]), 'z_log_var': tf.zeros([2, 2])}, ValueError, ['inputs', '2, 2', BOTH]),
    'one': (None, zeros([2, 2]), ValueError, ['inputs', '2, 2', BOTH]),
    'four': (False, zeros(*[[2, 2]] * 4), ValueError, ['inputs', '2, 2', BOTH]),
    'rows': (False, zeros([4, 2], [5, 2]), ValueError, ['z_mean, z_log_var', '(4, 2)', '(5, 2)', 'as many rows']),
    'sizes': (None, zeros([5, 2], [5, 3]), ValueError, ['inputs', '(5, 2)', '(5, 3)', 'z_mean and z_log_var']),
    'order': (None, zeros([5, 2], [5, 3], [5, 2]), ValueError, ['inputs', '(5, 3)', 'Is the context in second place?']),
    'maps': (None, zeros([5, 3, 2], [5, 2, 3]), ValueError, ['inputs', '(5, 3, 2)', '(5, 2, 3)', 'equal']),
    'no_batch': (None, zeros([5], [5]), ValueError, ['inputs', '(5,)', '[batch, ...]']),
    'z_mean': (True, [tf.zeros([4, 7]), *TRIPLE[1:]], ValueError, ['z_mean', '(4, 7)', '[batch, 2]']),
    'z_log_var': (True, [TRIPLE[0], tf.zeros([4, 7]), TRIPLE[2]], ValueError, ['z_log_var', '(4, 7)', '[batch, 2]']),
    'context': (True, [*TRIPLE[:2], tf.zeros([4, 7])], ValueError, ['context', '(4, 7)', '[batch, 3]']),
    'missing': (True, TRIPLE[:2], ValueError, ['context', 'got none', '[batch, 3]']),
    'unexpected': (False, TRIPLE, ValueError, ['context', 'got one', 'expected none', 'Pass']),
    'samples': (False, zeros([3, 4, 2], [3, 4, 2]), ValueError, ['z_mean', '(3, 4, 2)', '[batch, 2]', 'posterior']),
    'int_mean': (None, [*zeros([5, 2], dtype=tf.int32), PAIR[0]], TypeError, ['z_mean', 'int32', 'floating']),
    'int_context': (None, [*PAIR, *zeros([5, 2], dtype=tf.int32)], TypeError, ['context', 'int32', 'floating']),
}


@each_kit
@pytest.mark.parametrize('symbolic', [False, True], ids=['eager', 'symbolic'])
@pytest.mark.parametrize('case', WRONG_INPUTS)
def test_wrong_inputs(kit, case, symbolic):
    conditional, inputs, error, parts = WRONG_INPUTS[case]
    if symbolic and not isinstance(inputs, list):
        pytest.skip('the same check as of a list')
    flow = kit.layer() if conditional is None else called_layer(kit, conditional)
    if symbolic:
        inputs = [kit.keras.Input(batch_shape=value.shape, dtype=value.dtype.name) for value in inputs]
    with raises(error, *parts):
        flow(inputs)


@each_kit
def test_wrong_arguments_of_the_posterior(kit):
    flow = kit.layer(name='mine')
    with raises(ValueError, 'mine', 'not built', 'Call the layer'):
        flow.posterior(*PAIR)
    flow(TRIPLE)
    for case in ('z_mean', 'z_log_var', 'context', 'int_mean', 'int_context'):
        _, inputs, error, parts = WRONG_INPUTS[case]
        with raises(error, *parts):
            flow.posterior(*inputs, *TRIPLE[len(inputs) :])
    with raises(ValueError, 'context', 'none', 'expected one'):
        flow.posterior(*TRIPLE[:2])
    assert flow.posterior(*(value[tf.newaxis] for value in TRIPLE)).batch_shape == [1, 4]


@each_kit
@pytest.mark.parametrize('place', range(3))
def test_unknown_size_names_the_argument(kit, place):
    sizes = [[2, 3], [2, 3], [4]]
    sizes[place] = [None, *sizes[place][1:]]
    parts = 'all sizes but that of the batch', '(None, None', 'keras.Input([10, 2])', 'fold time into the batch'
    with raises(ValueError, ('z_mean', 'z_log_var', 'context')[place], *parts):
        kit.layer()([kit.keras.Input(shape) for shape in sizes])


@each_kit
def test_inputs_that_come_in_another_way(kit):
    with raises(TypeError, 'inputs', '2 positional', '[z_mean, z_log_var]', 'prior=[mean, log_var]', 'sampling'):
        kit.layer(name='sampling')(*PAIR)
    inputs, other = [kit.keras.Input([2])] * 2, (K2 if kit is K3 else K3).keras
    of_other = [other.Input([2])] * 2
    with raises(TypeError, 'inputs', f'of {other.__name__}', f'tfp_iaf.{other.__name__}.IAFSampling'):
        kit.layer()(of_other)
    with raises(TypeError, 'prior', f'of {other.__name__}', f'tfp_iaf.{other.__name__}'):
        kit.layer()(inputs, prior=of_other)
    # With two inputs Keras 3 raises an error of its own, before it comes to the layer.
    with raises(ValueError, 'inputs', "'mine'", 'TimeDistributed', 'fold time into the batch'):
        kit.keras.layers.TimeDistributed(kit.layer(name='mine'))([kit.keras.Input([5, 2]) for _ in range(3)])


# Arguments


@each_kit
@pytest.mark.parametrize('activation', ['mish', 'exponential'])
def test_activations_of_keras(kit, activation):
    x = tf.constant([-0.5, 2.0])
    expected = kit.keras.activations.get(activation)(x)
    np.testing.assert_allclose(kit.layer(1, activation=activation)._activation_function(x), expected, rtol=1e-6)


def with_other_params(event_shape, hidden_units, params, **kwargs):
    return narrow_at_first(event_shape, hidden_units, params=7, **kwargs)


def with_other_shape(event_shape, hidden_units, **kwargs):
    return narrow_at_first([3], hidden_units, **kwargs)


def with_own_variables(event_shape, hidden_units, variable_factory, **kwargs):
    return narrow_at_first(event_shape, hidden_units, **kwargs)


BITS = {'free_bits': 0.1}
TRIL = tfd.MultivariateNormalTriL(tf.zeros([2]), tf.eye(2))
PRELU, PRELU_2 = keras.layers.PReLU(), tf_keras.layers.PReLU()


@pytest.mark.parametrize(
    ('arguments', 'error', 'parts'),
    [
        ({'num_flows': -1}, ValueError, ['num_flows', '-1', 'at least 0']),
        ({'num_flows': 1.5}, TypeError, ['num_flows', '1.5', 'int']),
        ({'hidden_units': ()}, ValueError, ['hidden_units', 'at least one', '(320, 320)']),
        ({'hidden_units': 8}, TypeError, ['hidden_units', '8', 'sequence of ints']),
        ({'hidden_units': (0,)}, ValueError, ['hidden_units', '0', 'at least 1']),
        ({'transform': 'cubic'}, ValueError, ['transform', "'cubic'", "'gated'", "'affine'"]),
        ({'activation': 'elou'}, ValueError, ['activation', "'elou'", "'elu'"]),
        ({'activation': None}, TypeError, ['activation', 'None', "'elu'"]),
        ({'activation': 'softmax'}, ValueError, ['activation', 'softmax', 'every unit alone']),
        ({'activation': lambda x: x[..., :1]}, ValueError, ['activation', 'lambda', 'every unit alone']),
        ({'activation': PRELU}, TypeError, ['activation', 'PReLU', 'variables', 'function']),
        ({'activation': PRELU_2}, TypeError, ['activation', 'PReLU', 'variables', 'function']),
        ({'inverse': 'newton'}, ValueError, ['inverse', "'newton'", "'fixed_point'"]),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative']),
        ({'seed': 1.5}, TypeError, ['seed', '1.5', 'int']),
        ({'dtype': 'float16'}, TypeError, ['dtype', 'float16', 'float32', 'mixed precision']),
        ({'network': 'dense'}, TypeError, ['network', "'dense'", 'function that makes a network']),
        ({'network': tfp_iaf.MaskedAutoregressiveNetwork(2, (8,))}, TypeError, ['network', 'IAFPosterior']),
        ({'network': lambda *args, **kwargs: None}, TypeError, ['network', 'None', 'tfp_iaf.networks.Network']),
        ({'network': with_other_params}, ValueError, ['network', '7 parameters', '2']),
        ({'network': with_other_shape}, ValueError, ['event_shape (3,)', '(2,)', 'Pass on all arguments']),
        ({'network': with_own_variables}, ValueError, ["kernel:0'", 'neither train nor save', 'variable_factory']),
        ({'filters': (5,)}, ValueError, ['filters', '(5,)', 'hidden_units', 'one of the two']),
        ({'kl_weight': 'much'}, TypeError, ['kl_weight', "'much'", 'number']),
        ({'kl_weight': float('nan')}, ValueError, ['kl_weight', 'nan', 'finite']),
        ({'kl_weight': None, **BITS}, ValueError, ['free_bits', 'without a KL term', 'kl_weight']),
        ({'kl_weight': None, 'prior': log_laplace}, ValueError, ['prior', 'without a KL term', 'kl_weight']),
        ({'free_bits': -0.5}, ValueError, ['free_bits', '-0.5', 'at least 0']),
        ({'free_bits': 'few'}, TypeError, ['free_bits', "'few'", 'number of at least 0']),
        ({'free_bits_axis': -1}, ValueError, ['free_bits_axis', '-1', 'without free_bits']),
        ({'free_bits_axis': 0, **BITS}, ValueError, ['free_bits_axis', '0', 'batch', '-1']),
        ({'free_bits_axis': 'channel', **BITS}, TypeError, ['free_bits_axis', "'channel'", 'int']),
        ({'free_bits_axis': [1.5], **BITS}, TypeError, ['free_bits_axis', '1.5', 'int']),
        ({'free_bits_axis': 2, **BITS}, ValueError, ['free_bits_axis', '2', '-1', '1 to 1']),
        (
            {'free_bits_axis': -1, **BITS, 'prior': log_laplace},
            ValueError,
            ['free_bits_axis', 'log_laplace', 'not a sum over the entries', 'Leave it out'],
        ),
        (
            {'free_bits_axis': -1, **BITS, 'prior': TRIL},
            ValueError,
            ['free_bits_axis', 'MultivariateNormalTriL', 'not a sum over the entries'],
        ),
        ({'prior': 3.0}, TypeError, ['prior', '3.0', 'tfd.Distribution', 'function or Keras layer']),
        ({'prior': tfd.MultivariateNormalDiag(tf.zeros([3]))}, ValueError, ['prior', 'Diag', 'event shape [2]']),
        ({'prior': tfd.MultivariateNormalDiag(tf.zeros([4, 2]))}, ValueError, ['batch_shape=[4]', 'no batch shape']),
        ({'prior': tfd.Normal(tf.zeros([3]), 1.0)}, ValueError, ['batch_shape=[3]', 'broadcasts to [2]']),
        ({'prior': tfd.Normal(tf.zeros([4, 2]), 1.0)}, ValueError, ['batch_shape=[4, 2]', 'broadcasts to [2]']),
        ({'prior': tfd.Normal(np.float64(0.0), 1.0)}, TypeError, ['prior', 'float64', 'float32']),
        ({'prior': tfd.Normal(tf.Variable(0.0, name='loc'), 1.0)}, ValueError, ['prior', 'loc:0', 'Keras layer']),
        ({'prior': tf.Module()}, TypeError, ['prior', 'Module', 'does not track']),
        ({'prior': tf_keras.layers.Dense(1)}, TypeError, ['prior', 'Dense', 'keras', 'does not track']),
        ({'prior': lambda z: z}, ValueError, ['prior', '(4, 2)', '(4,)', 'Sum over the entries']),
        ({'prior': lambda z: tf.zeros([])}, ValueError, ['prior', '()', '(4,)']),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(arguments, error, parts):
    with raises(error, *parts):
        K3.layer(**arguments)(TRIPLE)


def test_layer_of_the_other_keras_as_the_prior_of_tf_keras():
    with raises(TypeError, 'prior', 'Dense', 'tf_keras', 'does not track'):
        K2.layer(prior=keras.layers.Dense(1))


# Networks


@each_kit
def test_factory_of_networks(kit):
    layer = kit.layer(network=narrow_at_first, transform='spline', activation='tanh', alternate_order=False)
    layer(TRIPLE)
    posterior = kit.IAFPosterior(LATENT, 2, (8,), context_shape=3, network=narrow_at_first)
    for made, flow in ((layer, layer._flow.posterior()), (posterior, posterior.flow)):
        assert [network.hidden_units for network in flow.networks] == [(5,), (8,)]
        assert all(network.context_shape == [CONTEXT] for network in flow.networks)
        assert variables_of(made.trainable_weights) == variables_of(flow.variables)
        assert len(made.trainable_weights) == 10


@each_kit
def test_networks_are_convolutions_that_alternate_the_order(kit):
    shapes = [6, 2, 3, 2], [6, 2, 3, 2], [6, 2, 3, 4]
    layer = kit.IAFSampling(3, filters=(5, 4), seed=0)
    z, log_q = layer(zeros(*shapes))
    assert z.shape == shapes[0] and log_q.shape == [6]
    networks = layer._flow.posterior().networks
    assert [type(network) for network in networks] == [tfp_iaf.MaskedConvolutionalNetwork] * 3
    assert [network.filters for network in networks] == [(5, 4)] * 3
    assert [int(network.order[0]) for network in networks] == [0, 11, 0]
    assert networks[0].context_shape == [2, 3, 4]
    q = kit.IAFPosterior([2, 3, 2], 2, filters=(5, 4), context_shape=[2, 3, 4])(
        *(value + 1.0 for value in zeros(*shapes))
    )
    z, log_q = q.experimental_sample_and_log_prob(3, seed=0)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-3)


@each_kit
def test_factory_of_networks_of_another_kind(kit):
    """With the least that a network needs, and under mixed precision."""

    class Shifts:
        """The location of an entry is a multiple of the sum of those before it."""

        def __init__(self, event_shape, hidden_units, *, params, dtype, variable_factory, **kwargs):
            self.event_shape, self.context_shape = event_shape, None
            self.params, self.dtype = params, dtype
            self.variables = [variable_factory('factor', np.array(0.5))]

        def __call__(self, x):
            shift = self.variables[0] * tf.cumsum(x, axis=-1, exclusive=True)
            return tf.stack([shift, tf.zeros_like(x)], axis=-1)

    layer = kit.layer(network=Shifts, transform='affine', dtype='mixed_float16')
    z, log_q = layer(PAIR)
    np.testing.assert_allclose(layer.posterior(*PAIR).log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)
    assert [weight.shape for weight in layer.trainable_weights] == [(), ()]
