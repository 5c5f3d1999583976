"""Prepares everyone who takes turns at some work, and measures them."""

from collections.abc import Sequence

import pandas as pd
import tqdm

from benchmark import peers, profile, steps, timing
from benchmark.cases import Size

Candidate = tuple[str, str]  # implementation and mode


def prepare(size: Size, work: str, candidates: Sequence[Candidate], fit_steps: int) -> dict[Candidate, steps.Prepared]:
    """Returns the steps of all candidates, after the slow first calls; says why one is left out."""
    found = {}
    bar = tqdm.tqdm(candidates, leave=False, dynamic_ncols=True)
    for name, mode in bar:
        bar.set_description(f'{work} {size}: preparing {name}, {mode}')
        try:
            if name in peers.PEERS:
                prepared = steps.Prepared(peers.prepare(name, size, work, mode, fit_steps))
            else:
                prepared = steps.prepare(name, size, work, mode, fit_steps)
            prepared.step()
            found[name, mode] = prepared
        except Exception as error:  # of any library, or of an older checkout
            if name == 'tfp_iaf':
                raise
            message = next(iter(str(error).splitlines()), '')
            bar.write(f'{work} {size}: skipped {name}, {mode}: {type(error).__name__}: {message}')
    for (_, mode), prepared in found.items():
        if work != 'fit' and mode != 'compile':
            prepared.step()  # again: TensorFlow optimizes a graph once more after others were made
    return found


def measure(
    size: Size, work: str, candidates: Sequence[Candidate], fit_steps: int, rounds: int, seconds: float
) -> pd.DataFrame:
    """Returns a row for each measurement."""
    prepared = prepare(size, work, candidates, fit_steps)
    turns = timing.take_turns({key: value.step for key, value in prepared.items()}, rounds, seconds)
    bar = tqdm.tqdm(turns, f'{work} {size}', rounds * len(prepared), leave=False, dynamic_ncols=True)
    rows = [(work, str(size), *key, i, duration, prepared[key].nodes) for key, i, duration in bar]
    columns = ['work', 'size', 'implementation', 'mode', 'round', 'seconds', 'nodes']
    return pd.DataFrame(rows, columns=columns).astype({'nodes': 'Int64'})


def profile_table(size: Size, work: str, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Returns a column for each candidate in TensorFlow: the milliseconds of a step by kind of operation."""
    recorded = [(name, mode) for name, mode in candidates if name not in peers.PEERS and mode in ('eager', 'graph')]
    prepared = prepare(size, work, recorded, fit_steps=1)
    table = pd.DataFrame({', '.join(key): profile.profile(value.step) for key, value in prepared.items()})
    return table[(table != 0).any(axis=1)]
