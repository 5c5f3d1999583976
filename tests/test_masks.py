"""Orders, degrees, masks and runs."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from tests.flows import raises
from tfp_iaf.networks import _masks

_sizes = st.integers(1, 12)
_units = st.integers(1, 30)


def _rng():
    return np.random.default_rng(0)


@hypothesis.given(_sizes)
def test_named_orders(size):
    assert _masks.permutation('left-to-right', size, _rng()).tolist() == list(range(size))
    assert _masks.permutation('right-to-left', size, _rng()).tolist() == list(range(size))[::-1]
    assert sorted(_masks.permutation('random', size, _rng())) == list(range(size))


def test_order_that_is_not_a_permutation():
    bad = [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1], [0.0, 1.0, 2.0], [[0, 1, 2]], [], 2, None]
    for order in bad:
        with raises(ValueError, 'order', repr(order), 'permutation of range(3)'):
            _masks.permutation(order, 3, _rng())
    with raises(ValueError, 'order', "'reversed'", 'left-to-right', 'right-to-left', 'random', 'range(3)'):
        _masks.permutation('reversed', 3, _rng())


@hypothesis.given(_units, _sizes, st.booleans())
def test_hidden_degrees_are_sorted_and_even(units, size, conditional):
    degrees = _masks.hidden_degrees(units, size, conditional)
    lowest = 0 if conditional or size == 1 else 1
    counts = np.bincount(degrees - lowest, minlength=size - lowest)
    assert degrees.shape == (units,)
    assert np.all(np.diff(degrees) >= 0)
    assert degrees[0] == lowest
    assert counts.size == size - lowest, 'no unit has a degree that no output may use'
    assert counts.max() - counts.min() <= 1


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_mask_is_the_rule_on_degrees(inputs, outputs):
    mask = _masks.mask(np.array(inputs), np.array(outputs))
    assert mask.dtype == bool
    assert mask.tolist() == [[after >= before for after in outputs] for before in inputs]


@st.composite
def _architectures(draw):
    """The arguments of `degrees`."""
    hidden_units = draw(st.lists(_units, min_size=1, max_size=3))
    return draw(_sizes), hidden_units, draw(st.integers(1, 3)), draw(st.booleans())


@st.composite
def _runs(draw):
    """The degrees of all layers, the number of parameters, and the runs for a number of blocks."""
    size, hidden_units, params, conditional = draw(_architectures())
    layers = _masks.degrees(size, hidden_units, params, conditional)
    return layers, params, _masks.runs(layers, draw(st.integers(1, size)))


@hypothesis.given(_runs())
def test_runs_partition_every_layer_and_are_nearly_equal_for_entries(drawn):
    layers, params, runs = drawn
    assert len(runs) == len(layers)
    for degrees, of_layer in zip(layers, runs, strict=True):
        assert len(of_layer) == len(runs[0])
        units = np.arange(degrees.size)
        assert np.concatenate([units[run] for run in of_layer]).tolist() == units.tolist()
    sizes = [run.stop - run.start for run in runs[0]]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert runs[-1] == [slice(params * run.start, params * run.stop) for run in runs[0]]


@hypothesis.given(_runs())
def test_a_unit_comes_as_early_as_it_can(drawn):
    """In the first block of which it does not see every entry, so that nothing is solved before it is needed."""
    layers, _, runs = drawn
    for degrees, of_layer in zip(layers[1:], runs[1:], strict=True):
        for entries, run in zip(runs[0], of_layer, strict=True):
            # A unit of degree d sees the first d entries.
            assert np.all(degrees[run] >= entries.start) and np.all(degrees[run] < entries.stop)
