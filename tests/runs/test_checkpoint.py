from __future__ import annotations

import os
import pickle
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import ADVERSARIAL, BATCH_NORM, same, tiny_config

from distsynth.runs.checkpoint import (
    Checkpoint,
    Position,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from distsynth.runs.data_record import DataRecord
from sharding.io.errors import DataError
from sharding.shards.shard_set import ShardSet

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(shard_folder):
    torch.manual_seed(0)
    learner = {
        "network": {"layer.weight": torch.randn(3, 2), "norm.seen": torch.tensor(4)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 2)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
        },
        "scaler": {},
    }
    return Checkpoint(
        config=tiny_config(shard_folder, ADVERSARIAL, BATCH_NORM),
        data=DataRecord.of(ShardSet(shard_folder).manifest),
        position=Position(2, 3, 13),
        learners={"generator": learner},
        random=[random_state(CPU), random_state(CPU)],
        record={
            "best_score": float("-inf"),
            "sums": {"recon": torch.tensor(0.1, dtype=torch.float64)},
            "summed": {"generator": 2},
        },
    )


def test_round_trip_to_the_bit(checkpoint, tmp_path):
    path = tmp_path / "new" / "last.pt"
    save_checkpoint(path, checkpoint)
    found = load_checkpoint(path)
    for name in ("config", "data", "position"):
        assert getattr(found, name) == getattr(checkpoint, name)
    assert same(found.learners["generator"]["network"], checkpoint.learners["generator"]["network"])
    optimizer = found.learners["generator"]["optimizer"]
    assert optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]
    expected = checkpoint.learners["generator"]["optimizer"]["state"][0]
    assert same(optimizer["state"][0], expected)
    assert found.record["best_score"] == float("-inf")
    assert same(found.record["sums"], checkpoint.record["sums"])
    assert [path.name for path in path.parent.iterdir()] == ["last.pt"]


def test_data_record_tells_what_was_seen_and_nothing_of_the_test_scans(shard_folder):
    manifest = ShardSet(shard_folder).manifest
    record = DataRecord.of(manifest)
    assert record.splits == {row.name: row.split for row in manifest.specimens}
    for row in manifest.specimens:
        seen = {row.source_sha256, row.target_sha256} <= set(record.seen_sha256)
        assert seen == (row.split != "test")
    assert len(record.seen_sha256) == 8
    assert record.manifest_sha256 == manifest.sha256


def test_a_failed_write_leaves_the_old_file_whole(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def failing(state, partial):  # noqa: ARG001
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    """Unpickling this runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy", "inside"])
def test_a_malicious_pickle_is_refused_and_does_not_run(checkpoint, tmp_path, form, refused):
    marker, path = tmp_path / "owned", tmp_path / "last.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(marker)))
    elif form == "inside":
        save_checkpoint(path, replace(checkpoint, record={"sums": Evil(marker)}))
    else:
        torch.save(Evil(marker), path, _use_new_zipfile_serialization=form == "torch")
    with refused(path, "not a checkpoint", "another checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"hello", b"PK\3\4", pickle.dumps([1, 2]), pickle.dumps({"version": 1})],
)
def test_other_files_are_refused(tmp_path, content, refused):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with refused(path, "not a checkpoint that can be read", "another"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "state",
    [[1], 3, torch.zeros(3), {}, {"version": 2}, {"version": 1}, {"version": 1, "config": 3}],
)
def test_other_torch_files_are_refused(tmp_path, state, refused):
    path = tmp_path / "last.pt"
    torch.save(state, path)
    with refused(path, "not a checkpoint that can be read", "another"):
        load_checkpoint(path)


def test_another_version_is_named(checkpoint, tmp_path, monkeypatch, refused):
    path = tmp_path / "last.pt"
    monkeypatch.setattr("distsynth.runs.checkpoint.FORMAT_VERSION", 7)
    save_checkpoint(path, checkpoint)
    monkeypatch.undo()
    with refused(path, "version 7, this program reads 1", "another"):
        load_checkpoint(path)


def test_missing_file_is_named(tmp_path, refused):
    with refused(tmp_path / "none.pt", "does not exist", "path"):
        load_checkpoint(tmp_path / "none.pt")


def test_truncated_files_are_refused(checkpoint, tmp_path, refused):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with refused(path, "not a checkpoint that can be read", "another"):
            load_checkpoint(path)


def test_damaged_files_are_refused_or_read_the_same(checkpoint, tmp_path):
    """Flipped bits lie in what is checked, or in what is not read at all."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for place in rng.integers(0, len(whole), 150).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except DataError as error:
            assert str(path) in str(error)
            refusals += 1
            continue
        expected = checkpoint.learners["generator"]["network"]
        assert same(found.learners["generator"]["network"], expected)
    assert refusals > 0


def test_the_file_is_a_zip_that_names_no_path(checkpoint, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    assert names
    assert str(tmp_path).encode() not in content


def test_random_states_round_trip_through_a_file(checkpoint, tmp_path):
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(3).tolist(),  # noqa: NPY002
            np.random.randn(1).tolist(),  # noqa: NPY002
            torch.rand(3).tolist(),
        )

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    draw()
    path = tmp_path / "last.pt"
    save_checkpoint(path, replace(checkpoint, random=[random_state(CPU)]))
    expected = draw()
    assert draw() != expected
    set_random_state(load_checkpoint(path).random[0], CPU)
    assert draw() == expected
