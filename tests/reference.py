"""A flow in NumPy, unit by unit, written from the papers' equations: slow, plain, and without any code of the package.

The weights come from the variables of a `MaskedAutoregressiveNetwork`, by name: `kernel_l` and `bias_l` of layer l,
`[in, out]`, with rows and columns sorted by degree, and `context_kernel`, which feeds the first hidden layer. The
outputs of the entry of rank r are the columns r * P to r * P + P - 1.
"""

import numpy as np


def elu(x):
    return x if x > 0 else np.expm1(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def weights_of(network):
    """The variables' values by name, NumPy arrays in float64."""
    return {v.name.split(':')[0]: v.numpy().astype(np.float64) for v in network.trainable_variables}


def made(weights, order, params, x, context=None):
    """The parameters [D, P] of one event x [D], in the entries' own places."""
    size = len(order)
    inputs = [x[entry] for entry in order]
    degrees = [rank + 1 for rank in range(size)]  # the entry of rank r is seen by units of degree r + 1 and above
    layers = sum(name.startswith('kernel_') for name in weights)
    lowest = 0 if context is not None or size == 1 else 1
    for layer in range(layers):
        kernel, bias = weights[f'kernel_{layer}'], weights[f'bias_{layer}']
        is_last = layer == layers - 1
        units = bias.size
        outputs, output_degrees = [], []
        for unit in range(units):
            degree = unit // params if is_last else lowest + unit * (size - lowest) // units
            total = bias[unit]
            for source in range(len(inputs)):
                if degree >= degrees[source]:
                    total += kernel[source, unit] * inputs[source]
            if layer == 0 and context is not None:
                for source in range(context.size):
                    total += weights['context_kernel'][source, unit] * context[source]
            outputs.append(total if is_last else elu(total))
            output_degrees.append(degree)
        inputs, degrees = outputs, output_degrees
    result = np.zeros([size, params])
    for rank, entry in enumerate(order):
        result[entry] = inputs[rank * params : (rank + 1) * params]
    return result


def gated(x, params, gate_bias=2.0):
    """The LSTM-style step: y = g * x + (1 - g) * m, and the sum of log g."""
    y, log_det = np.zeros_like(x), 0.0
    for i in range(x.size):
        m, gate = params[i, 0], sigmoid(params[i, 1] + gate_bias)
        y[i] = gate * x[i] + (1 - gate) * m
        log_det += np.log(gate)
    return y, log_det


def affine(x, params, max_log_scale=8.0):
    """The step y = sigma * x + m with a bounded log-scale, and the sum of log sigma."""
    y, log_det = np.zeros_like(x), 0.0
    for i in range(x.size):
        m, log_scale = params[i, 0], max_log_scale * np.tanh(params[i, 1] / max_log_scale)
        y[i] = np.exp(log_scale) * x[i] + m
        log_det += log_scale
    return y, log_det


def spline(x, params, bound=5.0, min_bin_size=1e-2, min_slope=1e-2):
    """Rational quadratics between knots, Eq. 4 and 5 of "Neural Spline Flows", and the sum of their log-derivatives."""
    y, log_det = x.copy(), 0.0
    bins = (params.shape[1] + 1) // 3
    for i in range(x.size):
        if not -bound < x[i] < bound:
            continue
        corners = []
        for logits in (params[i, :bins], params[i, bins : 2 * bins]):
            shares = min_bin_size + (1 - bins * min_bin_size) * np.exp(logits) / np.sum(np.exp(logits))
            corners.append([-bound + 2 * bound * np.sum(shares[:k]) for k in range(bins + 1)])
        largest = -np.log(min_slope)
        slopes = [1.0, *(np.exp(largest * np.tanh(a / largest)) for a in params[i, 2 * bins :]), 1.0]
        k = max(k for k in range(bins) if corners[0][k] <= x[i])
        (x0, x1), (y0, y1), (d0, d1) = corners[0][k : k + 2], corners[1][k : k + 2], slopes[k : k + 2]
        s, t = (y1 - y0) / (x1 - x0), (x[i] - x0) / (x1 - x0)
        denominator = s + (d1 + d0 - 2 * s) * t * (1 - t)
        y[i] = y0 + (y1 - y0) * (s * t**2 + d0 * t * (1 - t)) / denominator
        log_det += np.log(s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / denominator**2)
    return y, log_det


def chain(networks, transform, x, context=None):
    """z_T and the sum over the steps of the log-dets, for one event x; `networks` as (weights, order, P)."""
    total = 0.0
    for weights, order, params in networks:
        x, log_det = transform(x, made(weights, order, params, x, context))
        total += log_det
    return x, total
