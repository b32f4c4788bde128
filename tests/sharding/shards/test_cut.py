"""A specimen's part: what it holds, what it depends on, and when it is cut again."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import fields, replace

import numpy as np
import pytest
from lab import SHAPE, SMALL, change_target, rows, stamps
from pydantic import TypeAdapter

from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.cut import (
    COMMON_FIELDS,
    KEY_FIELDS,
    CutSpecimen,
    CutTask,
    cut_specimen,
    inputs_sha256,
    part_file,
    part_key,
)
from sharding.shards.patches import dense_locations
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.volume import Volume, read_volume, write_volume

BASE = replace(SMALL, stride=6)
RECORD = "parts/specimens/{}.json"


def task(lab, index=0, **changes):
    specimen = rows(lab)[index]
    return CutTask(specimen, specimen.split, Folder(lab / "out"), replace(SMALL, **changes))


# What a part is


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_part_is_a_tar_without_its_end(lab, index):
    given = task(lab, index)
    part = cut_specimen(given)
    path = lab / "out" / part_file(given.specimen.name)
    content = path.read_bytes()
    assert len(content) == part.bytes == sum(size for _, size in part.records)
    whole = lab / "whole.tar"
    whole.write_bytes(content + bytes(1024))
    with tarfile.open(whole) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        name = given.specimen.name
        assert list(members) == [
            f"{name}-{number:06d}.{array}.npy"
            for number in range(len(part.records))
            for array in ("source", "target", "where")
        ]
        where = [
            np.load(io.BytesIO(file.read())) for key, file in members.items() if "where" in key
        ]
    assert [len(block) for block in where] == [patches for patches, _ in part.records]
    assert max(map(len, where)) == SMALL.block
    assert part.specimen.patches == sum(map(len, where))
    if given.split != "train":
        expected = dense_locations(SHAPE, (8, 8), 8, SMALL.dense_axes)
        np.testing.assert_array_equal(np.concatenate(where), expected)
    assert part.specimen.split == given.split


def test_a_part_tells_itself(lab):
    part = cut_specimen(task(lab, 3))
    again = TypeAdapter(CutSpecimen).validate_json((lab / "out" / RECORD.format("d")).read_bytes())
    assert again == part == pickle.loads(pickle.dumps(part))
    assert part.key == part_key("d", "test", inputs_sha256(rows(lab)[3]), SMALL)
    (mask,) = (lab / "out" / "masks").iterdir()
    assert hashlib.sha256(mask.read_bytes()).hexdigest() == part.specimen.mask_sha256
    assert mask.name == f"d-{part.specimen.mask_sha256[:8]}.npy"


def test_tasks_travel_to_other_processes(lab):
    given = task(lab, 2)
    assert cut_specimen(pickle.loads(pickle.dumps(given))) == cut_specimen(given)


# What its key depends on


def key(split="train", name="a", inputs="0" * 64, **changes):
    return part_key(name, split, inputs, replace(BASE, **changes))


CHANGES = {
    "patch_size": {"patch_size": (6, 8)},
    "patches_per_specimen": {"patches_per_specimen": 7},
    "axes": {"axes": (0,)},
    "foreground": {"foreground": 0.0},
    "stride": {"stride": 5},
    "alignment": {"alignment": 4, "stride": 4},
    "neighbours": {"neighbours": 1},
    "dense_axes": {"dense_axes": (0, 1)},
    "val_slices": {"val_slices": 3},
    "fractions": {"fractions": (0.5, 0.3, 0.2)},
    "block": {"block": 3},
    "shard_mb": {"shard_mb": 32.0},
    "seed": {"seed": 1},
    "preprocess": {"preprocess": PreprocessConfig(clip_percentiles=(5, 95))},
}
DEPENDS = {
    "train": {*COMMON_FIELDS, *KEY_FIELDS["train"]},
    "val": {*COMMON_FIELDS, *KEY_FIELDS["val"], "val_slices"},
    "test": {*COMMON_FIELDS, *KEY_FIELDS["test"]},
}
NO_PATCH = {"fractions", "shard_mb"}


@pytest.mark.parametrize("split", DEPENDS)
def test_a_key_depends_on_what_the_patches_depend_on(split):
    assert set(CHANGES) == {field.name for field in fields(ShardConfig)}, "every field is tried"
    assert set().union(*DEPENDS.values()) | NO_PATCH == set(CHANGES), "and each decides something"
    for name, change in CHANGES.items():
        assert (key(split, **change) != key(split)) == (name in DEPENDS[split]), name
    assert key(split, name="b") != key(split)
    assert key(split, inputs="1" * 64) != key(split)


def test_validation_and_test_share_their_key_unless_slices_are_chosen():
    assert key("val") == key("test") != key("train")
    assert key("val", val_slices=3) != key("test", val_slices=3) == key("test")


@pytest.mark.parametrize(("index", "split"), [(1, "train"), (2, "val"), (3, "test")])
def test_the_bytes_depend_on_what_the_key_depends_on(lab, index, split):
    def content(change):
        given = replace(task(lab, index), config=replace(BASE, **change))
        cut_specimen(given)
        return (lab / "out" / part_file(given.specimen.name)).read_bytes()

    assert rows(lab)[index].split == split
    first = content({})
    for name, change in CHANGES.items():
        assert (content(change) != first) == (name in DEPENDS[split]), name


def test_inputs_are_told_by_their_content(lab):
    first, other = rows(lab)[:2]
    digest = inputs_sha256(first)
    volume = read_volume(first.target)
    (lab / "copy.nii.gz").write_bytes(first.target.read_bytes())
    assert inputs_sha256(replace(first, target=lab / "copy.nii.gz")) == digest
    write_volume(lab / "mask.nii.gz", Volume(volume.data, volume.affine))
    others = [
        replace(first, mask=lab / "mask.nii.gz"),
        replace(first, source=first.target, target=first.source),
        replace(first, source=None),
        replace(first, source=None, mask=first.source),
        other,
    ]
    assert len({digest, *map(inputs_sha256, others)}) == 6


def test_a_missing_input_is_named(lab, refused):
    specimen = replace(rows(lab)[0], mask=lab / "none.nii.gz")
    with refused(lab / "none.nii.gz", "the file does not exist", "Check the path"):
        inputs_sha256(specimen)


# When it is cut again


def test_a_finished_part_is_not_cut_again(lab):
    first = cut_specimen(task(lab, 2))
    before = stamps(lab / "out")
    assert cut_specimen(task(lab, 2)) == first
    assert cut_specimen(task(lab, 2, shard_mb=7.0, fractions=(0.5, 0.3, 0.2), seed=4)) == first
    assert stamps(lab / "out") == before


def test_known_patches_are_not_cut(lab):
    given = task(lab)
    known = part_key("a", "train", inputs_sha256(given.specimen), SMALL)
    assert cut_specimen(replace(given, known=known)) is None
    assert not (lab / "out").exists()
    assert cut_specimen(replace(given, known="0" * 64)) is not None


def damage(lab, what):
    out = lab / "out"
    record, part = out / RECORD.format("c"), out / part_file("c")
    if what == "record damaged":
        record.write_text(record.read_text()[:-9])
    elif what == "record of another program":
        record.write_text("{}")
    elif what == "part cut short":
        part.write_bytes(part.read_bytes()[:-512])
    elif what == "part missing":
        part.unlink()
    elif what == "mask missing":
        next((out / "masks").iterdir()).unlink()
    elif what == "record missing":
        record.unlink()
    else:
        change_target(lab, "c")


@pytest.mark.parametrize(
    "what",
    [
        "record damaged",
        "record of another program",
        "record missing",
        "part cut short",
        "part missing",
        "mask missing",
        "another scan",
    ],
)
def test_a_part_that_is_not_whole_or_not_of_the_scan_is_cut_again(lab, what):
    cut_specimen(task(lab, 2))
    damage(lab, what)
    before = stamps(lab / "out")
    again = cut_specimen(task(lab, 2))
    after = stamps(lab / "out")
    for name in (part_file("c"), RECORD.format("c")):
        assert after[name] != before.get(name), "written anew"
    fresh = replace(task(lab, 2), folder=Folder(lab / "fresh"))
    assert again == cut_specimen(fresh)
    assert (lab / "out" / part_file("c")).read_bytes() == (
        lab / "fresh" / part_file("c")
    ).read_bytes()


def test_a_patch_that_does_not_fit_is_refused(lab, refused):
    with refused("a_t.nii.gz", "15x15 cut along axis 2 do not fit .* 16x14x12", "smaller patch"):
        cut_specimen(task(lab, patch_size=(15, 15), axes=(2,), stride=8))
    assert not (lab / "out").exists()
