"""What watching costs per variable, per million parameters, per epoch and per trial.

All in milliseconds of CPU time, fitted to what was measured on the models of this
benchmark. The hooks of the callback are timed directly; what the tap costs within a
step is the rest of what watching adds.
"""

import statistics

import numpy as np
import scipy.optimize

from kt_bttackler.gradient_meter import SampledSteps, is_large

PROBED_EPOCHS = 3


def sampled_steps(steps, parameters, variables):
    """Numbers of the steps of an epoch whose gradients are sampled."""
    schedule = SampledSteps(steps, sparse=is_large(parameters, variables))
    return [step for step in range(steps) if schedule.due(step)]


def hooks(watching, model):
    """Median milliseconds in the hooks of a callback, from the second epoch on.

    Returns:
        Of a step, of a sampled step besides, of an epoch without a probe, and of the
        probe.
    """
    variables = len(model.trainable_variables)
    parameters = int(model.count_params())
    plain, sampled = [], []
    for epoch in watching.step_hooks[1:]:
        due = set(sampled_steps(len(epoch), parameters, variables))
        for step, seconds in enumerate(epoch):
            (sampled if step in due else plain).append(seconds)
    probed = watching.epoch_hooks[1:PROBED_EPOCHS]
    # After these a probe is taken only where it hardly costs anything.
    unprobed = watching.epoch_hooks[PROBED_EPOCHS:]
    step = 1000 * statistics.median(plain)
    epoch = 1000 * statistics.median(unprobed or probed)
    return {
        "step": step,
        "sampled_step": 1000 * statistics.median(sampled) - step,
        "epoch": epoch,
        "probe": max(0.0, 1000 * statistics.median(probed) - epoch),
    }


def fit(models, large):
    """The cost model.

    Args:
        models: facts of the models that were measured, by name.
        large: those of the model whose statistics can go to the worker.

    Returns:
        Milliseconds by name; `foretell` says what they are multiplied with.
    """
    small = [facts["small"] | facts for facts in models.values()]
    seen = [
        (facts["variables"], facts["parameters"], facts["hooks"]) for facts in small
    ]
    if large:
        seen.append((large["variables"], large["parameters"], large["hooks"]))
    sizes = [(1.0, variables, count / 1e6) for variables, count, _ in seen]
    in_graph = sum(max(0.0, facts["tap_ms_per_step"]) for facts in small)
    cost = {
        "step": statistics.median(timed["step"] for _, _, timed in seen),
        "step_per_variable": in_graph / sum(facts["variables"] for facts in small),
    }
    for part in ("sampled_step", "epoch"):
        fixed, per_variable, per_million = _fitted(
            sizes, [timed[part] for _, _, timed in seen]
        )
        cost[part] = fixed
        cost[f"{part}_per_variable"] = per_variable
        cost[f"{part}_per_million_parameters"] = per_million
    trials = [1000 * facts["setup_seconds_built"] for facts in small]
    cost["trial"], cost["trial_per_variable"] = _fitted(
        [(1.0, facts["variables"]) for facts in small], trials
    )
    return cost


def _fitted(sizes, milliseconds):
    """Costs that explain what was measured, none of them negative.

    In terms of shares, or the largest model alone would decide.
    """
    sizes, milliseconds = np.array(sizes), np.maximum(milliseconds, 1e-3)
    weighted = sizes / milliseconds[:, None]
    costs, _ = scipy.optimize.nnls(weighted, np.ones(len(milliseconds)))
    return costs.tolist()


def foretell(cost, variables, parameters, steps):
    """Milliseconds of CPU time that an epoch costs, without probes."""
    millions = parameters / 1e6
    samples = len(sampled_steps(steps, parameters, variables))
    return (
        steps * (cost["step"] + cost["step_per_variable"] * variables)
        + samples
        * (
            cost["sampled_step"]
            + cost["sampled_step_per_variable"] * variables
            + cost["sampled_step_per_million_parameters"] * millions
        )
        + cost["epoch"]
        + cost["epoch_per_variable"] * variables
        + cost["epoch_per_million_parameters"] * millions
    )
