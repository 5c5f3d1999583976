"""Orders, degrees and masks."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.flows import raises
from tfp_iaf import masks

_sizes = st.integers(1, 12)
_units = st.integers(1, 30)


def _rng():
    return np.random.default_rng(0)


@hypothesis.given(_sizes)
def test_named_orders(size):
    assert masks.permutation('left-to-right', size, _rng()).tolist() == list(range(size))
    assert masks.permutation('right-to-left', size, _rng()).tolist() == list(range(size))[::-1]
    assert sorted(masks.permutation('random', size, _rng())) == list(range(size))


def test_random_order_comes_from_the_generator():
    orders = [masks.permutation('random', 20, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@hypothesis.given(st.permutations(range(5)))
def test_explicit_order_is_taken_as_it_is(order):
    assert masks.permutation(order, 5, _rng()).tolist() == order
    assert masks.permutation(np.array(order), 5, _rng()).tolist() == order


@pytest.mark.parametrize(
    'order',
    [[0, 1], [0, 1, 1], [0, 1, 3], [1, 2, 3], [-1, 0, 1], [0.0, 1.0, 2.0], [[0, 1, 2]], [], 2, None],
    ids=str,
)
def test_order_that_is_no_permutation(order):
    with raises(ValueError, 'order', repr(order), 'permutation of range(3)'):
        masks.permutation(order, 3, _rng())


def test_unknown_name_of_an_order():
    with raises(ValueError, 'order', "'reversed'", 'left-to-right', 'right-to-left', 'random', 'range(3)'):
        masks.permutation('reversed', 3, _rng())


@hypothesis.given(_units, _sizes, st.booleans())
def test_hidden_degrees_are_sorted_and_even(units, size, conditional):
    degrees = masks.hidden_degrees(units, size, conditional)
    lowest = 0 if conditional or size == 1 else 1
    counts = np.bincount(degrees - lowest, minlength=size - lowest)
    assert degrees.shape == (units,)
    assert np.all(np.diff(degrees) >= 0)
    assert degrees[0] == lowest
    assert counts.size == size - lowest, 'no unit has a degree that no output may use'
    assert counts.max() - counts.min() <= 1


@hypothesis.given(_units, _sizes)
def test_context_has_units_of_its_own(units, size):
    assert 0 in masks.hidden_degrees(units, size, conditional=True)
    if size > 1:
        assert 0 not in masks.hidden_degrees(units, size, conditional=False)


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_mask_is_the_rule_on_degrees(inputs, outputs):
    mask = masks.mask(np.array(inputs), np.array(outputs))
    assert mask.dtype == bool
    assert mask.tolist() == [[after >= before for after in outputs] for before in inputs]


@hypothesis.given(_sizes, st.lists(_units, min_size=1, max_size=3), st.booleans())
def test_masks_are_block_triangular(size, hidden_units, conditional):
    """What a prefix of the entries determines is a prefix of every layer."""
    layers = masks.degrees(size, hidden_units, conditional)
    for before, after in itertools.pairwise(layers):
        mask = masks.mask(before, after).astype(int)
        assert np.all(np.diff(mask, axis=1) >= 0)
        assert np.all(np.diff(mask, axis=0) <= 0)


def _paths(size, hidden_units, conditional):
    """Counts the paths from every entry (row) to every output (column)."""
    layers = masks.degrees(size, hidden_units, conditional)
    product = np.eye(size, dtype=int)
    for before, after in itertools.pairwise(layers):
        product = product @ masks.mask(before, after)
    return product


@hypothesis.given(_sizes, st.lists(_units, min_size=1, max_size=3), st.booleans())
def test_no_path_leads_to_an_earlier_output(size, hidden_units, conditional):
    assert not np.tril(_paths(size, hidden_units, conditional)).any()


@hypothesis.given(_sizes, st.lists(st.integers(0, 10), min_size=1, max_size=3), st.booleans())
def test_a_path_leads_to_every_later_output_with_enough_units(size, extra_units, conditional):
    enough = max(size if conditional else size - 1, 1)
    paths = _paths(size, [enough + extra for extra in extra_units], conditional)
    assert np.all(paths[np.triu_indices(size, k=1)] > 0)
