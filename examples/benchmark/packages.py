"""The package, and another checkout of it in the same process."""

import importlib
import pathlib
import sys
from types import ModuleType

import tfp_iaf

PACKAGES: dict[str, ModuleType] = {'tfp_iaf': tfp_iaf}


def load_other(checkout: str) -> None:
    """Imports the `tfp_iaf` of another checkout as `PACKAGES['other']`, and leaves the imported one in place."""
    root = pathlib.Path(checkout).resolve()
    if not (root / 'tfp_iaf' / '__init__.py').is_file():
        raise ValueError(f'--other: got {checkout!r}, expected a folder with a package tfp_iaf in it.')
    ours = _take_out()
    sys.path.insert(0, str(root))
    try:
        PACKAGES['other'] = importlib.import_module('tfp_iaf')
        importlib.import_module('tfp_iaf.keras')  # while its name leads to this checkout
    finally:
        sys.path.remove(str(root))
        _take_out()
        sys.modules.update(ours)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split('.')[0] == 'tfp_iaf']
    return {name: sys.modules.pop(name) for name in names}
