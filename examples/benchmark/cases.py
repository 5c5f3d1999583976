"""What is measured: sizes, works, modes, who takes part, and the suites behind the tables of the documentation."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3  # of every Adam
WORKS = {
    'sample': 'sample and log q',
    'sample_gradient': 'sample and log q, gradient',
    'sample_adam': 'sample and log q, gradient, Adam',
    'log_prob': 'log q of a new point',
    'log_prob_gradient': 'log q of a new point, gradient',
    'fit': 'a whole fit of a surrogate posterior',
    'vae_step': 'training step of a VAE',
}
# `compile` times the first call of a new XLA program; of a fit, one with a single step.
MODES = ('eager', 'graph', 'xla', 'compile')


class Implementation(NamedTuple):
    """What it is, and the works that it does, with a context and as a surrogate posterior."""

    text: str
    with_context: Sequence[str]
    as_surrogate: Sequence[str] = ()


SAMPLES, DENSITIES = ('sample', 'sample_gradient', 'sample_adam'), ('log_prob', 'log_prob_gradient')
BOTH = (*SAMPLES, *DENSITIES)
NAMES = {
    'tfp_iaf': Implementation('this package', (*BOTH, 'vae_step'), (*BOTH, 'fit')),
    'other': Implementation('the checkout of it that --other names', (*BOTH, 'vae_step'), (*BOTH, 'fit')),
    'own_sample': Implementation("this package's sample, beside its log_prob", DENSITIES, DENSITIES),
    'fixed_point': Implementation("this package with inverse='fixed_point'", DENSITIES, DENSITIES),
    'repeated': Implementation('this package, a context repeated for each of its K samples', SAMPLES),
    'no_flow': Implementation('a VAE with a diagonal Gaussian', ['vae_step']),
    'loop': Implementation('the fit of this package in a loop written by hand', [], ['fit']),
    'dense': Implementation('no flow: layers of the same shapes without masks', SAMPLES),
    'TFP': Implementation('tfb.Invert(tfb.MaskedAutoregressiveFlow)', BOTH, (*BOTH, 'fit')),
    'Pyro': Implementation('PyTorch', BOTH),
    'zuko': Implementation('PyTorch', BOTH),
    'flowjax': Implementation('JAX', BOTH),
    'NumPyro': Implementation('JAX, AutoIAFNormal', [], ['sample_adam', 'fit']),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """D entries, two hidden layers of H units, T steps, a batch of contexts with C entries, K samples of each.

    K = 0 is one sample of each, without a sample axis. C = 0 is a surrogate posterior, which has no context and trains
    its own location and scale; `batch` is then the number of samples.
    """

    event: int
    hidden: int
    flows: int
    batch: int
    context: int = 32
    samples: int = 0

    @classmethod
    def parse(cls, text: str) -> 'Size':
        """Reads `DxHxTxbatch`, `DxHxTxbatchxC` or `DxHxTxbatchxCxK`."""
        try:
            size = cls(*map(int, text.split('x')))
        except (TypeError, ValueError):
            raise ValueError(f'sizes: got {text!r}, expected such as 32x320x4x100, of DxHxTxbatch[xC[xK]].') from None
        if min(size.event, size.hidden, size.flows, size.batch) < 1 or min(size.context, size.samples) < 0:
            raise ValueError(f'sizes: got {text!r}, expected D, H, T and batch above 0.')
        return size

    def __str__(self) -> str:
        keep = 6 if self.samples else 5 if self.context != Size.context else 4
        return 'x'.join(map(str, dataclasses.astuple(self)[:keep]))

    @property
    def is_surrogate(self) -> bool:
        """Whether it has no context."""
        return self.context == 0

    def inputs(self) -> tuple[list[np.ndarray], np.ndarray, tuple[int, ...]]:
        """Returns loc, scale and context, if any, a new point, and the shape of the samples to draw."""
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        if self.is_surrogate:
            return [], normal(self.batch, self.event), (self.batch,)
        sample_shape = (self.samples,) if self.samples else ()
        inputs = [0.1 * normal(self.batch, self.event), np.exp(0.1 * normal(self.batch, self.event))]
        return [*inputs, normal(self.batch, self.context)], normal(*sample_shape, self.batch, self.event), sample_shape

    def tiny(self) -> 'Size':
        """Returns the smallest size of its kind."""
        return Size(4, 8, 1, 3, min(self.context, 3), min(self.samples, 2))


def does(name: str, size: Size, work: str) -> bool:
    """Returns whether an implementation does some work that is not another's already."""
    if (name == 'repeated' and not size.samples) or (name in ('Pyro', 'zuko', 'flowjax') and size.samples):
        return False
    return work in (NAMES[name].as_surrogate if size.is_surrogate else NAMES[name].with_context)


def mode_of(name: str, work: str, mode: str) -> str | None:
    """Returns an implementation's mode where TensorFlow has this one: PyTorch has no compiler here, and JAX has XLA."""
    if name in ('Pyro', 'zuko'):
        return 'torch' if mode in ('eager', 'graph', 'xla') else None
    if name in ('flowjax', 'NumPyro'):
        return {'graph': 'xla', 'xla': 'xla', 'compile': 'compile'}.get(mode)
    return None if (work, mode) in (('fit', 'eager'), ('vae_step', 'compile')) else mode


class Part(NamedTuple):
    """Sizes, each at all works in all modes."""

    sizes: Sequence[str]
    works: Sequence[str]
    modes: Sequence[str] = ('graph', 'xla')
    names: Sequence[str] = tuple(NAMES)


def _sizes(shapes: Sequence[str], *batches: int, rest: str = '') -> list[str]:
    return [f'{shape}x{batch}{rest}' for shape, batch in itertools.product(shapes, batches)]


CHAINS = ('32x320x4', '32x1920x2', '256x1024x2')
SURROGATES = ('10x32x2', '100x100x2', '500x500x2')
OURS = ('tfp_iaf', 'other', 'own_sample')
SUITES = {
    'chains': [Part(_sizes(CHAINS, 1, 16, 100), SAMPLES, ('graph', 'xla', 'eager'))],
    'surrogates': [Part(_sizes(SURROGATES, 1, 16, 100, rest='x0'), SAMPLES[1:])],
    'fit': [Part(_sizes(SURROGATES, 1, 16, rest='x0'), ('fit',), ('xla', 'compile'))],
    'inverse': [
        Part(['32x320x4x100', '32x320x4x6400', '32x1920x2x100', '256x1024x2x100', '784x1568x1x100'], ('log_prob',)),
        Part(['784x1568x1x100', '3072x3072x1x100'], DENSITIES, names=OURS),
        Part(['32x320x4x100'], ('log_prob',), ('eager',)),
    ],
    'compile': [
        Part(_sizes(CHAINS, 100), DENSITIES, ('compile',)),
        Part(['784x1568x1x100'], DENSITIES, ('compile',), OURS),  # TFP's gradient needs gigabytes here
    ],
    'contexts': [Part(['32x320x4x100x1024x64'], SAMPLES[:2], names=(*OURS, 'repeated'))],
    'vae': [Part(['32x320x4x100'], ('vae_step',))],
}


def plan(
    suites: Sequence[str], sizes: Sequence[str], works: Sequence[str], modes: Sequence[str], quick: bool
) -> dict[tuple[Size, str], list[tuple[str, str]]]:
    """Returns who takes turns at each size and work, in which mode; `sizes`, `works` and `modes` replace a suite's.

    `quick` takes tiny sizes and the first mode of each part.
    """
    found: dict[tuple[Size, str], list[tuple[str, str]]] = {}
    for part in itertools.chain(*(SUITES[suite] for suite in suites)):
        for text, work in itertools.product(sizes or part.sizes, works or part.works):
            size = Size.parse(text).tiny() if quick else Size.parse(text)
            candidates = found.setdefault((size, work), [])
            names = [name for name in part.names if does(name, size, work)]
            for name, mode in itertools.product(names, modes or (part.modes[:1] if quick else part.modes)):
                own_mode = mode_of(name, work, mode)
                if own_mode and (name, own_mode) not in candidates:
                    candidates.append((name, own_mode))
    return {key: candidates for key, candidates in found.items() if candidates}
