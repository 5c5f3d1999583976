"""The layer `PosteriorSampling`, for either Keras, except for how it makes weights and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_iaf import objectives
from tfp_iaf._checks import checked_dtype, checked_number, checked_size
from tfp_iaf._layers import _inputs, _kl, _priors
from tfp_iaf._layers._base import LayerPart
from tfp_iaf._layers._inputs import Shape
from tfp_iaf._layers._warmup_state import KLWarmupState
from tfp_iaf._random import random_generator

__all__ = ['SamplingLayer']


class SamplingLayer(LayerPart):
    """The layer `PosteriorSampling`, mixed into the layer class of either Keras; see `tfp_iaf.keras`."""

    # What the other base classes bring.
    _KLMean: ClassVar[Any]
    _make_seeds: Any
    _next_seed: Any
    _reason_against_time_distributed: Any
    add_loss: Any

    def __init__(
        self,
        *,
        kl_weight: float | None = 1.0,
        free_bits: float | None = None,
        free_bits_axis: int | Sequence[int] | None = None,
        prior: _kl.Prior | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Without Keras's autocast, which would round the encoder's float32 outputs to half precision.
        super().__init__(**{'autocast': False, **kwargs})
        self._flow_dtype = checked_dtype(self.variable_dtype)
        if seed is not None:
            random_generator(seed)  # which checks it
            seed = int(seed)
        self.seed = seed
        self._make_seeds()
        self._event_shape: Shape | None = None
        self._context_shape: Shape | None = None
        self._set_kl_term(kl_weight, free_bits, free_bits_axis, prior)

    def _set_kl_term(self, kl_weight: Any, free_bits: Any, free_bits_axis: Any, prior: Any) -> None:
        self._kl_target = None if kl_weight is None else checked_number('kl_weight', kl_weight)
        self.free_bits = None if free_bits is None else checked_number('free_bits', free_bits, minimum=0)
        self.prior = _priors.checked_prior(prior, self._keras.layers.Layer)
        self.free_bits_axis = None if free_bits_axis is None else _checked_axis(free_bits_axis)
        if free_bits_axis is not None and free_bits is None:
            raise ValueError(f'free_bits_axis: got {free_bits_axis!r} without free_bits, whose groups it describes.')
        if free_bits_axis is not None and not _priors.is_factorised(prior):
            raise ValueError(
                f'free_bits_axis: got {free_bits_axis!r} with the prior {prior}, under which log p(z) is not a sum '
                f'over the entries of z, so that a group of them has no KL of its own. Leave it out (all of z is then '
                f'one group), or take a prior of independent entries, such as a tfd.Normal.'
            )
        self._kl_weight: Any = None
        self._kl_warmup: Any = None
        self._kl_metric: Any = None
        if self._kl_target is not None:
            self._kl_weight = self._new_weight('kl_weight', np.asarray(self._kl_target), trainable=False)
            self._kl_warmup = KLWarmupState(self._flow_dtype)
            # With the layer's name: of metrics with one name Keras would report the last alone.
            self._kl_metric = self._KLMean(name=f'{self.name}_kl')
            self._kl_metric.warmup = self._kl_warmup
            return
        for argument, value in (('free_bits', free_bits), ('prior', prior)):
            if value is not None:
                raise ValueError(
                    f'{argument}: got {value!r} without a KL term to use it in. Leave kl_weight at 1.0, for the ELBO.'
                )

    @property
    def kl_weight(self) -> Any:
        """The full weight of the KL term, a variable that may be assigned to while training, or `None`."""
        return self._kl_weight

    @property
    def kl_weight_in_training(self) -> tf.Tensor | None:
        """The weight that a training step would take now: `kl_weight`, or what `KLWarmup` makes of it."""
        if self._kl_weight is None:
            return None
        return self._kl_warmup.weight(tf.convert_to_tensor(self._kl_weight), training=True)

    def posterior(self, z_mean: tf.Tensor, z_log_var: tf.Tensor, context: tf.Tensor | None = None) -> tfd.Distribution:
        """Returns q(z|x); a subclass defines it."""
        raise NotImplementedError(
            f'{type(self).__name__}: define posterior(self, z_mean, z_log_var, context=None), which returns a '
            f'tfd.Distribution of z.'
        )

    def _checked_inputs(self, z_mean: Any, z_log_var: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
        """Returns the arguments of `posterior` as tensors of the flow's dtype."""
        if self._event_shape is None:
            raise ValueError(
                f'{self.name}: not built yet. Call the layer on its inputs, or build it with their shapes, first.'
            )
        if (context is None) != (self._context_shape is None):
            given, expected = ('none', 'one') if context is None else ('one', 'none')
            raise ValueError(f'context: got {given}, expected {expected}, as {self.name} was built.')
        shapes = {'z_mean': self._event_shape, 'z_log_var': self._event_shape, 'context': self._context_shape}
        values = {'z_mean': z_mean, 'z_log_var': z_log_var, 'context': context}
        z_mean, z_log_var, context = (
            None if shape is None else _inputs.checked_input(name, values[name], shape, self._flow_dtype, self.name)
            for name, shape in shapes.items()
        )
        return z_mean, z_log_var, context

    def build(self, input_shape: Any) -> None:
        """Stores the shapes of the inputs, and makes the weights of the posterior and the prior."""
        self._set_shapes(input_shape)
        if isinstance(self.prior, self._keras.layers.Layer):
            # This makes its weights, and those of the layers in it, before an optimizer or a file asks for them.
            self.prior(self._keras.Input(self._event_shape, dtype=self.variable_dtype))
        self._try_posterior()
        super().build(input_shape)  # type: ignore[misc]

    def _set_shapes(self, input_shape: Any) -> None:
        reason = self._reason_against_time_distributed()
        if reason is not None:
            _inputs.check_not_time_distributed(self, self._keras.layers.TimeDistributed, reason)
        shapes = _inputs.checked_shapes(input_shape)
        _priors.check_shape(self.prior, shapes[0][1:], self._flow_dtype)
        self._event_shape = shapes[0][1:]
        self._context_shape = shapes[2][1:] if len(shapes) == 3 else None

    def _try_posterior(self) -> None:
        """Calls the posterior once, which makes the weights of layers in it, and checks what it returns."""
        shapes = [self._event_shape, self._event_shape, self._context_shape]
        with tf.init_scope():
            q = self.posterior(*(tf.zeros([1, *shape], self._flow_dtype) for shape in shapes if shape is not None))
        expected = (
            f'a tfd.Distribution of z, with event shape {list(shapes[0] or ())} and a batch of the rows of z_mean'
        )
        if not isinstance(q, tfd.Distribution):
            raise TypeError(f'posterior: returned {q!r}, expected {expected}.')
        if q.dtype != self._flow_dtype:
            raise TypeError(
                f'posterior: returned {q}, expected dtype {self._flow_dtype.name}, that of {self.name}. Cast what it '
                f'is made of; a layer in it takes dtype={self._flow_dtype.name!r}.'
            )
        if not q.event_shape.is_compatible_with(shapes[0]) or not q.batch_shape.is_compatible_with([1]):
            raise ValueError(
                f'posterior: returned {q} for z_mean of shape {(1, *(shapes[0] or ()))}, expected {expected}.'
            )
        if q.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise ValueError(
                f'posterior: returned {q}, whose samples have no gradient, expected a distribution that is fully '
                f'reparameterized, without which no encoder can be trained.'
            )
        if self.free_bits_axis is not None:
            self._groups()
            if not _kl.is_by_entry(q, self._prior_in_force(None)):
                raise ValueError(
                    f'free_bits_axis: got {self.free_bits_axis!r} with the posterior {q}, whose KL is not known by '
                    f'entry, so that a group of entries has none of its own. Leave it out: all of z is then one group.'
                )

    def __call__(self, inputs: Any, *args: Any, prior: Any = None, **kwargs: Any) -> Any:
        """Calls the layer; a context of `None`, which not every version of Keras accepts, means no context."""
        _inputs.check_call(inputs, args, prior, self._keras.__name__, self.name)
        if isinstance(inputs, (list, tuple)) and len(inputs) == 3 and inputs[2] is None:
            inputs = inputs[:2]
        if prior is not None:
            kwargs['prior'] = prior
        return super().__call__(inputs, **kwargs)  # type: ignore[misc]

    def _check_inputs(self, inputs: Any, prior: Any) -> None:
        _inputs.check_inputs(inputs, self._event_shape, self._context_shape, self.name)
        if prior is None:
            return
        rows = _inputs.common_rows([tf.TensorShape(value.shape) for value in inputs])
        _inputs.check_prior_inputs(prior, rows, self._event_shape, self.name)
        if self.prior is not None:
            raise ValueError(
                f'prior: got one at the call of {self.name}, which was made with the prior {self.prior}. Leave out one '
                f'of the two.'
            )
        if self._kl_weight is None:
            raise ValueError(
                f'prior: got one at the call of {self.name} without a KL term to use it in. Leave kl_weight at 1.0, '
                f'for the ELBO.'
            )

    def call(self, inputs: Sequence[tf.Tensor], prior: Any = None, training: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a sample for each row, and its log-density."""
        self._check_inputs(inputs, prior)
        q = self.posterior(*_inputs.aligned(inputs, self._flow_dtype))
        sample = _kl.draw(q, self._seed_of_replica())
        if self._kl_weight is not None:
            self._add_kl(_kl.kl_divergence(sample, self._prior_in_force(prior)), training)
        return sample.z, sample.log_q

    def _prior_in_force(self, parameters: Any) -> _kl.Prior:
        if parameters is not None:
            mean, log_var = parameters
            return _priors.gaussian(mean, log_var, self._flow_dtype)
        return _priors.gaussian(0.0, 0.0, self._flow_dtype) if self.prior is None else self.prior

    def _add_kl(self, kl: tf.Tensor, training: Any) -> None:
        by_row = tf.reduce_sum(kl, axis=list(range(1, kl.shape.rank)))
        if not tf.distribute.in_cross_replica_context():  # where tf_keras works out shapes, and no replica counts
            self._kl_metric.update_state(by_row)
        # A replica of a strategy may get no rows, whose mean counts as zero.
        rows = tf.size(by_row)
        if self.free_bits is None:
            term = tf.math.divide_no_nan(tf.reduce_sum(by_row), tf.cast(rows, kl.dtype))
        else:
            groups = self._groups()
            others = [axis for axis in range(1, kl.shape.rank) if axis not in groups]
            term = objectives.free_bits(tf.reduce_sum(kl, axis=others) if groups else by_row, self.free_bits)
            term = tf.where(rows > 0, term, tf.zeros([], term.dtype))
        weight = self._kl_warmup.weight(tf.convert_to_tensor(self._kl_weight), training)
        # In Keras's own dtype, in which it adds up the losses of a model.
        self.add_loss(tf.cast(weight * term, self._keras.backend.floatx()))

    def _groups(self) -> set[int]:
        """Returns the axes of z along which groups of free bits lie."""
        rank = 1 + len(self._event_shape or ())
        axis = self.free_bits_axis
        axes = [] if axis is None else [axis] if isinstance(axis, int) else list(axis)
        if not all(0 < axis < rank or -rank < axis < 0 for axis in axes):
            raise ValueError(
                f'free_bits_axis: got {self.free_bits_axis!r}, expected -1 for the last axis of z, or one or more of '
                f'1 to {rank - 1}. Axis 0 is the batch, over which free bits take the mean.'
            )
        return {axis % rank for axis in axes}

    def _seed_of_replica(self) -> tf.Tensor:
        seed = tf.cast(self._next_seed(), tf.int32)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return seed
        # The replicas of a strategy all count the same calls, and would draw the same noise.
        return tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)

    def compute_output_shape(self, input_shape: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Returns the shapes of the sample and of its log-density."""
        rows = _inputs.common_rows(input_shape)
        return (rows, *input_shape[0][1:]), (rows,)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        if isinstance(self.prior, tfd.Distribution):
            raise NotImplementedError(
                f'prior: got {self.prior}, which Keras cannot save in a config. Pass a function z -> log p(z) that is '
                f'registered with {self._keras.__name__}.saving.register_keras_serializable, or a layer; or save the '
                f'weights alone.'
            )
        config, axes = super().get_config(), self.free_bits_axis  # type: ignore[misc]
        return {
            **config,
            'kl_weight': self._kl_target,
            'free_bits': self.free_bits,
            'free_bits_axis': list(axes) if isinstance(axes, (list, tuple)) else axes,
            'prior': self._serialize(self.prior),
            'seed': self.seed,
        }


def _checked_axis(axis: Any) -> int | tuple[int, ...]:
    if isinstance(axis, (list, tuple)) and axis:
        return tuple(checked_size('free_bits_axis', one, minimum=-(2**31)) for one in axis)
    return checked_size('free_bits_axis', axis, minimum=-(2**31))
