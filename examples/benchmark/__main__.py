"""How fast is the flow? Ours beside TFP's, Pyro's, zuko's, flowjax's and NumPyro's, or beside another checkout of it.

Everyone takes turns in one process, so that whatever else the machine does affects all of them: read the ratios, not
the milliseconds. Peers that are not installed are skipped; `pip install -e ".[benchmark]"` installs them. Prints
medians and quartiles over rounds, and writes all measurements to `results.csv`.

    python -m benchmark --quick                              # a try, with tiny networks
    python -m benchmark --suites chains                      # the first tables of docs/speed.md
    python -m benchmark --suites chains inverse --other ../../before --beside other
    python -m benchmark --sizes 64x256x4x128 --works sample_gradient log_prob --beside TFP dense
    python -m benchmark --sizes 64x256x4x128 --works sample_gradient --beside TFP --profile
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
from collections.abc import Sequence

from benchmark import cases, timing
from benchmark.peers import PEERS


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line, and the plan that they ask for."""
    described = [*cases.WORKS.items(), *((name, entry.text) for name, entry in cases.NAMES.items())]
    explained = '\n'.join(f'  {name:18} {text}' for name, text in described)
    parser = argparse.ArgumentParser(
        prog='python -m benchmark',
        description=__doc__,
        epilog=f'works and implementations:\n{explained}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--suites', nargs='+', choices=cases.SUITES, metavar='SUITE', default=['chains'], help='of %(choices)s')
    add('--sizes', nargs='+', metavar='SIZE', default=[], help="instead of the suites': DxHxTxbatch[xC[xK]]")
    add('--works', nargs='+', choices=cases.WORKS, metavar='WORK', default=[], help="instead of the suites'")
    add('--modes', nargs='+', choices=cases.MODES, metavar='MODE', default=[], help="instead of the suites'")
    names = list(cases.NAMES)
    add('--beside', nargs='+', choices=names, metavar='NAME', default=names, help='what to time beside tfp_iaf')
    add('--other', metavar='PATH', help='another checkout of the package, to time beside this one')
    add('--rounds', type=int, default=7, help='number of rounds, default %(default)s')
    add('--seconds', type=float, default=0.3, help='least time of a measurement in a round, default %(default)s')
    add('--threads', type=int, default=0, help='threads of every library, one a core if not given')
    add('--fit-steps', type=int, default=3000, help='steps of a fit, default %(default)s')
    add('--quick', action='store_true', help='tiny sizes, one mode, one round')
    add('--profile', action='store_true', help='instead, show on which operations of TensorFlow a step spends its time')
    add('--output-dir', type=pathlib.Path, default=pathlib.Path('results/benchmark'))
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.fit_steps = 1, 0.0, 10
    try:
        options.plan = cases.plan(options.suites, options.sizes, options.works, options.modes, options.quick)
    except ValueError as error:
        parser.error(str(error))
    if not options.plan:
        parser.error('nothing to measure: no implementation does these works at these sizes in these modes')
    return options


def set_up(threads: int, one_by_one: bool) -> None:
    """Sets threads, memory and precision of all libraries, before any is imported."""
    threads = timing.pin_threads(threads)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # A GPU's memory is for all libraries, and float32 has the same precision in all.
    os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'float32')
    if importlib.util.find_spec('triton'):
        importlib.import_module('triton')  # PyTorch imports it late, and it crashes if TensorFlow was first
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1 if one_by_one else threads)
    print(f'{threads} threads, {", ".join(device.name for device in tf.config.list_physical_devices())}')


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes."""
    options = parse_arguments(arguments)
    set_up(options.threads, options.profile)
    import pandas as pd

    from benchmark import measure, packages, report

    names = {'tfp_iaf', *options.beside} - (set() if options.other else {'other'})
    for name, (module, package) in PEERS.items():
        if importlib.util.find_spec(module):
            print(f'{name} {importlib.metadata.version(package)}')
        elif name in names:
            print(f'Skipped {name}: {package} is not installed.')
            names.remove(name)
    if options.other:
        packages.load_other(options.other)
    print('\n'.join(f'{name} {package.__version__}' for name, package in packages.PACKAGES.items()))
    plan = {key: [entry for entry in candidates if entry[0] in names] for key, candidates in options.plan.items()}
    if options.profile:
        for (size, work), candidates in plan.items():
            table = measure.profile_table(size, work, candidates)
            print(f'\n{cases.WORKS[work]}, {size}, ms per step:\n{table.to_string(float_format="{:.3f}".format)}')
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tables: list[pd.DataFrame] = []
    for (size, work), candidates in plan.items():
        tables.append(measure.measure(size, work, candidates, options.fit_steps, options.rounds, options.seconds))
        pd.concat(tables).to_csv(options.output_dir / 'results.csv', index=False)  # so far, if this is interrupted
        print(report.ratio_table(tables[-1]).to_string(index=False), flush=True)
    measured = pd.concat(tables)
    print(f'\nMilliseconds: median (quartiles) over rounds\n{report.time_table(measured).to_string(index=False)}')
    for work, part in measured.groupby('work', sort=False):
        print(f"\n{cases.WORKS[work]}: our time / other's\n{report.ratio_table(part).to_string(index=False)}")
    print(f'\nWrote results.csv to {options.output_dir}.')


if __name__ == '__main__':
    main()
