"""Variational autoencoders on MNIST, with several posteriors: diagonal Gaussian, full-covariance Gaussian, IAF.

`python vae_mnist.py` trains a diagonal one and one with a flow, prints a table, and writes `results.json` and plots.
All have the same networks and the same schedule: Adam with a cosine, a warm-up of the KL's weight, and an average of
the weights, which is evaluated at the end. 50,000 images are to train with, 10,000 to watch training with, and 10,000,
which are not looked at before, to test with. Equal epochs and equal time are two questions: `--longer_baseline` trains
the diagonal one for more epochs, too: `--seeds=3 --longer_baseline=260` answers both. With `--latent_size=2` the
likelihood is exact, by quadrature, and the report says how far from it importance weighting is.

`--network=conv --binarization=threshold` are the networks and the data of the blog post "Variational Autoencoders with
Inverse Autoregressive Flows". Finished runs are kept, and one that is killed goes on when the same command is given
again, and ends with the same weights, to the bit.
"""

import functools
from collections.abc import Sequence

import _quiet  # noqa: F401
import _comparison
import _datasets
import _image_settings
from _posteriors import Flow
from absl import app, flags

NETWORKS = {'mlp': 'mlp', 'conv': 'conv-mnist'}


def define_flags() -> None:
    """Defines the command line; in a function, since worker processes and tests import this module too."""
    flags.DEFINE_string('data', '', 'Path of mnist.npz; else that of keras.datasets: its cache, or its download.')
    flags.DEFINE_enum('network', 'mlp', list(NETWORKS), 'Dense layers, or the convolutions of the blog post.')
    flags.DEFINE_list('hidden_units', ['300', '300'], 'Units of the dense layers, on either side.')
    flags.DEFINE_enum(
        'binarization', 'dynamic', ['dynamic', 'threshold'], 'Pixels drawn anew in every epoch, or rounded.'
    )
    _image_settings.define_flags('results/vae_mnist', epochs=120, latent_size=32, flow=Flow(), nll_images=10000)


def main(argv: Sequence[str]) -> None:
    """Trains the VAEs that the flags describe, and reports on them."""
    options = flags.FLAGS
    _comparison.run(
        argv,
        functools.partial(_datasets.load_mnist, options.data),
        network=NETWORKS[options.network],
        likelihood='bernoulli',
        binarization=options.binarization,
        hidden_units=tuple(map(int, options.hidden_units)) if options.network == 'mlp' else (),
    )


if __name__ == '__main__':
    define_flags()
    app.run(main)
