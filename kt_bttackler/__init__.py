"""Diagnose every training of a KerasTuner search, and end the hopeless ones early.

```python
import kt_bttackler as ktb

tuner = ktb.BayesianOptimization(build_model, objective="val_accuracy", max_trials=50)
tuner.search(x, y, validation_data=(xv, yv), callbacks=[ktb.DiagnosisCallback()])
ktb.summary(tuner)
```
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `import kt_bttackler` stays free of TensorFlow.
_MODULES = {
    "callback": ("DiagnosisCallback",),
    "diagnosis": ("Diagnosis", "Verdict"),
    "indicators": ("Finding", "QualityIndicator"),
    "gradient_indicators": (
        "AbnormalGradientValues",
        "ExponentiallyAmplifiedGradients",
        "ExponentiallyReducedGradients",
    ),
    "loss_indicators": ("NoMoreGain", "PassiveLossChanges", "UnexpectedLossChanges"),
    "activation_indicators": ("LowActivationRatio",),
    "static_indicators": (
        "HighDropout",
        "InputScale",
        "LearningRateRange",
        "LinearStack",
        "OutputLossMismatch",
    ),
    "init_indicators": ("PoorInit",),
    "weight_indicators": ("UnchangedWeights", "UpdateRatio"),
    "unit_indicators": ("DeadUnits", "NumericEdge", "Saturation"),
    "outlook_indicators": ("WorseThanConstant",),
    "output_indicators": ("ClassNeglect", "CollapsedOutput"),
    "progress_indicators": (
        "LossNotDecreasing",
        "NoProgress",
        "Oscillation",
        "Overfit",
        "RegulariserDominates",
    ),
    "median_stopping": ("MedianStoppingRule",),
    "learning_curves": ("LearningCurveExtrapolation",),
    "rules": ("AllOf", "AnyFinding", "AnyOf", "NeverStop", "Patience", "ProtectTop"),
    "trace": ("Trace", "TraceStore"),
    "oracles": ("diagnosed",),
    "tuners": (
        "BayesianOptimization",
        "GridSearch",
        "Hyperband",
        "RandomSearch",
        "SMAC",
        "SuccessiveHalving",
        "TPE",
    ),
    "upgrading": ("diagnose",),
    "results": ("diagnosis_of", "summary", "trials_dataframe"),
    "rehearsal": ("preflight",),
    "appeal": ("run_on",),
    "launcher": ("launch",),
}
_SUBMODULES = ("calibration", "measures", "oracles", "replay", "stages", "testing")
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, *_SUBMODULES])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
