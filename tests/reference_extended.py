"""Every measure of the further rules a second time: slow, plain, from the definitions.

They take a trace and use no array operation; they return the measure of the last epoch,
`nan` where there is none.
"""

from __future__ import annotations

import itertools
import math
import statistics

from reference import INF, NAN, curve, finite

REACH = {"sigmoid": (0, 1), "softmax": (0, 1), "tanh": (-1, 1), "relu": (0, INF)}


def known(values):
    return [value for value in values if not math.isnan(value)]


def newest(trace, name):
    values = known(curve(trace, name))
    return values[-1] if values else NAN


def column(trace, name, record=-1):
    return list(trace.records[record].columns.get(name, ()))


def largest(values):
    return max(known(values), default=NAN)


def net_losses(trace):
    """l0, l1 .. ln without penalties."""
    first = trace.records[0].scalars
    start = first.get("first_batch_loss", NAN)
    if first.get("regularization", NAN) > 0:
        start -= first.get("first_regularization", NAN)
    values = [start]
    for record in trace.records:
        penalty = record.scalars.get("regularization", NAN)
        loss = record.scalars.get("loss", NAN)
        values.append(loss - (0.0 if math.isnan(penalty) else penalty))
    return values


def settling(trace):
    return 5 if trace.max_epochs is None else max(1, trace.max_epochs // 20)


def window(trace):
    return 5 if trace.max_epochs is None else max(5, trace.max_epochs // 10)


def improving(trace, width=None):
    values = [value for value in net_losses(trace) if math.isfinite(value)]
    if trace.header.initial_epoch > 0 or len(values) < 2:
        return True
    width = window(trace) if width is None else width
    start = max(1, len(values) - width)
    best = min(values[:start])
    enough = 0.05 * min(abs(values[0]), abs(best))
    if enough < 0.05e-12:
        return True
    if best - min(values[start:]) >= enough * len(values[start:]) / width:
        return True
    if len(values) < 4:
        return False
    return sum(values[-4:-2]) / 2 - sum(values[-2:]) / 2 >= enough


def has_learned(trace):
    values = net_losses(trace)
    first = [value for value in values if math.isfinite(value)][:1]
    recent = [x for x in values[1:][-window(trace) :] if math.isfinite(x)]
    if not first or not recent or trace.header.initial_epoch > 0:
        return True
    constant = newest(trace, "label/trivial_loss")
    if constant > 1e-12:
        error = newest(trace, "label/trivial_error")
        doubt = 0.0 if math.isnan(error) else 2 * error
        return min(recent) <= 0.95 * (constant + doubt)
    return first[0] - min(recent) >= 0.1 * abs(first[0])


def two_falls(trace):
    """Both of the last two changes of the loss as falls, per the largest |loss|."""
    last = net_losses(trace)[1:][-3:]
    if len(last) < 3 or not finite(last):
        return 0.0, 0.0
    a, b, c = last
    scale = max(abs(a), abs(b), abs(c))
    return ((a - b) / scale, (b - c) / scale) if scale >= 1e-12 else (0.0, 0.0)


def taking_off(trace):
    first, second = two_falls(trace)
    return 0 < first < second and first + second >= 0.002


def falling(trace):
    first, second = two_falls(trace)
    if first <= 0 or second <= 0 or first + second < 0.01:
        return False
    values = net_losses(trace)
    start = next(value for value in values if math.isfinite(value))
    if values[-1] > start and trace.max_epochs is not None:
        if values[-1] <= 0:
            return False
        end = values[-1]
        for _ in range(trace.epoch, trace.max_epochs):
            end *= values[-1] / values[-2]
        return end < start
    return True


def keeping_pace(trace):
    """A fall in every epoch of the last 5 % of the plan that goes on as it began."""
    if trace.max_epochs is None:
        return False
    half = max(3, settling(trace) // 2)
    last = net_losses(trace)[1:][-(2 * half + 1) :]
    if len(last) <= 2 * half or not finite(last):
        return False
    if any(b >= a for a, b in itertools.pairwise(last)):
        return False
    older, newer = last[0] - last[half], last[half] - last[2 * half]
    if newer < 2 / 3 * older:
        return False
    to_come = newer / half * (trace.max_epochs - trace.epoch)
    return to_come >= 0.01 * max(abs(x) for x in last)


def judged(trace):
    """The losses by which the outlook is judged, one per epoch."""
    steps = sum(known(curve(trace, "steps")))
    checks = curve(trace, "val_loss")
    by_loss = trace.header.objective in ("loss", "val_loss")
    lags = steps < 3 * trace.header.averaging_steps
    if not by_loss or lags or not math.isfinite(checks[-1]):
        return net_losses(trace)[1:]
    penalties = curve(trace, "regularization")
    return [
        check - (0.0 if math.isnan(penalty) else penalty)
        for check, penalty in zip(checks, penalties, strict=True)
    ]


def bound(trace):
    """Multiple of the loss of a constant that a training must get below."""
    late = trace.epoch > (trace.max_epochs or 0) // 2
    limit = 0.99 if late and not keeping_pace(trace) else 1.05
    error = newest(trace, "label/trivial_error")
    constant = newest(trace, "label/trivial_loss")
    return limit + 5 * error / constant if error > 0 else limit


def expected(values, left, size):
    """Where a curve will be, from the means of its last three blocks."""
    blocks, rest = [], list(values)
    while len(rest) >= size:
        blocks.append(sum(rest[-size:]) / size)
        rest = rest[:-size]
    if len(blocks) < 2:
        return NAN
    last, before = blocks[:2]
    if not last < before:
        return last
    blocks_left = (left + (size - 1) / 2) / size
    slowing = len(blocks) > 2 and last > 0 and last / before >= before / blocks[2]
    if slowing:
        return last * (last / before) ** blocks_left
    return last - (before - last) * blocks_left


def hopeless(trace):
    planned, constant = trace.max_epochs, newest(trace, "label/trivial_loss")
    if planned is None or trace.header.initial_epoch > 0 or not constant > 1e-12:
        return False
    size = max(2, planned // 20)
    if len(trace) < 2 * size or trace.epoch < max(2 * size, 0.2 * planned):
        return False
    values = judged(trace)
    if not finite(values[-3 * size :]):
        return False
    least = min(values[-2 * size :])
    rates = curve(trace, "learning_rate")
    lately = itertools.pairwise(rates[-2 * size :])
    ahead = trace.header.planned_learning_rates[trace.epoch :]
    rises = any(b > a for a, b in (*lately, *itertools.pairwise(ahead)))
    rising = len(rates) > 1 and all(b > a for a, b in itertools.pairwise(rates))
    if rises or rising or trace.epoch <= trace.header.warmup_epochs:
        first = net_losses(trace)[0]
        first = 0.0 if math.isnan(first) else abs(first)
        if not least > 3 * max(first, constant):
            return False
    limit = bound(trace) * constant
    first, last = sum(values[:size]) / size, sum(values[-size:]) / size
    learns = net_losses(trace)[-1] < constant
    if learns and first > 1.5 * constant and last < first:
        return False
    return least > limit and expected(values, planned - trace.epoch, size) > limit


def output_loss_mismatch(trace):
    if not trace.header.outputs:
        return NAN
    found = 0
    for output in trace.header.outputs:
        head, loss, logits = (output[k] for k in ("activation", "loss", "from_logits"))
        spread = trace.records[0].scalars.get("output/initial_spread", NAN)
        if head == "softmax" and output["units"] == 1 and not spread > 1e-6:
            found += 1
        low, high = float(output["target_min"]), float(output["target_max"])
        if loss in ("mean_squared_error", "mean_absolute_error") and head in REACH:
            below, above = REACH[head]
            outside = max(0, below - low) + max(0, high - above)
            found += outside > 0.01 * (high - low)
        if head is None:
            continue
        if loss in ("categorical_crossentropy", "sparse_categorical_crossentropy"):
            found += head in ("softmax", "sigmoid") if logits else head != "softmax"
        if loss == "binary_crossentropy":
            fits = head in ("softmax", "sigmoid")
            found += (fits or head == "hard_sigmoid") != (not logits) and (
                fits or not logits
            )
    return float(found)


def input_scale(trace):
    inputs = trace.header.inputs
    if inputs.get("finite") is False:
        return INF
    size = float(inputs.get("abs_max", NAN))
    ratio = float(inputs.get("std_ratio", NAN))
    bound = 2 if inputs.get("image") and inputs.get("integers") else 100
    return ratio if ratio / 1000 > size / bound else size


def layer_numbers(trace, name, pool):
    """Per layer the pooled numbers of its kernels; `nan` where one is unknown."""
    header, values = trace.header, column(trace, name, 0)
    numbers = {}
    for layer in header.layers:
        own = [
            values[v]
            for v, owner in enumerate(header.variable_layers)
            if values and owner == layer and header.kernels[v]
        ]
        unknown = not own or any(math.isnan(value) for value in own)
        numbers[layer] = NAN if unknown else pool(own)
    return numbers


def poor_init(trace):
    header = trace.header
    signs = []
    alike = layer_numbers(trace, "weight/initial_symmetric", min)
    if known(alike.values()):
        sign = False
        for u, layer in enumerate(header.layers):
            fed = [alike[header.layers[v]] for a, v in header.edges if a == u]
            if alike[layer] == 1 and fed and not any(value < 1 for value in fed):
                sign = True
        signs.append(sign)
    stds = [x for x in column(trace, "activation/initial_std", 0) if math.isfinite(x)]
    if len(stds) >= 2:
        signs.append(max(stds) > 1000 * min(stds))
    spread = trace.records[0].scalars.get("output/initial_spread", NAN)
    if not math.isnan(spread):
        signs.append(spread < 1e-4)
    outputs = trace.header.outputs
    loss = (outputs[0]["loss"] or "") if len(outputs) == 1 else ""
    if "crossentropy" in loss:
        classes = 2 if "binary" in loss else max(2, outputs[0]["units"])
        if not math.isnan(net_losses(trace)[0]):
            signs.append(net_losses(trace)[0] > 5 * math.log(classes))
    elif not math.isnan(spread):
        signs.append(spread > 5)
    norms = layer_numbers(trace, "gradient/initial_norm", lambda own: math.hypot(*own))
    if known(norms.values()):
        fed = {header.layers[v] for _, v in header.edges}
        feeding = {header.layers[u] for u, _ in header.edges}
        first = largest(norm for name, norm in norms.items() if name not in fed)
        last = largest(norm for name, norm in norms.items() if name not in feeding)
        if not math.isnan(first):
            signs.append(first < 1e-7 or first < 0.01 * last)
    whole = known(column(trace, "weight/initial_finite", 0))
    if whole:
        signs.append(min(whole) < 1)
    return float(sum(signs)) if signs else NAN


def learning_rate(trace):
    rates = curve(trace, "learning_rate")
    ahead = trace.header.planned_learning_rates[trace.epoch :]
    rises = any(b > a for a, b in itertools.pairwise(ahead))
    rising = len(rates) > 1 and all(b > a for a, b in itertools.pairwise(rates))
    warming = rising or trace.epoch <= trace.header.warmup_epochs
    risen = any(rate > rates[0] for rate in rates)
    if largest(rates) > (0.1 if trace.header.adaptive_optimizer else 1.0):
        return largest(rates)
    return NAN if rates[0] < 1e-7 and (rises or warming or risen) else rates[0]


def high_dropout(trace):
    return max(trace.header.dropout_rates, default=NAN)


def linear_stack(trace):
    return float(len(trace.header.linear_pairs))


def rate_lowered(trace):
    rates = known(curve(trace, "learning_rate"))
    return bool(rates) and rates[-1] < 0.5 * max(rates)


def update_ratio(trace):
    ratios = known(column(trace, "update/ratio"))
    if not ratios:
        return NAN
    ratio, smallest = statistics.median(ratios), 5e-5
    steps = curve(trace, "steps")[-1]
    if trace.max_epochs is not None and steps > 0:
        smallest = max(5e-5, min(0.05 / (trace.max_epochs * steps), 0.01))
    return NAN if ratio < smallest and rate_lowered(trace) else ratio


def unchanged_weights(trace):
    steps, rates = curve(trace, "steps"), curve(trace, "learning_rate")
    back = 0
    while back < len(steps) and not sum(steps[len(steps) - back :]) >= 20:
        back += 1
    if not sum(steps[len(steps) - back :]) >= 20 or rate_lowered(trace):
        return NAN
    if any(rate <= 0 for rate in rates[-back:]):
        return NAN
    stay = []
    for v in range(len(trace.header.variables)):
        moved = []
        for record in trace.records[-back:]:
            values = record.columns.get("update/moved")
            moved.append(NAN if values is None else values[v])
        if not any(math.isnan(value) for value in moved):
            stay.append(max(moved) <= 1)
    return sum(stay) / len(stay) if stay else NAN


def dead_units(trace):
    shares = known(column(trace, "activation/dead_ratio"))
    if not shares:
        return NAN
    mean = sum(shares) / len(shares)
    return mean if max(shares) <= 0.9 and mean > 0.7 else max(shares)


def saturation(trace):
    return largest(column(trace, "activation/saturated_ratio"))


def numeric_edge(trace):
    return largest(column(trace, "activation/abs_max"))


def collapsed_output(trace):
    labels = newest(trace, "output/label_top_share")
    if labels > 0.99:
        return NAN
    spreads = known(curve(trace, "output/spread"))
    spread = max(spreads[-2:]) if len(spreads) > 1 else NAN
    tops = known(curve(trace, "output/top_share"))
    others = 1 - min(tops[-2:]) if len(tops) > 1 else NAN
    planned = trace.max_epochs
    late = planned is not None and trace.epoch > planned // 2
    if late and not spread < 1e-4 and labels <= 0.9 and others < 0.01:
        return others
    return spread


def class_neglect(trace):
    return curve(trace, "output/neglected_share")[-1]


def no_progress(trace):
    values = net_losses(trace)
    if not finite(values[1:]):
        return NAN
    constant = newest(trace, "label/trivial_loss")
    if not math.isnan(constant):
        return min(values[1:]) / constant if constant > 1e-12 else NAN
    first = max(known(values[:2]))
    if abs(first) < 1e-12:
        return NAN
    return 1 - (first - min(values[1:])) / abs(first)


def loss_not_decreasing(trace):
    values, start = net_losses(trace), settling(trace)
    if len(trace) < start + window(trace) or trace.header.initial_epoch > 0:
        return NAN
    constant = newest(trace, "label/trivial_loss")
    constant = abs(values[0]) if math.isnan(constant) else constant
    if not finite(values[start:]) or not values[-1] > 0.5 * constant:
        return NAN
    if abs(values[start]) < 1e-12:
        return NAN
    return (values[start] - min(values[-window(trace) :])) / abs(values[start])


def regulariser_dominates(trace):
    if len(trace) < 2:
        return NAN
    losses, penalties = curve(trace), curve(trace, "regularization")
    if not finite(losses[-2:] + penalties[-2:]) or min(losses[-2:]) <= 0:
        return NAN
    before, now = (penalties[k] / losses[k] for k in (-2, -1))
    return now if now > before else 0.0


def oscillation(trace):
    values = net_losses(trace)
    last = values[1:][-10:]
    rates = curve(trace, "learning_rate")[-10:]
    if len(last) < 10 or not finite(last):
        return NAN
    if any(b > a for a, b in itertools.pairwise(rates)):
        return NAN
    if max(abs(value) for value in last) < 1e-12:
        return NAN
    changes = [b - a for a, b in itertools.pairwise(last)]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(changes))
    slope = sum((i - 4.5) * value for i, value in enumerate(last))
    if turns < 0.6 * 8 or slope < 0:
        return 0.0
    first = abs(values[0]) if math.isfinite(values[0]) else 0.0
    scale = max(sum(abs(value) for value in last) / 10, 0.05 * first)
    return sum(abs(change) for change in changes) / 9 / scale


def overfit(trace):
    values, checks = net_losses(trace), curve(trace, "val_loss")
    training = values[1:]
    if not finite(training + checks):
        return NAN
    least = 0.05 * abs(values[0] if math.isfinite(values[0]) else training[0])
    best = max(k for k in range(len(checks)) if checks[k] == min(checks))
    age = window(trace)
    if hopeless(trace):
        age = min(age, 2 * max(2, trace.max_epochs // 20))
    if len(checks) - 1 - best < age:
        return 0.0
    if training[best] - min(training[best:]) < 0.02 * max(abs(training[best]), least):
        return 0.0
    return (checks[-1] - checks[best]) / max(abs(checks[best]), least)


def worse_than_constant(trace):
    constant = newest(trace, "label/trivial_loss")
    if trace.max_epochs is None or not constant > 1e-12:
        return NAN
    recent = judged(trace)[-2 * max(2, trace.max_epochs // 20) :]
    return min(recent) / constant if finite(recent) else NAN


FURTHER = {
    "OUTPUT_LOSS_MISMATCH": output_loss_mismatch,
    "INPUT_SCALE": input_scale,
    "POOR_INIT": poor_init,
    "LR_RANGE": learning_rate,
    "HIGH_DROPOUT": high_dropout,
    "LINEAR_STACK": linear_stack,
    "UPDATE_RATIO": update_ratio,
    "DEAD_UNITS": dead_units,
    "SATURATION": saturation,
    "UNCHANGED_WEIGHTS": unchanged_weights,
    "COLLAPSED_OUTPUT": collapsed_output,
    "NO_PROGRESS": no_progress,
    "LOSS_NOT_DECREASING": loss_not_decreasing,
    "REGULARISER_DOMINATES": regulariser_dominates,
    "NUMERIC_EDGE": numeric_edge,
    "OSCILLATION": oscillation,
    "CLASS_NEGLECT": class_neglect,
    "OVERFIT": overfit,
    "WORSE_THAN_CONSTANT": worse_than_constant,
}
