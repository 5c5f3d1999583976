"""The convolutional VAE of the Keras documentation, with the flow as its sampling layer.

`python keras_vae.py` trains it with a flow and without one, prints a table, and writes `results.json`, the models and a
plot of reconstructions and samples. The model is a plain functional one, with `compile` and `fit`: `IAFSampling` takes
the place of the `Sampling` layer, and adds the KL term to the loss itself. The images are MNIST, where Keras has it in
its cache or `--data` says where it is, or else the 8x8 digits that scikit-learn brings; nothing is downloaded. A run
that is killed goes on when the same command is given again, and ends with the same weights, to the bit.
"""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import _quiet  # noqa: F401
import _datasets
import _keras_vae
import _records
import _runs
import _script
import keras
import sklearn
import tensorflow as tf
from _keras_vae import Settings
from _likelihoods import bernoulli
from absl import app, flags, logging

import tfp_iaf.keras


def make_vae(settings: Settings, image_shape: Sequence[int], jit_compile: bool | str = 'auto') -> Any:
    """Makes the VAE: a functional model from images to logits, compiled. Its loss is -ELBO."""
    height, width, _ = image_shape
    first, second = settings.filters
    options: dict[str, Any] = {'strides': 2, 'padding': 'same', 'activation': 'relu'}

    images = keras.Input(image_shape)
    hidden = keras.layers.Conv2D(first, 3, **options)(images)
    hidden = keras.layers.Conv2D(second, 3, **options)(hidden)
    hidden = keras.layers.Flatten()(hidden)
    z_mean = keras.layers.Dense(settings.latent_size, name='z_mean')(hidden)
    z_log_var = keras.layers.Dense(settings.latent_size, name='z_log_var')(hidden)
    inputs = [z_mean, z_log_var]
    if settings.num_flows:
        inputs.append(keras.layers.Dense(settings.context_size, activation='elu', name='context')(hidden))

    # The one layer that is not in the Keras documentation.
    sampling = tfp_iaf.keras.IAFSampling(settings.num_flows, settings.hidden_units, seed=settings.seed, name='sampling')
    z, _ = sampling(inputs)

    decoder = keras.Sequential(
        [
            keras.Input([settings.latent_size]),
            keras.layers.Dense(height // 4 * (width // 4) * second, activation='relu'),
            keras.layers.Reshape([height // 4, width // 4, second]),
            keras.layers.Conv2DTranspose(second, 3, **options),
            keras.layers.Conv2DTranspose(first, 3, **options),
            keras.layers.Conv2DTranspose(1, 3, padding='same'),
        ],
        name='decoder',
    )
    model = keras.Model(images, decoder(z))
    model.compile(keras.optimizers.Adam(settings.learning_rate), loss=bernoulli, jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)  # so that checkpoints have its variables from the start
    return model


def train(directory: pathlib.Path, settings: Settings) -> dict[str, Any]:
    """Trains and evaluates one VAE; writes it to `directory`, and returns its figures."""
    started = time.perf_counter()
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    data = _datasets.load_mnist_or_digits(settings.data)
    model = make_vae(settings, data.train.shape[1:])
    watch = _keras_vae.fit(model, data, settings, directory / settings.name)
    _keras_vae.save(model, data.test[:10], directory, settings)
    return {
        **_keras_vae.evaluate(model, data.test, settings),
        'ms_per_step': watch.ms_per_step,
        'parameters': model.count_params(),
        'seconds': time.perf_counter() - started,
    }


def define_flags() -> None:
    """Defines the command line; in a function, since tests and other scripts import this module too."""
    _keras_vae.define_flags('results/keras_vae')
    flags.DEFINE_bool('fresh', False, 'Train again what output_dir already has.')


def main(argv: Sequence[str]) -> None:
    """Trains a VAE with the flow that the flags describe, and one without, and reports on them."""
    _script.check_arguments(argv)
    started = time.perf_counter()
    logging.set_verbosity(logging.WARNING)  # TensorFlow has notes on every checkpoint
    # Or else sums are taken in whatever order threads end, and no two runs are the same to the bit.
    tf.config.experimental.enable_op_determinism()
    output_dir = pathlib.Path(flags.FLAGS.output_dir)
    if flags.FLAGS.fresh:
        shutil.rmtree(output_dir / 'runs', ignore_errors=True)
    settings = _keras_vae.from_flags()
    print(f'Data: {f"MNIST, from {settings.data}" if settings.data else "8x8 digits, from scikit-learn"}.')
    runs = [dataclasses.replace(settings, num_flows=count) for count in sorted({0, settings.num_flows})]
    results = _runs.run_cached(train, runs, output_dir / 'runs', 1, False, _keras_vae.describe)
    print(_keras_vae.report(results))
    _keras_vae.plot(results, output_dir)
    _script.write({'runs': _records.of_runs(results)}, output_dir, started, sklearn)


if __name__ == '__main__':
    define_flags()
    app.run(main)
