"""What a graph would do on a GPU, found out on a machine without one.

TensorFlow's packages for Linux register their GPU kernels wherever they run, and its graph optimizer takes devices that
are not there.
"""

import collections
import functools

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.framework import kernels
from tensorflow.python.grappler import cluster, tf_optimizer
from tensorflow.python.training import saver

GPU = '/job:localhost/replica:0/task:0/device:GPU:0'
CPU = '/job:localhost/replica:0/task:0/device:CPU:0'

# Operations that launch nothing: they bring constants or variables, reinterpret memory, or work with sizes on the host.
FREE = {
    *('Assert', 'BroadcastArgs', 'BroadcastGradientArgs', 'ConcatOffset', 'Const', 'EnsureShape', 'ExpandDims'),
    *('Identity', 'IdentityN', 'NoOp', 'Placeholder', 'PreventGradient', 'Rank', 'ReadVariableOp', 'Reshape', 'Shape'),
    *('ShapeN', 'Size', 'Snapshot', 'Squeeze', 'StatelessRandomGetKeyCounter', 'StopGradient', 'VarHandleOp', '_Arg'),
    *('_HostConst', '_Retval'),
}
CALLS = {'If', 'PartitionedCall', 'StatefulPartitionedCall', 'StatelessIf', 'StatelessWhile', 'While'}


@functools.cache
def _registered():
    found = collections.defaultdict(list)
    for kernel in kernels.get_all_registered_kernels().kernel:
        found[kernel.op].append(kernel)
    return found


def is_known_here():
    """Whether this TensorFlow has GPU kernels at all."""
    return any(kernel.device_type == 'GPU' for kernel in _registered()['MatMul'])


def has_gpu_kernel(node):
    """Whether an operation can run on a GPU, for the dtypes that it has."""
    return any(
        kernel.device_type in ('GPU', 'DEFAULT') and all(_allows(node, constraint) for constraint in kernel.constraint)
        for kernel in _registered()[node.op]
    )


def _allows(node, constraint):
    attribute = node.attr[constraint.name]
    allowed = set(constraint.allowed_values.list.type)
    return set(attribute.list.type or [attribute.type]) - {0} <= allowed


def nodes_of(graph_def):
    """Yields the operations of a graph, and of the functions that it calls."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _works_on_the_host(node):
    # TensorFlow keeps int32 on the host: sizes, axes and counters.
    names = ('T', 'dtype', 'out_type', 'DstT', 'output_type', 'Tparams')
    return any(node.attr[name].type == tf.int32.as_datatype_enum for name in names if name in node.attr)


def launches(function):
    """Counts the kernels that a concrete function without loops launches, by operation, once its graph is optimized."""
    graph_def = function.graph.as_graph_def(add_shapes=True)
    for node in nodes_of(graph_def):
        node.device = GPU if has_gpu_kernel(node) and not _works_on_the_host(node) else CPU
    meta_graph = saver.export_meta_graph(graph_def=graph_def, graph=function.graph)
    meta_graph.graph_def.CopyFrom(graph_def)
    fetched = [output.name for output in function.graph.outputs if output is not None]
    meta_graph.collection_def['train_op'].CopyFrom(meta_graph_pb2.CollectionDef())
    meta_graph.collection_def['train_op'].node_list.value.extend(fetched)
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.TWO
    optimized = tf_optimizer.OptimizeGraph(config, meta_graph, cluster=_virtual_cluster(), verbose=False)
    return collections.Counter(
        node.op for node in nodes_of(optimized) if node.op not in FREE | CALLS and not _works_on_the_host(node)
    )


@functools.cache
def _virtual_cluster():
    properties = device_properties_pb2.DeviceProperties
    gpu = properties(
        type='GPU',
        vendor='NVIDIA',
        num_cores=132,
        environment={'architecture': '9.0', 'cuda': '12050'},
        memory_size=2**36,
    )
    cpu = properties(type='CPU', num_cores=16, memory_size=2**36)
    devices = [device_properties_pb2.NamedDevice(name=name, properties=each) for name, each in ((CPU, cpu), (GPU, gpu))]
    return cluster.Cluster(disable_detailed_stats=True, disable_timeline=True, devices=devices)
