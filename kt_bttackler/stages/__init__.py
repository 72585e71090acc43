"""Stage trees: training once what several trials begin with.

Trials whose hyperparameters change during the training (a learning rate that is
lowered, a batch size that grows) often share their first epochs. A trial is a
sequence of stages; the sequences of all trials make a tree; every stage of the tree is
trained once (Kim et al., arXiv 1911.10504; Hippo, PVLDB 15(5), 2022).

```python
def build(hp):
    rate = ktb.stages.schedule(
        hp, "learning_rate", "step",
        start=[0.1, 0.05], milestones=[10, 15, 20], factor=[0.1, 0.5],
    )
    ...
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse")
    return model

oracle = ktb.oracles.GridSearchOracle("val_loss")
tuner = ktb.stages.StageTuner(build, oracle=oracle, epochs=30)
print(ktb.stages.plan(tuner))
tuner.search(x, y, validation_data=(xv, yv))
```
"""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: schedules and trees need no TensorFlow.
_MODULES = {
    "schedules": ("Range", "Schedule", "schedule"),
    "tree": ("Stage", "StageTree", "split"),
    "planning": ("Plan", "plan"),
    "order": ("epoch_order",),
    "tuner": ("StageTuner",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
