"""The settings of the VAEs: names, and the command line."""

import dataclasses
import functools

import _vae_settings
import pytest
from absl import flags

from tests.examples.small_vae import SMALL


def test_other_settings_have_other_names():
    others = [SMALL, *(dataclasses.replace(SMALL, **{key: 7}) for key in ('num_flows', 'epochs', 'seed', 'data'))]
    assert len({run.name for run in others}) == len(others)


@pytest.mark.parametrize(('epochs', 'command', 'expected'), [(None, [], 300), (20, [], 20), (20, ['--epochs=7'], 7)])
def test_settings_from_the_command_line(epochs, command, expected, monkeypatch, tmp_path):
    monkeypatch.setenv('KERAS_HOME', str(tmp_path))
    monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
    for name in ('DEFINE_integer', 'DEFINE_string'):
        define = functools.partial(getattr(flags, name), flag_values=flags.FLAGS)
        monkeypatch.setattr(flags, name, define)
    _vae_settings.define_flags('results', epochs)
    flags.FLAGS(['script.py', '--flows=0', '--batch_size=7', '--evaluation_samples=8', *command])
    settings = _vae_settings.from_flags()
    assert settings == _vae_settings.Settings(0, '', expected, batch_size=7, evaluation_samples=8)
