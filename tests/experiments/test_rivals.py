"""The surrogate posteriors that targets of the Inference Gym are fitted with; none of these tests needs the gym."""

import types

import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from experiments import gym, rivals

tfd = tfp.distributions


@pytest.mark.parametrize('rival', ['mean field', 'full rank', 'ASVI', "TFP's IAF", 'IAF affine'])
def test_rivals_have_the_dtype_of_their_target(rival):
    prior = tfd.JointDistributionNamed({'z': tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), [3])})
    target = gym.Target(
        types.SimpleNamespace(
            event_shape={'z': tf.TensorShape([3])},
            default_event_space_bijector={'z': tfp.bijectors.Identity()},
            dtype={'z': tf.float64},
            prior_distribution=lambda: prior,
        )
    )
    q = rivals.build(rival, target, depth=1, seed=0)
    assert q.sample(seed=1)['z'].dtype == tf.float64
    assert {variable.dtype for variable in q.trainable_variables} == {tf.float64}


def test_a_gaussian_process_has_no_asvi():
    """For such a prior TFP's builder fails."""
    process = tfd.GaussianProcess(tfp.math.psd_kernels.ExponentiatedQuadratic(), tf.zeros([2, 1]))
    for part, expected in ((process, False), (tfd.Normal(0.0, 1.0), True)):
        target = types.SimpleNamespace(prior=tfd.JointDistributionNamed({'f': part}))
        assert rivals.applies('ASVI', target) is expected
        assert rivals.applies('mean field', target)
