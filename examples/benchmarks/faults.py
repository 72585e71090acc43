"""What a search survives: every fault is injected by a test, and all of them are run.

    python examples/benchmarks/faults.py --json FILE [--only 9,10] [--junit FILE]

Prints a table of faults, the tests that inject them, and whether they were survived. A
fault counts as survived when each of its tests passed; a skipped test is no pass. With
--only, what FILE tells of the other faults stays there. With --junit, the outcomes are
taken from a report of pytest that exists.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy")
SEVERAL = "test_the_verdict_is_that_of_the_plain_training"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault and the tests that inject it, as `file::test` without "test_"."""

    number: int
    text: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        1,
        "the loss is NaN",
        (
            "search::bad_trials_are_stopped_marked_and_explained",
            "callback::a_loss_that_breaks_ends_the_epoch_at_once",
            "oracles::a_last_value_that_is_not_finite_is_no_score",
        ),
    ),
    Fault(
        2,
        "the validation loss is infinite; suggestions keep away from there",
        (
            "callback::a_validation_loss_that_breaks_counts_too",
            "bayesian_oracle::few_proposals_go_where_training_diverges",
        ),
    ),
    Fault(
        3,
        "every trial is NaN",
        (
            "search::ten_broken_trials_in_a_row_do_not_end_a_search",
            "faults::a_search_without_any_healthy_trial_ends",
        ),
    ),
    Fault(
        4,
        "NaN or infinity in weights, gradients, activations; empty and integer layers",
        ("recorded_models::what_is_not_finite_does_no_harm", "stats", "weight_meter"),
    ),
    Fault(
        5,
        "an indicator raises or hangs",
        (
            "callback::a_fault_costs_one_warning_and_not_the_training",
            "callback::an_indicator_that_hangs_is_switched_off",
        ),
    ),
    Fault(
        6,
        "models of every kind; several devices, several steps at once, compiled, half",
        (
            "taps_models",
            "search::models_of_every_kind_are_diagnosed_in_a_search",
            "recording_harmless",
            f"devices::{SEVERAL.removeprefix('test_')}",
        ),
    ),
    Fault(
        7,
        "the disk is full or read-only",
        (
            "faults::a_full_disk_under_the_traces_costs_one_warning",
            "faults::a_disk_that_fills_up_loses_no_trial",
            "faults::a_search_that_ended_on_a_full_disk_goes_on",
            "faults::a_disk_that_cannot_be_written_costs_one_warning",
        ),
    ),
    Fault(
        8,
        "TensorBoard cannot be written",
        ("callback::a_fault_costs_one_warning_and_not_the_training",),
    ),
    Fault(
        9,
        "kill -9 of the one process, at random moments",
        ("faults_processes::killed_at_any_moment_a_search_loses_nothing",),
    ),
    Fault(
        10,
        "kill -9 of a worker",
        (
            "faults_processes::the_trial_of_a_killed_worker_is_taken_up",
            "served::the_trial_of_a_silent_worker_is_taken_up",
        ),
    ),
    Fault(
        11,
        "kill -9 of the chief, which is started again",
        (
            "faults_processes::a_chief_that_is_killed_comes_back",
            "served::a_chief_that_is_started_again_counts_nothing_twice",
        ),
    ),
    Fault(
        12,
        "every trial of one worker fails",
        (
            "faults_processes::a_bad_worker_does_not_stop_a_good_one",
            "served::a_chief_with_bad_workers_only_ends",
        ),
    ),
    Fault(
        13,
        "files that are cut, empty or garbage",
        (
            "faults::a_file_cut_at_every_tenth_costs_no_search",
            "durability::whatever_is_no_oracle_is_set_aside",
            "hostile_files::cut_at_every_tenth_nothing_is_half_read",
        ),
    ),
    Fault(
        14,
        "two processes in one directory; the lock of a dead one",
        (
            "faults_processes::a_second_process_is_told_who_holds_the_directory",
            "locking",
        ),
    ),
    Fault(15, "hostile files", ("hostile_files",)),
    Fault(
        16,
        "the clock jumps",
        ("faults::clocks_that_jump_make_no_negative_durations",),
    ),
    Fault(
        17,
        "a study of 10,000 trials",
        ("faults::a_study_of_ten_thousand_trials",),
    ),
    Fault(
        18,
        "a model of 1,000 layers",
        ("faults::a_model_of_a_thousand_layers",),
    ),
    Fault(
        19,
        "early stopping, diagnosis and the median rule at once; three executions",
        (
            "faults::early_stopping_ours_and_the_median_rule_at_once",
            "search::the_first_execution_decides",
        ),
    ),
    Fault(
        20,
        "files of an older or a newer version",
        (
            "faults::projects_of_every_release_are_read",
            "faults::a_trace_of_a_newer_version_is_refused_with_its_schema",
            "durability::a_newer_schema_is_refused_with_its_version",
        ),
    ),
    Fault(
        21,
        "a search that is resumed suggests what it would have",
        (
            "oracle_contract",
            "durability::resumed_is_as_never_interrupted",
            "faults_processes::killed_at_any_moment_a_search_loses_nothing",
        ),
    ),
    Fault(
        22,
        "Ctrl+C in an epoch",
        (
            "faults_processes::ctrl_c_in_an_epoch_keeps_everything",
            "cli::an_interrupted_demo_shows_what_it_has_and_exits_with_130",
        ),
    ),
    Fault(
        23,
        "objectives to maximise, several, negative, missing in some epochs",
        (
            "oracles::the_last_value_of_several_objectives_is_their_sum",
            "oracles::best_of_stopped_trials_only_when_maximising",
            "bayesian_oracle::minus_infinity_is_no_success_when_maximising",
            "callback::the_objective_stays_the_same_when_validation_is_rare",
            "learning_curves",
        ),
    ),
    Fault(
        24,
        "200 trials in one process: memory",
        ("faults::memory_does_not_grow_over_a_search",),
    ),
)


def node(test: str) -> str:
    """What pytest calls a test, or a file of them."""
    file, _, name = test.partition("::")
    return f"tests/test_{file}.py" + (f"::test_{name}" if name else "")


def run_pytest(nodes, report):
    """Runs tests, the slow ones too; outcomes go to `report`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow"]
    command += ["-n0", "-p", "no:cacheprovider", f"--junitxml={report}", *nodes]
    return subprocess.run(command, cwd=ROOT).returncode


def outcomes_in(report):
    """By node without parameters: the outcomes and the seconds of its tests."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname").replace(".", "/") + ".py"
        outcome = "passed"
        for kind in ("skipped", "failure", "error"):
            if case.find(kind) is not None:
                outcome = kind
        key = f"{module}::{case.get('name').partition('[')[0]}"
        found.setdefault(key, []).append((outcome, float(case.get("time"))))
    return found


def judged(fault, outcomes):
    """What became of a fault."""
    found = {
        test: [
            result
            for key, values in outcomes.items()
            if key == test or key.startswith(f"{test}::")
            for result in values
        ]
        for test in map(node, fault.tests)
    }
    results = [result for each in found.values() for result in each]
    kinds = [kind for kind, _ in results]
    not_run = [test for test, each in found.items() if not each]
    return {
        "fault": fault.text,
        "tests": list(found),
        "not_run": not_run,
        "passed": kinds.count("passed"),
        "not_passed": len(kinds) - kinds.count("passed"),
        "seconds": round(sum(seconds for _, seconds in results), 1),
        "survived": not not_run and kinds.count("passed") == len(kinds),
    }


def main():
    """Runs the tests, prints the table, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, type=pathlib.Path, metavar="FILE")
    parser.add_argument("--only", default="", help="numbers of faults, with commas")
    parser.add_argument("--junit", type=pathlib.Path, nargs="*", metavar="FILE")
    options = parser.parse_args()
    numbers = {int(number) for number in options.only.split(",") if number}
    chosen = [fault for fault in FAULTS if not numbers or fault.number in numbers]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions = {"python": platform.python_version()} | versions
    others = {}
    if numbers and options.json.exists():
        before = json.loads(options.json.read_text())
        if before["versions"] != versions:
            parser.error(f"{options.json} was made with {before['versions']}.")
        others = before["results"]
    with tempfile.TemporaryDirectory() as folder:
        reports = options.junit
        if not reports:
            reports = [pathlib.Path(folder) / "report.xml"]
            nodes = dict.fromkeys(node(t) for fault in chosen for t in fault.tests)
            run_pytest(nodes, reports[0])
        outcomes = {}
        for report in reports:
            outcomes |= outcomes_in(report)
    results = {str(fault.number): judged(fault, outcomes) for fault in chosen}
    print(f"{'':>2}  {'survived':8}  {'tests':>5}  {'s':>6}  fault")
    for number, result in results.items():
        answer = "yes" if result["survived"] else "NO"
        answer = "not run" if result["not_run"] else answer
        tests = result["passed"] + result["not_passed"]
        print(
            f"{number:>2}  {answer:8}  {tests:>5}  {result['seconds']:>6.1f}  "
            f"{result['fault']}"
        )
    survived = sum(result["survived"] for result in results.values())
    print(f"{survived} of {len(results)} faults survived")
    everything = dict(sorted((others | results).items(), key=lambda item: int(item[0])))
    content = {
        "settings": {"faults": [int(number) for number in everything]},
        "versions": versions,
        "survived": sum(result["survived"] for result in everything.values()),
        "results": everything,
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if survived == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
