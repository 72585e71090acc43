from __future__ import annotations

import os

# Before any test imports TensorFlow; subprocesses inherit it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
