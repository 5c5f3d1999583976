"""Runs are kept under names that settings and versions make, in files that are whole."""

import dataclasses
import json

import _records
import pytest
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
    versions = _records.versions(sklearn)
    assert set(versions) == {'tfp_iaf', 'tensorflow', 'tensorflow_probability', 'keras', 'numpy', 'sklearn'}
    assert versions['tensorflow'] == tf.__version__ and versions['sklearn'] == sklearn.__version__


def test_without_lists():
    assert _records.without_lists({'run': {'a': [1.0], 'b': 1.0}}) == {'run': {'b': 1.0}}


def test_json_is_whole_and_finite(tmp_path):
    path = tmp_path / 'new' / 'figures.json'
    _records.write_json(path, {'a': [1.5, None]})
    with pytest.raises(ValueError):
        _records.write_json(path, {'a': float('nan')})
    assert json.loads(path.read_text()) == {'a': [1.5, None]}
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    path = tmp_path / 'figures.txt'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), _records.atomic(path) as temporary:
        temporary.write_text('new')
        raise KeyboardInterrupt
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with _records.atomic(path) as temporary:
        temporary.write_text('new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]
