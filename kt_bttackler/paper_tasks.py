"""The paper's three tasks by name; needs TensorFlow."""

from __future__ import annotations

from kt_bttackler.paper_forecaster import EXCHANGE_TRANSFORMER
from kt_bttackler.paper_images import CIFAR10_CNN, CIFAR10_LSTM
from kt_bttackler.recorded_task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (CIFAR10_CNN, CIFAR10_LSTM, EXCHANGE_TRANSFORMER)
}
