"""Training that goes on where it was killed: checkpoints of its whole state, never read when only half written."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import tensorflow as tf


def is_whole(path: str) -> bool:
    """Whether every tensor of a checkpoint can be read; the format has a checksum for each."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception:  # of many types, by the damage: IndexError, ValueError, tf.errors.DataLossError
        return False
    return True


def restore_newest(checkpoint: tf.train.Checkpoint, manager: tf.train.CheckpointManager) -> str | None:
    """Restores the newest checkpoint that is whole, and returns its path, or `None` if there is none.

    Nothing is restored before all of it has been read: a checkpoint that is not whole changes no variable.
    """
    for path in reversed(manager.checkpoints):
        if is_whole(path):
            checkpoint.restore(path).assert_consumed()
            return str(path)
    return None


def of(model: Any, done: tf.Variable) -> tf.train.Checkpoint:
    """Returns the checkpoint of a model in training, whose optimizer is built too, and of what is counted in `done`.

    It has the model's weights, the states of all its seed generators (of Keras's own layers, such as `Dropout`,
    `tf.train.Checkpoint(model=model)` would leave them out), and the optimizer's variables. They are told apart by
    their places, so it fits one architecture only.
    """
    variables = [variable.value for variable in (*model.variables, *model.optimizer.variables)]
    return tf.train.Checkpoint(variables=variables, done=done)


class Backup(keras.callbacks.Callback):
    """Keeps the state of a model in training at the end of every epoch, so that the same command can go on from there.

    `keras.callbacks.BackupAndRestore` would not do. It leaves out the states of seed generators of Keras's own layers,
    so that a `Dropout` would draw again; and it writes over its only file, and the number of the epoch to another one,
    so that a run killed meanwhile leaves nothing, or weights of one epoch with the number of another.

    Args:
        model: The model, with an optimizer that is built.
        directory: Where the last two checkpoints are kept.
    """

    def __init__(self, model: Any, directory: pathlib.Path) -> None:
        super().__init__()
        self._epochs = tf.Variable(0, dtype=tf.int64)
        self._checkpoint = of(model, self._epochs)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), max_to_keep=2)

    def restore(self) -> int:
        """Restores the newest state, if there is one, and returns how many epochs are done: `fit`'s initial epoch."""
        restore_newest(self._checkpoint, self._manager)
        return int(self._epochs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs.assign(epoch + 1)
        self._manager.save(checkpoint_number=epoch + 1)
