"""VAEs of the 8x8 digits of scikit-learn, with three posteriors: diagonal and full-covariance Gaussians, and an IAF.

With two latent dimensions the true posterior p(z|x) is known by quadrature: how far is q(z|x) from it, and what does
that cost?
"""

from collections.abc import Sequence

from . import comparison
from .evaluation import Settings

SETTINGS = Settings(
    'digits',
    epochs=60,
    steps_per_epoch=100,
    hidden_units=(200, 200),
    flow_units=(64, 64),
    learning_rate=2e-3,
    final_rate=0.0,
    warm_up_steps=1000,
    clipnorm=0.0,
    ema=0.0,
    elbo_samples=1000,
)
QUICK = {'latent_size': (2,), 'epochs': 2, 'elbo_samples': 100, 'nll_samples': 100}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line describes."""
    comparison.main('digits', __doc__, SETTINGS, argv, QUICK, latent_sizes=(2, 10), seeds=3)
