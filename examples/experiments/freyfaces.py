"""VAEs of Frey Faces, by the protocol of the paper on Sylvester flows (van den Berg et al. 2018).

1565 images to train with, 200 to watch training with, and 200 to test with, after a shuffle of which the paper has
three. A softmax over 256 intensities, convolutions with gates, 64 latent variables, four steps of each flow, and Adamax
at 5e-4. The paper goes on until 100 epochs bring nothing, with the KL warmed up over 100: here the number of epochs is
fixed, and much smaller by default, with the warm-up over half of them. Nor is the variance of the base clamped, and the
context of a flow is a layer with ELU, as in all experiments here.
"""

from collections.abc import Sequence

from . import comparison
from .evaluation import Settings

DATA_SETS = ('freyfaces 123', 'freyfaces 321', 'freyfaces 231')
SETTINGS = Settings(
    DATA_SETS[0],
    epochs=60,
    latent_size=64,
    network='conv-freyfaces',
    likelihood='categorical',
    binarization='none',
    gate_start=1.0,
    context_size=320,
    optimizer='adamax',
    learning_rate=5e-4,
    final_rate=1.0,
    warm_up_steps=450,
    clipnorm=0.0,
    ema=0.0,
    nll_samples=500,
)
QUICK = {'epochs': 1, 'steps_per_epoch': 2, 'batch_size': 10, 'nll_samples': 2, 'nll_images': 4}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    posteriors = ('diagonal', 'IAF', 'IAF affine', 'planar 4', 'Sylvester orthogonal')
    comparison.main('freyfaces', __doc__, SETTINGS, argv, QUICK, seeds=3, posteriors=posteriors, data_sets=DATA_SETS)
