"""VAEs of CIFAR-10, with a diagonal Gaussian and an IAF, and the convolutions of a blog post.

The likelihood is a discretized logistic one, a distribution over the 256 intensities, in bits per pixel and channel;
`--likelihood="cross entropy"` is what the post has, which is none. 45,000 images are to train with, 5,000 to watch
training with, and 10,000 to test with.
"""

from collections.abc import Sequence

from . import comparison
from .evaluation import Settings

SETTINGS = Settings(
    'cifar10',
    epochs=40,
    latent_size=128,
    network='conv-cifar10',
    likelihood='discretized logistic',
    binarization='none',
    flow_units=(1280, 1280),
    context_size=128,
    nll_images=1000,
    clipnorm=1000.0,  # of a loss that is a sum over so many more pixels
)
QUICK = {'epochs': 1, 'steps_per_epoch': 4, 'batch_size': 10, 'nll_samples': 2, 'nll_images': 4}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    comparison.main('cifar10', __doc__, SETTINGS, argv, QUICK)
