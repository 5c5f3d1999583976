"""VAEs of MNIST, with a diagonal Gaussian and an IAF, and with dense layers, or with the convolutions of a blog post.

50,000 images are to train with, 10,000 to watch training with, and 10,000, which are not looked at before, to test
with. Equal epochs and equal time are two questions: `--longer-baseline` trains the diagonal one for more epochs, too.
"""

from collections.abc import Sequence

from . import comparison
from .evaluation import Settings

SETTINGS = Settings('mnist', epochs=120)
QUICK = {'epochs': 1, 'nll_samples': 10, 'nll_images': 100}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    comparison.main('mnist', __doc__, SETTINGS, argv, QUICK)
