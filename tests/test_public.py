"""What the package shows to the outside, and how it is layered: names, documentation, versions, imports."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pathlib
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
from tfp_iaf import _compat

PACKAGE = pathlib.Path(tfp_iaf.__file__).parent
MODULES = ['tfp_iaf', *sorted(module.name for module in pkgutil.walk_packages(tfp_iaf.__path__, 'tfp_iaf.'))]
# A module imports none but those before it.
LAYERS = (
    '_version _devices _numerics _pareto _checks _random _shapes _compat _tracking _caching networks transforms '
    'inversion bijectors distributions objectives diagnostics _layers keras tf_keras'
).split()

KERAS_NAMES = 'IAFPosterior IAFSampling KLWarmup PlanarSampling PosteriorSampling RadialSampling SylvesterSampling'


@pytest.mark.parametrize(
    ('module', 'names'),
    [
        (
            tfp_iaf,
            'IAFPosterior InverseAutoregressiveFlow MaskedAutoregressiveNetwork MaskedConvolutionalNetwork PlanarFlow '
            'RadialFlow SylvesterFlow __version__ build_iaf_surrogate_posterior diagnostics keras networks objectives '
            'tf_keras transforms',
        ),
        (tfp_iaf.diagnostics, 'Diagnosis diagnose'),
        (tfp_iaf.keras, KERAS_NAMES),
        (tfp_iaf.tf_keras, KERAS_NAMES),
        (tfp_iaf.networks, 'MaskedAutoregressiveNetwork MaskedConvolutionalNetwork Network'),
        (tfp_iaf.objectives, 'free_bits path_derivative'),
        (tfp_iaf.transforms, 'Affine Gated RationalQuadraticSpline ScalarBijector Transform get'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_public_names(module, names):
    assert sorted(module.__all__) == names.split()
    assert all(hasattr(module, name) for name in module.__all__)


def test_what_the_package_itself_shows():
    assert dir(tfp_iaf) == sorted(tfp_iaf.__all__)
    assert tfp_iaf.__version__.count('.') == 2
    with pytest.raises(AttributeError, match=r'tfp_iaf.*MAF'):
        tfp_iaf.MAF  # noqa: B018


def test_keras_on_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, 'backend', lambda: 'jax')
    specification = importlib.util.spec_from_file_location('on_another_backend', tfp_iaf.keras.__file__)
    with raises(ImportError, 'tfp_iaf.keras', "'jax'", 'expected "tensorflow"', 'KERAS_BACKEND=tensorflow'):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))


@pytest.mark.parametrize(
    'version', ['0.25.0', '0.25.1', '0.25.0-dev20240926', '0.25.0rc1', '0.26.0', '0.26.0-dev20251120', 'unknown']
)
def test_supported_version_of_tfp(version, recwarn):
    _compat.check_versions(version)
    assert not recwarn


@pytest.mark.parametrize('version', ['0.24.0', '0.24.9-dev20240101', '0.2.5'])
def test_version_of_tfp_that_is_too_old(version):
    with raises(ImportError, 'tensorflow_probability', version, 'expected 0.25 or newer', 'pip install'):
        _compat.check_versions(version)


@pytest.mark.parametrize('version', ['0.27.0', '1.0', '0.250.0', '0.27.0-dev20260101'])
def test_version_of_tfp_that_is_not_known_yet(version):
    with pytest.warns(UserWarning) as caught:
        _compat.check_versions(version)
    (message,) = (str(warning.message) for warning in caught)
    for part in ('tensorflow_probability', version, 'not tested', '0.25 and 0.26', 'install'):
        assert part in message


def test_import_checks_the_version(monkeypatch):
    monkeypatch.setattr(tfp, '__version__', '0.24.0')
    with raises(ImportError, 'tensorflow_probability', '0.24.0', '0.25', 'pip install'):
        importlib.reload(tfp_iaf)
    monkeypatch.setattr(tfp, '__version__', '0.27.0')
    with pytest.warns(UserWarning, match=r'0\.27\.0'):
        importlib.reload(tfp_iaf)


def _without(monkeypatch, module):
    """The module `_compat` as it would be without a private module."""
    monkeypatch.setitem(sys.modules, module, None)
    specification = importlib.util.spec_from_file_location('without', _compat.__file__)
    made = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ('module', 'version'),
    [
        ('tensorflow.python.util.nest', f'tensorflow: got version {tf.__version__}'),
        ('tensorflow_probability.python.internal.cache_util', f'tensorflow_probability: got version {tfp.__version__}'),
    ],
)
def test_version_that_lacks_what_nothing_can_stand_in_for(monkeypatch, module, version):
    with raises(ImportError, version, 'expected', 'lacks', 'pip install'):
        _without(monkeypatch, module)


@pytest.mark.parametrize(
    ('module', 'is_trusted'),
    [('tensorflow.python.eager.record', True), ('tensorflow.python.ops.gradients_util', False)],
)
def test_caches_are_not_trusted_where_tapes_cannot_be_asked(monkeypatch, module, is_trusted):
    made, value = _without(monkeypatch, module), tf.constant(1.0)
    for compat, expected in ((_compat, True), (made, is_trusted)):
        with tf.GradientTape() as tape:
            tape.watch(value)
            assert compat.tapes_have_seen([tf.identity(value)], [value]) == expected
            assert not compat.tapes_have_seen([tf.constant(1.0)], [value])


# What has a fallback, and what the package must still do without it.
FALLBACKS = (
    'tensorflow.python.eager.record',
    'tensorflow.python.ops.gradients_util',
    'tensorflow_probability.python.bijectors.chain',
    'tensorflow_probability.python.bijectors.invert',
    'tensorflow_probability.python.distributions.independent',
    'tensorflow_probability.python.distributions.transformed_distribution',
    'tensorflow_probability.python.internal.nest_util',
)
IN_A_NEW_PROCESS = """
import importlib, sys
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
tfd, tfb = tfp.distributions, tfp.bijectors
kept = {name: importlib.import_module(name) for name in FALLBACKS}
sys.modules.update(dict.fromkeys([*kept, 'matplotlib', 'sklearn', 'tqdm']))  # each import of them fails
import tfp_iaf
assert not {'tfp_iaf.keras', 'tfp_iaf.tf_keras'} & set(sys.modules)
tfp_iaf.tf_keras.IAFSampling
assert 'tfp_iaf.keras' not in sys.modules
tfp_iaf.keras.IAFSampling
sys.modules.update(kept)
from tfp_iaf import _compat
assert _compat.Chain is tfb.Chain and _compat.Invert is tfb.Invert

# With a context, cached and not, with gradients through both directions, and after an assignment.
made = tfp_iaf.IAFPosterior(3, 2, (8,), context_shape=2, seed=0, dtype=tf.float64)
loc, context = tf.zeros([5, 3], tf.float64), tf.ones([5, 2], tf.float64)
q = made(loc, tf.ones_like(loc), context)
z = q.sample(3, seed=(1, 2))
for _ in range(2):
    gradients = []
    for value in (z, tf.identity(z)):
        with tf.GradientTape() as tape:
            log_q = q.log_prob(value)
        gradients.append(tape.gradient(log_q, made.trainable_variables))
        np.testing.assert_allclose(log_q, q.log_prob(tf.identity(z)), rtol=1e-9)
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    for variable in made.trainable_variables:
        variable.assign_add(0.1 * tf.ones_like(variable))

q = tfp_iaf.build_iaf_surrogate_posterior({'a': [], 'b': [2]}, {'a': tfb.Exp(), 'b': None}, seed=0)
z, log_q = q.experimental_sample_and_log_prob(5)
np.testing.assert_allclose(q.log_prob({'a': tf.identity(z['a']), 'b': tf.identity(z['b'])}), log_q, rtol=1e-3)
"""


@pytest.mark.slow
def test_package_needs_no_private_symbol_that_has_a_fallback_and_loads_only_what_is_asked_for():
    """Plain TFP code needs no plots, no data sets and no Keras layer; and one Keras does not need the other."""
    code = f'FALLBACKS = {FALLBACKS!r}\n{IN_A_NEW_PROCESS}'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def _sources():
    """The text of each file of the package, by its parts without the ending."""
    for path in sorted(PACKAGE.rglob('*.py')):
        yield path.relative_to(PACKAGE).with_suffix('').parts, path.read_text(encoding='utf-8')


def _imported(tree):
    """The modules and names of the package that a file imports, as parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split('.')[0] == 'tfp_iaf' for alias in node.names), 'from tfp_iaf import ...'
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'tfp_iaf':
            assert node.level == 0
            _, *inner = node.module.split('.')
            for alias in node.names:
                yield (*inner, alias.name)


def test_imports_point_one_way():
    """Of the package's files, and within a folder from what its base is made of to what is made of it."""
    assert {parts[0] for parts, _ in _sources()} == {'__init__', *LAYERS}
    found = 0
    for parts, text in _sources():
        if parts == ('__init__',):
            continue
        own = LAYERS.index(parts[0])
        for used in _imported(ast.parse(text)):
            found += 1
            assert LAYERS.index(used[0]) <= own, f'{parts} imports {used}'
            if used[0] == parts[0]:
                # The base comes first, and nothing within a folder goes through its __init__.
                assert len(parts) == 2 and parts[1] != '_base', f'{parts} imports {used}'
                assert parts[1] == '__init__' or used[1].startswith('_'), f'{parts} imports {used}'
    assert found > len(MODULES)


def _is_private(name):
    if name in ('_fields', '_replace'):  # of any named tuple
        return False
    return name.startswith('_') and (not name.endswith('__') or name == '__internal__')


def _attributes(tree):
    """The attributes of other objects that a file reads: by a dot, or by getattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') not in ('self', 'cls'):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('getattr', 'hasattr', 'setattr'):
            yield from (each.value for each in node.args[1:2] if isinstance(each, ast.Constant))


def _defined(tree):
    """The names that a file defines: functions, classes, variables and attributes of `self`, and the file itself."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if getattr(node.value, 'id', '') == 'self':
                yield node.attr


def test_private_symbols_are_used_in_one_place():
    private = ('tensorflow.python', 'tensorflow_probability.python', 'keras.src')
    users = {parts for parts, text in _sources() if any(name in text for name in private)}
    assert users == {('_compat',)}
    trees = {parts: ast.parse(text) for parts, text in _sources()}
    own = {name for tree in trees.values() for name in _defined(tree)} | {name for parts in trees for name in parts}
    used = {(parts, name) for parts, tree in trees.items() for name in _attributes(tree) if _is_private(name)}
    assert {'_flatten_layers', '__internal__', '_value'} <= {name for parts, name in used if parts == ('_compat',)}
    others = {(parts, name) for parts, name in used if name not in own and parts != ('_compat',)}
    assert others == set()


@pytest.mark.parametrize(
    'name',
    # The examples of these train.
    [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(('._surrogate', '.keras'))) for name in MODULES],
)
def test_everything_public_is_documented_and_the_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0
    assert module.__doc__ or name == 'tfp_iaf._version'
    assert hasattr(module, '__all__') or name == 'tfp_iaf._version' or name == 'tfp_iaf._layers'
    for public in getattr(module, '__all__', []):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, public
