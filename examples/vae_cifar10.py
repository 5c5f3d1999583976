"""Variational autoencoders on CIFAR-10, with several posteriors: diagonal Gaussian, full-covariance Gaussian, IAF.

`python vae_cifar10.py` trains a diagonal one and one with a flow, prints a table, and writes `results.json` and plots.
The networks are those of the blog post "Variational Autoencoders with Inverse Autoregressive Flows". The likelihood is
a discretized logistic one, a distribution over the 256 intensities, in bits per pixel and channel;
`--likelihood=cross_entropy` is what the post has, which is none. All else is as in `vae_mnist.py`, but for the split:
45,000 images to train with, 5,000 to watch training with, and 10,000 to test with.
"""

import functools
from collections.abc import Sequence

import _quiet  # noqa: F401
import _comparison
import _datasets
import _image_settings
from _posteriors import Flow
from absl import app, flags


def define_flags() -> None:
    """Defines the command line; in a function, since worker processes and tests import this module too."""
    flags.DEFINE_string('data', '', 'Path of the folder cifar-10-batches-py; else that of keras.datasets.')
    flags.DEFINE_enum(
        'likelihood', 'discretized_logistic', ['discretized_logistic', 'cross_entropy'], 'Of pixels, given z.'
    )
    flow = Flow(hidden_units=(1280, 1280), context_size=128)
    _image_settings.define_flags('results/vae_cifar10', epochs=40, latent_size=128, flow=flow, nll_images=1000)


def main(argv: Sequence[str]) -> None:
    """Trains the VAEs that the flags describe, and reports on them."""
    options = flags.FLAGS
    _comparison.run(
        argv,
        functools.partial(_datasets.load_cifar10, options.data),
        network='conv-cifar10',
        likelihood=options.likelihood.replace('_', ' '),
        binarization=None,
        hidden_units=(),
        global_clipnorm=1000.0,  # of a loss that is a sum over so many more pixels
    )


if __name__ == '__main__':
    define_flags()
    app.run(main)
