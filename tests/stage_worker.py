"""A process that runs a small study in stages, slowly.

    python stage_worker.py FOLDER PROJECT SECONDS_PER_EPOCH WORKERS

Writes a line per trained epoch to FOLDER/epochs.txt, the digest of what it ended with,
and the results of the study to FOLDER/PROJECT.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

import keras
import reference_stages as reference
import staging


class Slow(keras.callbacks.Callback):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__()
        self.path = path
        self.seconds = seconds

    def __deepcopy__(self, memo: Any) -> Slow:
        return Slow(self.path, self.seconds)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.seconds / 3)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{reference.digest(self.model)}\n".encode())
        os.close(file)


def main(folder: str, project: str, seconds: str, workers: str) -> None:
    made = staging.tuner(
        staging.build_dense,
        folder,
        project_name=project,
        stage_dir=f"{folder}/stages",
        workers=int(workers),
    )
    made._stateless = (*made._stateless, Slow)
    slow = Slow(f"{folder}/epochs.txt", float(seconds))
    made.search(**staging.ROWS, callbacks=[slow])
    results = {
        trial_id: [trial.score, trial.best_step, trial.hyperparameters.values]
        for trial_id, trial in made.oracle.trials.items()
    }
    pathlib.Path(folder, f"{project}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
