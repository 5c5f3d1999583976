"""Small data in the formats of MNIST and CIFAR-10, and VAEs of them."""

import pickle

import _datasets
import numpy as np
from _image_settings import Settings
from _posteriors import Flow

FLOW = Flow(2, (8,), context_size=4)


def small_settings(posterior='IAF', **changes):
    flow = FLOW if posterior == 'IAF' else None
    fixed = {'data': '', 'network': 'mlp', 'likelihood': 'bernoulli', 'binarization': 'dynamic', 'hidden_units': (16,)}
    fixed |= {'epochs': 3, 'seed': 0, 'latent_size': 3, 'batch_size': 20, 'warm_up_steps': 10}
    return Settings(**{**fixed, 'posterior': posterior, 'flow': flow, **changes})


def digits():
    """246 images to train with and 40 to test with, as MNIST's are: uint8, without channels."""
    images = (255 * _datasets.load_digits().train[:286, ..., 0]).astype(np.uint8)
    return images[:246], images[246:]


def write_mnist(folder):
    """Writes a file as `mnist.npz` is, and returns its path."""
    train, test = digits()
    np.savez(folder / 'mnist.npz', x_train=train, x_test=test)
    return folder / 'mnist.npz'


def write_cifar10(folder, count=20):
    """Writes a folder as `cifar-10-batches-py` is, and returns its path and the images of its first batch."""
    rng = np.random.default_rng(0)
    path = folder / 'cifar-10-batches-py'
    path.mkdir()
    batches = {}
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        # Smooth, so that there is something to learn.
        coarse = np.kron(rng.integers(0, 256, [count, 3, 4, 4]), np.ones([8, 8])).astype(np.uint8)
        batches[name] = coarse.transpose(0, 2, 3, 1)
        record = {b'data': coarse.reshape(count, -1), b'labels': [0] * count, b'batch_label': b'of a test'}
        (path / name).write_bytes(pickle.dumps(record))
    return path, batches
