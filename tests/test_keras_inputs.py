"""What the layer takes, in either Keras: shapes, dtypes, arguments, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_iaf
from tests.flows import normal, perturb, raises
from tests.keras_models import CONTEXT, K2, K3, LATENT, each_kit, narrow_at_first, point

PAIR = [tf.zeros([5, 2])] * 2


# Shapes


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


@each_kit
@pytest.mark.parametrize('num_flows', [0, 2])
def test_feature_maps(kit, num_flows, network_calls):
    maps, context = normal([5, 3, 2, 2], tf.float32), normal([5, 2, 4], tf.float32)
    flow = kit.layer(num_flows, (14,), kl_weight=1.0)
    flow([maps, 0.1 * maps, context])
    q = flow.posterior(maps, 0.1 * maps, context)
    perturb(q.bijector)
    network_calls.clear()
    z, log_q = flow([maps, 0.1 * maps, context])
    assert len(network_calls) == num_flows
    assert (z.shape, log_q.shape) == ((5, 3, 2, 2), (5,))
    assert (q.batch_shape, q.event_shape) == ([5], [3, 2, 2])
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-3)
    # The flow is that of the flattened maps.
    flat = tfp_iaf.IAFPosterior(12, num_flows, (14,), context_shape=8)
    for variable, value in zip(flat.variables, flow._flow.posterior().variables, strict=True):
        variable.assign(value)
    q = flat(tf.reshape(maps, [5, 12]), tf.exp(tf.reshape(0.05 * maps, [5, 12])), tf.reshape(context, [5, 8]))
    np.testing.assert_allclose(q.log_prob(tf.reshape(z, [5, 12])), log_q, rtol=1e-4, atol=1e-3)


@each_kit
def test_one_pass_for_samples_and_density_of_feature_maps(kit, network_calls):
    flow = kit.layer(2, (14,))
    flow.build([(None, 3, 2, 2)] * 2)
    q = flow.posterior(*[tf.zeros([5, 3, 2, 2])] * 2)
    for log_prob in (lambda: q.experimental_sample_and_log_prob(7)[1], lambda: q.log_prob(q.sample(7))):
        network_calls.clear()
        assert log_prob().shape == [7, 5]
        assert len(network_calls) == 2


@each_kit
def test_feature_maps_in_a_model(kit):
    inputs = [kit.keras.Input([3, 2, 2]), kit.keras.Input([3, 2, 2])]
    z, log_q = kit.layer(1, (14,), kl_weight=1.0)(inputs)
    model = kit.keras.Model(inputs, [kit.keras.layers.Conv2D(1, 1, name='x')(z), log_q])
    assert (tuple(z.shape), tuple(log_q.shape)) == ((None, 3, 2, 2), (None,))
    results = model([np.zeros([5, 3, 2, 2], np.float32)] * 2)
    assert [result.shape for result in results] == [(5, 3, 2, 1), (5,)]


@each_kit
def test_analytic_kl_and_prior_of_feature_maps(kit):
    maps = normal([5, 3, 2, 2], tf.float32)
    losses = []
    for num_flows in (0, 1):
        flow = kit.layer(num_flows, (14,), kl_weight=1.0, seed=1, transform='affine')
        flow([tf.repeat(maps, 4000, axis=0), tf.zeros([20000, 3, 2, 2])])
        if num_flows:  # the identity
            for variable in flow._flow.posterior().variables:
                variable.assign(tf.zeros_like(variable))
            flow([tf.repeat(maps, 4000, axis=0), tf.zeros([20000, 3, 2, 2])])
        losses.append(sum(flow.losses))
    np.testing.assert_allclose(losses[0], 0.5 * np.sum(np.mean(np.square(maps), axis=0)), rtol=1e-4)
    np.testing.assert_allclose(*losses, rtol=0.03)


@each_kit
def test_none_is_no_context(kit):
    flow = kit.layer(seed=1)
    z, _ = flow([*PAIR, None])
    np.testing.assert_array_equal(z, kit.layer(seed=1)(PAIR)[0])


def test_none_is_no_context_of_a_model():
    inputs = [keras.Input([LATENT]), keras.Input([LATENT])]
    model = keras.Model(inputs, K3.layer()([*inputs, None]))
    assert model.predict([np.zeros([5, LATENT])] * 2, verbose=0)[0].shape == (5, LATENT)


@each_kit
def test_inputs_that_are_not_one_list(kit):
    with raises(TypeError, 'inputs', '2 positional', '[z_mean, z_log_var]', 'sampling'):
        kit.layer(name='sampling')(*PAIR)


@each_kit
def test_inputs_of_the_other_keras(kit):
    other = tf_keras if kit.keras is keras else keras
    with raises(TypeError, 'inputs', f'of {other.__name__}', f'tfp_iaf.{other.__name__}.IAFSampling'):
        kit.layer()([other.Input([2]), other.Input([2])])


# Arguments


@each_kit
@pytest.mark.parametrize('activation', ['mish', 'exponential'])
def test_activations_of_keras(kit, activation):
    flow = kit.layer(1, activation=activation)
    flow(PAIR)
    x = tf.constant([-0.5, 2.0])
    expected = kit.keras.activations.get(activation)(x)
    np.testing.assert_allclose(flow._activation_function(x), expected, rtol=1e-6)
    assert kit.IAFSampling.from_config(flow.get_config()).activation == activation


@each_kit
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
        ({'activation': keras.layers.PReLU()}, TypeError, ['activation', 'PReLU', 'variables', 'function']),
        ({'activation': tf_keras.layers.PReLU()}, TypeError, ['activation', 'PReLU', 'variables', 'function']),
        ({'kl_weight': 'much'}, TypeError, ['kl_weight', "'much'", 'number']),
        ({'kl_weight': 1.0, 'free_bits': -0.5}, ValueError, ['free_bits', '-0.5', 'at least 0']),
        ({'kl_weight': 1.0, 'free_bits': 'few'}, TypeError, ['free_bits', "'few'", 'number of at least 0']),
        ({'kl_weight': float('nan')}, ValueError, ['kl_weight', 'nan', 'finite']),
        ({'inverse': 'newton'}, ValueError, ['inverse', "'newton'", "'fixed_point'"]),
        ({'seed': -1}, ValueError, ['seed', '-1', 'non-negative']),
        ({'seed': 1.5}, TypeError, ['seed', '1.5', 'int']),
        ({'dtype': 'float16'}, TypeError, ['dtype', 'float16', 'float32', 'mixed precision']),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_bad_arguments(kit, arguments, error, parts):
    with raises(error, *parts):
        kit.IAFSampling(**{'num_flows': 1, 'hidden_units': (8,), **arguments})


# Networks


@each_kit
def test_factory_of_networks(kit):
    layer = kit.layer(network=narrow_at_first, transform='spline', activation='tanh', alternate_order=False, seed=1)
    layer(point()[:3])
    for made in (layer, kit.IAFPosterior(LATENT, 2, (8,), context_shape=3, network=narrow_at_first)):
        flow = made._flow.posterior() if made is layer else made.flow
        assert [network.hidden_units for network in flow.networks] == [(5,), (8,)]
        assert all(network.context_shape == [CONTEXT] for network in flow.networks)
        weights = {id(getattr(weight, '_value', weight)) for weight in made.trainable_weights}
        assert weights == {id(variable) for variable in flow.variables} and len(weights) == 10
        config = made.get_config()
        assert type(made).from_config(config).get_config() == config


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
    q = layer.posterior(*PAIR)
    np.testing.assert_allclose(q.log_prob(tf.identity(z)), log_q, rtol=1e-4, atol=1e-4)
    assert [weight.shape for weight in layer.trainable_weights] == [(), ()]


@each_kit
@pytest.mark.parametrize(
    ('network', 'error', 'parts'),
    [
        ('dense', TypeError, ["'dense'", 'function that makes a network']),
        (tfp_iaf.MaskedAutoregressiveNetwork(2, (8,)), TypeError, ['MaskedAutoregressiveNetwork', 'IAFPosterior']),
        (lambda *args, **kwargs: None, TypeError, ['None', 'tfp_iaf.networks.Network']),
        (
            lambda event_shape, hidden_units, params, **kwargs: narrow_at_first(event_shape, (8,), params=7, **kwargs),
            ValueError,
            ['7 parameters', '2'],
        ),
        (
            lambda event_shape, hidden_units, **kwargs: narrow_at_first([3], (8,), **kwargs),
            ValueError,
            ['event_shape (3,)', '(2,)', 'Pass on all arguments'],
        ),
        (
            lambda event_shape, hidden_units, variable_factory, **kwargs: narrow_at_first(event_shape, (8,), **kwargs),
            ValueError,
            ["kernel_0:0'", 'neither train nor save', 'variable_factory'],
        ),
    ],
    ids=['str', 'network', 'nothing', 'params', 'event_shape', 'variables'],
)
def test_bad_factory_of_networks(kit, network, error, parts):
    with raises(error, 'network', *parts):
        kit.layer(network=network)(PAIR)


# Inputs


@each_kit
def test_inputs_of_unequal_batches(kit):
    flow = kit.layer()
    flow(PAIR)
    with raises(ValueError, 'z_mean, z_log_var', '(4, 2)', '(5, 2)', 'as many rows'):
        flow([tf.zeros([4, 2]), tf.zeros([5, 2])])
    assert flow([tf.zeros([4, 2]), tf.zeros([1, 2])])[0].shape == (4, 2)  # one scale for all


@each_kit
@pytest.mark.parametrize('built', [False, True])
@pytest.mark.parametrize(
    'inputs',
    [
        tf.zeros([2, 2]),
        [tf.zeros([2, 2])],
        [tf.zeros([2, 2])] * 4,
        {'z_mean': tf.zeros([2, 2]), 'z_log_var': tf.zeros([2, 2])},
    ],
    ids=['tensor', 'one', 'four', 'dict'],
)
def test_wrong_number_of_inputs(kit, inputs, built):
    flow = kit.layer()
    if built:
        flow(PAIR)
    with raises(ValueError, 'inputs', '2, 2', '[z_mean, z_log_var] or [z_mean, z_log_var, context]'):
        flow(inputs)


@each_kit
@pytest.mark.parametrize(
    ('shapes', 'parts'),
    [
        ([(5, 2), (5, 3)], ['(5, 2)', '(5, 3)', 'z_mean and z_log_var']),
        ([(5, 2), (5, 3), (5, 2)], ['(5, 3)', 'Is the context in second place?']),
        ([(5, 3, 2), (5, 2, 3)], ['(5, 3, 2)', '(5, 2, 3)', 'equal']),
        ([(5,), (5,)], ['(5,)', '[batch, ...]']),
    ],
    ids=['different', 'context_second', 'maps', 'no_batch'],
)
def test_shapes_that_do_not_fit(kit, shapes, parts):
    with raises(ValueError, 'inputs', *parts):
        kit.layer()([tf.zeros(shape) for shape in shapes])


@each_kit
@pytest.mark.parametrize('shape', [[None], [None, 3]], ids=['entries', 'maps'])
def test_unknown_latent_size(kit, shape):
    with raises(ValueError, 'z_mean', 'None', 'all sizes but that of the batch', 'fold time into the batch'):
        kit.layer()([kit.keras.Input(shape), kit.keras.Input(shape)])


@each_kit
@pytest.mark.parametrize('place', range(3))
def test_unknown_size_names_the_argument(kit, place):
    sizes = [[2, 3], [2, 3], [4]]
    sizes[place] = [None, *sizes[place][1:]]
    with raises(ValueError, ('z_mean', 'z_log_var', 'context')[place], '(None, None', 'keras.Input([10, 2])', 'fold'):
        kit.layer()([kit.keras.Input(shape) for shape in sizes])


@each_kit
def test_latents_of_each_time_step_by_folding_time_into_the_batch(kit):
    """What the error above advises."""
    layers = kit.keras.layers
    x = kit.keras.Input([None, 4])

    class Fold(layers.Layer):
        def call(self, x):
            return tf.reshape(x, [-1, x.shape[-1]])

        def compute_output_shape(self, shape):
            return (None, shape[-1])

    class Unfold(layers.Layer):
        def call(self, inputs):
            return tf.reshape(inputs[0], [*tf.unstack(tf.shape(inputs[1])[:2]), inputs[0].shape[-1]])

        def compute_output_shape(self, shapes):
            return (*shapes[1][:2], shapes[0][-1])

    z, _ = kit.layer(1)([Fold()(layers.Dense(LATENT)(x)) for _ in range(2)])
    model = kit.keras.Model(x, Unfold()([z, x]))
    model.compile('adam', 'mse', run_eagerly=True)
    for steps in (3, 7):
        inputs = np.zeros([5, steps, 4], np.float32)
        assert np.isfinite(model.fit(inputs, np.zeros([5, steps, LATENT]), verbose=0).history['loss'])
        assert model(inputs).shape == (5, steps, LATENT)


@each_kit
def test_time_distributed(kit):
    """With two inputs Keras 3 raises an error of its own, before it comes to the layer."""
    inputs = [kit.keras.Input([5, size]) for size in (2, 2, 2)]
    with raises(ValueError, 'inputs', "'mine'", 'TimeDistributed', 'fold time into the batch'):
        kit.keras.layers.TimeDistributed(kit.layer(name='mine'))(inputs)


def test_time_distributed_of_tf_keras_without_a_kl_term():
    inputs = [tf_keras.Input([5, 2]) for _ in range(2)]
    z, log_q = tf_keras.layers.TimeDistributed(K2.layer(1, kl_weight=None))(inputs)
    model = tf_keras.Model(inputs, z)
    assert (tuple(z.shape), tuple(log_q.shape)) == ((None, 5, 2), (None, 5))
    model.compile('adam', 'mse', run_eagerly=True)
    model.fit([np.zeros([4, 5, 2])] * 2, np.zeros([4, 5, 2]), verbose=0)


@each_kit
@pytest.mark.parametrize('place', range(3))
def test_size_that_is_not_that_of_the_first_call(kit, place):
    flow = kit.layer()
    inputs = point()[:3]
    flow(inputs)
    inputs[place] = tf.zeros([4, 7])
    argument = ('z_mean', 'z_log_var', 'context')[place]
    expected = f'[batch, {(LATENT, LATENT, CONTEXT)[place]}]'
    with raises(ValueError, argument, '(4, 7)', expected):
        flow(inputs)
    with raises(ValueError, argument, '(4, 7)', expected):
        flow.posterior(*inputs)


@each_kit
@pytest.mark.parametrize('place', range(3))
def test_integers(kit, place):
    inputs = [tf.zeros([5, LATENT])] * 3
    inputs[place] = tf.zeros([5, LATENT], tf.int32)
    argument = ('z_mean', 'z_log_var', 'context')[place]
    flow = kit.layer()
    with raises(TypeError, argument, 'int32', 'floating'):
        flow(inputs)
    with raises(TypeError, argument, 'int32', 'floating'):
        flow.posterior(*(value.numpy() for value in inputs))
    with raises(TypeError, argument, 'int32', 'floating'):
        flow([kit.keras.Input([LATENT], dtype=value.dtype.name) for value in inputs])


@each_kit
def test_missing_context(kit):
    flow = kit.layer()
    flow(point()[:3])
    with raises(ValueError, 'context', 'got none', '[batch, 3]'):
        flow(point()[:2])


@each_kit
def test_unexpected_context(kit):
    flow = kit.layer()
    flow(point()[:2])
    with raises(ValueError, 'context', 'got one', 'expected none', 'Pass'):
        flow(point()[:3])


@each_kit
def test_posterior_before_the_layer_is_built(kit):
    with raises(ValueError, 'mine', 'not built', 'Call the layer'):
        kit.layer(name='mine').posterior(*PAIR)


@each_kit
@pytest.mark.parametrize('shape', [[1, 2, 2], [3, 4, 2]], ids=str)
def test_one_axis_for_the_batch(kit, shape):
    flow = kit.layer(kl_weight=1.0)
    flow(PAIR)
    with raises(ValueError, 'z_mean', str(tuple(shape)), '[batch, 2]', 'posterior'):
        flow([tf.zeros(shape), tf.zeros(shape)])
    assert flow.posterior(tf.zeros(shape), tf.zeros(shape)).batch_shape == shape[:-1]


@each_kit
def test_symbolic_context_that_was_not_there_and_the_converse(kit):
    def symbolic(*sizes):
        return [kit.keras.Input([size]) for size in sizes]

    flow = kit.layer()
    flow(symbolic(2, 2))
    with raises(ValueError, 'context', 'got one', 'expected none'):
        flow(symbolic(2, 2, 3))
    flow = kit.layer()
    flow(symbolic(2, 2, 3))
    with raises(ValueError, 'context', 'got none', '[batch, 3]'):
        flow(symbolic(2, 2))
