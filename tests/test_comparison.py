import json
import math

import numpy as np
import pytest
import recordings

from kt_bttackler import cli, comparison, comparison_text, files, measures, replay
from kt_bttackler.diagnosis import Diagnosis
from kt_bttackler.presets import PRESETS
from kt_bttackler.rules import NeverStop
from kt_bttackler.trace import TraceWriter

POOL = recordings.search(40, seed=2)
RECORDING = replay.Recording(POOL, "forty")
CHOSEN = {"conservative": Diagnosis(), "nothing": Diagnosis(rule=NeverStop())}


@pytest.fixture(scope="module")
def table():
    return comparison.compare(RECORDING, CHOSEN, orders=20, trivial=0.2)


def test_claims_savings_and_regret_are_those_of_the_replay(table):
    row = table.rows[0]
    [run] = replay.simulate(RECORDING, Diagnosis())
    assert (row.claimed, row.benign) == (run.count("stopped"), run.count("benign"))
    assert (row.claimed > 5, row.benign > 0, row.unknown) == (True, True, 0)
    saved = sum(t.seconds_saved for t in run.trials)
    assert row.seconds_saved == pytest.approx(saved / RECORDING.seconds)
    assert row.epochs_saved == sum(t.epochs_saved for t in run.trials) / 800
    stopped = [t.outcome == "stopped" for t in run.trials]
    full = RECORDING.full_scores()
    assert row.top_10 == measures.kill_regret(full, stopped)
    assert row.top_20 == measures.kill_regret(full, stopped, fraction=0.2)
    epochs = [t.epochs for t in run.trials if t.outcome in ("stopped", "benign")]
    assert row.stop_epochs == (min(epochs), np.median(epochs), max(epochs))


def test_each_indicator_is_replayed_alone(table):
    claims = {claim.indicator: claim for claim in table.rows[0].indicators}
    assert sum(claim.together for claim in claims.values()) == (
        table.rows[0].claimed + table.rows[0].benign
    )
    for name in ("PLC", "LAR", "NMG"):
        alone = Diagnosis([Diagnosis()[name]], Diagnosis().rule)
        [run] = replay.simulate(POOL, alone)
        assert claims[name].alone == run.count("stopped", "benign")
    assert claims["LAR"].alone > claims["LAR"].together


def test_the_ceiling_stops_exactly_the_bad_after_their_first_epoch(table):
    bad = [trace for trace in POOL if not trace.records[-1].scalars["objective"] > 0.2]
    saved = sum(trace.seconds[-1] - trace.seconds[0] for trace in bad)
    assert table.bad == len(bad) > 10
    assert table.ceiling == pytest.approx(saved / RECORDING.seconds)
    row = table.rows[0]
    assert row.of_ceiling == pytest.approx(row.seconds_saved / table.ceiling)
    unknown = comparison.compare(RECORDING, CHOSEN, orders=0)
    assert math.isnan(unknown.ceiling)
    assert "Ceiling unknown" in comparison_text.as_text(unknown)


def test_without_a_stop_pairs_are_equal_and_the_null_is_not(table):
    nothing = table.rows[1].searches
    assert (nothing.trials_ratio.value, nothing.time_saving.value) == (1.0, 0.0)
    assert (nothing.hit_ratio_bound, nothing.reached) == (0.5, 1.0)
    assert nothing.hit_ratio.value == pytest.approx(0.5, abs=0.1)
    assert table.null_saving.low < -0.2
    assert table.null_reached < 1.0


def test_simulated_searches_with_a_diagnosis_finish_more_trials(table):
    found = table.rows[0].searches
    assert found.trials_ratio.low > 1.1
    assert found.time_saving.value > 0
    assert found.hit_ratio_bound == measures.hit_ratio_bound(found.trials_ratio.value)
    assert found.hit_ratio.low < found.hit_ratio.value < found.hit_ratio.high
    assert found.seconds_to_best.value < table.budget


def test_cut_trials_are_unknown_and_in_no_share():
    pool = [recordings.cut(trace, 4) for trace in POOL[:12]] + POOL[12:]
    found = comparison.compare(replay.Recording(pool), CHOSEN, orders=2)
    row = found.rows[0]
    assert found.complete == 28
    assert row.unknown > 0
    assert row.top_10.top == 3
    assert "unknown, cut short earlier" in comparison_text.as_text(found)
    whole = sum(trace.seconds[-1] for trace in POOL[12:])
    [run] = replay.simulate(pool, Diagnosis())
    saved = sum(trial.seconds_saved for trial in run.trials)
    assert row.seconds_saved == pytest.approx(saved / whole)


def test_nothing_complete_leaves_what_is_known():
    pool = [recordings.cut(trace, 4) for trace in POOL[:5]]
    found = comparison.compare(replay.Recording(pool), CHOSEN)
    assert (found.orders, found.complete, found.rows[0].searches) == (0, 0, None)
    assert "none known" in comparison_text.as_text(found)
    with pytest.raises(ValueError, match="must hold at least one trace"):
        comparison.compare(replay.Recording([]), CHOSEN)
    with pytest.raises(ValueError, match="`orders` must be at least 0, got -1"):
        comparison.compare(RECORDING, CHOSEN, orders=-1)


# The commands.


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        for trace in recordings.search(24, seed=seed):
            place = folder / name / f"trial_{trace.header.trial_id}" / "trace-0.jsonl"
            writer = TraceWriter(place, trace.header)
            for record in trace.records:
                writer.append(record)
            writer.close(trace.end)
        (folder / name / "card.json").write_text('{"trivial_score": 0.2}')
    return folder


def test_replay_prints_presets_side_by_side_and_all_tasks_together(
    stores, capsys, tmp_path
):
    target = tmp_path / "facts.json"
    arguments = ["replay", str(stores / "one"), str(stores / "two"), "--orders", "3"]
    assert cli.main([*arguments, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRESETS)
    assert "one: 24 trials, 24 complete" in printed
    assert "All 2 tasks together" in printed
    assert "(A/A)" in printed
    assert "of the ceiling" in printed
    facts = files.loads(target.read_text())
    assert [task["task"] for task in facts["tasks"]] == ["one", "two"]
    assert list(facts["pooled"]) == list(PRESETS)
    first = facts["tasks"][0]["rows"][0]
    assert first["top_10"]["upper"] == measures.upper_bound(
        first["top_10"]["killed"], 3
    )
    assert facts["pooled"]["paper"][0]["top"] == 6


def test_replay_takes_a_file_a_budget_and_workers(stores, capsys, tmp_path):
    own = tmp_path / "mine.json"
    own.write_text(Diagnosis(["PLC"]).to_json())
    arguments = ["replay", str(stores / "one"), "--orders", "2", "--score", "last"]
    arguments += ["--diagnosis", str(own), "--diagnosis", "paper"]
    arguments += ["--workers", "4", "--budget", "50%", "--trivial", "0.3"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert "conservative" not in printed
    assert "with 4 worker(s)" in printed
    assert "no better than 0.3" in printed
    assert "Score of a trial: last epoch." in printed


def test_calibrate_writes_a_diagnosis_and_says_what_it_proves(stores, capsys, tmp_path):
    target, facts = tmp_path / "calibrated.json", tmp_path / "facts.json"
    folders = [str(stores / name) for name in ("one", "two", "three")]
    arguments = ["calibrate", *folders, "--output", str(target), "--json", str(facts)]
    assert cli.main([*arguments, "--max-regret", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "9 top trials stand behind the bound" in printed
    assert Diagnosis.load(target).rule == Diagnosis("balanced").rule
    content = json.loads(facts.read_text())
    assert content["regret"]["top"] == 9
    assert Diagnosis.from_json(json.dumps(content["diagnosis"])) == Diagnosis.load(
        target
    )
    # A limit that so few cannot prove is refused with the number.
    assert cli.main([*arguments, "--max-regret", "0.1"]) == 2
    complaint = capsys.readouterr().err
    assert f"at least {measures.upper_bound(0, 9):.4f}" in complaint
    assert complaint.count("\n") == 1


def test_calibrate_adapts_to_a_search_that_spared_trials(stores, capsys, tmp_path):
    ran, target = tmp_path / "ran.json", tmp_path / "adapted.json"
    bold = Diagnosis(["AGV", "PLC"], amnesty=0.5)
    bold = bold.replace("PLC", threshold=0.2, progress_guard=math.inf)
    ran.write_text(bold.to_json())
    arguments = ["calibrate", "--adapt", "--diagnosis", str(ran)]
    arguments += ["--output", str(target), str(stores / "one")]
    assert cli.main(arguments) == 0
    assert "it wanted to stop a good trial" in capsys.readouterr().out
    adapted = Diagnosis.load(target)
    assert adapted["PLC"].threshold < 0.2
    assert adapted.amnesty == 0.5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["replay", "missing"], "missing is not a folder"),
        (["replay", "."], "holds no trace with an epoch"),
        (["replay", "one", "--budget", "soon"], "--budget must be seconds or a share"),
        (["replay", "one", "--budget", "0"], "--budget must be seconds or a share"),
        (["replay", "one", "--diagnosis", "bold"], "--diagnosis bold:"),
        (["replay", "one", "--diagnosis", "none.json"], "none.json cannot be read"),
        (["replay", "one", "--json", "no/where.json"], "--json no/where.json cannot"),
        (["calibrate", "one", "--output", "."], "--output . cannot be written"),
        (["calibrate", "one", "--max-regret", "2"], "`max_regret` must be in (0, 1)"),
        (["calibrate", "one", "two", "--adapt"], "--adapt needs one DIR"),
        (["calibrate", "one", "--adapt"], "must spare some trials"),
    ],
)
def test_mistakes_are_one_line(stores, monkeypatch, capsys, arguments, complaint):
    (stores / "empty").mkdir(exist_ok=True)
    in_empty = arguments[1] == "."
    monkeypatch.chdir(stores / "empty" if in_empty else stores)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_broken_card_is_told(stores, monkeypatch, capsys):
    card = stores / "two" / "card.json"
    content = card.read_text()
    card.write_text("{")
    assert cli.main(["replay", str(stores / "two")]) == 2
    assert "card.json cannot be read" in capsys.readouterr().err
    card.write_text(content)
