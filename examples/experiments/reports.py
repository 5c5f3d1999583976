"""Tables of means and standard errors, in Markdown."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from . import runs


def by_seed(results: Mapping[Any, Any]) -> dict[Any, pd.DataFrame]:
    """Returns the figures of runs that differ in their seed alone, a row for each seed, by their settings."""
    groups: dict[Any, list[Any]] = {}
    for settings, result in results.items():
        groups.setdefault(dataclasses.replace(settings, seed=0), []).append(result.figures)
    return {settings: pd.DataFrame(members) for settings, members in groups.items()}


def estimate(values: Any, digits: int = 3, sign: bool = False) -> str:
    """Writes a mean and its standard error, which one value does not have, as `23.041 ± 0.057`."""
    mean = f'{np.mean(values):{"+" if sign else ""}.{digits}f}'
    return f'{mean} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}' if len(values) > 1 else mean


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Writes rows of texts by the names of their columns: the texts to the left, and the numbers to the right."""
    frame = pd.DataFrame(rows).fillna('')
    numeric = [all(text[:1].isdecimal() or text[:1] in '+-≤≥' for text in frame[name]) for name in frame]
    columns = {name: name.replace('|', r'\|') for name in frame}
    align = ['right' if is_number else 'left' for is_number in numeric]
    return frame.rename(columns=columns).to_markdown(index=False, disable_numparse=True, colalign=align)


def write(options: argparse.Namespace, text: str, results: Mapping[Any, Any]) -> None:
    """Prints a report; writes it, with command and versions, to `report.md`, and settings and figures to `runs.csv`."""
    print(f'\n{text}\n')
    versions = ', '.join(f'{library} {version}' for library, version in runs.VERSIONS.items())
    with runs.atomic(options.output_dir / 'report.md') as path:
        path.write_text(f'`{options.command}`\n\n{versions}\n\n{text}\n', encoding='utf-8')
    records = [{**dataclasses.asdict(settings), **result.figures} for settings, result in results.items()]
    with runs.atomic(options.output_dir / 'runs.csv') as path:
        pd.DataFrame(records).to_csv(path, index=False)
    print(f'Wrote report.md, runs.csv and plots to {options.output_dir}.')
