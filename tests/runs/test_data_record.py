"""The profile of the training sources on its way from the shards to an export."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lab import SMALL, make_lab, rows
from tiny_runs import tiny_config

from distsynth.runs.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint
from distsynth.runs.data_record import DataRecord
from distsynth.runs.package import RECORD, export_files, read_export, write_files
from sharding.io.storage import Folder
from sharding.shards.manifest import MANIFEST, read_manifest
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from sharding.volumes.profile import TrainingProfile, profile_scan
from sharding.volumes.volume import read_volume


@pytest.fixture(scope="module")
def manifest(shard_folder):
    return ShardSet(shard_folder).manifest


def words(value):
    """Every text within JSON values, names of fields left out."""
    if isinstance(value, dict):
        return {word for part in value.values() for word in words(part)}
    if isinstance(value, list):
        return {word for part in value for word in words(part)}
    return {value} if isinstance(value, str) else set()


def test_the_profile_is_that_of_the_training_sources_alone(manifest, phantom_cohort):
    kinds = {row.split: row.profile is not None for row in manifest.specimens}
    assert kinds == {"train": True, "val": False, "test": False}
    training = set(manifest.names("train"))
    scans = [
        profile_scan(read_volume(row.source))
        for row in read_cohort(phantom_cohort)
        if row.source and row.name in training
    ]
    found = DataRecord.of(manifest).profile
    assert found == TrainingProfile.of(scans)
    assert found is not None
    assert found.scans == len(scans) == 3


def test_a_checkpoint_and_an_export_keep_it(shard_folder, manifest, tmp_path):
    data = DataRecord.of(manifest)
    checkpoint = Checkpoint(
        tiny_config(shard_folder), data, Position(), {"generator": {"network": {}}}, [], {}
    )
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert load_checkpoint(tmp_path / "last.pt").data == data
    files = export_files(checkpoint)
    write_files(tmp_path / "export", files)
    assert read_export(tmp_path / "export").data.profile == data.profile
    kept = json.loads(files[RECORD])["data"]["profile"]
    # Numbers, the orientation and nothing else: no name, path or text of a header.
    assert words(kept) == {"RAS"}


def test_shards_from_before_profiles_can_be_read(shard_folder, tmp_path, manifest):
    old = json.loads((shard_folder / MANIFEST).read_text())
    for row in old["specimens"]:
        del row["profile"]
    (tmp_path / MANIFEST).write_text(json.dumps(old))
    found = read_manifest(Folder(tmp_path))
    assert found == replace(
        manifest, specimens=tuple(replace(row, profile=None) for row in manifest.specimens)
    )
    assert DataRecord.of(found).profile is None


def test_an_update_keeps_profiles_and_measures_new_training_scans(tmp_path):
    lab = make_lab(tmp_path, "abcdef")
    first = write_shards(
        rows(lab, "a train, b val, c test"), lab / "out", SMALL, workers=1
    ).manifest
    second = write_shards(
        rows(lab, "a train, b train, c test, d val"), lab / "out", SMALL, workers=1, update=True
    ).manifest
    before, after = ({row.name: row.profile for row in each.specimens} for each in (first, second))
    assert after["a"] == before["a"] != None  # noqa: E711
    assert after["b"] is not None
    assert after["c"] is after["d"] is None


@pytest.mark.parametrize(
    "spoil",
    [
        {"contrast": []},
        {"intensities": [1.0]},
        {"noise": float("nan")},
        {"spacing_mm": [1.0, 1.0]},
        {"patient": "DOE"},
    ],
)
def test_a_manifest_with_a_bad_profile_is_refused(spoil, shard_folder, tmp_path, refused):
    bad = json.loads((shard_folder / MANIFEST).read_text())
    row = next(row for row in bad["specimens"] if row["profile"])
    row["profile"] |= spoil
    (tmp_path / MANIFEST).write_text(json.dumps(bad))
    with refused(tmp_path / MANIFEST, "not a valid manifest .*profile", "Shard the cohort again"):
        read_manifest(Folder(tmp_path))


def test_a_checkpoint_with_a_bad_profile_is_refused(shard_folder, manifest, tmp_path, refused):
    data = DataRecord.of(manifest)
    assert data.profile is not None
    checkpoint = Checkpoint(
        tiny_config(shard_folder), data, Position(), {"generator": {"network": {}}}, [], {}
    )
    object.__setattr__(data.profile, "contrast", ())
    save_checkpoint(tmp_path / "bad.pt", checkpoint)
    with refused(tmp_path / "bad.pt", r"data|profile|layers", "another checkpoint"):
        load_checkpoint(tmp_path / "bad.pt")
