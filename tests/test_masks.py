"""Orders, degrees, masks and runs."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

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


def test_random_order_comes_from_the_generator():
    orders = [_masks.permutation('random', 20, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@hypothesis.given(st.permutations(range(5)))
def test_explicit_order_is_taken_as_it_is(order):
    assert _masks.permutation(order, 5, _rng()).tolist() == order
    assert _masks.permutation(np.array(order), 5, _rng()).tolist() == order


@pytest.mark.parametrize(
    'order',
    [[0, 1], [0, 1, 1], [0, 1, 3], [1, 2, 3], [-1, 0, 1], [0.0, 1.0, 2.0], [[0, 1, 2]], [], 2, None],
    ids=str,
)
def test_order_that_is_not_a_permutation(order):
    with raises(ValueError, 'order', repr(order), 'permutation of range(3)'):
        _masks.permutation(order, 3, _rng())


def test_unknown_name_of_an_order():
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


@hypothesis.given(_units, _sizes)
def test_context_has_units_of_its_own(units, size):
    assert 0 in _masks.hidden_degrees(units, size, conditional=True)
    if size > 1:
        assert 0 not in _masks.hidden_degrees(units, size, conditional=False)


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


@hypothesis.given(_architectures())
def test_degrees_of_all_layers(architecture):
    """One for each unit; every parameter of an entry has the same, one less than the entry itself."""
    size, hidden_units, params, conditional = architecture
    entries, *hidden, outputs = _masks.degrees(*architecture)
    assert entries.tolist() == list(range(1, size + 1))
    assert outputs.reshape([size, params]).tolist() == [[rank] * params for rank in range(size)]
    for units, degrees in zip(hidden_units, hidden, strict=True):
        assert degrees.tolist() == _masks.hidden_degrees(units, size, conditional).tolist()


@hypothesis.given(_architectures())
def test_masks_are_block_triangular(architecture):
    """What a prefix of the entries determines is a prefix of every layer."""
    for before, after in itertools.pairwise(_masks.degrees(*architecture)):
        mask = _masks.mask(before, after).astype(int)
        assert np.all(np.diff(mask, axis=1) >= 0)
        assert np.all(np.diff(mask, axis=0) <= 0)


def _paths(size, hidden_units, params, conditional):
    """Counts the paths from every entry (row) to every parameter (column)."""
    product = np.eye(size, dtype=int)
    for before, after in itertools.pairwise(_masks.degrees(size, hidden_units, params, conditional)):
        product = product @ _masks.mask(before, after)
    return product


@hypothesis.given(_architectures())
def test_no_path_leads_to_an_earlier_output(architecture):
    size, _, params, _ = architecture
    for paths in np.split(_paths(*architecture).reshape([size, size, params]), params, axis=2):
        assert not np.tril(paths[..., 0]).any()


@hypothesis.given(_sizes, st.lists(st.integers(0, 10), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_a_path_leads_to_every_later_output_with_enough_units(size, extra_units, params, conditional):
    enough = max(size if conditional else size - 1, 1)
    paths = _paths(size, [enough + extra for extra in extra_units], params, conditional).reshape([size, size, params])
    rows, columns = np.triu_indices(size, k=1)
    assert np.all(paths[rows, columns] > 0)


@st.composite
def _runs(draw):
    """The degrees of all layers, the number of parameters, and the runs for a number of blocks."""
    size, hidden_units, params, conditional = draw(_architectures())
    layers = _masks.degrees(size, hidden_units, params, conditional)
    return layers, params, _masks.runs(layers, draw(st.integers(1, size)))


@hypothesis.given(_runs())
def test_runs_partition_every_layer(drawn):
    layers, _, runs = drawn
    assert len(runs) == len(layers)
    for degrees, of_layer in zip(layers, runs, strict=True):
        assert len(of_layer) == len(runs[0])
        units = np.arange(degrees.size)
        assert np.concatenate([units[run] for run in of_layer]).tolist() == units.tolist()


@hypothesis.given(_runs())
def test_units_of_a_block_depend_on_the_same_and_earlier_blocks_alone(drawn):
    layers, _, runs = drawn
    for (before, rows), (after, columns) in itertools.pairwise(zip(layers, runs, strict=True)):
        mask = _masks.mask(before, after)
        for block, run in enumerate(columns):
            for later in rows[block + 1 :]:
                assert not mask[later, run].any()


@hypothesis.given(_runs())
def test_runs_of_entries_are_nearly_equal_and_parameters_go_with_their_entries(drawn):
    _, params, runs = drawn
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
