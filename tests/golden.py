"""Golden files: what this version has written, and what every later version must still read.

`python -m tests.golden` writes those that are missing to `tests/golden_files`, and is run once, when a format is added.
A file that no longer loads is a break for users, not a reason to write it again.
"""

import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf
import tf_keras

import tfp_iaf
import tfp_iaf.keras
import tfp_iaf.tf_keras

FOLDER = pathlib.Path(__file__).parent / 'golden_files'


def model(library, seed=0, transform='affine'):
    """The flow as a layer of Keras 3 or tf_keras."""
    layers, flow = {'keras': (keras, tfp_iaf.keras), 'tf_keras': (tf_keras, tfp_iaf.tf_keras)}[library]
    inputs = [layers.Input([size]) for size in (3, 3, 2)]
    z, log_q = flow.IAFSampling(2, (8, 7), transform=transform, seed=seed, name='sampling')(inputs)
    return layers.Model(inputs, [z, log_q])


# Each makes an architecture; another seed gives other weights, until a file is read.
MAKERS = {
    'posterior': functools.partial(tfp_iaf.IAFPosterior, 3, 2, (8, 7), context_shape=2),
    'convolutional': functools.partial(tfp_iaf.IAFPosterior, [2, 3, 2], 2, filters=(5, 4), context_shape=[2, 3, 1]),
    'surrogate': functools.partial(
        tfp_iaf.build_iaf_surrogate_posterior, {'a': [], 'b': [2]}, num_flows=2, hidden_units=(8,)
    ),
    'keras': functools.partial(model, 'keras'),
    'tf_keras': functools.partial(model, 'tf_keras'),
    'spline': functools.partial(model, 'keras', transform='spline'),
}
# The file of each that is no model, and its name in there.
CHECKPOINTS = {
    'posterior': ('checkpoint', 'posterior'),
    'convolutional': ('convolutional', 'posterior'),
    'surrogate': ('surrogate', 'q'),
}


def inputs_of(event_shape, context_shape):
    """A mean, the logarithm of a scale, and a context, for five events."""
    shapes = [5, *event_shape], [5, *event_shape], [5, *context_shape]
    return [
        np.linspace(low, 1.0, np.prod(shape), dtype=np.float32).reshape(shape)
        for low, shape in zip((-1, -2, 0), shapes, strict=True)
    ]


INPUTS = inputs_of([3], [2])


def outputs_of(made):
    """What it computes, apart from the noise: the log-density of the events."""
    if isinstance(made, tfp_iaf.IAFPosterior):
        loc, log_scale, context = inputs_of(made.event_shape, made.context_shape)
        return made(loc, tf.exp(log_scale), context).log_prob(loc + 0.3).numpy()
    if hasattr(made, 'get_layer'):
        return made.get_layer('sampling').posterior(*INPUTS).log_prob(INPUTS[0] + 0.3).numpy()
    return made.log_prob({'a': INPUTS[0][:, 0] + 0.3, 'b': INPUTS[0][:, 1:]}).numpy()


def perturbed(made):
    """The same with other weights: a spline or a surrogate is the identity at first."""
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign_add((0.3 * rng.standard_normal(variable.shape)).astype(np.float32))
    return made


class Scored(tf.Module):
    """A module with one traced function, for a SavedModel."""

    def __init__(self, made):
        super().__init__()
        self.posterior = made
        self.log_prob = tf.function(
            lambda loc, log_scale, context: made(loc, tf.exp(log_scale), context).log_prob(loc + 0.3),
            input_signature=[tf.TensorSpec([None, size], tf.float32) for size in (3, 3, 2)],
        )


def write():
    """Writes what is missing of every format."""
    FOLDER.mkdir(exist_ok=True)
    made = {name: make(seed=0) for name, make in MAKERS.items()}
    for name in ('convolutional', 'surrogate', 'spline'):
        perturbed(made[name])
    files = {
        'saved_model': lambda path: tf.saved_model.save(Scored(made['posterior']), path),
        'tf_keras.h5': made['tf_keras'].save,
        # Without traces, which are large, Keras makes the layer again from its config.
        'tf_keras_saved_model': lambda path: made['tf_keras'].save(path, save_traces=False),
        **{f'{name}.keras': made[name].save for name in made.keys() - CHECKPOINTS},
        **{f'{name}.weights.h5': made[name].save_weights for name in made.keys() - CHECKPOINTS},
    }
    for name, write_to in files.items():
        if not (FOLDER / name).exists():
            write_to(str(FOLDER / name))
    for name, (file, key) in CHECKPOINTS.items():
        if not (FOLDER / f'{file}.index').exists():
            tf.train.Checkpoint(**{key: made[name]}).write(str(FOLDER / file))
    path = FOLDER / 'outputs.npz'
    versions = {'keras_version': keras.__version__, 'tf_keras_version': tf_keras.__version__}
    outputs = {name: outputs_of(each) for name, each in made.items()}
    np.savez(path, **{**outputs, **(dict(np.load(path)) if path.exists() else versions)})


if __name__ == '__main__':
    write()
