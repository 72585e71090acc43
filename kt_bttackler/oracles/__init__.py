"""Oracles that understand diagnosed trials.

```python
oracle = ktb.oracles.BayesianOptimizationOracle("val_loss", max_trials=50)
oracle = ktb.diagnosed(MyOracle)("val_loss", stopped_value="censored")
tuner = keras_tuner.Tuner(oracle=oracle, hypermodel=build_model)
```

Each takes the arguments of KerasTuner's class of that name and `stopped_value`.
"""

from __future__ import annotations

import keras_tuner

from kt_bttackler.oracles.diagnosed import diagnosed
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin
from kt_bttackler.oracles.view import STOPPED_VALUES

RandomSearchOracle = diagnosed(keras_tuner.oracles.RandomSearchOracle)
GridSearchOracle = diagnosed(keras_tuner.oracles.GridSearchOracle)
BayesianOptimizationOracle = diagnosed(keras_tuner.oracles.BayesianOptimizationOracle)
HyperbandOracle = diagnosed(keras_tuner.oracles.HyperbandOracle)

__all__ = [
    "STOPPED_VALUES",
    "BayesianOptimizationOracle",
    "DiagnosedOracleMixin",
    "GridSearchOracle",
    "HyperbandOracle",
    "RandomSearchOracle",
    "diagnosed",
]
