"""Golden files: what this version has written, and what every later version must still read.

`python -m tests.golden` writes them to `tests/golden_files`, and is run once, when a format is added. A file that no
longer loads is a break for users, not a reason to write it again.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf
import tf_keras

import tfp_iaf
import tfp_iaf.keras
import tfp_iaf.tf_keras

FOLDER = pathlib.Path(__file__).parent / 'golden_files'

# What goes in: five events of three entries, with a context of two.
INPUTS = [
    np.linspace(low, 1.0, 5 * size, dtype=np.float32).reshape([5, size]) for low, size in ((-1, 3), (-2, 3), (0, 2))
]


def posterior(seed=0):
    """The architecture of the posterior; another seed gives other weights, until a file is read."""
    return tfp_iaf.IAFPosterior(3, 2, (8, 7), context_shape=2, seed=seed)


def model(library, seed=0):
    """The architecture of the model, in Keras 3 or tf_keras: the flow as a layer, with a head that is deterministic."""
    layers, flow = {'keras': (keras, tfp_iaf.keras), 'tf_keras': (tf_keras, tfp_iaf.tf_keras)}[library]
    inputs = [layers.Input([size]) for size in (3, 3, 2)]
    z, log_q = flow.IAFSampling(2, (8, 7), transform='affine', seed=seed, name='sampling')(inputs)
    return layers.Model(inputs, [z, log_q])


def outputs_of_posterior(made):
    """What it computes: the log-density of the events."""
    loc, log_scale, context = INPUTS
    return made(loc, tf.exp(log_scale), context).log_prob(loc + 0.3).numpy()


def outputs_of_model(made):
    """What it computes, apart from the noise: the log-density of the events."""
    return made.get_layer('sampling').posterior(*INPUTS).log_prob(INPUTS[0] + 0.3).numpy()


class Scored(tf.Module):
    """A module with one traced function, for a SavedModel."""

    def __init__(self):
        super().__init__()
        self.posterior = posterior()
        self.log_prob = tf.function(
            lambda loc, log_scale, context: self.posterior(loc, tf.exp(log_scale), context).log_prob(loc + 0.3),
            input_signature=[tf.TensorSpec([None, size], tf.float32) for size in (3, 3, 2)],
        )


def write():
    """Writes every format."""
    FOLDER.mkdir(exist_ok=True)
    made = posterior()
    tf.train.Checkpoint(posterior=made).write(str(FOLDER / 'checkpoint'))
    tf.saved_model.save(Scored(), str(FOLDER / 'saved_model'))
    values = {'posterior': outputs_of_posterior(made)}
    for library in ('keras', 'tf_keras'):
        of_library = model(library)
        of_library.save(FOLDER / f'{library}.keras')
        of_library.save_weights(FOLDER / f'{library}.weights.h5')
        values[library] = outputs_of_model(of_library)
    np.savez(FOLDER / 'outputs.npz', keras_version=keras.__version__, **values)


if __name__ == '__main__':
    write()
