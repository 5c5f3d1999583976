"""Checkpoints: kept, restored, and passed over when damaged."""

import shutil

import _checkpoints
import _datasets
import keras
import numpy as np
import pytest
from _estimates import Parts

from tests.examples.small_vae import small_model


@pytest.fixture(scope='module')
def model():
    return small_model()


def variables(model):
    return (*model.variables, *model.optimizer.variables)


def fill(model, value):
    for variable in variables(model):
        variable.assign(np.full(variable.shape, value))


@pytest.fixture(scope='module')
def three_epochs(model, tmp_path_factory):
    """A directory with the checkpoints of three epochs, in which all variables are 1, 2 and 3."""
    directory = tmp_path_factory.mktemp('checkpoints')
    backup = _checkpoints.Backup(model, directory)
    for epoch in range(3):
        fill(model, epoch + 1)
        backup.on_epoch_end(epoch)
    return directory


class TestCheckpoints:
    @pytest.fixture
    def directory(self, three_epochs, tmp_path):
        return shutil.copytree(three_epochs, tmp_path / 'copy')

    def restored(self, model, directory):
        """How many epochs are done according to what was restored, and the values that the variables then have."""
        fill(model, 9)
        epochs_done = _checkpoints.Backup(model, directory).restore()
        return epochs_done, {float(value) for variable in variables(model) for value in np.ravel(variable.numpy())}

    def test_the_last_two_are_kept(self, model, directory):
        assert sorted(path.name for path in directory.glob('*.index')) == ['ckpt-2.index', 'ckpt-3.index']
        assert self.restored(model, directory) == (3, {3.0})

    @pytest.mark.parametrize('name', ['ckpt-3.index', 'ckpt-3.data-00000-of-00001'])
    @pytest.mark.parametrize('damage', ['truncated', 'empty', 'missing', 'changed'])
    def test_a_damaged_one_is_passed_over(self, model, directory, name, damage):
        path = directory / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        changed = {'truncated': content[: len(content) // 2], 'empty': b'', 'changed': content}
        path.unlink()
        if damage != 'missing':
            path.write_bytes(changed[damage])
        assert self.restored(model, directory) == (2, {2.0})

    def test_if_none_is_whole_training_begins_anew(self, model, directory):
        for path in directory.glob('*.data*'):
            path.write_bytes(path.read_bytes()[:-1])
        assert self.restored(model, directory) == (0, {9.0})

    def test_without_their_list_training_begins_anew(self, model, directory):
        (directory / 'checkpoint').write_text('model_checkpoint_path: "ck')
        assert self.restored(model, directory) == (0, {9.0})

    def test_the_states_of_seed_generators_are_in_it(self, tmp_path):
        model = small_model()
        _checkpoints.Backup(model, tmp_path).on_epoch_end(0)
        images = _datasets.load_digits().test[:4]
        _, sampling, _ = Parts.of(model)
        encoder = keras.Model(model.input, sampling.output)
        first, second = (encoder(images)[0].numpy() for _ in range(2))
        _checkpoints.Backup(model, tmp_path).restore()
        np.testing.assert_array_equal(encoder(images)[0], first)
        np.testing.assert_array_equal(encoder(images)[0], second)
        assert not np.any(first == second)
