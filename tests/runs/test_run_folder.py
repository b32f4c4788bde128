"""A run whose folder, and whose shards, lie on a storage that is not this machine's disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import CallMoment, killed_at
from s3_server import S3Server
from tiny_runs import tiny_config
from wandb_offline import read_offline_run

from distsynth.config import to_json, with_overrides
from distsynth.inference.predictor import load_predictor
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import (
    BEST,
    LAST,
    METRICS_FILE,
    clear_run,
    local_file,
    open_run,
    sample_pictures,
)
from distsynth.runs.rows import read_rows
from distsynth.training.loop import train
from distsynth.training.report import EpochReport
from sharding.io import retries
from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet

pytestmark = pytest.mark.slow


@pytest.fixture
def remote(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "PAUSES_SECONDS", (0.01,) * 4)
    return server.new_folder()


@pytest.fixture
def remote_shards(server: S3Server, remote: str, shard_folder: Path) -> str:  # noqa: ARG001
    folder = Folder(server.new_folder())
    for path in sorted(path for path in shard_folder.rglob("*") if path.is_file()):
        folder.write(path.relative_to(shard_folder).as_posix(), path.read_bytes())
    return folder.url


def weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(local_file(checkpoint)).learners["generator"]["network"]


def rows(metrics: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("throughput")}
        for row in read_rows(metrics)
    ]


def assert_same_run(url: str, local: Path) -> None:
    """The uploaded run is the local one, to the bit."""
    found, expected = weights(f"{url}/{LAST}"), weights(local / LAST)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert rows(local_file(f"{url}/{METRICS_FILE}")) == rows(local / METRICS_FILE)


def test_a_run_on_a_bucket_is_the_run_on_a_disk(remote, remote_shards, shard_folder, tmp_path):
    result = train(tiny_config(remote_shards), remote)
    train(tiny_config(shard_folder), tmp_path / "local")
    assert (result.best, result.last) == (f"{remote}/{BEST}", f"{remote}/{LAST}")
    assert_same_run(remote, tmp_path / "local")
    assert {"config.json", METRICS_FILE, str(BEST), str(LAST)} <= set(Folder(remote).names())


def test_a_run_goes_on_from_the_bucket_on_another_machine(remote, shard_folder, tmp_path):
    """What one machine uploaded before it was lost is all that the other one has."""

    class LostError(Exception):
        pass

    def lose(_: EpochReport) -> None:
        raise LostError

    config = tiny_config(shard_folder, {"train.epochs": 3})
    with pytest.raises(LostError):
        train(config, remote, on_epoch=lose)
    train(config, remote, resume=True)
    train(config, tmp_path / "local")
    assert_same_run(remote, tmp_path / "local")


def test_a_killed_run_goes_on_from_the_bucket(remote, shard_folder, tmp_path):
    config = tiny_config(shard_folder, {"train.epochs": 3})
    (tmp_path / "config.json").write_text(to_json(config))
    # In the second epoch, after the first one's checkpoint has been uploaded.
    moment = CallMoment("distsynth.training.run:TrainingRun._step", count=8)
    command = [sys.executable, "-m", "distsynth", "train", tmp_path / "config.json", "-o", remote]
    killed_at(moment, command)
    reached = load_checkpoint(local_file(f"{remote}/{LAST}")).position.epoch
    assert reached == 1
    train(config, remote, resume=True)
    train(config, tmp_path / "local")
    assert_same_run(remote, tmp_path / "local")


def test_a_run_on_a_bucket_is_replaced_only_if_told_to(remote, shard_folder):
    config = tiny_config(shard_folder, {"train.epochs": 1})
    train(config, remote)
    with pytest.raises(DataError, match="holds a run already") as caught:
        train(config, remote)
    assert caught.value.where == remote
    Folder(remote).write("samples/samples-0000099.png", b"of the run before")
    Folder(remote).write("samples/notes.png", b"somebody else's")
    train(config, remote, overwrite=True)
    names = Folder(remote).names()
    assert "samples/samples-0000099.png" not in names
    assert "samples/notes.png" in names


def test_offline_tracking_is_uploaded_in_the_end(remote, shard_folder):
    config = tiny_config(shard_folder, {"train.epochs": 1, "tracking.mode": "offline"})
    train(config, remote)
    assert [name for name in Folder(remote).names() if name.endswith(".wandb")]


def test_a_resumed_run_on_a_bucket_has_one_part_with_every_row(remote, shard_folder):
    parts = []
    for epochs in (1, 2):
        changed = {"train.epochs": epochs, "tracking.mode": "offline", "tracking.samples": 1}
        train(tiny_config(shard_folder, changed), remote, resume=epochs > 1)
        (part,) = (name for name in Folder(remote).names() if name.endswith(".wandb"))
        parts.append(part)
    assert parts[0] != parts[1]
    told = read_offline_run(local_file(f"{remote}/{parts[1]}")).rows
    assert {row["_step"] for row in told if "val/psnr" in row} == {5, 10}
    assert {row["_step"] for row in told if "samples" in row} == {5, 10}
    pictures = [name for name in Folder(remote).names("wandb") if name.endswith(".png")]
    assert len(pictures) == 2


def test_a_model_on_a_bucket_predicts(remote, shard_folder):
    config = tiny_config(shard_folder, {"train.epochs": 1})
    train(config, remote)
    source = np.random.default_rng(0).normal(size=(20, 18, 3)).astype(np.float32)
    by_folder, by_file = (
        load_predictor(place, "cpu")(source, quiet=True) for place in (remote, f"{remote}/{BEST}")
    )
    np.testing.assert_array_equal(by_folder, by_file)


def test_a_missing_checkpoint_is_named(remote):
    with pytest.raises(DataError, match=r"best\.pt") as caught:
        load_predictor(f"{remote}/nothing")
    assert remote in caught.value.where


def test_nothing_is_copied_for_a_folder_of_this_machine(tmp_path):
    with open_run(tmp_path) as run:
        (run.path / "config.json").write_text("{}")
        run.upload(wandb=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with open_run(f"file://{tmp_path}") as run:
        assert run.path == tmp_path


def test_a_remote_set_counts_as_the_same_data(remote_shards, shard_folder):
    assert ShardSet(remote_shards).manifest.sha256 == ShardSet(shard_folder).manifest.sha256


def test_files_of_others_in_a_runs_folders_are_left_alone(shard_folder, tmp_path):
    """Foreign and half-written files neither stop a run from resuming nor are they removed."""
    config = tiny_config(
        shard_folder,
        {"tracking.mode": "offline", "tracking.samples": 1, "train.keep_epochs": 1},
    )
    train(with_overrides(config, {"train.epochs": 1}), tmp_path)
    foreign = [
        "samples/.samples-0000015.png.partial-1a2b3c4d.png",
        "samples/notes.png",
        "samples/mine-12.png",
        "checkpoints/epoch-best.pt",
        "checkpoints/.epoch-00009.pt.partial-1a2b3c4d",
        "wandb/notes.txt",
        "trials.txt",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"foreign")
    result = train(config, tmp_path, resume=True)
    assert result.last == tmp_path / LAST
    assert sorted(sample_pictures(tmp_path)) == [5, 10]
    kept = [path.name for path in (tmp_path / "checkpoints").glob("epoch-0*.pt")]
    assert kept == ["epoch-00002.pt"]
    own = [name for name in foreign if ".partial-" not in name]
    assert all((tmp_path / name).read_bytes() == b"foreign" for name in own)
    clear_run(tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert set(own) <= set(left) <= set(foreign)
