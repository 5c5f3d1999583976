"""The flow as one layer of a Keras 3 model, and a callback for its KL term.

Keras must run on TensorFlow. For models made with tf_keras (Keras 2), take `tfp_iaf.tf_keras` with the same names: a
layer of one Keras does not fit into a model of the other.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_iaf import transforms
from tfp_iaf.sampling import SamplingLayer
from tfp_iaf.warmup import WarmupCallback

__all__ = ['IAFSampling', 'KLWarmup']

if keras.backend.backend() != 'tensorflow':
    raise ImportError(
        f'tfp_iaf.keras: got the Keras backend {keras.backend.backend()!r}, expected "tensorflow", which TensorFlow '
        f'Probability needs. Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported.'
    )

for _transform in transforms.CLASSES:
    keras.saving.register_keras_serializable(package='tfp_iaf')(_transform)


@keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFSampling(SamplingLayer, keras.layers.Layer):
    r"""The sampling layer of a VAE, with an Inverse Autoregressive Flow behind the Gaussian.

    $$z_0 = \mu + \sigma \epsilon, \quad z_t = f_t(z_{t-1}, h), \quad
      \log q(z_T \mid x) = \log q(z_0 \mid x) - \sum_t \log\left|\det \frac{\partial z_t}{\partial z_{t-1}}\right|$$

    It takes the place of the `Sampling` layer of the standard Keras VAE:
    `z, log_q = IAFSampling()([z_mean, z_log_var])`, or, with a context h made by the encoder,
    `IAFSampling()([z_mean, z_log_var, h])`. `layer.posterior(...)` gives the distribution itself.

    Shapes: z_mean, z_log_var and z `[batch, D]`, context `[batch, C]`, log_q `[batch]`. Feature maps, such as
    `[batch, H, W, C]`, are one event of all their axes but the first: the layer flattens them, and gives z their shape
    back; a context of any rank is flattened too. Dtype: the layer's variable dtype, also under a mixed precision
    policy, since a log-det is a sum that half precision would spoil.

    Cost: one pass of each step's network per call. Weights: `summary()` counts all that are stored, and one that is not
    trainable for `kl_loss_weight`. The masks put zeros in the place of nearly half of each network's kernels, but for
    those of the context. Where kernels are so large that they are cut into blocks (above 2^16 weights), half of these
    weights or more are not stored; the others are counted, and stay as they were initialised, at zero.

    Args:
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        hidden_units: Units of the hidden layers of each step's network.
        transform: `'gated'` (only contracts), `'affine'` (expands too), `'spline'` (bends, in an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars.
        kl_loss_weight: With a number, the layer adds this times the batch's mean KL(q(z|x) || p(z)) to the model's
            loss, and reports the KL as a metric, named after the layer: `sampling_kl` for `name='sampling'`. It is the
            log-ratio at the samples, or, with `num_flows=0` and the standard normal prior, analytic. A `train_step` of
            one's own finds the term in `self.losses`. `None` leaves the loss to the model. `layer.kl_loss_weight` is a
            variable that is saved with the weights: `layer.kl_loss_weight.assign(0.5)` changes a model in training, and
            `KLWarmup` does so step by step. The config keeps the number given here.
        free_bits: A number of nats: the KL term is then no less than this, and while the batch's mean KL is below, it
            has no gradient; see `tfp_iaf.objectives.free_bits`, with all of z as one group. Under a `tf.distribute`
            strategy, the batch is that of a replica. The metric stays the KL itself.
        prior: p(z). `None` is the standard normal. A `tfd.Distribution` has the event shape of z and no batch shape; or
            it is scalar, and of every entry, with a batch shape that broadcasts to the event shape of z. A function, or
            a Keras layer, maps z to log p(z), `[batch]`; a layer is trained and saved with this one. A distribution
            cannot be saved in a config, and must have no variables: for either, pass a registered function or a layer.
        alternate_order: Whether every second step takes the entries from right to left.
        inverse: How the steps invert what they did not make; see `tfp_iaf.InverseAutoregressiveFlow`.
        activation: Activation of the networks: a name of `tf.nn` or of `keras.activations`, or a function that acts on
            every unit alone and has no variables; so no layer.
        num_blocks: In how many blocks the networks are cut; see `MaskedAutoregressiveNetwork`. Once the layer is built,
            its config has what `None` came to.
        seed: Seed of the initial weights and of the samples. `None` follows `keras.utils.set_random_seed`. Where it has
            come to is saved with the weights. The replicas of a `tf.distribute` strategy draw different samples.
        **kwargs: `name`, `dtype` and `trainable`, as of any Keras layer.

    Raises:
        ValueError: If there are not two or three inputs, their sizes do not fit, or a context is missing or unexpected;
            if `free_bits` or `prior` comes without `kl_loss_weight`, `prior` has another shape, or `activation` mixes
            units.
        TypeError: If an input is not floating, the variable dtype is neither float32 nor float64, or `prior` or
            `activation` is an object whose variables Keras would not find.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", Algorithm 1.
        Eq. (2), (24), (25), (26) of the mathematics page.

    >>> layer = IAFSampling(num_flows=2, hidden_units=(16,), seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

    _keras = keras
    _serialize = staticmethod(keras.saving.serialize_keras_object)
    _deserialize = staticmethod(keras.saving.deserialize_keras_object)

    def _new_weight(self, name: str, value: np.ndarray, trainable: bool) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=self.variable_dtype,
            initializer=lambda shape, dtype: tf.constant(value, dtype),
            trainable=trainable,
            # With autocast, the variable would be a cast tensor under mixed precision.
            autocast=False,
        )

    def _variable_of(self, weight: keras.Variable) -> tf.Variable:
        return weight.value

    def _make_seeds(self) -> None:
        self._seed_generator = keras.random.SeedGenerator(self.seed)
        # Where tf.train.Checkpoint finds the state; Keras itself saves none, see below.
        self._seed_state = tf.Module()
        self._seed_state.variable = self._seed_generator.state.value

    def _next_seed(self) -> tf.Tensor:
        return self._seed_generator.next()

    # Without the state of the seed, a training that is resumed would draw other noise.

    def save_own_variables(self, store: Any) -> None:
        """Stores the weights and the state of the seed."""
        super().save_own_variables(store)
        store['seed_state'] = self._seed_generator.state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` stored."""
        self._seed_generator.state.assign(store['seed_state'])
        super().load_own_variables({key: store[key] for key in store.keys() if key != 'seed_state'})

    def compute_output_spec(self, inputs: Any) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the shapes and dtypes of the sample and of its log-density."""
        self._check_inputs(inputs)
        # From the shapes alone, Keras would infer the compute dtype of a mixed precision policy.
        shapes = self.compute_output_shape([value.shape for value in inputs])
        z, log_q = (keras.KerasTensor(shape, dtype=self.variable_dtype) for shape in shapes)
        return z, log_q


class KLWarmup(WarmupCallback, keras.callbacks.Callback):
    r"""Raises the weight of the KL term linearly, from `start` to the layers' `kl_loss_weight`.

    $$\beta_k = \beta_0 + (\beta - \beta_0)\, \min(1, k / K)$$

    at optimizer step k, with $\beta_0$ the `start`, $\beta$ the `kl_loss_weight` of each `IAFSampling` layer in the
    model, nested ones too, and K the `steps`. The step is `model.optimizer.iterations`: a training that is resumed from
    a saved model or checkpoint goes on where it was. Nothing is traced again.

    With `steps_per_execution=n`, Keras calls back once for n steps, which then share the weight of the first. The
    weight is that of the last step in `evaluate`, and in the loss on validation data, until `fit` sets it again.

    Args:
        steps: K, the number of optimizer steps from `start` to the full weight. For epochs, multiply by the batches of
            one.
        start: $\beta_0$, the weight of the first step.

    Raises:
        ValueError: If `steps` is below 1, or, when training begins, no such layer of the model has a `kl_loss_weight`.
        TypeError: If `steps` is no int, or `start` no number.

    Cost: two small operations a layer and step.

    References:
        Bowman et al. 2016, "Generating Sentences from a Continuous Space", Section 3.1.
        Sønderby et al. 2016, "Ladder Variational Autoencoders", Section 2.3.
        Eq. (27) of the mathematics page.

    >>> inputs = [keras.Input([2]), keras.Input([2])]
    >>> model = keras.Model(inputs, IAFSampling(1, (8,), kl_loss_weight=1.0)(inputs)[0])
    >>> model.compile('adam', loss='mse')
    >>> history = model.fit([tf.zeros([6, 2])] * 2, tf.zeros([6, 2]), batch_size=2, callbacks=[KLWarmup(4)], verbose=0)
    >>> model.layers[-1].kl_loss_weight.numpy().item()  # set at the last of three steps, when two were done
    0.5
    """
