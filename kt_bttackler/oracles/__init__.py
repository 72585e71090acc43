"""Oracles that understand diagnosed trials.

```python
oracle = ktb.oracles.BayesianOptimizationOracle("val_loss", max_trials=50)
oracle = ktb.diagnosed(MyOracle)("val_loss", stopped_value="censored")
tuner = keras_tuner.Tuner(oracle=oracle, hypermodel=build_model)
```

Each takes the arguments of KerasTuner's class of that name, if there is one, and
`stopped_value`. `TPEOracle` needs optuna, `SMACOracle` needs SMAC.
"""

from __future__ import annotations

import keras_tuner

from kt_bttackler.oracles.bayesian import BayesianOptimizationOracle
from kt_bttackler.oracles.diagnosed import diagnosed
from kt_bttackler.oracles.mixin import DiagnosedOracleMixin
from kt_bttackler.oracles.smac import SMACOracle
from kt_bttackler.oracles.successive_halving import SuccessiveHalvingOracle
from kt_bttackler.oracles.tpe import TPEOracle
from kt_bttackler.oracles.view import STOPPED_VALUES

RandomSearchOracle = diagnosed(keras_tuner.oracles.RandomSearchOracle)
GridSearchOracle = diagnosed(keras_tuner.oracles.GridSearchOracle)
HyperbandOracle = diagnosed(keras_tuner.oracles.HyperbandOracle)

__all__ = [
    "STOPPED_VALUES",
    "BayesianOptimizationOracle",
    "DiagnosedOracleMixin",
    "GridSearchOracle",
    "HyperbandOracle",
    "RandomSearchOracle",
    "SMACOracle",
    "SuccessiveHalvingOracle",
    "TPEOracle",
    "diagnosed",
]
