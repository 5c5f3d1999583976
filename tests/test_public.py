"""What the package shows to the outside: its names, its documentation, and what importing it costs."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_iaf
import tfp_iaf.keras
import tfp_iaf.tf_keras
from tests.flows import raises
from tfp_iaf import _requirements

MODULES = sorted(f'tfp_iaf.{module.name}' for module in pkgutil.iter_modules(tfp_iaf.__path__))


def test_names_of_the_package():
    assert sorted(tfp_iaf.__all__) == [
        'IAFPosterior',
        'InverseAutoregressiveFlow',
        'MaskedAutoregressiveNetwork',
        '__version__',
        'build_iaf_surrogate_posterior',
        'keras',
        'masks',
        'objectives',
        'tf_keras',
        'transforms',
    ]
    assert all(hasattr(tfp_iaf, name) for name in tfp_iaf.__all__)
    assert dir(tfp_iaf) == sorted(tfp_iaf.__all__)


@pytest.mark.parametrize(
    ('module', 'names'),
    [
        (tfp_iaf.keras, ['IAFSampling', 'KLWarmup']),
        (tfp_iaf.tf_keras, ['IAFSampling', 'KLWarmup']),
        (tfp_iaf.masks, ['degrees', 'hidden_degrees', 'mask', 'permutation']),
        (tfp_iaf.objectives, ['free_bits', 'importance_weighted_log_likelihood']),
        (tfp_iaf.transforms, ['Affine', 'Gated', 'RationalQuadraticSpline', 'ScalarBijector', 'Transform', 'get']),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_names_of_the_modules(module, names):
    assert sorted(module.__all__) == names


def test_unknown_name():
    with pytest.raises(AttributeError, match=r'tfp_iaf.*MAF'):
        tfp_iaf.MAF  # noqa: B018


def test_version():
    assert tfp_iaf.__version__.count('.') == 2


def test_import_is_light():
    """Plain TFP code needs no plots, no data sets and no Keras layer; and one Keras does not need the other."""
    code = (
        'import sys\n'
        'sys.modules.update(dict.fromkeys(["matplotlib", "sklearn", "tqdm"]))\n'  # each import of them fails
        'import tfp_iaf\n'
        'assert not {"tfp_iaf.keras", "tfp_iaf.tf_keras"} & set(sys.modules)\n'
        'tfp_iaf.tf_keras.IAFSampling\n'
        'assert "tfp_iaf.keras" not in sys.modules\n'
        'tfp_iaf.keras.IAFSampling\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_keras_on_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, 'backend', lambda: 'jax')
    specification = importlib.util.spec_from_file_location('on_another_backend', tfp_iaf.keras.__file__)
    with raises(ImportError, 'tfp_iaf.keras', "'jax'", 'expected "tensorflow"', 'KERAS_BACKEND=tensorflow'):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))


@pytest.mark.parametrize('version', ['0.25.0', '0.25.1', '0.25.0-dev20240926', '0.25.0rc1'])
def test_supported_version_of_tfp(version):
    _requirements.check(version)


@pytest.mark.parametrize('version', ['0.24.0', '0.26.0', '0.2.5', '1.0', '0.250.0'])
def test_unsupported_version_of_tfp(version):
    with raises(ImportError, 'tensorflow_probability', version, '0.25', 'pip install'):
        _requirements.check(version)


def test_import_checks_the_version(monkeypatch):
    monkeypatch.setattr(tfp, '__version__', '0.26.0')
    with raises(ImportError, 'tensorflow_probability', '0.26.0', '0.25', 'pip install'):
        importlib.reload(tfp_iaf)


@pytest.mark.parametrize(
    ('module', 'name'),
    [('tensorflow.python.no_such_module', 'anything'), ('tensorflow.python.eager.record', 'no_such_name')],
)
def test_tensorflow_that_lacks_what_is_internal(monkeypatch, module, name):
    monkeypatch.setattr(_requirements, '_INTERNAL', {module: (name,)})
    with raises(ImportError, 'tensorflow', tf.__version__, f'{module}.{name}', 'pip install'):
        importlib.reload(tfp_iaf)


@pytest.mark.parametrize('name', MODULES)
def test_examples_in_the_documentation_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


@pytest.mark.parametrize('name', MODULES)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__ or name == 'tfp_iaf._version'
    for public in getattr(module, '__all__', []):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, public
