"""Search spaces whose trials share more or less, for the benchmark of stages.

The epochs are those of trainings of 30 epochs; `scale` shrinks them for shorter ones.
"""

from kt_bttackler import stages

EPOCHS = 30


def declare(hp, name, scale=1.0):
    """Declares the schedules of a space; returns the first learning rate."""

    def at(*epochs):
        return [max(1, round(epoch * scale)) for epoch in epochs]

    def rate(kind, **options):
        return stages.schedule(hp, "learning_rate", kind, **options)

    lower = at(10, 15, 20)
    if name == "A":  # lowered once
        return rate(
            "step",
            start=[0.1, 0.05, 0.01],
            milestones=lower,
            factor=[0.1, 0.2, 0.5],
        )
    if name == "B":  # lowered twice
        return rate(
            "step",
            start=[0.1, 0.05],
            milestones=(at(10, 14, 18), at(20, 24, 28)),
            factor=[0.1, 0.3],
        )
    if name == "C":  # lowered once, batches grow once, two weight decays
        stages.schedule(
            hp, "batch_size", "piecewise", values=(32, 128), boundaries=at(12, 18)
        )
        hp.Choice("weight_decay", [1e-4, 1e-3])
        return rate("step", start=[0.1, 0.05], milestones=lower, factor=0.1)
    if name == "D":  # constants only: nothing is shared
        hp.Choice("weight_decay", [1e-4, 1e-3, 1e-2])
        return hp.Choice("rate", [0.1, 0.05, 0.03, 0.01])
    if name == "E":  # cosines to different horizons: hardly anything is
        return rate("cosine", start=[0.1, 0.05, 0.01], epochs=at(15, 20, 25, 30))
    if name == "F":  # warm-up, then lowered once
        then = {
            "kind": "step",
            "start": [0.1, 0.05],
            "milestones": lower,
            "factor": [0.1, 0.2, 0.5],
        }
        return rate("warmup", epochs=at(5)[0], then=then)
    if name == "G":  # a stable trunk with decays that leave it
        return rate(
            "wsd",
            peak=0.1,
            warmup=at(2)[0],
            decay_start=at(8, 11, 14, 17, 20, 23),
            decay_epochs=at(6)[0],
            shape=["linear", "cosine", "sqrt"],
        )
    if name == "sick":  # as A, and starts that are too high and too low
        return rate(
            "step",
            start=[1000.0, 0.1, 1e-7],
            milestones=lower,
            factor=[0.1, 0.2, 0.5],
        )
    raise ValueError(f"`name` must be one of A to G or 'sick', got {name!r}.")
