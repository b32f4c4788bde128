"""Writing shards: true to the volumes, reproducible to the byte, bad specimens told apart."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from lab import (
    SHAPE,
    SMALL,
    change_target,
    make_lab,
    rows,
    stopped_before_the_manifest,
    tree,
)

from sharding.io.errors import DataError
from sharding.shards.patches import BLOCK, cut, dense_locations
from sharding.shards.records import QUANTUM, quantise
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards
from sharding.volumes.cohort import SPLITS, Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import Volume, read_volume, write_volume


@pytest.fixture
def cohort(phantom_cohort):
    return read_cohort(phantom_cohort)


def blocks_of(shards, split):
    return [block for record in shards.shards(split) for block in shards.read(record)]


def where(shards, split):
    return np.concatenate([block.where for block in blocks_of(shards, split)])


def record_of(shards, name):
    return next(row for row in shards.manifest.specimens if row.name == name)


# What is stored


@pytest.mark.parametrize("split", SPLITS)
def test_patches_are_the_volumes_voxels_at_their_location(shard_folder, cohort, split):
    shards = ShardSet(shard_folder)
    files = {specimen.name: specimen for specimen in cohort}
    seen = set()
    for block in blocks_of(shards, split):
        seen.add(block.specimen)
        record, specimen = record_of(shards, block.specimen), files[block.specimen]
        pair = prepare_pair(specimen, PreprocessConfig())
        expected = cut(quantise(pair.source_scaled), (16, 16), block.where)
        assert block.source.shape[1] == 1
        np.testing.assert_array_equal(block.source[:, 0], expected)
        # The target by a way of its own: the file, the manifest's transform, plain indexing.
        data = nib.load(specimen.target).get_fdata()
        low, high = record.target.low, record.target.high
        scaled = (np.clip(data, low, high) - low) / (high - low)
        for patch, (axis, *corner) in zip(block.target, block.where.tolist(), strict=True):
            sides = [16, 16]
            sides.insert(axis, 1)
            (x, y, z), (a, b, c) = corner, sides
            voxels = scaled[x : x + a, y : y + b, z : z + c].reshape(16, 16)
            np.testing.assert_allclose(patch / QUANTUM, voxels, atol=0.51 / QUANTUM)
    assert seen == set(shards.manifest.names(split))


def test_training_patches_are_random_and_of_all_axes(shard_folder):
    shards = ShardSet(shard_folder)
    blocks = blocks_of(shards, "train")
    for block in blocks:
        assert set(block.where[:, 0]) == {0, 1, 2}, "each record"
    for name in shards.manifest.names("train"):
        own = np.concatenate([block.where for block in blocks if block.specimen == name])
        assert len(own) == 40
        assert len(np.unique(own, axis=0)) > 35
    drawn = [block.where.tobytes() for block in blocks]
    assert len(set(drawn)) == len(drawn), "each specimen has places of its own"


@pytest.mark.parametrize(("split", "slices"), [("val", 4), ("test", 0)])
def test_judged_patches_are_the_dense_grid_in_order(shard_folder, split, slices):
    shards = ShardSet(shard_folder)
    expected = dense_locations((40, 36, 32), (16, 16), 8, (2,), slices)
    np.testing.assert_array_equal(where(shards, split), expected)
    assert len({block.specimen for block in blocks_of(shards, split)}) == 1


def test_the_manifest_describes_each_specimen(shard_folder, cohort):
    manifest = ShardSet(shard_folder).manifest
    assert [record.name for record in manifest.specimens] == [row.name for row in cohort]
    for record in manifest.specimens:
        assert record.shape == (40, 36, 32)
        assert record.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
        assert record.orientation == "RAS"
        assert 0.9 < record.overlap <= 1


def test_spans_say_where_the_records_of_a_specimen_lie(lab):
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    shards = ShardSet(lab / "out")
    mixed = 0
    for shard in shards.manifest.shards:
        content = shards.path(shard).read_bytes()
        mixed += len(shard.spans) > 1
        end = 0
        for span in shard.spans:
            assert span.offset == end
            end += span.bytes
            alone = io.BytesIO(content[span.offset : end] + bytes(1024))
            with tarfile.open(fileobj=alone) as tar:
                keys = {member.name.partition(".")[0] for member in tar}
            assert {key.rpartition("-")[0] for key in keys} == {span.specimen}
        assert content[end:] == bytes(1024)
    assert mixed, "some shard holds several specimens"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_masks_are_the_foreground(shard_folder, cohort, split):
    shards = ShardSet(shard_folder)
    name = shards.manifest.names(split)[0]
    specimen = next(row for row in cohort if row.name == name)
    expected = prepare_pair(specimen, PreprocessConfig()).mask
    np.testing.assert_array_equal(shards.mask(record_of(shards, name)), expected)


def test_each_specimen_has_its_mask(shard_folder, cohort):
    held = [path.stem.rpartition("-")[0] for path in (shard_folder / "masks").iterdir()]
    assert sorted(held) == [row.name for row in cohort]


def test_a_mask_of_the_cohort_is_the_foreground_of_patches_and_judging(lab):
    data = np.zeros(SHAPE, np.float32)
    data[8, 7, 6] = 1
    cohort = rows(lab)
    for index in (0, 2):
        name = cohort[index].name
        write_volume(lab / f"{name}_m.nii.gz", Volume(data, np.eye(4)))
        cohort[index] = replace(cohort[index], mask=lab / f"{name}_m.nii.gz")
    write_shards(cohort, lab / "out", replace(SMALL, foreground=1.0, axes=(2,)), workers=1)
    shards = ShardSet(lab / "out")
    drawn = [block.where for block in blocks_of(shards, "train") if block.specimen == "a"]
    np.testing.assert_array_equal(np.unique(np.concatenate(drawn), axis=0), [[2, 4, 3, 6]])
    np.testing.assert_array_equal(shards.mask(record_of(shards, "c")), data > 0)


def test_blocks_of_three_dimensions(lab):
    config = replace(SMALL, patch_size=(8, 6, 7), stride=6)
    write_shards(rows(lab), lab / "out", config, workers=1)
    shards = ShardSet(lab / "out")
    for split in SPLITS:
        for block in blocks_of(shards, split):
            assert block.source.shape[1:] == (1, 8, 6, 7)
            assert block.target.shape[1:] == (8, 6, 7)
            assert (block.where[:, 0] == BLOCK).all()
    block = blocks_of(shards, "train")[0]
    _, x, y, z = block.where[0].tolist()
    scaled = record_of(shards, block.specimen).target
    data = read_volume(lab / f"{block.specimen}_t.nii.gz").data[x : x + 8, y : y + 6, z : z + 7]
    expected = np.clip((data - scaled.low) / (scaled.high - scaled.low), 0, 1)
    np.testing.assert_allclose(block.target[0] / QUANTUM, expected, atol=1e-5)
    expected = dense_locations(SHAPE, (8, 6, 7), 6, (2,))
    np.testing.assert_array_equal(where(shards, "test"), expected)


def test_shards_hold_as_many_records_as_fit(shard_folder, lab):
    assert [shard.patches for shard in ShardSet(shard_folder).shards("train")] == [40] * 3
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    shards = ShardSet(lab / "out").shards("train")
    held = [[(span.specimen, span.patches) for span in shard.spans] for shard in shards]
    assert held == [[("a", 8)], [("a", 2), ("b", 4)], [("b", 6)]]
    assert all(shard.bytes <= SMALL.shard_mb * 2**20 for shard in shards)
    write_shards(rows(lab), lab / "tiny", replace(SMALL, shard_mb=1e-9), workers=1)
    assert {shard.patches for shard in ShardSet(lab / "tiny").manifest.shards} == {2, 4}, (
        "a record too large for its shard stands alone"
    )
    write_shards(rows(lab), lab / "large", replace(SMALL, shard_mb=64), workers=1)
    assert len(ShardSet(lab / "large").manifest.shards) == 3


# Reproducible


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_with_any_number_of_workers(
    shard_folder, cohort, small_shards, tmp_path
):
    write_shards(cohort[::-1], tmp_path / "again", small_shards, workers=2)
    assert tree(tmp_path / "again") == tree(shard_folder)


def test_another_seed_draws_otherwise(lab):
    first, again, other = (
        write_shards(rows(lab), lab / name, replace(SMALL, seed=seed), workers=1).manifest
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    )
    assert first == again
    assert first.sha256 == again.sha256 != other.sha256
    assert tree(lab / "one") == tree(lab / "two")
    one, three = ShardSet(lab / "one"), ShardSet(lab / "three")
    drawn, redrawn = where(one, "train"), where(three, "train")
    assert drawn.shape == redrawn.shape
    assert not np.array_equal(drawn, redrawn)
    for split in ("val", "test"):
        np.testing.assert_array_equal(where(one, split), where(three, split))


def test_a_specimen_is_cut_alike_in_any_company(lab):
    write_shards(rows(lab), lab / "few", SMALL, workers=1)
    make_lab(lab, "abcdefg")
    many = "a val, b train, c train, d test, e train, f val, g test"
    write_shards(rows(lab, many), lab / "many", SMALL, workers=1)
    few, more = (ShardSet(lab / name) for name in ("few", "many"))
    for split, name in (("train", "b"), ("test", "d")):
        found = [
            [
                (block.where.tobytes(), block.source.tobytes(), block.target.tobytes())
                for block in blocks_of(shards, split)
                if block.specimen == name
            ]
            for shards in (few, more)
        ]
        assert found[0] == found[1]


def test_nothing_personal_goes_into_a_shard_set(lab):
    home = lab / "Jane-Doe"
    home.mkdir()
    for path in list(lab.glob("*.nii.gz")):
        image = nib.load(path)
        image.header["descrip"] = b"Jane Doe"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        nib.save(image, home / path.name)
    secrets = (b"Jane", b".nii", str(lab).encode(), b"/home", b"root")
    with stopped_before_the_manifest(rows(home), home / "out", SMALL, lab / "log"):
        unclosed = tree(home / "out")
    assert any(name.startswith("parts/") for name in unclosed)
    write_shards(rows(home), home / "out", SMALL, workers=1)
    for files in (unclosed, tree(home / "out")):
        for name, content in files.items():
            for secret in secrets:
                assert secret not in content, (name, secret)
    with tarfile.open(home / "out" / "train" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.uname, member.gname, member.mtime) == ("distsynth", "distsynth", 0)


def test_one_scan_stored_twice_is_found_by_its_content_and_not_its_bytes(lab):
    image = nib.load(lab / "a_t.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), lab / "d_t.nii.gz")
    digests = {hashlib.sha256((lab / f"{n}_t.nii.gz").read_bytes()).digest() for n in "ad"}
    assert len(digests) == 2
    with pytest.raises(DataError, match="a and d hold the same scan"):
        write_shards(rows(lab), lab / "out", SMALL, workers=1)
    change_target(lab, "d")
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    assert verify(ShardSet(lab / "out")) == []


def test_names_with_dots_and_dashes(lab):
    first, *others = rows(lab)
    cohort = [Specimen("9.4T-spec_1.b-000001", first.target, first.source, "train"), *others]
    write_shards(cohort, lab / "out", SMALL, workers=1)
    shards = ShardSet(lab / "out")
    assert verify(shards) == []
    assert "9.4T-spec_1.b-000001" in {block.specimen for block in blocks_of(shards, "train")}


# Kinds of cohorts


def test_a_cohort_without_a_test_split_trains_and_validates(lab):
    cohort = rows(lab, "a train, b train, c val, d val")
    manifest = write_shards(cohort, lab / "out", SMALL, workers=1).manifest
    assert manifest.names("test") == []
    assert manifest.patches("val") > 0
    assert ShardSet(lab / "out").manifest == manifest


def test_targets_of_several_voxel_sizes_are_refused_or_resampled(lab, refused):
    cohort = rows(lab)
    for role in ("s", "t"):
        path = lab / f"b_{role}.nii.gz"
        write_volume(path, Volume(read_volume(path).data, np.diag([0.5, 0.5, 0.5, 1.0])))
    found = r"one voxel size, found 2:\n  1x1x1 mm: a, c, d\n  0.5x0.5x0.5 mm: b"
    with refused(lab / "out", found, "--preprocess.target-spacing-mm"):
        write_shards(cohort, lab / "out", SMALL, workers=1)
    config = replace(
        SMALL,
        patch_size=(4, 4),
        stride=4,
        preprocess=replace(SMALL.preprocess, target_spacing_mm=(1.0, 1.0, 1.0)),
    )
    manifest = write_shards(cohort, lab / "other", config, workers=1).manifest
    assert {row.spacing_mm for row in manifest.specimens} == {(1.0, 1.0, 1.0)}
    assert next(row for row in manifest.specimens if row.name == "b").shape == (8, 7, 6)


def test_a_scan_rescaled_to_integers_is_refused_as_another_specimen(lab, refused):
    data = read_volume(lab / "a_t.nii.gz").data
    copy = np.rint(data / data.max() * 30000)
    write_volume(lab / "d_t.nii.gz", Volume(copy.astype(np.float32), np.eye(4)))
    with refused(lab / "out", "a and d hold the same scan", "Remove one"):
        write_shards(rows(lab), lab / "out", SMALL, workers=1)
