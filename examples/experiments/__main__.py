"""Runs one experiment: `python -m experiments digits --quick`."""

import argparse
import importlib
import os
import sys

# Before TensorFlow is imported, here and in worker processes. With one thread each, runs share the cores, and sums come
# out the same whatever else runs.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '1')
os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')

EXPERIMENTS = {
    'digits': 'VAEs of 8x8 digits, whose true posteriors are known',
    'families': 'the same with thirteen families of posteriors, and what their VAEs lose where',
    'mnist': 'VAEs of MNIST, with dense layers or convolutions',
    'cifar10': 'VAEs of CIFAR-10, in bits per dimension',
    'freyfaces': 'VAEs of Frey Faces, by the protocol of the paper on Sylvester flows',
    'ablation': 'the mistakes of a blog post, mended one at a time',
    'energies': 'variational inference on the energies U1 to U4',
    'surrogates': 'variational inference on a funnel and a banana',
    'gauntlet': "variational inference on real posteriors, those of TFP's Inference Gym",
    'rates': 'surrogate posteriors of many widths at many learning rates',
    'neutra': 'Hamiltonian Monte Carlo on a funnel, plain and through a flow',
    'densities': 'maximum likelihood on densities in the plane',
}


def main(argv: list[str]) -> None:
    """Runs the experiment that the first argument names, with the other arguments."""
    parser = argparse.ArgumentParser(
        'python -m experiments',
        description='Each experiment has options of its own: python -m experiments digits --help',
        epilog='\n'.join(f'  {name:12s}{text}' for name, text in EXPERIMENTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('experiment', choices=EXPERIMENTS, metavar='experiment')
    name = parser.parse_args(argv[:1]).experiment
    importlib.import_module(f'experiments.{name}').main(argv[1:])


if __name__ == '__main__':
    main(sys.argv[1:])
