"""The curves of a training, and its time."""

import _training
import _watch
import pytest


def test_of_an_epoch_that_was_repeated_the_last_row_counts(tmp_path):
    path = tmp_path / 'curves.csv'
    path.write_text('epoch,cpu_seconds,val_sampling_kl\n0,1.5,9.0\n1,1.0,8.0\n1,2.0,8.0\n2,1.0,7.5\n')
    curves = _training.read_curves(path)
    assert curves == {'epoch': [0, 1, 2], 'cpu_seconds': [1.5, 2.0, 1.0], 'val_kl': [9.0, 8.0, 7.5]}


@pytest.mark.parametrize(
    ('whole', 'torn'),
    [('', 'epo'), ('0', '0'), *(('1', torn) for torn in ('', '1', '1,2.', '1,2.5,1.', '1,2.5,1.0\r'))],
)
def test_a_row_that_a_kill_has_torn_is_left_out(whole, torn, tmp_path):
    path = tmp_path / 'curves.csv'
    header, first = 'epoch,loss,val_loss\r\n', '0,3.5,1.0\r\n'
    path.write_text({'': '', '0': header, '1': header + first}[whole] + torn, newline='')
    if whole == '1':
        assert _training.read_curves(path) == {'epoch': [0], 'loss': [3.5], 'val_loss': [1.0]}
    logger = _training.curves_logger(path)
    logger.on_train_begin()
    for epoch in range(int(whole or 0), 3):
        logger.on_epoch_end(epoch, {'loss': 3.5 - epoch, 'val_loss': 1.0})
    logger.on_train_end()
    assert _training.read_curves(path) == {'epoch': [0, 1, 2], 'loss': [3.5, 2.5, 1.5], 'val_loss': [1.0] * 3}


def test_time_of_a_training_of_which_nothing_was_left():
    """As when it was killed after its last epoch: a number, which JSON can hold."""
    assert _watch.TrainingWatch('name', 10).ms_per_step == 0
    assert _watch.ms_per_step([9.0, 1.0, 3.0], 10) == 200
    assert _watch.ms_per_step([9.0], 10) == 900
