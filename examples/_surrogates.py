"""Gaussians and flows fitted to the targets of `_targets`: settings, q, and its fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import _plots
import _records
import _variational
import keras
import numpy as np
import tensorflow_probability as tfp
from _targets import TARGETS, Target

import tfp_iaf

POSTERIORS = {  # with their colours in plots
    'mean field': '#777777',
    'full covariance': '#0072B2',
    'IAF gated': '#CC79A7',
    'IAF affine': '#D55E00',
    'IAF spline': '#009E73',
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on."""

    target: str
    posterior: str
    seed: int = 0
    steps: int = 4000
    sample_size: int = 100
    learning_rate: float = 2e-2
    evaluation_samples: int = 100000

    @property
    def name(self) -> str:
        """A file name that other settings, or other versions of the libraries, do not have."""
        digest = _records.digest(self)
        return f'{self.target}-{self.posterior}-seed{self.seed}-{digest}'.replace(' ', '-')


def make_posterior(settings: Settings) -> Any:
    """Returns a trainable q: a distribution over the same structure as the target's joint distribution.

    The order of the parts is that of the model, and it matters: a step moves and scales each entry by those before it.
    In a funnel, where v sets the scale of all others, v comes first, as hyperparameters do in a model. No step takes
    the entries in the other order, though by default every second one would. These posteriors do not need it (v is no
    function of any one x), and where a step bent the banana's x by its y, some seeds lost a part of one arm for good.
    """
    joint = TARGETS[settings.target].joint
    model = joint.event_shape_tensor(), joint.experimental_default_event_space_bijector()
    if settings.posterior in ('mean field', 'full covariance'):
        operators = {'mean field': 'diag', 'full covariance': 'tril'}[settings.posterior]
        keras.utils.set_random_seed(settings.seed)  # this builder has no seed
        return tfp.experimental.vi.build_affine_surrogate_posterior(model[0], operators, model[1])
    name = settings.posterior.removeprefix('IAF ')
    # By name, the gate would start nearer the identity than in the runs that were published.
    transform = tfp_iaf.transforms.Gated(gate_bias=2.0) if name == 'gated' else name
    return tfp_iaf.build_iaf_surrogate_posterior(*model, transform=transform, alternate_order=False, seed=settings.seed)


def fit(q: Any, settings: Settings) -> np.ndarray:
    """Maximises the ELBO, and returns -ELBO at every step; see `_variational.fit`."""
    return _variational.fit(TARGETS[settings.target].joint.unnormalized_log_prob, q, settings)


def exact(target: Target) -> _plots.Exact:
    """Returns what samples of q are drawn beside."""
    return _plots.Exact(target.names, target.window, target.coordinates(target.sample(4000000, seed=0)))
