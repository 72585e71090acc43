"""The benchmark of trust: its cases are well-formed, its verdicts on outcomes right."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
from typing import ClassVar

import keras
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples" / "benchmarks"))

from trust_cases import HARD, PAIRS, data, judging, models, recording, runs, specimens

from kt_bttackler import AnyFinding, Diagnosis, NoMoreGain, QualityIndicator
from kt_bttackler.catalog import known_indicators
from kt_bttackler.trace import Header, Record, Trace

TRUST = pathlib.Path(runs.__file__).parents[1] / "trust.py"
CASES = {
    **{f"{p.id}/{t}": getattr(p, t) for p in PAIRS for t in ("faulty", "healthy")},
    **{case.id: case.healthy for case in HARD},
}


@dataclasses.dataclass(frozen=True)
class LossAbove(QualityIndicator):
    needs: ClassVar = frozenset({"loss"})
    id: ClassVar = "ULC"
    threshold: float = 1.0

    def measure(self, trace):
        return trace.scalar("loss")[-1]


@dataclasses.dataclass(frozen=True)
class LossHigh(LossAbove):
    id: ClassVar = "PLC"
    stopping: ClassVar = "never"
    threshold: float = 0.5


def trace_of(*losses, epochs=10):
    records = [Record(n, 1.0 * n, {"loss": loss}) for n, loss in enumerate(losses, 1)]
    return Trace(Header(max_epochs=epochs), records)


def test_ids_are_unique_and_expected_findings_are_known():
    ids = [case.id for case in (*PAIRS, *HARD)]
    assert len(set(ids)) == len(ids)
    for pair in PAIRS:
        assert pair.expected
        assert len(set(pair.expected)) == len(pair.expected)
        assert set(pair.expected) <= set(known_indicators()), pair.id


def test_there_are_ten_specimens_thirty_pairs_and_two_hundred_healthy_runs():
    assert len(specimens.PAIRS) == 10
    assert all(pair.source for pair in specimens.PAIRS)
    assert len(PAIRS) >= 40
    healthy = [run for run in runs.all_runs(range(5)) if run.twin == "healthy"]
    assert len(healthy) >= 200


def test_twins_have_the_same_seeds_and_differ():
    chosen = runs.all_runs([0, 3], lambda case: case == "wine-raw")
    assert [run.id for run in chosen] == [
        f"wine-raw/{twin}/{seed}" for seed in (0, 3) for twin in ("faulty", "healthy")
    ]
    assert all(pair.faulty != pair.healthy for pair in PAIRS)


def test_a_healthy_training_that_pairs_share_is_one_run():
    every = runs.all_runs([0])
    trained = [runs._key(run.configuration) for run in every]
    assert len(set(trained)) == len(trained)
    assert len({run.id for run in every}) == len(every)
    faulty, healthy = runs.all_runs([0], lambda case: case == "digits-zero-weights")
    assert faulty.case == "digits-zero-weights"
    assert healthy.case == faulty.compared_with != faulty.case
    assert healthy in every


def test_configurations_are_json():
    for configuration in CASES.values():
        json.dumps(dataclasses.asdict(configuration))


def test_every_family_of_models_has_pairs():
    def names(entries):
        for name, arguments in entries:
            yield name
            yield from names(arguments.get("body", ()))

    used = {name for p in PAIRS for name in names(p.healthy.layers + p.faulty.layers)}
    assert {
        *("Dense", "Conv2D", "SimpleRNN", "LSTM", "GRU", "SelfAttention"),
        *("Embedding", "Residual", "BatchNormalization", "LayerNormalization"),
    } <= used


@pytest.mark.parametrize("name", data.DATA)
def test_data_are_finite_and_the_same_every_time(name):
    rows, again = data.load(name), data.DATA[name]()
    for part, other in zip(
        keras.tree.flatten([rows.x, rows.y, rows.x_val, rows.y_val]),
        keras.tree.flatten([again.x, again.y, again.x_val, again.y_val]),
        strict=True,
    ):
        assert np.isfinite(part).all()
        assert np.array_equal(part, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_model_builds_with_an_output_for_its_targets(name):
    configuration = CASES[name]
    rows = data.load(configuration.data)
    model = models.build(configuration)
    predicted = model.predict_on_batch(rows.x[:3])
    targets = rows.y if isinstance(rows.y, dict) else {"": rows.y}
    outputs = predicted if isinstance(rows.y, dict) else {"": predicted}
    for output, target in targets.items():
        if target.ndim == 1:  # numbers of classes
            assert outputs[output].shape == (3, int(target.max()) + 1)
        else:
            assert outputs[output].shape == (3, *target.shape[1:])
    keras.backend.clear_session()


def test_trivial_loss_is_that_of_the_best_constant():
    numbers = np.array([[0.0], [1.0], [5.0]], "float32")
    classes = np.array([0, 0, 1, 2])
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    one_hot = np.eye(3, dtype="float32")[classes]
    flags = np.array([[0.0], [1.0], [1.0], [1.0]], "float32")
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=1.0)
    for loss, targets, expected in (
        ("mse", numbers, np.var(numbers)),
        ("mae", numbers, 5 / 3),
        ("sparse_categorical_crossentropy", classes, entropy),
        ("categorical_crossentropy", one_hot, entropy),
        ("binary_crossentropy", flags, quarter),
        (smooth, one_hot, math.log(3)),
        ("mse", np.ones((4, 2), "float32"), 0.0),
    ):
        found = runs.constant_loss(keras.losses.get(loss), targets)
        assert found == pytest.approx(expected, abs=1e-4)


def test_trivial_loss_of_several_outputs_is_their_sum():
    case = next(case for case in HARD if case.id == "hard-several-outputs").healthy
    targets = data.load("two targets").y_val
    parts = [
        runs.constant_loss(keras.losses.get(case.loss[name]), targets[name])
        for name in ("label", "number")
    ]
    assert runs.trivial_loss(case) == pytest.approx(sum(parts))


def test_a_run_is_bad_above_the_mean_of_trivial_and_healthy_median():
    limit = runs.bad_above(2.0, [0.1, 0.4, 9.0], 2.0)
    assert limit == pytest.approx(1.2)
    assert [runs.is_bad(loss, limit) for loss in (1.1, 1.3, math.nan, math.inf)] == [
        *(False, True, True, True)
    ]


def test_the_limit_without_a_twin_is_the_trivial_loss():
    assert runs.bad_above(2.0, [], 2.0) == 2.0
    assert runs.bad_above(2.0, [math.nan, math.nan, 0.1], 2.0) == 2.0


def test_the_healthy_loss_is_scaled_where_the_losses_of_the_twins_differ():
    # The healthy twin explains nine tenths: so should a faulty one of larger numbers.
    assert runs.bad_above(500.0, [0.1], 1.0) == pytest.approx((500 + 50) / 2)


def test_replay_stops_at_the_first_harmful_verdict_and_keeps_warnings_apart():
    diagnosis = Diagnosis([LossHigh(), LossAbove()], rule=AnyFinding())
    said = judging.replay(trace_of(0.2, 0.7, 1.5, 2.0), {"own": diagnosis})["own"]
    assert said == judging.Judgement(
        epoch=3, causes=("ULC", "PLC"), warnings=("PLC",), benign=None
    )


def test_replay_does_not_count_a_benign_stop():
    curve = [0.5 - 0.05 * n for n in range(10)] + 10 * [0.05]
    trace = Trace(
        Header(max_epochs=20),
        [
            Record(n, 1.0 * n, {"loss": v, "val_loss": v, "objective": v})
            for n, v in enumerate(curve, 1)
        ],
    )
    diagnosis = Diagnosis([NoMoreGain()])
    said = judging.replay(trace, {"own": diagnosis})["own"]
    assert said.epoch is None
    assert said.benign is not None


def test_every_indicator_of_a_preset_is_a_rule_of_its_own():
    presets = {name: Diagnosis(name) for name in ("conservative", "paper")}
    rules = judging.single_rules(presets)
    assert {"AGV", "PLC", "NMG", "ERG", "ERG (paper)"} <= set(rules)
    assert "AGV (paper)" not in rules  # it is the same


def test_summary_counts_what_was_stopped_and_why():
    outcomes = [
        judging.Outcome("a", True, 20, ("ERG", "PLC")),
        judging.Outcome("b", True, 20, ("ULC",)),
        judging.Outcome("c", True, 10, ("PLC",)),
        judging.Outcome("d", True, 10),  # a healthy twin that went wrong
        judging.Outcome("e", False, 10),
        judging.Outcome("f", False, 10),
    ]
    judgements = {
        "a": judging.Judgement(2, ("AGV", "PLC", "ERG")),
        "b": judging.Judgement(10, ("AGV", "EAG", "ULC")),
        "c": judging.Judgement(10, ("PLC",)),  # at its end: nothing was saved
        "d": judging.Judgement(3, ("PLC",)),
        "e": judging.Judgement(warnings=("OVERFIT",), benign=8),
        "f": judging.Judgement(9, ("PLC",)),
    }
    found = judging.summarise(outcomes, judgements)
    assert (found["recall"]["count"], found["recall"]["total"]) == (3, 4)
    assert list(found["missed"]) == ["c"]
    assert found["false_stops"]["share"] == 0.5
    assert list(found["stopped_wrongly"]) == ["f"]
    assert list(found["warned_wrongly"]) == ["e"]
    assert (found["right_cause"]["count"], found["right_cause"]["total"]) == (1, 2)
    assert list(found["wrong_cause"]) == ["b"]
    assert found["time_to_verdict"] == pytest.approx(0.3)
    assert found["time_to_verdict_early_causes"] == pytest.approx(0.1)
    assert found["time_to_verdict_other_causes"] == pytest.approx(0.5)
    assert found["good_runs_ended_benignly"] == 1


def test_a_single_rule_misses_only_what_expects_it():
    outcomes = [
        judging.Outcome("a", True, 20, ("ERG",)),
        judging.Outcome("b", True, 20, ("PLC", "ULC")),
    ]
    judgements = {"a": judging.Judgement(), "b": judging.Judgement()}
    found = judging.summarise(outcomes, judgements, "ULC")
    assert list(found["missed"]) == ["b"]
    assert found["recall_where_expected"]["total"] == 1


def test_intervals_are_clopper_pearson():
    none = judging.share(0, 200)
    assert none["low"] == 0
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert judging.share(0, 0)["share"] is None


def test_a_recorded_run_is_trained_once_and_again_when_it_changed(tmp_path):
    run = runs.all_runs([7], lambda case: case == "cancer-softmax-of-one")[0]
    run = dataclasses.replace(run, configuration=run.configuration.but(epochs=2))
    diagnosis = recording.recorder({"conservative": Diagnosis("conservative")})
    assert recording.facts_of(run, tmp_path) is None
    facts, trained = recording.record(run, tmp_path, diagnosis, {})
    assert trained
    assert facts["trivial"] == pytest.approx(runs.trivial_loss(run.configuration))
    assert len(recording.trace_of(run, tmp_path)) == 2
    again, trained = recording.record(run, tmp_path, diagnosis, {})
    assert not trained
    assert again["val_loss"] == facts["val_loss"]
    other = dataclasses.replace(run, configuration=run.configuration.but(rate=0.1))
    assert recording.facts_of(other, tmp_path) is None
    more = recording.recorder({"further": Diagnosis([LossAbove(), NoMoreGain()])})
    assert more.needs <= diagnosis.needs  # nothing more to record


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_benchmark_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TRUST), "--json", "FILE", "--smoke"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "FILE").read_text())
    assert {"settings", "versions", "outcomes", "presets", "rules"} <= set(results)
    assert results["outcomes"]["runs"] == 5
    for part in results["presets"].values():
        assert part["recall"]["total"] + part["false_stops"]["total"] == 5
    assert "| conservative |" in done.stdout
