"""VAEs of the 8x8 digits with thirteen families of posteriors: Gaussians, IAFs, planar, radial and Sylvester flows.

The encoder, the decoder and the schedule are those of `digits`. With two latent dimensions the true posterior is known
by quadrature. For each image q is also optimized on its own, which tells what a better encoder would gain from what a
better family would.
"""

import dataclasses
from collections.abc import Sequence

from . import comparison, digits
from .posteriors import FAMILIES

SETTINGS = dataclasses.replace(digits.SETTINGS, local_steps=600)
QUICK = {**digits.QUICK, 'posterior': ('diagonal', 'IAF', 'planar 4'), 'local_steps': 50}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    comparison.main('families', __doc__, SETTINGS, argv, QUICK, latent_sizes=(2, 10), seeds=3, posteriors=FAMILIES)
