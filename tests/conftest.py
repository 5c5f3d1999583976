"""Settings that every test shares."""

import ctypes
import gc
import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Tests compile much and run little, so XLA need not make fast code of it.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')

import hypothesis
import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import func_graph, ops

from tests import flows
from tfp_iaf import inversion

# Or else the first of several processes takes all of a GPU's memory.
for gpu in tf.config.list_physical_devices('GPU'):
    tf.config.experimental.set_memory_growth(gpu, True)

# Tight float32 tolerances would not hold on a GPU that rounds the inputs of its matrix products to 10 bits.
tf.config.experimental.enable_tensor_float_32_execution(False)

# Nor need TensorFlow optimize every graph; see `optimized_graphs`.
tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})

hypothesis.settings.register_profile(
    'tests',
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine is no fault of a test
)
hypothesis.settings.load_profile('tests')


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test gives the same numbers, alone or in company."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def no_graphs_left():
    """Lets go of what a test has traced: TensorFlow keeps graphs of loops and of custom gradients for ever."""
    before = _resident_memory()
    yield
    if _resident_memory() < before + 2**25:
        return
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith('CustomGradient-')]:
        del gradients[name]
    gc.collect()
    for graph in [value for value in gc.get_objects() if isinstance(value, func_graph.FuncGraph)]:
        func_graph.dismantle_func_graph(graph)
    gc.collect()
    if sys.platform == 'linux':
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def _resident_memory() -> int:
    """Returns bytes; zero where the system does not tell, so that nothing is let go."""
    try:
        return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0


@pytest.fixture
def optimized_graphs():
    """TensorFlow optimizes the graphs of the test, as it does for users."""
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})
    yield
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})


@pytest.fixture
def network_calls(monkeypatch):
    """The list of networks evaluated so far, one item a call."""
    return flows.recorded_calls(monkeypatch)


@pytest.fixture
def inversions(monkeypatch):
    """The list of networks, by their layers, inverted block by block so far."""
    inverted, blockwise = [], inversion.blockwise

    def recorded(layers, *args):
        inverted.append(layers)
        return blockwise(layers, *args)

    monkeypatch.setattr(inversion, 'blockwise', recorded)
    return inverted
