"""Golden files: what this version has written, and what every later version must still read.

`python -m tests.golden` writes those that are missing to `tests/golden_files`, and is run once, when a format is added.
A file that no longer loads is a break for users, not a reason to write it again.
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


def model(library, seed=0, transform='affine'):
    """The architecture of the model, in Keras 3 or tf_keras: the flow as a layer."""
    layers, flow = {'keras': (keras, tfp_iaf.keras), 'tf_keras': (tf_keras, tfp_iaf.tf_keras)}[library]
    inputs = [layers.Input([size]) for size in (3, 3, 2)]
    z, log_q = flow.IAFSampling(2, (8, 7), transform=transform, seed=seed, name='sampling')(inputs)
    return layers.Model(inputs, [z, log_q])


def convolutional(seed=0):
    """A step in either order with masked convolutions, on feature maps."""
    return tfp_iaf.IAFPosterior([2, 3, 2], 2, filters=(5, 4), context_shape=[2, 3, 1], seed=seed)


def outputs_of_convolutional(made):
    """What it computes: the log-density of the events."""
    loc, log_scale, context = (
        np.linspace(low, 1.0, 5 * 6 * size, dtype=np.float32).reshape([5, 2, 3, size])
        for low, size in ((-1, 2), (-2, 2), (0, 1))
    )
    return made(loc, tf.exp(log_scale), context).log_prob(loc + 0.3).numpy()


def surrogate(seed=0):
    """The architecture of the surrogate posterior, of two parts."""
    return tfp_iaf.build_iaf_surrogate_posterior({'a': [], 'b': [2]}, num_flows=2, hidden_units=(8,), seed=seed)


def outputs_of_posterior(made):
    """What it computes: the log-density of the events."""
    loc, log_scale, context = INPUTS
    return made(loc, tf.exp(log_scale), context).log_prob(loc + 0.3).numpy()


def outputs_of_model(made):
    """What it computes, apart from the noise: the log-density of the events."""
    return made.get_layer('sampling').posterior(*INPUTS).log_prob(INPUTS[0] + 0.3).numpy()


def outputs_of_surrogate(made):
    """What it computes: the log-density of the events."""
    return made.log_prob({'a': INPUTS[0][:, 0] + 0.3, 'b': INPUTS[0][:, 1:]}).numpy()


def perturbed(made):
    """The same with other weights: a spline or a surrogate is the identity at first."""
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign_add((0.3 * rng.standard_normal(variable.shape)).astype(np.float32))
    return made


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
    """Writes what is missing of every format."""
    FOLDER.mkdir(exist_ok=True)
    plain, of_surrogate, of_maps = posterior(), perturbed(surrogate()), perturbed(convolutional())
    models = {library: model(library) for library in ('keras', 'tf_keras')}
    models['spline'] = perturbed(model('keras', transform='spline'))
    files = {
        'saved_model': lambda path: tf.saved_model.save(Scored(), path),
        'tf_keras.h5': models['tf_keras'].save,
        # Without traces, which are large, Keras makes the layer again from its config.
        'tf_keras_saved_model': lambda path: models['tf_keras'].save(path, save_traces=False),
        **{f'{name}.keras': made.save for name, made in models.items()},
        **{f'{name}.weights.h5': made.save_weights for name, made in models.items()},
    }
    checkpoints = {
        'checkpoint': {'posterior': plain},
        'surrogate': {'q': of_surrogate},
        'convolutional': {'posterior': of_maps},
    }
    for name, write_to in files.items():
        if not (FOLDER / name).exists():
            write_to(str(FOLDER / name))
    for name, objects in checkpoints.items():
        if not (FOLDER / f'{name}.index').exists():
            tf.train.Checkpoint(**objects).write(str(FOLDER / name))
    outputs = {
        'posterior': outputs_of_posterior(plain),
        'surrogate': outputs_of_surrogate(of_surrogate),
        'convolutional': outputs_of_convolutional(of_maps),
    }
    outputs |= {name: outputs_of_model(made) for name, made in models.items()}
    path = FOLDER / 'outputs.npz'
    versions = {'keras_version': keras.__version__, 'tf_keras_version': tf_keras.__version__}
    np.savez(path, **{**outputs, **(dict(np.load(path)) if path.exists() else versions)})


if __name__ == '__main__':
    write()
