"""Makes the scripts in examples/ importable, as they import one another."""

import pathlib
import sys

EXAMPLES = pathlib.Path(__file__).parents[2] / 'examples'
sys.path.insert(0, str(EXAMPLES))
