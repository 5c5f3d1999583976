"""Settings that every test shares."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import hypothesis
import keras
import pytest
import tensorflow as tf

from tests import flows
from tfp_iaf import inversion

# Or else the first of several processes takes all of a GPU's memory.
for gpu in tf.config.list_physical_devices('GPU'):
    tf.config.experimental.set_memory_growth(gpu, True)

# Tight float32 tolerances would not hold on a GPU that rounds the inputs of its matrix products to 10 bits.
tf.config.experimental.enable_tensor_float_32_execution(False)

hypothesis.settings.register_profile('tests', max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.load_profile('tests')


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test gives the same numbers, alone or in company."""
    keras.utils.set_random_seed(0)


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
