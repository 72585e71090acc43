"""`docs/distributed.md`: its YAML, its commands, its links."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import sys
from typing import Any

import pytest
import yaml

from kt_bttackler import launch_command

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def container(job: Any) -> Any:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


def test_the_yaml_is_a_service_a_chief_and_workers() -> None:
    (text,) = blocks("yaml")
    service, chief, workers = yaml.safe_load_all(text)
    kinds = [
        (part["kind"], part["metadata"]["name"]) for part in (service, chief, workers)
    ]
    assert kinds == [("Service", "chief"), ("Job", "chief"), ("Job", "worker")]
    labels = chief["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    environments = [
        {each["name"]: each for each in container(job)["env"]}
        for job in (chief, workers)
    ]
    for variables in environments:
        assert {k for k in variables if k.startswith("KERASTUNER_")} == {
            "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
        }  # fmt: skip
        port = variables["KERASTUNER_ORACLE_PORT"]["value"]
        assert port == str(service["spec"]["ports"][0]["port"])
    of_chief, of_workers = environments
    assert of_chief["KERASTUNER_TUNER_ID"]["value"] == "chief"
    assert of_workers["KERASTUNER_ORACLE_IP"]["value"] == service["metadata"]["name"]
    # Kubernetes replaces a variable only by one that stands before it.
    names = [each["name"] for each in container(workers)["env"]]
    assert names.index("INDEX") < names.index("KERASTUNER_TUNER_ID")
    assert of_workers["KERASTUNER_TUNER_ID"]["value"] == "worker$(INDEX)"
    assert workers["spec"]["completionMode"] == "Indexed"
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"]
    for job in (chief, workers):
        pod = job["spec"]["template"]["spec"]
        assert pod["volumes"][0]["name"] == container(job)["volumeMounts"][0]["name"]


def test_the_commands_are_understood() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    (command,) = (line for line in lines if line.startswith("kt-bttackler launch"))
    parser = argparse.ArgumentParser()
    launch_command.add_arguments(parser)
    options = parser.parse_args(shlex.split(command)[2:])
    assert (options.workers, options.address) == (8, "auto")
    assert options.resources == {"CPU": 4, "GPU": 1}


def test_the_python_is_python() -> None:
    for block in blocks("python"):
        compile(block, "distributed.md", "exec")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)", PAGE))
def test_every_linked_file_exists(path: str) -> None:
    assert (ROOT / "docs" / path).is_file()


def test_the_figures_are_those_that_were_measured() -> None:
    recorded = json.loads((BENCHMARKS / "results" / "scale.json").read_text())
    assert "\n".join(scale.table(recorded)) in PAGE
