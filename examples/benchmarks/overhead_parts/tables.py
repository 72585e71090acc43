"""The results as Markdown tables, and a page that quotes them."""

import pathlib

BEGIN, END = "<!-- {}: from overhead.json -->", "<!-- end -->"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _percent(ratio):
    return f"{100 * (ratio - 1):+.2f} %"


def _with_interval(ratio):
    return (
        f"{_percent(ratio['ratio'])} ({_percent(ratio['low'])} to "
        f"{_percent(ratio['high'])})"
    )


def long_steps(results):
    """With per without the callback, at steps that are long enough."""
    rows = []
    for name, facts in results["models"].items():
        derived = facts["derived"]
        rows.append(
            (
                name,
                f"{facts['parameters']:,}",
                facts["variables"],
                facts["batch"],
                f"{1000 * facts['step_cpu_seconds']:.0f} ms",
                _with_interval(facts),
                _percent(facts["null"]["ratio"]),
                f"**{_with_interval(derived)}**",
                _percent(facts["foretold"]),
                f"{facts['published_times']:.0f} times",
            )
        )
    head = ("model", "parameters", "variables", "batch", "step")
    head += ("added CPU time (95 %)", "null", "derived", "foretold", "published way")
    return _table(head, rows)


def short_steps(results):
    """The same at a small batch size."""
    rows = []
    for name, facts in results["models"].items():
        small = facts["small"]
        rows.append(
            (
                name,
                small["batch"],
                f"{1000 * small['step_cpu_seconds']:.1f} ms",
                small["steps"],
                _percent(small["ratio"]),
                _percent(small["null"]["ratio"]),
                _percent(small["foretold"]),
            )
        )
    head = ("model", "batch", "CPU time of a step", "steps of an epoch")
    return _table((*head, "added", "null", "foretold"), rows)


def set_up(results):
    """What a trial pays once."""
    rows = [
        (
            name,
            f"{facts['first_step_seconds']:.2f} s",
            f"{facts['setup_seconds']:+.2f} s",
            f"{facts['first_step_seconds_built']:.2f} s",
            f"{facts['setup_seconds_built']:+.2f} s",
            _percent(facts["one_epoch_ratio"]),
        )
        for name, facts in results["models"].items()
    ]
    head = ("model", "first step", "set-up", "first step, optimizer built")
    return _table((*head, "set-up, optimizer built", "trial of one epoch"), rows)


def costs(results):
    """The cost model."""
    cost = results["cost_model"]
    rows = (
        ("every step", "step", "step_per_variable", None),
        (
            "every sampled step, besides",
            "sampled_step",
            "sampled_step_per_variable",
            "sampled_step_per_million_parameters",
        ),
        (
            "every epoch",
            "epoch",
            "epoch_per_variable",
            "epoch_per_million_parameters",
        ),
        ("every trial", "trial", "trial_per_variable", None),
    )
    head = ("ms of CPU time", "fixed", "per variable", "per million parameters")
    cells = [
        (what, *(f"{cost[name]:.3f}" if name else "" for name in names))
        for what, *names in rows
    ]
    least = 100 * cost["step_per_variable"]
    sentence = (
        f"The tap alone stays under 1 % where a step takes at least {least:.1f} ms of "
        "CPU time per trainable variable."
    )
    return f"{_table(head, cells)}\n\n{sentence}"


def agv(results):
    """What AGV adds."""
    facts = results["agv"]
    return (
        f"AGV adds {_percent(facts['ratio'])} ({_percent(facts['low'])} to "
        f"{_percent(facts['high'])}; null {_percent(facts['null']['ratio'])}) to the "
        f'CPU time of the model "{facts["model"]}" at small batches.'
    )


def large(results):
    """Worker, bad indicators and memory of the large model."""
    facts = results["large"]
    rows = [
        (arm, f"{seconds['wall']:.2f} s", f"{seconds['cpu']:.2f} s")
        for arm, seconds in facts["seconds_per_epoch"].items()
    ]
    memory = facts["memory"]
    text = (
        f"{facts['parameters'] / 1e6:.1f} million parameters, {facts['steps']} steps "
        f"of {facts['batch']} rows an epoch. An indicator that sleeps for 3 s at each "
        f"of {facts['epochs']} epochs holds the training up for "
        f"{facts['sleeping_indicator_seconds']:.1f} s, without the limit for "
        f"{facts['sleeping_unlimited_indicator_seconds']:.1f} s; one that fails for "
        f"{facts['raising_indicator_seconds']:.2f} s. Peak memory grows by "
        f"{memory['added_gradient_sets']:.1f} times the "
        f"{memory['gradient_set_bytes'] / 2**20:.0f} MB of all gradients."
    )
    return f"{_table(('statistics', 'an epoch', 'CPU time'), rows)}\n\n{text}"


BLOCKS = {
    "long steps": long_steps,
    "short steps": short_steps,
    "set-up": set_up,
    "costs": costs,
    "agv": agv,
    "large": large,
}


def blocks(results):
    """Every block of figures with its marks, by name."""
    return {
        name: f"{BEGIN.format(name)}\n\n{make(results)}\n\n{END}"
        for name, make in BLOCKS.items()
    }


def write_into(page, results):
    """Replaces the blocks of a Markdown page."""
    path = pathlib.Path(page)
    text = path.read_text(encoding="utf-8")
    for name, block in blocks(results).items():
        before, _, rest = text.partition(BEGIN.format(name))
        text = before + block + rest.partition(END)[2]
    path.write_text(text, encoding="utf-8")
