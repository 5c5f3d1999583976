"""The frame of the scripts that train VAEs of images with several posteriors, and compare them."""

from __future__ import annotations

import functools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import _evaluation
import _image_report
import _image_settings
import _image_vae
import _runs
import _script
from _datasets import Split
from _image_settings import Evaluation
from absl import flags, logging


def run(argv: Sequence[str], load: Callable[[], Split], **fixed: Any) -> None:
    """Trains and evaluates the VAEs that the command line says, and reports on them; what is finished is not repeated.

    Args:
        argv: The command line's arguments that are no flags.
        load: Gives the images: a function of a module, or a `functools.partial` of one.
        **fixed: Fields of `Settings` that the shared flags do not say.
    """
    _script.check_arguments(argv)
    started = time.perf_counter()
    logging.set_verbosity(logging.WARNING)  # TensorFlow has notes on every checkpoint
    options = flags.FLAGS
    try:
        data = load()
    except FileNotFoundError as error:
        sys.exit(str(error))
    runs = _image_settings.runs_from_flags(data=data.fingerprint, **fixed)
    # A device that is split is one of this process, as are the GPUs.
    jobs = options.jobs if options.strategy == 'none' else 1
    output_dir = pathlib.Path(options.output_dir)
    directory, evaluated_directory = output_dir / 'runs', output_dir / 'evaluations'
    if options.fresh:
        for settings in runs:
            shutil.rmtree(directory / settings.name, ignore_errors=True)
    counts = ', '.join(f'{len(images)} {part}' for part, images in data._asdict().items())
    print(f'{len(runs)} VAEs, {jobs} at a time. Images: {counts}.')
    trained = _runs.run_cached(
        functools.partial(_image_vae.train, load, options.tensorboard),
        runs,
        directory,
        jobs,
        options.fresh,
        _image_report.describe_training,
    )
    evaluations = [
        Evaluation(settings, options.nll_samples, options.nll_images, grid_size=options.grid_size) for settings in runs
    ]
    evaluated = _runs.run_cached(
        functools.partial(_evaluation.evaluate, load, directory),
        evaluations,
        evaluated_directory,
        jobs,
        options.fresh,
        _image_report.describe_evaluation,
    )
    groups = _image_report.group(trained, evaluated, evaluated_directory)
    rows = _image_report.aggregate(groups)
    print(_image_report.report(groups, rows))
    _image_report.plot_curves(groups, output_dir / 'learning_curves.png')
    _image_report.plot_models(groups, data, directory, output_dir)
    _script.write({'aggregated': rows, 'runs': _image_report.of_runs(groups)}, output_dir, started)
