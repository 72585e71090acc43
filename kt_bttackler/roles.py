"""What this process is in a distributed search of KerasTuner.

KerasTuner says so by variables of the environment, which the documentation of its
distributed mode names.
"""

from __future__ import annotations

import os

# Set in a process that takes the place of one that died.
RESTARTED = "KT_BTTACKLER_RESTARTED"


def is_chief() -> bool:
    """Whether this process is the chief, whom the workers ask for trials."""
    return _is_distributed() and "chief" in _tuner_id()


def is_worker() -> bool:
    """Whether this process trains what a chief tells it to."""
    return _is_distributed() and "chief" not in _tuner_id()


def is_restarted() -> bool:
    """Whether this process goes on with what another of its name had begun."""
    return bool(os.environ.get(RESTARTED))


def _is_distributed() -> bool:
    return "KERASTUNER_ORACLE_IP" in os.environ


def _tuner_id() -> str:
    return os.environ.get("KERASTUNER_TUNER_ID", "")
