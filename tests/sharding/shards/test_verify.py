"""A set is sound, or every fault of it is named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from lab import SMALL, make_lab, rows

from sharding.shards.records import read_blocks
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Do not write into it."""
    lab = make_lab(tmp_path_factory.mktemp("sound"))
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    return lab / "out"


@pytest.fixture
def copied(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copied")


def faults(folder):
    """What is found in a set whose shards may be missing: name of the file to the rule."""
    found = verify(ShardSet(folder, check_sizes=False))
    for fault in found:
        assert str(fault) == f"{fault.where}: {fault.rule}. {fault.remedy}."
        assert fault.remedy
        assert fault.where.startswith(f"{folder}/")
    named = {fault.where.removeprefix(f"{folder}/"): fault.rule for fault in found}
    assert len(named) == len(found)
    return named


def flip(path, place=-3000):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def reseal(folder, name, change):
    """Change the arrays of a shard's first record, and make the checksums fit again."""
    path = folder / name
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(path, "w") as tar:
        for number, (member, content) in enumerate(members.items()):
            if number < 3:
                array = change(member.split(".")[-2], np.load(io.BytesIO(content)))
                buffer = io.BytesIO()
                np.save(buffer, array)
                content = buffer.getvalue()
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    manifest = json.loads((folder / "manifest.json").read_text())
    (shard,) = (shard for shard in manifest["shards"] if shard["name"] == name)
    content = path.read_bytes()
    shard.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_set_has_no_fault(sound, shard_folder):
    for folder in (sound, shard_folder):
        assert verify(ShardSet(folder)) == []
        assert faults(folder) == {}


@pytest.mark.parametrize("name", ["train/train-000000.tar", "test/test-000001.tar"])
def test_a_flipped_byte_is_found(copied, name):
    flip(copied / name)
    assert list(faults(copied)) == [name]
    assert "checksum is not the manifest's" in faults(copied)[name]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_truncated_shard_is_found(copied, share):
    path = copied / "val" / "val-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    found = faults(copied)
    assert list(found) == ["val/val-000001.tar"]
    assert (
        f"must have {len(content)} bytes, found {int(share * len(content))}"
        in (found["val/val-000001.tar"])
    )


def test_a_missing_shard_is_found(copied):
    (copied / "train" / "train-000001.tar").unlink()
    assert faults(copied) == {"train/train-000001.tar": "there is no such file"}


@pytest.mark.parametrize("change", [flip, lambda path: path.unlink()])
def test_a_changed_or_missing_mask_is_found(copied, change):
    mask = next((copied / "masks").glob("d-*"))
    change(mask, -5) if change is flip else change(mask)
    rule = "the mask is missing or its checksum is not the manifest's"
    assert faults(copied) == {f"masks/{mask.name}": rule}


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ([2, 9, 0, 0], "holds a patch that lies outside a"),
        ([2, 0, 7, 0], "holds a patch that lies outside a"),
        ([2, 0, 0, 12], "holds a patch that lies outside a"),
        ([0, 16, 0, 0], "holds a patch that lies outside a"),
        ([1, 0, -1, 0], "holds a patch that lies outside a"),
        ([3, 0, 0, 0], "holds patches of a cut along axis 3, which is none of them"),
        ([-1, 0, 0, 0], "holds patches of a cut along axis -1, which is none of them"),
    ],
)
def test_a_patch_that_cannot_be_is_found(copied, row, rule):
    def change(name, array):
        if name == "where":
            array[-1] = row
        return array

    reseal(copied, "train/train-000000.tar", change)
    found = faults(copied)
    assert list(found) == ["train/train-000000.tar"]
    assert found["train/train-000000.tar"].startswith(rule)


def test_a_member_that_is_there_twice_is_found(copied):
    path = copied / "train" / "train-000000.tar"
    with tarfile.open(path) as tar:
        first = next(iter(tar))
        content = tar.extractfile(first).read()
    with tarfile.open(path, "a") as tar:
        tar.addfile(first, io.BytesIO(content))
    shards = ShardSet(copied, check_sizes=False)
    with pytest.raises(ValueError, match=rf"the member {re.escape(first.name)} is there twice"):
        read_blocks(path, shards.manifest.config, shards.manifest.channels)


def test_the_outermost_patches_are_sound(copied):
    corners = [[2, 8, 6, 11], [0, 15, 6, 4], [1, 8, 13, 4], [2, 0, 0, 0]]
    reseal(
        copied,
        "train/train-000000.tar",
        lambda name, array: np.array(corners, np.int32) if name == "where" else array,
    )
    assert faults(copied) == {}


def test_dense_patches_along_another_axis_are_found(copied):
    def change(name, array):
        if name == "where":
            array[:] = [0, 0, 0, 0]
        return array

    reseal(copied, "val/val-000000.tar", change)
    rule = "holds patches of c cut along axis 0, which is none of them"
    assert faults(copied) == {"val/val-000000.tar": rule}


def test_a_shard_of_another_form_is_found(copied):
    reseal(copied, "test/test-000000.tar", lambda _, array: array[:-1])
    rule = faults(copied)["test/test-000000.tar"]
    assert rule.startswith("the shard must hold these patches of each specimen")
    reseal(copied, "test/test-000000.tar", lambda _, array: array.astype(np.int64))
    assert "not a shard of this format" in faults(copied)["test/test-000000.tar"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "train/train-000099.tar", "masks/a-00000000.npy", "parts/specimens/x.tar"]
)
def test_a_file_that_nobody_named_is_found(copied, name):
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_text("a stranger")
    assert faults(copied) == {name: "the manifest does not name this file"}


def test_an_edited_manifest_is_found(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    first = next(row for row in manifest["specimens"] if row["name"] == "a")
    first["shape"] = [9, 9, 9]
    manifest["shards"][3]["sha256"] = "0" * 64
    manifest["config"]["dense_axes"] = [0]
    path.write_text(json.dumps(manifest))
    found = faults(copied)
    assert found["train/train-000000.tar"] == "holds a patch that lies outside a"
    assert "checksum is not the manifest's" in found[manifest["shards"][3]["name"]]
    assert "cut along axis 2, which is none" in found["test/test-000000.tar"]
    assert "train/train-000002.tar" not in found, "this one holds b alone"


def test_every_fault_is_listed(copied):
    flip(copied / "train" / "train-000002.tar")
    (copied / "val" / "val-000000.tar").unlink()
    (copied / "val" / "val-000001.tar").write_bytes(b"")
    for mask in (copied / "masks").iterdir():
        mask.unlink()
    (copied / "thesis.txt").touch()
    found = faults(copied)
    assert {name.partition("-")[0] for name in found} == {
        "train/train",
        "val/val",
        "masks/a",
        "masks/b",
        "masks/c",
        "masks/d",
        "thesis.txt",
    }
    assert len(found) == 8
