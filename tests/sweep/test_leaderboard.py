from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.presets import preset
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.leaderboard import (
    counts,
    leaderboard_csv,
    leaderboard_json,
    leaderboard_rows,
    leaderboard_table,
    objectives,
    pareto_front,
    rank_trials,
    write_leaderboard,
)
from distsynth.sweep.plan import SweepConfig, SweepPlan

SPACE = {
    "loss.lambda_bce": {"zero_or_log": [0.01, 4.0], "zero": 0.2},
    "generator.channels": {"choice": [[8, 8], [16, 16, 16]]},
}


def plan(*objective: str, **sweep: Any) -> SweepPlan:
    chosen = objective or ("psnr",)
    config = SweepConfig(objective=chosen, search="optuna", **sweep)
    return SweepPlan("lambdas", "0a1b2c3d", preset("unet-7"), SPACE, config)


def trial(number: int, *scores: float | None, **more: Any) -> TrialRecord:
    """A trial of this number with one epoch a score."""
    known = [score for score in scores if score is not None]
    whole = {
        "hyperparameters": {"loss.lambda_bce": 0.5, "generator.channels": (8, 8)},
        "status": "finished",
        "metrics": {},
    }
    values: dict[str, Any] = whole | more
    metrics = values.pop("metrics")
    reports = tuple(
        EpochRecord(epoch, 5 * epoch, metrics, score, max(known, default=None))
        for epoch, score in enumerate(scores, start=1)
    )
    return TrialRecord(f"{number:05d}", reports=reports, **values)


def by_name(*trials: TrialRecord) -> dict[str, TrialRecord]:
    return {each.name: each for each in trials}


def order(rows: Any) -> list[tuple[int | None, str]]:
    return [(row.rank, row.trial.name[-1]) for row in rows]


# --- ranking


def test_trials_rank_by_their_best_epoch():
    records = by_name(trial(0, -3.0, -1.0, -2.0), trial(1, -4.0, 0.0), trial(2, None, -0.5))
    rows = rank_trials(plan(), records)
    assert order(rows) == [(1, "1"), (2, "2"), (3, "0")]
    assert [row.best.epoch for row in rows if row.best] == [2, 2, 2]
    assert {row.pareto for row in rows} == {None}


def test_ties_go_by_number():
    records = by_name(trial(3, 1.0), trial(1, 0.5, 1.0), trial(0, 0.0), trial(2, 1.0))
    assert order(rank_trials(plan(), records)) == [(1, "1"), (2, "2"), (3, "3"), (4, "0")]


def test_failed_and_unscored_trials_come_last_without_a_rank():
    records = by_name(
        trial(0, status="failed", cause="the run diverged"),
        trial(1, 99.0, status="failed", cause="its process died"),
        trial(2, None, status="running"),
        trial(3, -5.0, status="stopped"),
        trial(4, -4.0, status="running"),
        trial(5, status="waiting"),
    )
    rows = rank_trials(plan(), records)
    assert order(rows)[:2] == [(1, "4"), (2, "3")]
    assert order(rows)[2:] == [(None, name) for name in "0125"]
    assert [row.best and row.best.score for row in rows[2:]] == [None, 99.0, None, None]


SCORES = st.none() | st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])
RECORDS = st.lists(
    st.tuples(SCORES, st.sampled_from(["finished", "stopped", "failed", "running"])), max_size=8
).map(lambda rows: [trial(n, score, status=status) for n, (score, status) in enumerate(rows)])


@settings(deadline=None)
@given(RECORDS)
def test_every_trial_has_one_row_and_ranks_count_up(trials):
    rows = rank_trials(plan(), by_name(*trials))
    assert sorted(row.trial.name for row in rows) == [each.name for each in trials]
    ranks = [row.rank for row in rows if row.rank is not None]
    assert ranks == list(range(1, len(ranks) + 1))
    ranked = rows[: len(ranks)]
    scores = [row.best.score for row in ranked if row.best and row.best.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(ranks)
    assert all(row.trial.status != "failed" for row in ranked)


@settings(deadline=None)
@given(RECORDS, st.randoms(use_true_random=False))
def test_the_order_in_which_trials_became_known_does_not_matter(trials, rng: random.Random):
    shuffled = list(trials)
    rng.shuffle(shuffled)
    boards = [
        leaderboard_csv(plan(), rank_trials(plan(), by_name(*each))) for each in (trials, shuffled)
    ]
    assert boards[0] == boards[1]


# --- several objectives


def scored(number: int, values: tuple[float | None, ...]) -> TrialRecord:
    """A trial with a score for the first objective, metrics for ssim_2d and mse."""
    first, ssim, mse = values
    return trial(number, first, metrics={"val/ssim_2d": ssim, "val/mse": mse})


def test_each_objective_is_turned_so_that_higher_is_better():
    record = scored(0, (25.0, 0.9, 0.04))
    assert objectives(plan("psnr", "ssim_2d", "mse"), record) == (25.0, 0.9, -0.04)
    assert objectives(plan("psnr", "mse"), record) == (25.0, -0.04)
    assert objectives(plan("psnr"), record) == (25.0,)


def test_objectives_are_of_the_best_epoch():
    reports = tuple(
        EpochRecord(epoch, epoch, {"val/mse": mse}, score, score)
        for epoch, (score, mse) in enumerate([(1.0, 0.1), (3.0, 0.3), (2.0, 0.2)], start=1)
    )
    record = TrialRecord("00000", {}, reports=reports)
    assert objectives(plan("psnr", "mse"), record) == (3.0, -0.3)


def test_a_missing_metric_is_the_worst():
    missing, bad = scored(0, (25.0, None, None)), scored(1, (25.0, -1.0, 1e9))
    assert objectives(plan("psnr", "ssim_2d"), missing) == (25.0, float("-inf"))
    assert pareto_front(plan("psnr", "ssim_2d", "mse"), [missing, bad]) == {"00001"}


def test_a_trial_without_a_score_has_no_objectives():
    with pytest.raises(ValueError, match="trial 00003 has no score"):
        objectives(plan("psnr", "mse"), trial(3, None))


FEW = st.sampled_from([0.0, 1.0, 2.0])


@settings(deadline=None)
@given(st.lists(st.tuples(FEW, st.none() | FEW, FEW), min_size=1, max_size=10))
def test_the_front_is_that_of_brute_force(values):
    asked = plan("psnr", "ssim_2d", "mse")
    records = [scored(number, each) for number, each in enumerate(values)]
    candidates = {
        record.name: (first, -9.0 if ssim is None else ssim, -mse)
        for record, (first, ssim, mse) in zip(records, values, strict=True)
    }
    expected = set()
    for name, own in candidates.items():
        beaten = False
        for other in candidates.values():
            no_worse = [other[axis] >= own[axis] for axis in range(3)]
            better = [other[axis] > own[axis] for axis in range(3)]
            beaten = beaten or (all(no_worse) and any(better))
        if not beaten:
            expected.add(name)
    assert pareto_front(asked, records) == expected
    rows = rank_trials(asked, by_name(*records))
    assert {row.trial.name for row in rows if row.pareto} == expected
    assert rows[0].pareto or any(
        row.pareto and row.best and rows[0].best and row.best.score == rows[0].best.score
        for row in rows
    )


def test_failed_trials_are_on_no_front():
    failed = trial(1, 99.0, status="failed", metrics={"val/mse": 0.0})
    records = by_name(trial(0, 1.0, metrics={"val/mse": 1.0}), failed)
    rows = rank_trials(plan("psnr", "mse"), records)
    assert [(row.trial.name, row.pareto) for row in rows] == [("00000", True), ("00001", None)]


# --- files

METRICS = {
    "val/psnr": 25.123456789,
    "val/ssim_2d": 0.9,
    "val/ssim_global": None,
    "val/mse": 0.01,
    "val/seam_index": 1.25,
    "val/psnr_patches": 3.0,
}
BOARD = by_name(
    trial(0, 24.0, 25.0, None, metrics=METRICS, preset="unet-7"),
    trial(1, status="failed", cause='the run diverged: "val/mse", at step 5'),
    trial(2, 26.5, metrics=METRICS, status="stopped", hyperparameters={"loss.lambda_bce": 0.0}),
)


def test_the_table_holds_everything_in_full():
    rows = leaderboard_rows(plan(), rank_trials(plan(), BOARD))
    assert rows[1] == {
        "rank": 2,
        "trial": "00000",
        "status": "finished",
        "epochs": 3,
        "score": 25.0,
        "best_epoch": 2,
        "psnr": 25.123456789,
        "ssim_2d": 0.9,
        "ssim_global": None,
        "mse": 0.01,
        "seam_index": 1.25,
        "loss.lambda_bce": 0.5,
        "generator.channels": "[8, 8]",
        "preset": "unet-7",
        "cause": None,
    }
    assert rows[0]["generator.channels"] is None
    assert rows[2]["cause"] == 'the run diverged: "val/mse", at step 5'
    assert rows[2]["score"] is rows[2]["psnr"] is rows[2]["best_epoch"] is None
    assert "pareto" not in rows[0]
    several = plan("psnr", "mse")
    assert [row["pareto"] for row in leaderboard_rows(several, rank_trials(several, BOARD))] == [
        True,
        False,
        None,
    ]


def test_csv_can_be_read_back():
    rows = rank_trials(plan(), BOARD)
    text = leaderboard_csv(plan(), rows)
    found = list(csv.DictReader(io.StringIO(text)))
    expected = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in leaderboard_rows(plan(), rows)
    ]
    assert found == expected
    assert float(found[1]["psnr"]) == 25.123456789
    assert "\r" not in text
    assert "nan" not in text.lower()
    assert leaderboard_csv(plan(), []) == ""


def test_json_holds_the_rows_and_what_was_searched_for():
    asked = plan("mse", seam_penalty=0.5)
    rows = rank_trials(asked, BOARD)
    importance = {"loss.lambda_bce": 0.75, "generator.channels": 0.25}
    found = json.loads(leaderboard_json(asked, rows, importance), parse_constant=pytest.fail)
    assert found == {
        "sweep": "lambdas",
        "objective": ["mse"],
        "seam_penalty": 0.5,
        "trials": leaderboard_rows(asked, rows),
        "importance": importance,
    }
    assert json.loads(leaderboard_json(asked, [], None))["trials"] == []


def test_json_refuses_what_is_no_number():
    record = trial(0, float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        leaderboard_json(plan(), rank_trials(plan(), by_name(record)), None)


def test_equal_records_make_equal_files(tmp_path):
    importance = {"loss.lambda_bce": 1.0}
    kept = SweepFolder(tmp_path / "kept")
    for record in BOARD.values():
        kept.write_record(record)
    boards = []
    for name, records in (
        ("a", BOARD),
        ("b", dict(reversed(BOARD.items()))),
        ("c", kept.records()),
    ):
        write_leaderboard(SweepFolder(tmp_path / name), plan(), records, importance)
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == ["leaderboard.csv", "leaderboard.json"]
        boards.append([file.read_bytes() for file in files])
    assert boards[0] == boards[1] == boards[2]
    assert b"25.123456789" in boards[0][0]


# --- for a reader


def text_rows(asked, ranked, most=None):
    """Heading and lines of the leaderboard's table."""
    shown = leaderboard_table(asked, ranked, most)
    (_, lines), *none = shown.groups
    assert none == []
    head = [column.name for column in shown.columns]
    return [head, *([cell.text for cell in line] for line in lines)]


def test_a_terminal_shows_rounded_rows():
    head, *lines = text_rows(plan(), rank_trials(plan(), BOARD))
    assert " ".join(head) == (
        "rank trial status epoch score psnr ssim_2d ssim_global mse seam_index lambda_bce channels"
    )
    assert ["|".join(line) for line in lines] == [
        "1|00002|stopped|1/30|26.5000|25.12|0.9000|-|0.0100|1.250|0|-",
        "2|00000 unet-7|finished|3/30|25.0000|25.12|0.9000|-|0.0100|1.250|0.5|[8, 8]",
        "-|00001|failed|0/30|-|-|-|-|-|-|0.5|[8, 8]",
    ]
    assert text_rows(plan(), rank_trials(plan(), BOARD), most=1) == [head, lines[0]]


def test_a_terminal_marks_the_front():
    asked = plan("psnr", "mse")
    head, *lines = text_rows(asked, rank_trials(asked, BOARD))
    assert head[4:6] == ["score", "front"]
    assert [line[5] for line in lines] == ["*", "", ""]
    assert {len(line) for line in lines} == {len(head)}


def test_fields_that_end_alike_keep_their_whole_names():
    space = {name: {"choice": [[8]]} for name in ("generator.channels", "discriminator.channels")}
    asked = SweepPlan("a", "b", preset("unet-7"), {**space, "loss.lambda_bce": {}}, SweepConfig())
    head, *_ = text_rows(asked, rank_trials(asked, BOARD))
    assert head[-3:] == ["generator.channels", "discriminator.channels", "lambda_bce"]


@settings(deadline=None)
@given(RECORDS)
def test_all_rows_are_as_wide_as_the_head(trials):
    rows = text_rows(plan(), rank_trials(plan(), by_name(*trials)))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert all(isinstance(cell, str) for row in rows for cell in row)
    assert len(rows) == 1 + len(trials)


def test_counts_are_told_in_words():
    records = BOARD | by_name(trial(3, status="waiting"), trial(4, 1.0))
    told = "2 finished, 1 stopped, 1 waiting, 1 failed"
    assert counts(plan(trials=5), records) == told
    assert counts(plan(trials=8), records) == f"{told}, 3 to be suggested"
    waiting = [name for name, record in records.items() if record.status == "waiting"]
    assert waiting
    shown = counts(plan(trials=5), records, starting=waiting[:1])
    assert "1 starting" in shown
    assert f"{len(waiting)} waiting" not in shown
    assert counts(plan(trials=2), {}) == "no trials yet, 2 to be suggested"
    grid = SweepPlan("a", "b", preset("unet-7"), SPACE, SweepConfig(trials=8, search="grid"))
    assert counts(grid, records) == told
