"""The results of VAEs of images that differ in their posterior: as lines, a table, JSON, and a plot."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import _common
import _images
import _plots
import _records
import keras
import numpy as np
import sklearn
import tensorflow as tf
from _vae_settings import Settings


def title(settings: Settings) -> str:
    """Names the posterior."""
    return f'IAF, {settings.num_flows} steps' if settings.num_flows else 'diagonal'


def describe(settings: Settings, figures: dict[str, Any]) -> str:
    """Writes the line that is printed when a run ends."""
    estimates = '-ELBO {neg_elbo:.3f}, NLL <= {nll:.3f}, {ms_per_step:.1f} ms/step, {seconds:.0f} s'.format(**figures)
    return f'{title(settings):14s} {estimates}'


def report(results: Mapping[Settings, dict[str, Any]]) -> str:
    """Writes the figures as a table, with notes below."""
    rows = [
        [title(run), str(figures['parameters']), *(f'{figures[key]:.2f}' for key in ('neg_elbo', 'nll', 'ms_per_step'))]
        for run, figures in results.items()
    ]
    count = next(iter(results.values()))['images']
    note = f'Nats per image, means over {count} test images, of one seed. NLL: an upper bound, by importance weighting.'
    return '\n'.join(['', _common.format_table(['posterior', 'parameters', '-ELBO', 'NLL', 'ms/step'], rows), note])


def plot(results: Mapping[Settings, dict[str, Any]], output_dir: pathlib.Path) -> None:
    """Draws test images, and every model's reconstructions and samples, as pixel probabilities."""
    count = 12
    images = _images.load_data(next(iter(results)).data).test[:count]
    models = {title(run): keras.saving.load_model(output_dir / 'runs' / f'{run.name}.keras') for run in results}
    rows = {'test images': images}
    rows |= {f'reconstructed, {name}': tf.sigmoid(model(images)) for name, model in models.items()}
    for run, (name, model) in zip(results, models.items(), strict=True):
        noise = np.random.default_rng(0).normal(size=[count, run.latent_size])
        rows[f'sampled, {name}'] = tf.sigmoid(model.get_layer('decoder')(noise.astype(np.float32)))
    pictures = {label: np.squeeze(np.asarray(row), axis=-1) for label, row in rows.items()}
    _plots.plot_images({'': pictures}, output_dir / 'reconstructions_and_samples.png')


def write(results: Mapping[Settings, dict[str, Any]], path: pathlib.Path) -> None:
    """Writes the flags, the versions of the libraries, and every run's settings and figures as JSON."""
    used = _records.used_flags()
    runs = [{**dataclasses.asdict(run), **figures} for run, figures in results.items()]
    _common.write_json(path, {'flags': used, 'versions': _records.versions(sklearn), 'runs': runs})
