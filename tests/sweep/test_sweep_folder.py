from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distsynth.errors import ConfigError
from distsynth.presets import preset
from distsynth.sweep.folder import (
    CopyRecord,
    EpochRecord,
    SweepFolder,
    TrialRecord,
    report_of,
    searched,
)
from distsynth.sweep.plan import SweepConfig, SweepPlan
from sharding.io.errors import DataError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.none() | NUMBERS
SCALARS = MAYBE | st.integers(-(2**53), 2**53) | st.booleans() | st.text()
VALUES = SCALARS | st.lists(st.integers(0, 512) | st.text(), max_size=4).map(tuple)
CANDIDATES = st.dictionaries(st.text(), VALUES, max_size=4)
REPORTS = st.builds(
    EpochRecord,
    epoch=st.integers(1, 30),
    step=st.integers(0, 10**9),
    metrics=st.dictionaries(st.text(), MAYBE, max_size=3),
    score=MAYBE,
    best_score=MAYBE,
)
COPIES = st.builds(
    CopyRecord, epoch=st.integers(1, 99), trial=st.text(), hyperparameters=CANDIDATES
)
RECORDS = st.builds(
    TrialRecord,
    name=st.integers(0, 99999).map("{:05d}".format),
    hyperparameters=CANDIDATES,
    status=st.sampled_from(["waiting", "running", "finished", "stopped", "failed"]),
    reports=st.lists(REPORTS, max_size=3).map(tuple),
    failures=st.lists(st.text(), max_size=2).map(tuple),
    cause=st.none() | st.text(),
    copies=st.lists(COPIES, max_size=2).map(tuple),
    preset=st.none() | st.text(),
    taken_from=st.none() | st.text(),
)
PLAN = SweepPlan(
    "lambdas",
    "0a1b2c3d",
    preset("unet-7"),
    {"generator.channels": {"choice": [[8, 8], [16, 16, 16]]}},
    SweepConfig(),
)


def report(epoch: int, score: float | None = 0.5, **more: Any) -> EpochRecord:
    return EpochRecord(
        **{"epoch": epoch, "step": 5 * epoch, "metrics": {}} | more, score=score, best_score=score
    )


def trial(*scores: float | None) -> TrialRecord:
    return TrialRecord("00000", {}, reports=tuple(report(n, s) for n, s in enumerate(scores, 1)))


# --- records


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return SweepFolder(tmp_path_factory.mktemp("sweeps") / "lambdas")


@settings(deadline=None)
@given(RECORDS)
def test_records_survive_their_file(scratch, record):
    scratch.write_record(record)
    assert scratch.records()[record.name] == record
    text = scratch.folder.read(f"trials/{record.name}.json").decode()
    assert text == record.to_json()
    json.loads(text, parse_constant=pytest.fail)


def test_tuples_of_hyperparameters_are_tuples_again(tmp_path):
    """Domains, and values drawn anew, are compared to them."""
    hyperparameters = {"generator.channels": (8, 8), "optim.lr_generator": 1e-3}
    copies = (CopyRecord(1, "00001", hyperparameters),)
    folder = SweepFolder(tmp_path)
    folder.write_record(TrialRecord("00000", hyperparameters, copies=copies))
    found = folder.records()["00000"]
    assert found.hyperparameters == hyperparameters
    assert found.copies == copies


@settings(deadline=None)
@given(st.lists(REPORTS, max_size=8), st.lists(REPORTS, max_size=8))
def test_each_epoch_has_its_latest_report_in_order(first, second):
    record = TrialRecord("00000", {"a": 1}, preset="unet-7").with_reports(first)
    merged = record.with_reports(second)
    latest = {each.epoch: each for each in (*first, *second)}
    assert [each.epoch for each in merged.reports] == sorted(latest)
    assert {each.epoch: each for each in merged.reports} == latest
    assert merged.epochs == max(latest, default=0)
    assert replace(merged, reports=()) == replace(record, reports=())
    assert merged.with_reports(second) == merged


@settings(deadline=None)
@given(st.lists(MAYBE, max_size=8))
def test_the_best_epoch_is_the_first_with_the_highest_score(scores):
    best = trial(*scores).best
    known = [score for score in scores if score is not None]
    if best is None:
        assert not known
    else:
        assert best.score == max(known)
        assert best.epoch == scores.index(max(known)) + 1


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ((-3.0, -2.0, -4.0), 2),
        ((-1.0, None, 0.0), 3),
        ((None, 0.0, -0.5), 2),
        ((2.0, 2.0), 1),
        ((None, None), None),
        ((), None),
    ],
)
def test_the_best_epoch_with_negative_and_missing_scores(scores, epoch):
    best = trial(*scores).best
    assert (best and best.epoch) == epoch


def test_what_is_not_finite_becomes_none():
    values = {
        "epoch": 3,
        "step": 15,
        "metrics": {
            "val/psnr": math.inf,
            "val/mse": 0.5,
            "val/seam_index": math.nan,
            "val/ssim_2d": np.float64("-inf"),
        },
        "score": math.nan,
        "best_score": -math.inf,
    }
    found = report_of(values)
    metrics = {"val/psnr": None, "val/mse": 0.5, "val/seam_index": None, "val/ssim_2d": None}
    assert found == EpochRecord(3, 15, metrics, None, None)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(), st.floats(), max_size=4), st.floats(), st.floats(), st.integers(1)
)
def test_reports_hold_finite_numbers_and_lose_no_other(metrics, score, best, epoch):
    values = {"epoch": epoch, "step": 0, "metrics": metrics, "score": score, "best_score": best}
    found = report_of(values)
    given_values = {**metrics, "\0score": score, "\0best": best}
    kept = {**found.metrics, "\0score": found.score, "\0best": found.best_score}
    for name, value in given_values.items():
        assert kept[name] == (value if math.isfinite(value) else None)


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": 1, "step": 5, "metrics": {}, "score": 1.0},
        {"epoch": "first", "step": 5, "metrics": {}, "score": 1.0, "best_score": 1.0},
        {"epoch": 1, "step": 5, "metrics": {}, "score": 1.0, "best_score": 1.0, "more": 1},
    ],
)
def test_other_values_are_no_report(values):
    with pytest.raises(ValidationError):
        report_of(values)


def test_runs_that_train_a_finalist_anew_are_not_of_the_search():
    names = ("00000", "00012", "final-00012")
    records = {name: TrialRecord(name, {}) for name in names}
    assert list(searched(records)) == ["00000", "00012"]


# --- the folder


def test_a_plan_is_kept(tmp_path):
    folder = SweepFolder(tmp_path / "lambdas")
    assert not folder.exists()
    folder.write_plan(PLAN)
    assert folder.exists()
    assert SweepFolder(str(tmp_path / "lambdas")).plan() == PLAN


def test_where_there_is_no_sweep(tmp_path, refused):
    folder = SweepFolder(tmp_path / "lambdas")
    folder.write_record(trial(1.0))
    remedy = "Check the name and --storage; on a cluster give storage that every node reaches"
    with refused(tmp_path / "lambdas", r"no sweep here \(no sweep\.json\), or its storage", remedy):
        folder.plan()


def test_a_damaged_plan_is_named(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write_plan(PLAN)
    (tmp_path / "sweep.json").write_text(PLAN.to_json()[:100])
    with pytest.raises(ConfigError) as caught:
        folder.plan()
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.json'} is not a sweep that can be")


def test_records_come_in_the_order_of_their_names(tmp_path):
    folder = SweepFolder(tmp_path)
    assert folder.records() == {}
    names = ["00010", "final-00002", "00002", "00000"]
    for name in names:
        folder.write_record(TrialRecord(name, {"train.seed": int(name[-5:])}))
    folder.write_record(TrialRecord("00002", {"train.seed": 2}, status="running"))
    found = folder.records()
    assert list(found) == sorted(names)
    assert found["00002"].status == "running"
    assert found["00010"] == TrialRecord("00010", {"train.seed": 10})


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", "Invalid JSON"),
        ('{"name": "00001", "hyperparameters"', "Invalid JSON"),
        ('{"name": "00001"}', "Field required"),
        ('{"name": "00001", "hyperparameters": {}, "status": "lost"}', "Input should be 'waiting'"),
        ('{"name": "00001", "hyperparameters": {}, "colour": 1}', "Unexpected keyword"),
        ("[]", "Input should be an object"),
    ],
)
def test_a_damaged_record_is_named_with_the_remedy(content, rule, tmp_path, refused):
    folder = SweepFolder(tmp_path)
    folder.write_record(TrialRecord("00000", {}))
    damaged = tmp_path / "trials" / "00001.json"
    damaged.write_text(content)
    with refused(damaged, f"not a trial's record .*{rule}", "Remove it to try the trial again"):
        folder.records()
    damaged.unlink()
    assert list(folder.records()) == ["00000"]


def test_files_of_others_among_the_records_are_left_alone(tmp_path, caplog):
    folder = SweepFolder(tmp_path)
    folder.write_record(TrialRecord("00000", {}))
    folder.write_record(TrialRecord("dcgan-1", {}))
    trials = tmp_path / "trials"
    content = (trials / "00000.json").read_text()
    others = {"notes.json": "{}", "00000 (copy).json": content, "mine.json": "[", ".x.json": "{"}
    for name, text in others.items():
        (trials / name).write_text(text)
    assert list(folder.records()) == ["00000", "dcgan-1"]
    assert caplog.text.count("is not a trial's record and is left alone") == 3
    folder.remove_records()
    assert {path.name for path in trials.iterdir()} == set(others)


def test_an_unfinished_write_is_no_record(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write_record(TrialRecord("00000", {}))
    (tmp_path / "trials" / ".00001.json.partial").write_text("{")
    assert list(folder.records()) == ["00000"]


def test_a_folder_has_a_name_and_a_place_that_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = SweepFolder("sweeps/lambdas/")
    assert (local.name, local.lasting_url) == ("lambdas", str(tmp_path / "sweeps" / "lambdas"))
    assert local.run_dir("00003") == "sweeps/lambdas/runs/00003"
    remote = SweepFolder("s3://bucket/sweeps/lambdas")
    assert (remote.name, remote.lasting_url) == ("lambdas", "s3://bucket/sweeps/lambdas")
    assert remote.run_dir("00003") == "s3://bucket/sweeps/lambdas/runs/00003"


def test_a_sweep_may_lie_on_any_storage(tmp_path):
    url = f"memory://{tmp_path.name}/lambdas"
    SweepFolder(url).write_plan(PLAN)
    SweepFolder(url).write_record(trial(1.0, 2.0))
    assert SweepFolder(url).plan() == PLAN
    assert SweepFolder(url).records() == {"00000": trial(1.0, 2.0)}


def test_errors_of_a_storage_are_of_the_data(tmp_path):
    (tmp_path / "trials").write_text("a file in the place of a folder")
    with pytest.raises(DataError):
        SweepFolder(tmp_path).write_record(trial(1.0))


def test_what_a_killed_driver_left_is_removed(tmp_path):
    folder = SweepFolder(tmp_path)
    for name in ("ray/94a66c2b/tuner.pkl", "best/.best.pt.partial-0a1b2c3d", "runs/00000/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder.remove_leftovers()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"runs/00000/file"}
