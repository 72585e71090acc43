"""Every number a second time: slow, plain, and written from the definitions.

Statistics take an array and use numpy and scipy in float64, one line a statistic.
Indicators take a trace and use no array operation; they return the measure of the last
epoch, `nan` where there is none.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from fractions import Fraction

import numpy as np
import scipy.stats

INF, NAN = math.inf, math.nan


def first_loss(trace):
    return trace.records[0].scalars.get("first_batch_loss", NAN)


def curve(trace, name="loss"):
    return [record.scalars.get(name, NAN) for record in trace.records]


def finite(values):
    return all(math.isfinite(value) for value in values)


def layer_means(trace, name):
    """Mean over the kernel elements of each layer at the last epoch."""
    header, values = trace.header, trace.records[-1].columns.get(name)
    if values is None:
        return []
    means = []
    for layer in header.layers:
        total, count = 0.0, 0
        for v, owner in enumerate(header.variable_layers):
            if owner == layer and header.kernels[v]:
                total += values[v] * header.variable_sizes[v]
                count += header.variable_sizes[v]
        means.append(total / count)
    return means


def agv(trace):
    record, header = trace.records[-1], trace.header
    for name in ("loss", "val_loss"):
        if not math.isfinite(record.scalars.get(name, 0.0)):
            return INF
    least = 0.5 if header.loss_scaled else 1.0
    if not header.gradients_clipped and any(
        share < least for share in record.columns.get("step_gradient/finite", ())
    ):
        return INF
    if header.gradients_clipped:
        return NAN
    gradients = layer_means(trace, "step_gradient/abs_mean_median")
    if not gradients:
        return NAN
    first = first_loss(trace)
    return max(gradients) / (max(1.0, abs(first)) if math.isfinite(first) else 1.0)


def edge_ratios(trace):
    gradients = layer_means(trace, "step_gradient/abs_mean")
    if not gradients or not finite(gradients):
        return None
    ratios = []
    for u, v in trace.header.edges:
        if gradients[u] == gradients[v] == 0:
            continue
        ratios.append(INF if gradients[v] == 0 else gradients[u] / gradients[v])
    return sorted(ratios) if len(ratios) >= 2 else None


def eag(trace):
    ratios = edge_ratios(trace)
    return NAN if ratios is None else statistics.median_low(ratios)


def erg(trace):
    gradients = layer_means(trace, "step_gradient/abs_mean")
    if gradients and finite(gradients):
        dead = [gradient == 0 for gradient in gradients]
        later = {v for _, v in trace.header.edges}
        first = [dead[k] for k in range(len(dead)) if k not in later]
        if all(first) or sum(dead) >= len(dead) / 2:
            return 0.0
    ratios = edge_ratios(trace)
    return NAN if ratios is None else statistics.median_high(ratios)


def rising_epochs(trace):
    """Leading epochs of the recorded learning rate, as far as it rises."""
    rates = curve(trace, "learning_rate")
    rising = 0
    for before, after in itertools.pairwise(rates):
        if not after > before:
            break
        rising += 1
    return max(rising + 1 if rising else 0, trace.header.warmup_epochs)


def plc(trace):
    losses = curve(trace)
    penalties = curve(trace, "regularization")
    losses = [
        loss - (penalty if math.isfinite(penalty) else 0.0)
        for loss, penalty in zip(losses, penalties, strict=True)
    ]
    first = first_loss(trace)
    penalty = trace.records[0].scalars.get("first_regularization", NAN)
    if math.isnan(first):
        losses.insert(0, NAN)
    else:
        losses.insert(0, first - (penalty if math.isfinite(penalty) else 0.0))
    losses = losses[rising_epochs(trace) :]
    if losses and math.isnan(losses[0]):
        losses = losses[1:]
    if len(losses) < 3 or not finite(losses):
        return NAN
    scale = max(abs(loss) for loss in losses)
    if scale < 1e-12:
        return NAN
    gaps = [abs(b - a) for a, b in itertools.pairwise(losses)]
    return sum(gaps) / len(gaps) / scale


def lar(trace):
    if "activation" in trace.header.unobserved:
        shares = layer_means(trace, "step_gradient/zero_ratio")
    else:
        shares = trace.records[-1].columns.get("activation/constant_ratio", ())
    shares = [share for share in shares if not math.isnan(share)]
    return statistics.median(shares) if shares else NAN


def window_length(planned):
    return min(20, max(4, round(0.3 * planned)))


def ulc(trace):
    planned, losses = trace.header.max_epochs, curve(trace)
    if planned is None or trace.header.initial_epoch > 0:
        return NAN
    w = window_length(planned)
    window = losses[-w:]
    if len(window) < w or not finite(window):
        return NAN
    rates = curve(trace, "learning_rate")[-w:]
    if any(b > a for a, b in itertools.pairwise(rates)):
        return NAN
    known = [x for x in [first_loss(trace), *losses] if not math.isnan(x)]
    scale = max(sum(abs(x) for x in window) / w, 0.1 * max(abs(x) for x in known))
    if scale < 1e-12:
        return NAN
    middle, mean = (w - 1) / 2, sum(window) / w
    slope = sum((i - middle) * (x - mean) for i, x in enumerate(window)) / sum(
        (i - middle) ** 2 for i in range(w)
    )
    if slope * (w - 1) / scale < 0.05:
        return 0.0
    return math.sqrt(sum((x - mean) ** 2 for x in window) / w) / scale


def nmg(trace):
    planned, losses = trace.header.max_epochs, curve(trace)
    if planned is None:
        return NAN
    w = window_length(planned)
    if len(losses) < w + 1 or not finite(losses):
        return NAN
    objective = curve(trace, "objective")
    if not finite(objective):
        return NAN
    if trace.header.direction == "max":
        objective = [-value for value in objective]
    if min(objective[-w:]) < min(objective[:-w]):
        return 0.0
    best = min(losses)
    age = next(k for k in range(len(losses)) if losses[-1 - k] == best)
    return age / w


SEVEN = {
    "AGV": agv,
    "EAG": eag,
    "ERG": erg,
    "PLC": plc,
    "LAR": lar,
    "ULC": ulc,
    "NMG": nmg,
}


def summarize(tensor: np.ndarray) -> dict[str, float]:
    """Summarizes all elements by numpy and scipy, one line a statistic."""
    everything = np.asarray(tensor).astype(np.float64).ravel()
    finite = float(np.isfinite(everything).all())
    x = everything[np.isfinite(everything)]
    names = "mean variance median minimum maximum lower_quartile upper_quartile "
    names += "skewness kurtosis zero_ratio abs_mean"
    if x.size == 0:
        return dict.fromkeys(names.split(), math.nan) | {"finite": finite}
    # Centred moments do not change under a shift; without it scipy itself loses the
    # digits of values such as 1e6 + 1e-2 * noise.
    near_zero = x - x[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns of constants
        skewness = float(scipy.stats.skew(near_zero, bias=True))
        kurtosis = float(scipy.stats.kurtosis(near_zero, bias=True, fisher=True))
    return {
        "mean": math.fsum(x) / x.size,
        "variance": float(np.var(near_zero)),
        "median": float(np.median(x)),
        "minimum": min(x.tolist()),
        "maximum": max(x.tolist()),
        "lower_quartile": float(np.quantile(x, 0.25, method="linear")),
        "upper_quartile": float(np.quantile(x, 0.75, method="linear")),
        "skewness": skewness,
        "kurtosis": kurtosis,
        "zero_ratio": sum(value == 0.0 for value in x.tolist()) / x.size,
        "abs_mean": math.fsum(abs(value) for value in x.tolist()) / x.size,
        "finite": finite,
    }


def sample(tensor: np.ndarray) -> dict[str, float]:
    """Measures all elements by plain Python."""
    everything = [float(value) for value in np.asarray(tensor).ravel().tolist()]
    sizes = [abs(value) for value in everything if math.isfinite(value)]
    finite = float(len(sizes) == len(everything))
    if not sizes:
        return dict.fromkeys(("abs_mean", "abs_max", "zero_ratio"), math.nan) | {
            "finite": finite
        }
    return {
        "abs_mean": math.fsum(sizes) / len(sizes),
        "abs_max": max(sizes),
        "zero_ratio": sizes.count(0.0) / len(sizes),
        "finite": finite,
    }


def exact_moments(tensor: np.ndarray) -> dict[str, float]:
    """Computes the moments in rational arithmetic, which never rounds."""
    x = [Fraction(value) for value in tensor.ravel().tolist()]
    mean = sum(x) / len(x)
    second, third, fourth = (
        sum((value - mean) ** power for value in x) / len(x) for power in (2, 3, 4)
    )
    # The only roundings are here. The ratios are taken before the root, so that the
    # moments of tiny values do not underflow.
    skewness = math.copysign(math.sqrt(third**2 / second**3), third)
    return {
        "mean": float(mean),
        "variance": float(second),
        "skewness": skewness,
        "kurtosis": float(fourth / second**2 - 3),
        "abs_mean": float(sum(abs(value) for value in x) / len(x)),
    }
