"""Small data in the formats of MNIST, CIFAR-10 and Frey Faces, and settings of small VAEs."""

import pickle

import numpy as np
from experiments import datasets
from experiments.evaluation import Settings


def settings(posterior='IAF', **changes):
    fixed = {'hidden_units': (16,), 'flows': 2, 'flow_units': (8,), 'context_size': 4, 'epochs': 3, 'latent_size': 3}
    fixed |= {'batch_size': 20, 'warm_up_steps': 10, 'elbo_samples': 3, 'nll_samples': 5, 'nll_images': 30}
    return Settings(**{'dataset': 'mnist', **fixed, 'posterior': posterior, **changes})


def write_mnist(folder):
    """Writes a file as `mnist.npz` is, of 246 and 40 digits, and returns its path and its fingerprint."""
    images = 15 * datasets.load('digits').train[:286, ..., 0]
    path = folder / 'mnist.npz'
    np.savez(path, x_train=images[:246], x_test=images[246:])
    return str(path), datasets.load('mnist', str(path)).fingerprint


def write_freyfaces(folder):
    """Writes a file as `freyfaces.npz` is, of 420 small images of one intensity each, and returns its path."""
    images = np.zeros([420, 4, 4], np.uint8) + np.arange(420, dtype=np.uint8)[:, np.newaxis, np.newaxis]
    np.savez(folder / 'freyfaces.npz', images=images)
    return str(folder / 'freyfaces.npz')


def write_cifar10(folder, count=20):
    """Writes a folder as `cifar-10-batches-py` is, and returns its path and the images of its first batch."""
    rng, path, batches = np.random.default_rng(0), folder / 'cifar-10-batches-py', {}
    path.mkdir()
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        # Smooth, so that there is something to learn.
        coarse = np.kron(rng.integers(0, 256, [count, 3, 4, 4]), np.ones([8, 8])).astype(np.uint8)
        batches[name] = coarse.transpose(0, 2, 3, 1)
        (path / name).write_bytes(pickle.dumps({b'data': coarse.reshape(count, -1), b'labels': [0] * count}))
    return str(path), batches['data_batch_1']
