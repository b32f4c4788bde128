"""The shard format: what is written is read, what was damaged or forged is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.manifest import mask_name, read_manifest, shard_name
from sharding.shards.records import QUANTUM, encode_mask, quantise, record_key, specimen_of
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import SPECIMEN_NAME


@pytest.fixture
def copied(shard_folder, tmp_path):
    """A copy of the shard set, to damage."""
    return shutil.copytree(shard_folder, tmp_path / "copied")


def forge(folder, change):
    """Change the manifest's JSON in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(folder, change):
    """Write the first training shard anew with changed members, its size in the manifest too."""
    path = folder / "train" / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, content in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    forge(folder, lambda m: m["shards"][0].update(bytes=path.stat().st_size))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# Configuration


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"patches_per_specimen": 0}, "patches_per_specimen must be >= 1, got 0"),
        ({"stride": 0}, "stride must be >= 1, got 0"),
        ({"stride": 65}, "stride must be at most the smallest patch side 64, got 65"),
        ({"patch_size": (32, 16), "stride": 20}, "smallest patch side 16, got 20"),
        ({"block": 0}, "block must be >= 1, got 0"),
        ({"shard_mb": 0}, "shard_mb must be > 0, got 0"),
        ({"shard_mb": float("inf")}, "shard_mb must be > 0, got inf"),
        ({"val_slices": -1}, "val_slices must be >= 0, got -1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"neighbours": -1}, "neighbours must be >= 0, got -1"),
        ({"patch_size": (64,) * 3, "neighbours": 1}, "neighbours must be 0 for 3D patches, got 1"),
        ({"foreground": 1.1}, "foreground must be from 0 to 1, got 1.1"),
        ({"patch_size": (64,)}, "two or three sides of at least 4"),
        ({"patch_size": (64, 3)}, "two or three sides of at least 4"),
        ({"axes": ()}, "axes must be distinct axes of 0, 1, 2"),
        ({"dense_axes": (0, 0)}, "dense_axes must be distinct axes of 0, 1, 2"),
        ({"axes": (3,)}, "axes must be distinct axes of 0, 1, 2"),
        ({"fractions": (0.5, 0.2, 0.2)}, "split fractions must be three numbers of sum 1"),
    ],
)
def test_impossible_configurations_are_refused(fields, rule):
    with pytest.raises(ValueError, match=rule):
        ShardConfig(**fields)


# Storing


@given(arrays.arrays(np.float32, (50,), elements=st.floats(0, 1, width=32)))
def test_quantising_errs_by_at_most_half_a_step(scaled):
    stored = quantise(scaled)
    assert stored.dtype == np.uint16
    error = np.abs(stored / np.float64(QUANTUM) - scaled)
    assert error.max() <= 0.5 / QUANTUM + 2**-23, "float32 itself rounds by 2**-24"


def test_the_ends_of_the_range_are_kept():
    assert quantise(np.array([0, 1], np.float32)).tolist() == [0, QUANTUM]


def test_a_mask_takes_a_bit_a_voxel():
    assert len(encode_mask(np.ones((10, 10, 10), bool))) == 128 + 125


@given(st.from_regex(SPECIMEN_NAME, fullmatch=True), st.integers(0, 999_999))
def test_a_key_tells_its_specimen_and_has_no_dot(name, number):
    key = record_key(name, number)
    assert "." not in key
    assert specimen_of(key) == name


def test_the_manifest_round_trips(shard_folder):
    folder = Folder(shard_folder)
    manifest = read_manifest(folder)
    text = (shard_folder / "manifest.json").read_text()
    assert manifest.to_json() == text
    digest = manifest.sha256
    assert manifest.to_json() == text, "its cached fingerprint is no part of it"
    assert read_manifest(folder) == manifest
    assert read_manifest(folder).sha256 == digest
    other = replace(manifest, config=replace(manifest.config, seed=99))
    assert other.sha256 != digest


def test_splits_are_disjoint_and_counted(shard_folder, small_shards):
    shards = ShardSet(shard_folder)
    manifest = shards.manifest
    assert manifest.config == small_shards
    names = {split: manifest.names(split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in names.items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    assert len({name for found in names.values() for name in found}) == 5
    for split, found in names.items():
        records = shards.shards(split)
        assert len(records) > 1
        assert [record.name for record in records] == [
            shard_name(split, index) for index in range(len(records))
        ]
        blocks = [block for record in records for block in shards.read(record)]
        assert len(blocks) > len(records)
        assert {block.specimen for block in blocks} == set(found)
        where = np.concatenate([block.where for block in blocks])
        assert len(where) == manifest.patches(split)
        owners = np.concatenate([[block.specimen] * len(block.where) for block in blocks])
        for row in manifest.specimens:
            if row.split == split:
                numbers = manifest.patch_numbers(split)[row.name]
                np.testing.assert_array_equal(numbers, np.flatnonzero(owners == row.name))
                assert len(numbers) == row.patches
    shards.check_sums()


def test_records_are_mapped_not_copied_and_read_only(shard_folder):
    shards = ShardSet(shard_folder)
    block = shards.read(shards.shards("train")[0])[0]
    assert (block.source.dtype, block.where.dtype) == (np.uint16, np.int32)
    assert not block.source.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        block.source[0, 0, 0, 0] = 1


# WebDataset leaves its last shard open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_shards_as_documented(shard_folder):
    shards = ShardSet(shard_folder)
    record = shards.shards("train")[0]
    dataset = webdataset.WebDataset(str(shards.path(record)), shardshuffle=False).decode()
    samples = list(dataset)
    blocks = shards.read(record)
    (span,) = record.spans
    assert [sample["__key__"] for sample in samples] == [
        f"{span.specimen}-{number:06d}" for number in range(len(blocks))
    ]
    for sample, block in zip(samples, blocks, strict=True):
        for name in ("source", "target", "where"):
            np.testing.assert_array_equal(sample[f"{name}.npy"], getattr(block, name))


# Damage


def test_no_shard_set_is_refused(tmp_path, refused):
    with refused(tmp_path / "manifest.json", "no shard set here", "Run distsynth shard"):
        ShardSet(tmp_path)


def test_a_missing_shard_is_refused(copied, refused):
    (copied / "val" / "val-000001.tar").unlink()
    with refused("val-000001.tar", "there is no such file", "copy the file again"):
        ShardSet(copied)
    shards = ShardSet(copied, check_sizes=False)
    with refused("val-000001.tar", "there is no such file", "copy the file again"):
        shards.read(shards.shards("val")[1])


def test_an_unfinished_shard_set_is_refused(copied, refused):
    (copied / "manifest.json").unlink()
    with refused(copied / "manifest.json", "no shard set here", "Run distsynth shard"):
        ShardSet(copied)
    (copied / "parts" / "specimens").mkdir(parents=True)
    (copied / "parts" / "specimens" / "x.json").touch()
    with refused(copied / "manifest.json", "not finished", "the same distsynth shard again"):
        ShardSet(copied)


def record_border(path):
    """Where the last record's first member starts."""
    with tarfile.open(path) as tar:
        members = list(tar)
    return members[-3].offset


@pytest.mark.parametrize("where", ["anywhere", "at a record's border", "to nothing"])
def test_a_shard_cut_short_is_refused(copied, refused, where):
    path = copied / "train" / "train-000000.tar"
    whole = path.stat().st_size
    sides = {"anywhere": whole // 2, "at a record's border": record_border(path), "to nothing": 0}
    path.write_bytes(path.read_bytes()[: sides[where]])
    with refused(path, f"must have {whole} bytes, found {sides[where]}: cut short", "Copy it ag"):
        ShardSet(copied)
    # Even where the size were not told, the records are counted.
    forge(copied, lambda manifest: manifest["shards"][0].update(bytes=sides[where]))
    shards = ShardSet(copied)
    with refused(path, "must hold these patches .* 40.*32|not a shard of this format", "again"):
        shards.read(shards.manifest.shards[0])


def test_a_flipped_byte_is_found_by_verifying(copied, refused):
    path = copied / "val" / "val-000000.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    shards = ShardSet(copied)
    shards.check_sums("train", "test")
    for splits in ((), ("val",)):
        with refused(path, "checksum is not the manifest's", "Copy it again or shard"):
            shards.check_sums(*splits)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda members: members[1:], "a record lacks one of its arrays"),
        (lambda members: [*members, ("a.mask.npy", b"")], "unknown member a.mask.npy"),
        (lambda members: [*members, ("../../evil.sh", b"")], "unknown member"),
        (lambda members: members[3:], "must hold these patches of each specimen: .* 40.*, found"),
        (
            lambda members: [
                (name.replace("phantom-0", "somebody-"), content) for name, content in members
            ],
            "must hold these patches of each specimen: .* found .*somebody-",
        ),
    ],
    ids=["array-missing", "unknown-array", "traversal", "record-missing", "another-specimen"],
)
def test_shards_that_break_the_schema_are_refused(copied, refused, change, rule):
    rewrite(copied, change)
    shards = ShardSet(copied)
    with refused("train-000000.tar", rule, "hard the cohort again"):
        shards.read(shards.manifest.shards[0])


WHERE = np.zeros((16, 4), np.int32)
PATCHES = np.zeros((16, 16, 16), np.uint16)
SOURCES = PATCHES[:, None]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("where", npy(WHERE.astype(np.int64)), "int32 of 4 columns"),
        ("where", npy(np.zeros((16, 5), np.int32)), "int32 of 4 columns"),
        ("where", npy(np.int32(3)), "int32 of 4 columns"),
        ("where", npy(WHERE[:15]), r"\(16, 16, 16\), not \(15, 1, 16, 16\) and \(15, 16, 16\)"),
        ("source", npy(SOURCES[..., :15]), r"shapes \(16, 1, 16, 15\) and .*, not"),
        ("source", npy(PATCHES), r"shapes \(16, 16, 16\) and .*, not \(16, 1, 16, 16\)"),
        ("source", npy(np.repeat(SOURCES, 3, 1)), r"shapes \(16, 3, 16, 16\) and"),
        ("source", npy(SOURCES.astype(np.int16)), "must be uint16"),
        ("target", npy(SOURCES), r"and \(16, 1, 16, 16\), not"),
        ("target", npy(PATCHES.astype(np.float32)), "must be uint16"),
        ("target", npy(PATCHES.astype(object)), "not a plain array"),
        ("target", npy(np.asfortranarray(PATCHES)), "not a plain array"),
        ("target", npy(PATCHES)[:-2], "not a plain array"),
        ("target", b"nothing", "not a shard of this format"),
        ("target", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1+1}  ", "not a shard of this format"),
    ],
)
def test_arrays_that_break_the_schema_are_refused(copied, refused, name, content, rule):
    def change(members):
        first = members[0][0].partition(".")[0]
        member = f"{first}.{name}.npy"
        assert member in dict(members)
        return [(key, content if key == member else old) for key, old in members]

    rewrite(copied, change)
    shards = ShardSet(copied)
    with refused("train-000000.tar", rule, "Shard the cohort again"):
        shards.read(shards.manifest.shards[0])


def _first(manifest, split):
    return next(row for row in manifest["specimens"] if row["split"] == split)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda m: m["shards"][0].update(name="../train/train-000000.tar"), "can have: '../train"),
        (lambda m: m["shards"][0].update(name="/etc/passwd"), "can have: '/etc/passwd'"),
        (lambda m: m["shards"][0].update(name="test/test-000000.tar"), "shard of train can have"),
        (lambda m: m["specimens"][0].update(name="../../x"), "specimen can have: '../../x'"),
        (lambda m: m.update(version=1), "has format version 1, this program reads version 4"),
        (lambda m: m["specimens"][0].update(patches=39), "states 39 patches, its shards 512"),
        (lambda m: m["shards"][0].update(patches=39), "000.tar states 39 patches, its spans oth"),
        (lambda m: m["shards"][0]["spans"][0].update(specimen="x"), "holds a specimen .*: 'x'"),
        (lambda m: m["specimens"].append(m["specimens"][0]), "a specimen is listed twice"),
        (lambda m: _first(m, "train").update(split="val"), ".*, which is a val specimen"),
        (lambda m: m["shards"][0].update(split="val"), "shard of val can have: 'train/train-0"),
        (lambda m: m["shards"].pop(), "patches, its shards"),
        (lambda m: m.update(extra=1), "extra: "),
        (lambda m: m["config"].update(strde=1), "config.strde: "),
        (lambda m: m["config"].update(stride=0), "config: .*stride must be >= 1"),
        (lambda m: m["config"]["preprocess"].update(n4=True), "config.preprocess.n4: "),
        (lambda m: m["specimens"][1].update(path="/home/x"), r"specimens\.1\.path: "),
        (lambda m: m["specimens"][1].update(split="training"), r"specimens\.1\.split: "),
        (lambda m: m["specimens"][1]["source"].update(gain=1), r"specimens\.1\.source\.gain: "),
        (lambda m: m["specimens"][1]["target"].update(std=0), r"specimens\.1\.target: .*std must"),
        (lambda m: m["specimens"][1]["source"].update(low=9, high=9), r"specimens\.1\.source: "),
        (lambda m: m["specimens"][1].update(spacing_mm=[0, 1, 1]), r"specimens\.1: .*spacing_mm"),
        (lambda m: m["specimens"][1].update(spacing_mm=["nan", 1, 1]), r"specimens\.1.*spacing_mm"),
        (lambda m: m["specimens"][1].update(shape=[0, 1, 1]), r"specimens\.1: .*shape"),
        (lambda m: m["shards"][2].pop("sha256"), r"shards\.2\.sha256: "),
        (lambda m: m["shards"][2].update(owner="x"), r"shards\.2\.owner: "),
    ],
)
def test_a_forged_manifest_is_refused(copied, refused, change, rule):
    forge(copied, change)
    with refused(copied / "manifest.json", rule, "Shard the cohort again"):
        ShardSet(copied)


def test_a_manifest_cut_short_is_refused(copied, refused):
    path = copied / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with refused(path, "not a valid manifest", "Shard the cohort again"):
        ShardSet(copied)


@pytest.mark.parametrize("role", ["source", "target"])
def test_one_scan_under_two_names_is_refused(copied, refused, role):
    def leak(manifest):
        first, last = manifest["specimens"][0], manifest["specimens"][-1]
        last[f"{role}_sha256"] = first["target_sha256"]

    forge(copied, leak)
    rule = "phantom-00 and phantom-04 hold the same scan: it would leak between splits"
    with refused(copied / "manifest.json", rule, "Remove one of the two"):
        ShardSet(copied)


def test_masks_are_checked_when_read(copied, refused):
    shards = ShardSet(copied)
    specimen = next(row for row in shards.manifest.specimens if row.split == "val")
    assert shards.mask(specimen).shape == specimen.shape
    path = copied / mask_name(specimen.name, specimen.mask_sha256)
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)
    with refused(path, "missing or its checksum is not the manifest's", "Copy it again"):
        shards.mask(specimen)
    path.unlink()
    with refused(path, "missing or its checksum", "Copy it again"):
        shards.mask(specimen)
