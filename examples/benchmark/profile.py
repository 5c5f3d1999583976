"""Where the time of a step goes: what TensorFlow's profiler records, by kind of operation."""

import pathlib
import re
import tempfile
import time

import pandas as pd
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmark.timing import Step

# Kinds of operation, by what their types' names contain; the first that fits counts.
KINDS = {
    # What contains other operations, whose time would count twice.
    'control flow': '^(Partitioned|StatefulPartitioned)Call|^(Stateless)?(While|If|Case)$',
    'matrix products': 'MatMul',  # with bias and activation, where TensorFlow fuses them
    'masks': 'Select',
    'activations': 'Elu|Relu|Selu',
    'copies and layout': (
        'Reshape|Transpose|Concat|Slice|Split|Pack|Reverse|Gather|Scatter|Tile|Broadcast|ExpandDims|Squeeze|Pad|Fill|'
        'ZerosLike|OnesLike|Shape|Diag|Layout|ToTf'
    ),
    'other operations': '',
}


def kind_of(op_type: str) -> str:
    """Returns the kind of an operation."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, op_type))


def profile(step: Step, calls: int = 50) -> pd.Series:
    """Returns the milliseconds of a step by kind of operation; the rest of the time is between operations.

    Operations must run one at a time, so that their times add up.
    """
    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        total = 1e3 * (time.perf_counter() - start) / calls
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(directory).rglob('*.xplane.pb')
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    milliseconds = dict.fromkeys(KINDS, 0.0)
    for plane in space.planes:
        for line in plane.lines if plane.name == '/host:CPU' else ():
            for event in line.events:
                # An operation is called `name:Type`; other entries are what TensorFlow does around it.
                if match := re.fullmatch(r'[^:\s]+:(\w+)', plane.event_metadata[event.metadata_id].name):
                    milliseconds[kind_of(match[1])] += 1e-9 * event.duration_ps / calls
    del milliseconds['control flow']
    return pd.Series({**milliseconds, 'between operations': total - sum(milliseconds.values()), 'all': total})
