"""What training and evaluating a VAE of images depend on, and the part of the command line that says it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import _records
import _script
from _posteriors import POSTERIORS, Flow
from absl import flags

# The flags defined below are those of the script that calls: in its --help, and among its key flags.
flags.disclaim_key_flags()

_FLAG_OF_POSTERIOR = {name.lower().replace(' ', '_'): name for name in POSTERIORS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the training of a VAE depends on. Runs that are compared differ in posterior and `flow` alone."""

    data: str  # its fingerprint
    network: str
    likelihood: str
    binarization: str | None
    posterior: str
    flow: Flow | None  # of the posterior 'IAF'
    epochs: int
    seed: int
    hidden_units: tuple[int, ...]  # of the network 'mlp'
    latent_size: int = 32
    batch_size: int = 100
    learning_rate: float = 1e-3
    rate_warm_up_steps: int = 0  # over which the learning rate grows from 0 to its largest
    final_rate: float = 0.02  # of the cosine's end, as a share of the learning rate
    warm_up_steps: int = 5000  # over which the KL's weight grows from 0 to 1
    global_clipnorm: float = 50.0
    ema_momentum: float = 0.999  # of the average of weights that is evaluated
    max_steps_per_execution: int = 50
    strategy: str = 'none'  # of tf.distribute

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        posterior = self.posterior.replace(' ', '-')
        return f'{posterior}-{self.network}-{self.epochs}-epochs-seed{self.seed}-{_records.digest(self)}'


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that the evaluation of a VAE depends on."""

    run: Settings
    nll_samples: int = 1000
    nll_images: int = 10000
    elbo_samples: int = 10
    grid_size: int = 300  # per axis, for the exact likelihood with two latent dimensions

    @property
    def name(self) -> str:
        """A file name that no other evaluation has."""
        return f'{self.run.name}-{_records.digest(self)}'


def define_flags(output_dir: str, *, epochs: int, latent_size: int, flow: Flow, nll_images: int) -> None:
    """Defines the flags that the scripts share, with the defaults that differ.

    They are called in a function, since worker processes and tests import the scripts too.
    """
    known = list(_FLAG_OF_POSTERIOR)
    text = f'Posteriors to compare: some of {",".join(known)}.'
    _script.define_some_of('posteriors', known, text, default=['diagonal', 'iaf'])
    flags.DEFINE_integer('longer_baseline', 0, 'Train the diagonal one for so many epochs, too.', lower_bound=0)
    flags.DEFINE_integer('seeds', 1, 'Number of seeds, from 0.', lower_bound=1)
    flags.DEFINE_integer('epochs', epochs, 'Passes over the training images.', lower_bound=1)
    flags.DEFINE_integer('batch_size', 100, 'Images per training step, of all devices together.', lower_bound=1)
    flags.DEFINE_float('learning_rate', 1e-3, "Adam's, at the start of the cosine.", lower_bound=0)
    flags.DEFINE_integer('rate_warm_up_steps', 0, 'Steps over which the learning rate grows from 0.', lower_bound=0)
    flags.DEFINE_integer('warm_up_steps', 5000, "Steps over which the KL's weight grows to 1.", lower_bound=1)
    flags.DEFINE_integer('latent_size', latent_size, 'Number of latent dimensions.', lower_bound=1)
    flags.DEFINE_integer('flows', flow.num_flows, 'Steps of the flow.', lower_bound=1)
    flags.DEFINE_list('flow_hidden_units', list(flow.hidden_units), "Units of the hidden layers of a step's network.")
    flags.DEFINE_enum('transform', flow.transform, ['gated', 'affine', 'spline'], 'What an entry of z goes through.')
    flags.DEFINE_float('gate_start', flow.gate_start, 'The gate starts at its sigmoid; of the gated transform.')
    flags.DEFINE_integer('context_size', flow.context_size, 'Size of the context of the flow.', lower_bound=1)
    flags.DEFINE_integer('nll_samples', 1000, 'Importance samples per test image.', lower_bound=1)
    flags.DEFINE_integer('nll_images', nll_images, 'Number of test images for the NLL, at most.', lower_bound=1)
    flags.DEFINE_integer('grid_size', 300, 'Points per axis of the grid for the exact NLL if z has two.', lower_bound=2)
    flags.DEFINE_enum('strategy', 'none', ['none', 'mirrored'], 'mirrored: on all GPUs, or a CPU split in two.')
    flags.DEFINE_bool('tensorboard', False, 'Write logs for TensorBoard, in output_dir/runs/*/tensorboard.')
    _script.define_flags_of_runs(output_dir)
    flags.register_validator(
        'flow_hidden_units', lambda units: all(str(n).isdecimal() and int(n) for n in units), 'expected such as 320,320'
    )


def runs_from_flags(**fixed: Any) -> list[Settings]:
    """Returns the settings of the runs that the command line says, seed by seed, with fields that the script fixes."""
    options = flags.FLAGS
    units = tuple(map(int, options.flow_hidden_units))
    gate_start = options.gate_start if options.transform == 'gated' else None
    flow = Flow(options.flows, units, options.transform, gate_start, options.context_size)
    same = ('batch_size', 'learning_rate', 'rate_warm_up_steps', 'warm_up_steps', 'latent_size', 'strategy')
    fixed |= {name: options[name].value for name in same}
    kinds = [(_FLAG_OF_POSTERIOR[name], options.epochs) for name in options.posteriors]
    if options.longer_baseline:
        kinds.append(('diagonal', options.longer_baseline))
    return [
        Settings(**fixed, posterior=posterior, flow=flow if posterior == 'IAF' else None, epochs=epochs, seed=seed)
        for seed, (posterior, epochs) in itertools.product(range(options.seeds), dict.fromkeys(kinds))
    ]
