"""Tables of the measurements, of which each is a row: work, size, implementation, mode, round, seconds, nodes."""

import numpy as np
import pandas as pd

from benchmark.cases import NAMES

# Modes that are compared with one another. Of each implementation, the fastest counts.
GROUPS = {'graph or XLA': ('graph', 'xla', 'torch'), 'eager': ('eager', 'torch'), 'compilation': ('compile',)}
CASE = ['work', 'size', 'compared']


def spread(values: pd.api.typing.SeriesGroupBy) -> pd.DataFrame:
    """Returns the median and the quartiles of each group."""
    return pd.DataFrame({'median': values.median(), 'low': values.quantile(0.25), 'high': values.quantile(0.75)})


def _as_text(spreads: pd.DataFrame) -> pd.Series:
    # Three digits, and no exponents.
    rows = [[np.format_float_positional(x, 3, False, False, '-') for x in row] for row in spreads.to_numpy()]
    return pd.Series(['{} ({}-{})'.format(*row) for row in rows], spreads.index, dtype=str)


def time_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Returns the milliseconds of everything, and the nodes of the graphs."""
    groups = measured.assign(ms=1e3 * measured.seconds).groupby(['work', 'size', 'implementation', 'mode'], sort=False)
    return pd.DataFrame({'ms': _as_text(spread(groups.ms)), 'nodes': groups.nodes.first()}).reset_index()


def ratios(measured: pd.DataFrame) -> pd.DataFrame:
    """Returns the spread of the ratio of our time to each of the others', taken round by round."""
    parts = [measured[measured['mode'].isin(modes)].assign(compared=label) for label, modes in GROUPS.items()]
    rows = pd.concat(parts)
    medians = rows.groupby([*CASE, 'implementation', 'mode'], sort=False).seconds.median()
    fastest = medians.groupby([*CASE, 'implementation'], sort=False).idxmin()
    rows = rows.set_index(medians.index.names).loc[fastest.tolist()].reset_index()
    is_ours = rows.implementation == 'tfp_iaf'
    pairs = rows[~is_ours].merge(rows[is_ours], on=[*CASE, 'round'], suffixes=('', '_of_ours'))
    pairs['ratio'] = pairs.seconds_of_ours / pairs.seconds
    return spread(pairs.groupby([*CASE, 'implementation'], sort=False).ratio)


def ratio_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Returns these ratios, a column for each of the others."""
    table = _as_text(ratios(measured)).unstack('implementation', sort=False, fill_value='')
    table = table[[name for name in NAMES if name in table]]
    return table.rename(columns=lambda name: f'/ {name}').rename_axis(columns=None).reset_index()
