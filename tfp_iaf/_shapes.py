"""Leading shapes: of tensors whose last axes are those of an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

__all__ = ['Lead', 'event_sizes', 'lead_of', 'reshaped', 'rows_of']

# A size that is known, or a scalar tensor.
Size: TypeAlias = int | tf.Tensor


class Lead(NamedTuple):
    """The leading shape of a tensor `[..., *event_shape]`.

    Attributes:
        static: As far as it is known.
        source: The tensor.
        event_rank: How many axes of it are those of the event.
    """

    static: tf.TensorShape
    source: tf.Tensor
    event_rank: int

    def dynamic(self) -> tf.Tensor:
        """Returns the leading shape as a tensor."""
        shape = tf.shape(self.source)
        return shape[: tf.size(shape) - self.event_rank]


def lead_of(value: tf.Tensor, event_rank: int) -> Lead:
    """Returns the leading shape of a tensor.

    >>> lead_of(tf.zeros([7, 5, 8, 8]), event_rank=2).static.as_list()
    [7, 5]
    """
    rank = value.shape.rank
    static = tf.TensorShape(None) if rank is None else value.shape[: rank - event_rank]
    return Lead(static, value, event_rank)


def event_sizes(value: tf.Tensor, event_rank: int) -> list[Size]:
    """Returns the last sizes of a tensor.

    >>> event_sizes(tf.zeros([7, 5, 8, 8]), event_rank=2)
    [8, 8]
    """
    if not event_rank:
        return []
    static = value.shape[-event_rank:] if value.shape.rank is not None else tf.TensorShape([None] * event_rank)
    dynamic = tf.shape(value)[-event_rank:]
    return [dynamic[i] if size is None else size for i, size in enumerate(static)]


def reshaped(value: tf.Tensor, lead: Lead, event: Sequence[Size]) -> tf.Tensor:
    """Gives a tensor the shape `[*lead, *event]`."""
    static = lead.static
    if static.rank is not None:
        sizes = [-1 if size is None else size for size in static]
        # One unknown size can be inferred, unless there is nothing to infer it from.
        if sizes.count(-1) == 0 or (sizes.count(-1) == 1 and 0 not in sizes):
            return tf.reshape(value, [*sizes, *event])
    value = tf.reshape(value, tf.concat([lead.dynamic(), *([size] for size in event)], axis=0))
    return tf.ensure_shape(value, static.concatenate([None if tf.is_tensor(size) else size for size in event]))


def rows_of(value: tf.Tensor, event_size: int) -> tf.Tensor:
    """Folds all leading axes into one, and those of the event into another: `[N, D]`."""
    if value.shape.rank == 2 and value.shape[1] == event_size:
        return value
    return tf.reshape(value, [-1, event_size])
