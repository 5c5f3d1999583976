"""The flow in Keras 3 models: as a sampling layer, as a factory of distributions, and a callback for the KL term.

Keras must run on TensorFlow. For models made with tf_keras (Keras 2), take `tfp_iaf.tf_keras` with the same names: a
layer of one Keras does not fit into a model of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_iaf import _compat, transforms
from tfp_iaf._layers._flow_sampling import PlanarSamplingLayer, RadialSamplingLayer, SylvesterSamplingLayer
from tfp_iaf._layers._iaf_sampling import IAFSamplingLayer
from tfp_iaf._layers._posterior import PosteriorLayer
from tfp_iaf._layers._sampling import SamplingLayer
from tfp_iaf._layers._warmup import WarmupCallback
from tfp_iaf._layers._warmup_state import KLMean

__all__ = [
    'IAFPosterior',
    'IAFSampling',
    'KLWarmup',
    'PlanarSampling',
    'PosteriorSampling',
    'RadialSampling',
    'SylvesterSampling',
]

if keras.backend.backend() != 'tensorflow':
    raise ImportError(
        f'tfp_iaf.keras: got the Keras backend {keras.backend.backend()!r}, expected "tensorflow", which TensorFlow '
        f'Probability needs. Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported.'
    )

for _transform in transforms.CLASSES:
    keras.saving.register_keras_serializable(package='tfp_iaf')(_transform)


class _Keras3:
    """What a layer of Keras 3 does in its own way."""

    _keras = keras
    # Of the same name as Keras's own, by which files know it.
    _KLMean = type('Mean', (KLMean, keras.metrics.Mean), {})
    _serialize = staticmethod(keras.saving.serialize_keras_object)
    _deserialize = staticmethod(keras.saving.deserialize_keras_object)

    @property
    def compute_dtype(self) -> str:
        """The dtype of the variables: otherwise Keras would read them, and add up the metric, in half precision."""
        return str(self.variable_dtype)  # type: ignore[attr-defined]

    def _new_weight(self, name: str, value: np.ndarray, trainable: bool) -> keras.Variable:
        return self.add_weight(  # type: ignore[attr-defined]
            name=name.replace('/', '_'),
            shape=value.shape,
            dtype=self.variable_dtype,  # type: ignore[attr-defined]
            initializer=lambda shape, dtype: tf.constant(value, dtype),
            trainable=trainable,
            # With autocast, the variable would be a cast tensor under mixed precision.
            autocast=False,
        )

    def _variable_of(self, weight: keras.Variable) -> tf.Variable:
        return weight.value


@keras.saving.register_keras_serializable(package='tfp_iaf')
class PosteriorSampling(SamplingLayer, _Keras3, keras.layers.Layer):
    r"""The sampling layer of a VAE for a posterior of your own: a subclass defines `posterior`, and nothing else.

    $$z \sim q(z \mid x), \qquad \text{loss} \mathrel{+}= \beta\, \mathbb{E}_x\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))$$

    `posterior(z_mean, z_log_var, context=None)` returns a `tfd.Distribution`. The layer does the rest: samples, log q,
    the KL term, free bits, priors, the warm-up, seeds, config and saving. The KL is exact where TFP knows it. For a
    `tfd.TransformedDistribution` it is log q(z) - log p(z) at the sample, with the KL of the base, where TFP knows that
    one, as a control variate, which leaves no noise at the identity; otherwise it is log q(z) - log p(z) alone.

    Shapes: z_mean, z_log_var and z `[batch, ...]`, where all axes but the first are one event, context `[batch, ...]`,
    log_q `[batch]`. Dtype: the layer's variable dtype, also under a mixed precision policy, since a log-det is a sum
    that half precision would spoil. Cost: one evaluation of each network of the posterior per call.

    Layers that `posterior` uses are attributes made in `__init__`. Weights of the layer itself are made in `build`,
    before `super().build(input_shape)`, which calls `posterior` once on zeros.

    Args:
        kl_weight: The layer adds this times the batch's mean KL(q(z|x) || p(z)) to the model's loss, 1 for the negative
            ELBO, and reports the KL as a metric, named after the layer: `sampling_kl` for `name='sampling'`. A
            `train_step` of your own finds the term in `self.losses`. `None` leaves the loss to the model.
            `layer.kl_weight` is a variable that is saved with the weights: `layer.kl_weight.assign(0.5)` changes a
            model in training. The config keeps the number given here.
        free_bits: A number of nats: the KL of each group, as a mean over the batch, then counts as no less than this,
            and has no gradient while it is less; see `tfp_iaf.objectives.free_bits`. Under a `tf.distribute` strategy,
            the batch is that of a replica. The metric stays the KL itself.
        free_bits_axis: The axes of z along which the groups lie: `-1` gives each channel of a feature map, or each
            entry of a vector, a group of its own. `None` makes all of z one group. As for other Keras layers, axis 0 is
            the batch. The prior must have independent entries.
        prior: p(z). `None` is the standard normal, unless a call passes `prior=`. A `tfd.Distribution` has the event
            shape of z and no batch shape; or it is scalar, and the prior of every entry, with a batch shape that
            broadcasts to the event shape of z. A function, or a Keras layer, maps z to log p(z), `[batch]`; a layer is
            trained and saved with this one. A distribution cannot be saved in a config, and must have no variables: for
            either, pass a registered function or a layer.
        seed: Seed of the samples. `None` follows `keras.utils.set_random_seed`. Its state is saved with the
            weights. The replicas of a `tf.distribute` strategy draw different samples. Two layers of one model that
            have the same seed draw the same noise: if one depends on the other, as in a ladder, its density is wrong.
        **kwargs: `name`, `dtype` and `trainable`, as of any Keras layer.

    Call arguments:
        inputs: `[z_mean, z_log_var]` or `[z_mean, z_log_var, context]`.
        prior: `[mean, log_var]`, two tensors `[batch, ...]` of the shape of z: a Gaussian prior for each row, as in
            conditional and hierarchical models. Both get gradients.

    Raises:
        ValueError: If there are not two or three inputs, their sizes do not fit, or a context is missing or unexpected;
            if `free_bits` or `prior` comes without `kl_weight`, `prior` has another shape or is given twice, or
            `free_bits_axis` comes without `free_bits` or with a KL that is not a sum over entries.
        TypeError: If an input is not floating, the variable dtype is neither float32 nor float64, or `prior` is an
            object whose variables Keras would not find.

    References:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114.
        Eq. `elbo`, `kl`, `kl-gaussian`, `kl-control-variate`, `kl-by-entry` and `free-bits` of the mathematics page.

    >>> import tensorflow_probability as tfp
    >>> class StudentSampling(PosteriorSampling):
    ...     def posterior(self, z_mean, z_log_var, context=None):
    ...         t = tfp.distributions.StudentT(5.0, z_mean, tf.exp(0.5 * z_log_var))
    ...         return tfp.distributions.Independent(t, 1)
    >>> z, log_q = StudentSampling()([tf.zeros([5, 2]), tf.zeros([5, 2])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """

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

    def _reason_against_time_distributed(self) -> str | None:
        return 'passes on one input alone in Keras 3'

    def compute_output_spec(
        self, inputs: Any, prior: Any = None, training: Any = None
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the shapes and dtypes of the sample and of its log-density."""
        self._check_inputs(inputs, prior)
        # From the shapes alone, Keras would infer the compute dtype of a mixed precision policy.
        shapes = self.compute_output_shape([value.shape for value in inputs])
        z, log_q = (keras.KerasTensor(shape, dtype=self.variable_dtype) for shape in shapes)
        return z, log_q


@keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFSampling(IAFSamplingLayer, PosteriorSampling):
    r"""The sampling layer of a VAE, with an Inverse Autoregressive Flow behind the Gaussian.

    $$z_0 = \mu + \sigma \epsilon, \quad z_t = f_t(z_{t-1}, h), \quad
      \log q(z_T \mid x) = \log q(z_0 \mid x) - \sum_t \log\left|\det \frac{\partial z_t}{\partial z_{t-1}}\right|$$

    It replaces the `Sampling` layer of the standard Keras VAE and its KL term:
    `z, log_q = IAFSampling()([z_mean, z_log_var])`, or, with a context h made by the encoder,
    `IAFSampling()([z_mean, z_log_var, h])`. `layer.posterior(...)` gives the distribution itself. Shapes, dtypes, call
    arguments and errors are those of `PosteriorSampling`; a context may have any shape, `[batch, ...]`.

    The KL of the Gaussian at the base, in closed form, takes noise out of the KL term: near the identity nearly all. A
    new layer is nearly the identity, so training starts where the Gaussian starts. With `num_flows=0` the KL is the
    closed form alone.

    Cost: one pass of each step's network per call. Weights: `summary()` counts all that are stored, and one that is not
    trainable for `kl_weight`. The masks zero nearly half of the weights in each network's kernels, except in those of
    the context. `summary()` counts these weights too; they start at zero and stay there.

    Args:
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        hidden_units: Units of the hidden layers of each step's network.
        filters: For feature maps, `[batch, H, W, C]`, in the place of `hidden_units`: channels of the hidden layers of
            a `tfp_iaf.MaskedConvolutionalNetwork` in each step. The context is then a feature map,
            `[batch, H, W, K]`, and `free_bits_axis=-1` counts free bits by map.
        network: Makes the network of each step, and is called with the arguments of a `MaskedAutoregressiveNetwork`,
            which is the default; see `tfp_iaf.IAFPosterior`. It must make all variables by the `variable_factory` that
            it is called with. To save a model, register it with `keras.saving.register_keras_serializable`.
        transform: `'gated'` (only contracts), `'affine'` (also expands), `'spline'` (bends within an interval), or an
            object of `tfp_iaf.transforms`, such as a `ScalarBijector` for any other bijector of scalars.
        kl_weight, free_bits, free_bits_axis, prior: See `PosteriorSampling`.
        alternate_order: Whether every second step takes the entries from right to left.
        inverse: How steps are inverted at points that they did not make; see `tfp_iaf.InverseAutoregressiveFlow`.
        activation: Activation of the networks: a name of `tf.nn` or of `keras.activations`, or a function that acts on
            every unit alone and has no variables; a layer is not one.
        seed: Seed of the initial weights and of the samples; see `PosteriorSampling`.
        **kwargs: `name`, `dtype` and `trainable`, as of any Keras layer.

    Raises:
        ValueError: As `PosteriorSampling`, or if `activation` mixes units, or `filters` come beside `hidden_units`.
        TypeError: As `PosteriorSampling`, or if `activation` is an object whose variables Keras would not find.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Algorithm 1.
        Eq. `chain`, `elbo`, `kl-control-variate` and `kl-gaussian` of the mathematics page.

    >>> layer = IAFSampling(num_flows=2, hidden_units=(16,), seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@keras.saving.register_keras_serializable(package='tfp_iaf')
class PlanarSampling(PlanarSamplingLayer, PosteriorSampling):
    r"""The sampling layer of a VAE, with planar flows behind the Gaussian, to compare with `IAFSampling`.

    $$z_0 = \mu + \sigma \epsilon, \quad z_t = z_{t-1} + \hat u_t \tanh(w_t^\top z_{t-1} + b_t), \quad
      (u_t, w_t, b_t)_{t \le T} = K h + k$$

    It is called as `IAFSampling` is, `z, log_q = PlanarSampling(80)([z_mean, z_log_var, h])`: the layer's own kernel K
    and bias k make the parameters of the steps of each row of the context h. Without a context they are the same for
    all rows. A new layer is nearly the identity.

    Shapes, dtypes, call arguments, arguments other than the first and errors are those of `PosteriorSampling`; a
    context may have any shape, `[batch, ...]`, and an event of several axes is one vector to the steps. Its KL is not
    known by entry, so free bits have one group. Cost: a product of the context with K, `[C, T (2 D + 1)]`, and O(T D)
    for each row.

    Args:
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        **kwargs: Those of `PosteriorSampling`. `seed` is also that of the initial weights.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", https://arxiv.org/abs/1505.05770,
        Section 4.
        Eq. `planar` and `kl-control-variate` of the mathematics page.

    >>> layer = PlanarSampling(num_flows=2, seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape, layer.posterior(tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])).sample(7).shape
    (TensorShape([5, 2]), TensorShape([5]), TensorShape([7, 5, 2]))
    """


@keras.saving.register_keras_serializable(package='tfp_iaf')
class RadialSampling(RadialSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with radial flows behind the Gaussian, to compare with `IAFSampling`.

    All is as for `PlanarSampling`, but that the parameters of a step are those of `tfp_iaf.RadialFlow`, D + 2 numbers.

    References:
        Rezende and Mohamed 2015, "Variational Inference with Normalizing Flows", https://arxiv.org/abs/1505.05770,
        Section 4.
        Eq. `radial` and `kl-control-variate` of the mathematics page.

    >>> layer = RadialSampling(num_flows=2, seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@keras.saving.register_keras_serializable(package='tfp_iaf')
class SylvesterSampling(SylvesterSamplingLayer, PosteriorSampling):
    """The sampling layer of a VAE, with Sylvester flows behind the Gaussian, to compare with `IAFSampling`.

    All is as for `PlanarSampling`, but that the parameters of a step are those of `tfp_iaf.SylvesterFlow`: M^2 + 2 M
    numbers, and those of q. Every second step of the kind `'triangular'` takes the entries in reverse order.

    Args:
        num_flows: Number of steps T; 0 gives the diagonal Gaussian.
        kind: `'orthogonal'`, `'householder'` or `'triangular'`.
        num_vectors: Number of vectors that Q is made of: its M columns (`'orthogonal'`; by default 16, or D if that is
            less), or reflections (`'householder'`; by default 8, or D if that is less).
        **kwargs: Those of `PosteriorSampling`. `seed` is also that of the initial weights.

    Raises:
        ValueError: If the kind is unknown, or `num_vectors` does not fit it.

    References:
        van den Berg, Hasenclever, Tomczak and Welling 2018, "Sylvester Normalizing Flows for Variational Inference",
        https://arxiv.org/abs/1803.05649, Section 3.
        Eq. `sylvester` and `kl-control-variate` of the mathematics page.

    >>> layer = SylvesterSampling(num_flows=2, kind='householder', seed=0)
    >>> z, log_q = layer([tf.zeros([5, 2]), tf.zeros([5, 2]), tf.ones([5, 3])])
    >>> z.shape, log_q.shape
    (TensorShape([5, 2]), TensorShape([5]))
    """


@keras.saving.register_keras_serializable(package='tfp_iaf')
class IAFPosterior(PosteriorLayer, _Keras3, keras.layers.Layer):
    """A `tfp_iaf.IAFPosterior` whose variables a Keras model trains and saves, as an attribute of that model.

    Keras 3 finds no variables in a plain `tfp_iaf.IAFPosterior`: `fit` would not train them, and no file would contain
    them. Likewise for networks, bijectors and distributions. If a model holds one, in an attribute or in a function
    such as its loss, using it in a method of the model raises an error. In a training loop outside the model, this
    cannot be detected.

    This class is a Keras layer that makes its weights at once. It is called as `flow(loc, scale_diag, context)`, in the
    `call` or the `train_step` of a model, and returns a `tfd.TransformedDistribution`; `flow.bijector(context)` gives
    the steps alone.

    Arguments, shapes and cost are those of `tfp_iaf.IAFPosterior`, except for `variable_factory`, which the layer
    provides. The dtype is the layer's variable dtype; arguments of another precision are cast to it. The distribution
    does not cast: under mixed precision, take `log_prob(tf.cast(y, flow.dtype))`. Networks passed as
    `networks=` are trained and saved too, but such a layer has no config. A layer with a registered function as its
    `network=` has one.

    Raises:
        ValueError: As `tfp_iaf.IAFPosterior`.
        TypeError: As `tfp_iaf.IAFPosterior`, or if an argument of the call is a symbolic tensor: a functional model
            cannot hold a distribution.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Algorithm 1.
        Eq. `chain`, `base` and `posterior-density` of the mathematics page.

    >>> class Density(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.flow = IAFPosterior(2, num_flows=2, hidden_units=(16,), seed=0)
    ...     def call(self, x):
    ...         return self.flow(tf.zeros_like(x), tf.ones_like(x)).log_prob(x)
    >>> model = Density()
    >>> model(tf.zeros([5, 2])).shape, len(model.trainable_variables)
    (TensorShape([5]), 8)
    """

    def _is_symbolic(self, value: Any) -> bool:
        return isinstance(value, keras.KerasTensor)

    def _adopt(self, variables: Iterable[tf.Variable]) -> None:
        self._adopted = [_compat.keras_variable(variable) for variable in variables]


class KLWarmup(WarmupCallback, keras.callbacks.Callback):
    r"""Raises the weight of the KL term linearly in training, from `start` to the layers' `kl_weight`.

    $$\beta_k = \beta_0 + (\beta - \beta_0)\, \min(1, k / K)$$

    at optimizer step k, with $\beta_0$ the `start`, $\beta$ the `kl_weight` of each `PosteriorSampling` or
    `IAFSampling` layer in the model, nested ones too, and K the `steps`. The step is `model.optimizer.iterations`: a
    training that is resumed from a saved model or checkpoint continues where it was. Nothing is retraced.

    Everything but a training step sees the full weight: validation, `evaluate`, and what callbacks save at the end of
    an epoch or a batch. So `val_loss` can be compared over epochs, and `EarlyStopping` and `ModelCheckpoint` can rely
    on it. If training is interrupted, the next `fit` or `evaluate` has the full weight too, unless this callback is
    passed again. `layer.kl_weight` is always the full weight, and may be assigned to; `layer.kl_weight_in_training` is
    that of the next training step, for a callback that comes after this one. With `steps_per_execution=n`, Keras calls
    back once for n steps, which then share the weight of the first.

    Args:
        steps: K, the number of optimizer steps from `start` to the full weight. For epochs, multiply by the batches of
            one.
        start: $\beta_0$, the weight of the first step.

    Raises:
        ValueError: If `steps` is below 1, or, when training begins, no such layer of the model has a `kl_weight`.
        TypeError: If `steps` is not an int, or `start` is not a number.

    Cost: two small operations per layer and step.

    References:
        Bowman et al. 2016, "Generating Sentences from a Continuous Space", https://arxiv.org/abs/1511.06349,
        Section 3.1.
        Sønderby et al. 2016, "Ladder Variational Autoencoders", https://arxiv.org/abs/1602.02282, Section 2.3.
        Eq. `kl-warmup` of the mathematics page.

    >>> inputs = [keras.Input([2]), keras.Input([2])]
    >>> model = keras.Model(inputs, IAFSampling(1, (8,))(inputs)[0])
    >>> model.compile('adam', loss='mse')
    >>> history = model.fit([tf.zeros([6, 2])] * 2, tf.zeros([6, 2]), batch_size=2, callbacks=[KLWarmup(4)], verbose=0)
    >>> model.layers[-1].kl_weight.numpy().item()
    1.0
    """
