"""Surrogate posteriors: one flow over all entries of a nested event, for variational inference in TFP."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_iaf import _compat
from tfp_iaf._checks import Activation
from tfp_iaf.bijectors._chain import FlowChain
from tfp_iaf.distributions._gaussian import gaussian
from tfp_iaf.distributions._posterior import IAFPosterior, check_defaults
from tfp_iaf.distributions._support import LocScale, support_of
from tfp_iaf.networks import MaskedAutoregressiveNetwork, Network
from tfp_iaf.transforms import Transform

__all__ = ['build_iaf_surrogate_posterior']

# Of a hidden layer, by default: enough for a density of few entries to bend.
_FEWEST_UNITS = 32
# Variational inference takes learning rates ten times those of VAEs, and its targets can overflow.
_BASE_WIDTH = 16

# Arguments that do not make networks.
_BESIDE_NETWORKS = ('event_shape', 'bijector', 'networks', 'transform', 'inverse', 'validate_args', 'name')


def build_iaf_surrogate_posterior(
    event_shape: Any,
    bijector: Any = None,
    num_flows: int = 2,
    hidden_units: Sequence[int] | None = None,
    *,
    networks: Sequence[Network] | None = None,
    transform: str | Transform = 'affine',
    activation: str | Activation = 'elu',
    alternate_order: bool = True,
    inverse: str = 'auto',
    seed: int | None = None,
    dtype: tf.DType | None = None,
    validate_args: bool = False,
    name: str = 'iaf_surrogate_posterior',
) -> tfp.distributions.TransformedDistribution:
    r"""Builds a trainable posterior for `tfp.vi.fit_surrogate_posterior`: one flow over all entries of an event.

    $$z = b\big(\mathrm{split}(\mu + \sigma \odot (f_T \circ \dots \circ f_1)(\epsilon))\big), \quad
      \epsilon \sim \mathcal{N}(0, I)$$

    where b is the `bijector`, $\mu$ and $\sigma$ are trained, and $f_t$ are the steps of an `IAFPosterior`. Entries
    come in the order of `tf.nest.flatten(event_shape)`, which for a dict is the order of the sorted keys. Each step
    gives an entry a location and a scale that depend on the entries before it; in every second step, on those after it.

    This is the counterpart of NumPyro's `AutoIAFNormal`. `event_shape` and `bijector` are those of TFP's own builders,
    such as `tfp.experimental.vi.build_affine_surrogate_posterior`. The networks see noise of unit scale: location and
    scale of the posterior come after them. Sums of more than 16 terms in them are scaled down (`base_width` of a
    `MaskedAutoregressiveNetwork`; pass `networks` for another), and where the gradient of the target at a sample is not
    finite, it counts as zero: one sample that overflows does not end a fit. `tfp_iaf.diagnostics.diagnose` tells how
    many samples are concerned. The transform is `'affine'` by default, since in posteriors the scale of one
    entry often grows with another, as in a funnel, and the gate only contracts.

    Args:
        event_shape: Shape of the event, or a structure of shapes, such as `joint.event_shape_tensor()`: a
            `tf.TensorShape`, ints, or an int tensor for each part, all sizes known.
        bijector: Maps real numbers to the support: a bijector of the whole structure, such as
            `joint.experimental_default_event_space_bijector()`, or one for each part, in the same structure, with
            `None` for a part on all reals. `None` for an event of reals. Its variables, such as those of a prior that
            is a flow, belong to the model: the posterior neither trains nor saves them.
        num_flows: Number of steps T; 0 gives a diagonal Gaussian, sent through `bijector`.
        hidden_units: Units of the hidden layers of each step's network. `None` means two layers with one unit for each
            of the D entries, and at least 32: with fewer than D - 1, some entries would not see all before them.
        networks: One `tfp_iaf.networks.Network` per step, of event shape `[D]`, in sampling order. They replace the
            arguments that build networks.
        transform: `'affine'`, `'gated'` (only contracts), or another of `tfp_iaf.transforms`.
        activation: Activation of the networks: a name of `tf.nn`, or a callable.
        alternate_order: Whether every second step takes the entries from right to left. Then every entry can depend on
            every other, in whatever order they come. If the model's own order, causes before effects, is the right
            one, `False` fits more reliably: on a banana, some fits with alternating steps lost part of an arm.
        inverse: How to invert a step at points it did not produce; see `InverseAutoregressiveFlow`.
        seed: Seed of the initial weights. `None` follows TensorFlow's global seed.
        dtype: Of the variables and of all parts of an event: `tf.float32` or `tf.float64`. `None` means that of the
            model, if `bijector` is the default one of a joint distribution, and otherwise `tf.float32`.
        validate_args: Whether bijectors and distributions check their arguments at run time.
        name: Name of the distribution.

    Returns:
        A `tfd.TransformedDistribution` with the structure of `event_shape`, or of `bijector` if that has its own, and
        batch shape `[]`. Its `trainable_variables` are all that is to be trained. Where the model has variables of its
        own, pass `trainable_variables=q.trainable_variables` to the fit, which otherwise trains all that it meets.

        Its `distribution` is standard normal noise x, `[D]`: coordinates in which MCMC moves with ease once q is
        trained (NeuTra), on the density
        `target_log_prob(q.bijector.forward(x)) + q.bijector.forward_log_det_jacobian(x)`. For an event that is one
        tensor, `tfp.mcmc.TransformedTransitionKernel` with `q.bijector` does the same.

    Cost: `experimental_sample_and_log_prob`, which `fit_surrogate_posterior` uses, takes one pass of each network, and
    so does `sample` with `log_prob` of the very tensors of the sample. `log_prob` of another event inverts every step;
    see `InverseAutoregressiveFlow`.

    Optimizers: those of Keras 3, tf_keras and `tfp.optimizer` all work, with and without `jit_compile=True`. An
    optimizer of Keras 3 makes its own variables at the first step, so TensorFlow traces, and XLA compiles, that step
    twice; `optimizer.build(q.trainable_variables)` beforehand avoids that.

    Raises:
        ValueError: If a size is unknown, the event has no entry, `bijector` does not fit `event_shape`, or an argument
            of the networks is wrong; see `IAFPosterior`.
        TypeError: If `event_shape` holds no shapes, `bijector` no bijectors, or `dtype` is not floating.

    References:
        Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
        https://arxiv.org/abs/1606.04934, Eq. 10, 11.
        Hoffman et al. 2019, "NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport",
        https://arxiv.org/abs/1903.03704.
        Eq. `surrogate` and `neutra` of the mathematics page.

    >>> import keras
    >>> tfd = tfp.distributions
    >>> joint = tfd.JointDistributionNamed({
    ...     'scale': tfd.Exponential(1.), 'x': lambda scale: tfd.Normal(0., scale), 'y': lambda x: tfd.Normal(x, 1.)})
    >>> pinned = joint.experimental_pin(y=2.)
    >>> q = build_iaf_surrogate_posterior(
    ...     pinned.event_shape_tensor(), pinned.experimental_default_event_space_bijector(), seed=0)
    >>> losses = tfp.vi.fit_surrogate_posterior(
    ...     pinned.unnormalized_log_prob, q, keras.optimizers.Adam(1e-2), num_steps=2, sample_size=16)
    >>> z, log_q = q.experimental_sample_and_log_prob(5)
    >>> sorted(z), z['scale'].shape, log_q.shape
    (['scale', 'x'], TensorShape([5]), TensorShape([5]))
    """
    if networks is not None:
        check_defaults(locals(), build_iaf_surrogate_posterior, _BESIDE_NETWORKS)
    shapes = _checked_shapes(event_shape)
    support = _checked_bijector(bijector, shapes)
    event_shapes = shapes
    if support is not None:
        shapes = _unconstrained_shapes(support, shapes)
    sizes = [shape.num_elements() for shape in tf.nest.flatten(shapes)]
    event_size = sum(sizes)
    if event_size == 0:
        raise ValueError(f'event_shape: got {event_shape!r}, which has no entry, expected at least one.')
    arguments: dict[str, Any] = {'networks': networks}
    if networks is None:
        arguments = {
            'event_shape': event_size,
            'num_flows': num_flows,
            'hidden_units': (max(event_size, _FEWEST_UNITS),) * 2 if hidden_units is None else hidden_units,
            'network': functools.partial(MaskedAutoregressiveNetwork, base_width=_BASE_WIDTH),
            'activation': activation,
            'alternate_order': alternate_order,
            'seed': seed,
            'dtype': _dtype_of(bijector) if dtype is None else dtype,
        }
    posterior = IAFPosterior(**arguments, transform=transform, inverse=inverse, validate_args=validate_args, name=name)
    if posterior.event_shape != [event_size]:
        raise ValueError(
            f'networks: got event_shape={posterior.event_shape.as_list()}, expected [{event_size}], the number of '
            f'entries of an event before the bijector.'
        )
    zeros, ones = tf.zeros([event_size], posterior.dtype), tf.ones([event_size], posterior.dtype)
    noise = gaussian(zeros, ones, event_ndims=1)
    # Never zero, as in the trainable distributions of TFP.
    positive = tfp.bijectors.Softplus(low=np.finfo(posterior.dtype.as_numpy_dtype).eps)
    loc_scale = LocScale(tf.Variable(zeros, name='loc'), tfp.util.TransformedVariable(ones, positive, name='scale'))
    # A chain applies its last bijector first.
    bijectors = [*_into_parts(shapes, sizes), loc_scale, *posterior.bijector().bijectors]
    if support is not None:
        bijectors.insert(0, support_of(support, event_shapes, posterior.dtype))
    chain = FlowChain(bijectors, validate_args=validate_args, name=f'{name}/')
    return tfp.distributions.TransformedDistribution(noise, chain, validate_args=validate_args, name=name)


def _dtype_of(bijector: Any) -> tf.DType:
    dtypes = {dtype for dtype in tf.nest.flatten(getattr(_compat.model_of(bijector), 'dtype', None)) if dtype}
    if len(dtypes) > 1:
        raise ValueError(
            f'dtype: got a model with parts of {sorted(dtype.name for dtype in dtypes)}, expected one dtype for all.'
        )
    return dtypes.pop() if dtypes else tf.float32


def _into_parts(shapes: Any, sizes: list[int]) -> list[tfp.bijectors.Bijector]:
    """Returns what takes a vector apart into tensors of these shapes, in the order of a `tfb.Chain`."""
    reshape = tf.nest.map_structure(lambda shape: tfp.bijectors.Reshape(shape, [shape.num_elements()]), shapes)
    if not tf.nest.is_nested(shapes):
        return [reshape]
    return [
        tfp.bijectors.JointMap(reshape),
        tfp.bijectors.Restructure(tf.nest.pack_sequence_as(shapes, range(len(sizes)))),
        tfp.bijectors.Split(sizes),
    ]


def _checked_shapes(event_shape: Any) -> Any:
    """Returns the structure with a `tf.TensorShape`, fully defined, for each part."""
    structure = _compat.traverse_shallow_structure(lambda value: not _is_shape(value), event_shape)
    return _compat.map_structure_up_to(structure, _checked_shape, event_shape)


def _is_shape(value: Any) -> bool:
    """Tells a shape, which may be a list or tuple of sizes, from a structure of shapes."""
    if not tf.nest.is_nested(value):
        return True
    is_sequence = isinstance(value, (list, tuple)) and not hasattr(value, '_fields')
    return is_sequence and all(isinstance(size, (int, np.integer, type(None))) for size in value)


def _checked_shape(value: Any) -> tf.TensorShape:
    try:
        shape = tf.TensorShape(tf.get_static_value(value) if tf.is_tensor(value) else value)
    except (TypeError, ValueError) as error:
        message = f'event_shape: got {value!r}, expected a shape such as [3], or a structure of shapes.'
        raise type(error)(message) from error
    if not shape.is_fully_defined():
        raise ValueError(f'event_shape: got {value!r}, expected a shape with all sizes known, such as [3].')
    return shape


def _checked_bijector(bijector: Any, shapes: Any) -> tfp.bijectors.Bijector | None:
    """Returns one bijector for the whole structure of shapes."""
    for part in tf.nest.flatten(bijector):
        if part is not None and not isinstance(part, tfp.bijectors.Bijector):
            raise TypeError(f'bijector: got {part!r}, expected a tfb.Bijector, None, or a structure of bijectors.')
    if not tf.nest.is_nested(bijector):
        return bijector
    try:
        tf.nest.assert_same_structure(shapes, bijector, check_types=False)
        bijectors = _compat.coerce_structure(shapes, bijector)
    except (TypeError, ValueError) as error:
        raise ValueError(f'bijector: got {bijector!r}, expected the structure of event_shape, {shapes!r}.') from error
    identity = tfp.bijectors.Identity()
    return tfp.bijectors.JointMap(tf.nest.map_structure(lambda part: identity if part is None else part, bijectors))


def _unconstrained_shapes(bijector: tfp.bijectors.Bijector, shapes: Any) -> Any:
    try:
        unconstrained = bijector.inverse_event_shape(shapes)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f'bijector: got {bijector!r}, which does not fit event_shape, {shapes!r}: {error}') from error
    if not all(shape.is_fully_defined() for shape in tf.nest.flatten(unconstrained)):
        raise ValueError(
            f'bijector: got {bijector!r}, which leaves sizes of its input unknown, {unconstrained!r}, for event_shape, '
            f'{shapes!r}. Take one that implements inverse_event_shape.'
        )
    return unconstrained
