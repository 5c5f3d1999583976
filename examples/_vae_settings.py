"""What a run of a VAE depends on, and the part of the command line that says it."""

from __future__ import annotations

import dataclasses

import _records
import sklearn
from _images import find_mnist
from absl import flags

# The flags defined below are those of the script that calls: in its --help, and among its key flags.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on. Only `num_flows` differs between the runs that are compared."""

    num_flows: int
    data: str  # the path of MNIST, or '' for the digits
    epochs: int
    seed: int = 0
    batch_size: int = 100
    learning_rate: float = 1e-3
    latent_size: int = 16
    filters: tuple[int, int] = (32, 64)
    hidden_units: tuple[int, ...] = (128, 128)
    context_size: int = 64
    evaluation_images: int = 1000
    evaluation_samples: int = 100

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        return f'{self.num_flows}-flows-seed{self.seed}-{_records.digest(self, sklearn)}'


def define_flags(output_dir: str, epochs: int | None = None) -> None:
    """Defines the flags that say the settings, and where results go.

    Args:
        output_dir: Where they go if the command does not say.
        epochs: Their number if the command does not say; `None` for one that depends on the images.
    """
    otherwise = '; else 10 of MNIST or 300 of the digits' if epochs is None else ''
    flags.DEFINE_string('data', '', 'Path of mnist.npz. Else MNIST from the cache of Keras, or else 8x8 digits.')
    flags.DEFINE_integer('flows', 4, 'Number of steps of the flow; 0 for a diagonal Gaussian.', lower_bound=0)
    flags.DEFINE_integer('epochs', epochs, f'Passes over the training images{otherwise}.', lower_bound=1)
    flags.DEFINE_integer('seed', 0, 'Seed of everything random.', lower_bound=0)
    flags.DEFINE_integer('batch_size', 100, 'Images per training step, of all devices together.', lower_bound=1)
    flags.DEFINE_integer('evaluation_images', 1000, 'Number of test images, at most.', lower_bound=1)
    flags.DEFINE_integer('evaluation_samples', 100, 'Samples of z per test image.', lower_bound=1)
    flags.DEFINE_string('output_dir', output_dir, 'Where results, models and checkpoints are written.')


def from_flags() -> Settings:
    """Returns the settings that the command line says."""
    options = flags.FLAGS
    data = find_mnist(options.data)
    epochs = options.epochs or (10 if data else 300)
    same = {name: options[name].value for name in ('seed', 'batch_size', 'evaluation_images', 'evaluation_samples')}
    return Settings(options.flows, data, epochs, **same)
