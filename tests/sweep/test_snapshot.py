"""The copy of all records on an object store: never more than what the records themselves say."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from s3_server import S3Server

from distsynth.presets import preset
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.snapshot import SNAPSHOT_FILE

pytestmark = pytest.mark.slow
NAMES = ("00000", "00001", "00002", "final-00001")
REPORT = EpochRecord(1, 5, {"val/psnr": 20.0}, 20.0, 20.0)
RECORDS = {
    name: TrialRecord(name, {"train.seed": seed}, "finished", (REPORT,))
    for seed, name in enumerate(NAMES)
}


@pytest.fixture
def sweep(s3: S3Server) -> SweepFolder:
    """A sweep whose trials have ended, with a copy of their records."""
    folder = SweepFolder(s3.new_folder())
    folder.write_records(RECORDS.values())
    folder.write_snapshot(RECORDS.values())
    s3.requests.clear()
    return folder


def read_of(s3: S3Server) -> list[str]:
    """Names of the files that were read, in order."""
    paths = [path for command, path in s3.requests if command == "GET" and "list-type" not in path]
    return sorted(path.rpartition("/")[2].partition("?")[0] for path in paths)


def test_the_copy_is_read_in_place_of_the_records(sweep, s3):
    assert sweep.records() == RECORDS
    assert list(sweep.records()) == sorted(NAMES)
    assert read_of(s3) == [SNAPSHOT_FILE] * 2


@pytest.mark.parametrize("part", ["cut", "empty", "no gzip", "no JSON", "other JSON", "none"])
def test_a_damaged_or_missing_copy_costs_requests_alone(sweep, s3, part):
    whole = sweep.folder.read(SNAPSHOT_FILE)
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "no gzip": b"{}",
        "no JSON": gzip.compress(b"{\xff"),
        "other JSON": gzip.compress(json.dumps({"trials/00000.json": {"name": "00000"}}).encode()),
    }
    sweep.folder.remove(SNAPSHOT_FILE)
    if part in damaged:
        sweep.folder.write(SNAPSHOT_FILE, damaged[part])
    s3.requests.clear()
    assert sweep.records() == RECORDS
    assert [name for name in read_of(s3) if name != SNAPSHOT_FILE] == [f"{n}.json" for n in NAMES]


def test_a_record_that_is_newer_than_the_copy_counts(sweep, s3):
    """As where a driver is killed before it copies; the second is a trial that is tried again."""
    added = TrialRecord("00003", {}, "running")
    again = replace(RECORDS["00001"], status="waiting", cause=None)
    longer = RECORDS["00002"].with_reports([replace(REPORT, epoch=2, score=21.0)])
    sweep.write_records([added, again, longer])
    s3.requests.clear()
    assert sweep.records() == {
        "00000": RECORDS["00000"],
        "00001": again,
        "00002": longer,
        "00003": added,
        "final-00001": RECORDS["final-00001"],
    }
    assert read_of(s3) == ["00001.json", "00002.json", "00003.json", SNAPSHOT_FILE]


def test_a_change_of_the_same_length_is_noticed(sweep):
    changed = replace(RECORDS["00000"], hyperparameters={"train.seed": 7})
    assert len(changed.to_json()) == len(RECORDS["00000"].to_json())
    sweep.write_record(changed)
    assert sweep.records()["00000"] == changed


def test_a_copy_that_is_older_than_its_records_is_of_no_use_and_no_harm(sweep):
    """As where a driver that was thought dead writes its copy after another has taken over."""
    later = {name: replace(row, failures=("crashed",)) for name, row in RECORDS.items()}
    sweep.write_records(later.values())
    sweep.write_snapshot(RECORDS.values())
    assert sweep.records() == later


def test_a_record_that_was_removed_is_not_brought_back(sweep):
    sweep.folder.remove("trials/00001.json")
    assert list(sweep.records()) == ["00000", "00002", "final-00001"]
    sweep.remove_records()
    assert sweep.records() == {}
    assert sweep.folder.names() == []


def test_the_driver_copies_what_it_has_written(s3):
    folder = SweepFolder(s3.new_folder())
    records = {name: replace(row, status="waiting", reports=()) for name, row in RECORDS.items()}
    folder.write_records(records.values())
    space = {"train.seed": {"choice": [0, 1, 2]}}
    plan = SweepPlan("seeds", "0a1b2c3d", preset("small"), space, SweepConfig())
    callback = SweepCallback(folder, plan, records)
    callback.change("00001", status="running")
    callback.stop()
    s3.requests.clear()
    assert folder.records() == callback.records
    assert read_of(s3) == [SNAPSHOT_FILE]
    callback.change("00001", status="finished")
    assert folder.records()["00001"].status == "finished"


def test_a_folder_on_a_disk_has_no_copy(tmp_path):
    folder: Any = SweepFolder(tmp_path)
    folder.write_records(RECORDS.values())
    folder.write_snapshot(RECORDS.values())
    assert folder.records() == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["trials"]
