"""Progress bars of what runs within a run."""

from __future__ import annotations

import multiprocessing
from typing import Any


def inner_bar() -> dict[str, Any]:
    """Returns options for a bar below that of all runs, on a line of each worker's own."""
    identity = multiprocessing.current_process()._identity
    return {'position': identity[0] if identity else 1, 'leave': False, 'dynamic_ncols': True}
