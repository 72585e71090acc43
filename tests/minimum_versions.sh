#!/usr/bin/env bash
# Runs the tests with the oldest versions that the package works with: makes an
# environment of them and installs this checkout into it. Takes a while; not in CI.
#
#   tests/minimum_versions.sh [FOLDER [PYTEST-ARGUMENTS...]]
#
# FOLDER is where the environment is or goes (default: .venv-minimum), PYTHON what makes
# it: TensorFlow 2.16 needs one of 3.10 to 3.12.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-minimum}
shift || true
[ -d "$folder" ] || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install -q -c tests/minimum_versions.txt -e ".[all,test]"
"$folder/bin/python" -c '
import importlib.metadata as metadata, pathlib
for line in pathlib.Path("tests/minimum_versions.txt").read_text().splitlines():
    name, _, version = line.partition("==")
    if version:
        assert metadata.version(name) == version, f"{name} {metadata.version(name)}"
        print(name, version)
'
exec "$folder/bin/python" -m pytest "$@"
