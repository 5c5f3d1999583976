"""Runs are kept under names that settings and versions make."""

import dataclasses

import _records
import sklearn
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int


def test_digest_is_of_the_settings_and_of_all_versions(monkeypatch):
    digests = [_records.digest(Settings(1)), _records.digest(Settings(2)), _records.digest(Settings(1), sklearn)]
    monkeypatch.setattr(tf, '__version__', 'another')
    digests.append(_records.digest(Settings(1)))
    assert len(set(digests)) == 4
    assert _records.digest(Settings(1)) == digests[-1]


def test_versions_name_the_libraries():
    assert {'tfp_iaf', 'tensorflow', 'tensorflow_probability', 'keras', 'sklearn'} <= set(_records.versions(sklearn))
