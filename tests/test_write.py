"""Writing shards: true to the volumes, reproducible to the byte, all or nothing."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from sharding.cohort import Specimen, read_cohort
from sharding.errors import DataError
from sharding.patches import BLOCK, cut, dense_locations
from sharding.preprocess import PreprocessConfig, prepare_pair
from sharding.shards import QUANTUM, ShardConfig, ShardSet, quantise
from sharding.volume import Volume, read_volume, write_volume
from sharding.write import write_shards

SPLITS = ("train", "val", "test")


@pytest.fixture
def cohort(phantom_cohort):
    return read_cohort(phantom_cohort)


@pytest.fixture
def lab(tmp_path):
    """A folder in which every specimen a to d has a source and a target of its own."""
    for seed, name in enumerate("abcd"):
        rng = np.random.default_rng(seed)
        for role in ("s", "t"):
            data = rng.uniform(1, 100, (16, 14, 12)).astype(np.float32)
            write_volume(tmp_path / f"{name}_{role}.nii.gz", Volume(data, np.eye(4)))
    return tmp_path


SMALL = ShardConfig(patch_size=(8, 8), patches_per_specimen=10, stride=8, block=4, shard_mb=0.001)


def rows(lab):
    splits = ("train", "train", "val", "test")
    return [
        Specimen(name, lab / f"{name}_t.nii.gz", lab / f"{name}_s.nii.gz", split)
        for name, split in zip("abcd", splits, strict=True)
    ]


def tree(folder):
    """Relative path to content of every file below."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def where(shards, split):
    return np.concatenate(
        [block.where for record in shards.shards(split) for block in shards.read(record)]
    )


# What is stored


@pytest.mark.parametrize("split", SPLITS)
def test_patches_are_the_volumes_voxels_at_their_location(shard_folder, cohort, split):
    shards = ShardSet(shard_folder)
    files = {specimen.name: specimen for specimen in cohort}
    blocks = [block for record in shards.shards(split) for block in shards.read(record)]
    rows = np.concatenate([block.where for block in blocks])
    source = np.concatenate([block.source for block in blocks])
    target = np.concatenate([block.target for block in blocks])
    for index in np.unique(rows[:, 0]):
        record = shards.manifest.specimens[index]
        own = rows[:, 0] == index
        pair = prepare_pair(files[record.name], PreprocessConfig())
        expected = cut(quantise(pair.source_scaled), (16, 16), rows[own, 1:])
        np.testing.assert_array_equal(source[own], expected)
        # The target by a way of its own: the file, the manifest's transform, plain indexing.
        data = nib.load(files[record.name].target).get_fdata()
        low, high = record.target.low, record.target.high
        scaled = (np.clip(data, low, high) - low) / (high - low)
        for patch, (axis, *corner) in zip(target[own], rows[own, 1:].tolist(), strict=True):
            sides = [16, 16]
            sides.insert(axis, 1)
            (x, y, z), (a, b, c) = corner, sides
            voxels = scaled[x : x + a, y : y + b, z : z + c].reshape(16, 16)
            np.testing.assert_allclose(patch / QUANTUM, voxels, atol=0.51 / QUANTUM)


def test_training_patches_are_random_mixed_and_of_all_axes(shard_folder):
    shards = ShardSet(shard_folder)
    rows = where(shards, "train")
    assert len(rows) == 3 * 40
    assert set(rows[:, 1]) == {0, 1, 2}
    for record in shards.shards("train"):
        for block in shards.read(record):
            assert len(set(block.where[:, 0])) > 1, "a record mixes specimens"
    assert len(np.unique(rows, axis=0)) > 100


@pytest.mark.parametrize(("split", "slices"), [("val", 4), ("test", 0)])
def test_judged_patches_are_the_dense_grid_in_order(shard_folder, split, slices):
    shards = ShardSet(shard_folder)
    rows = where(shards, split)
    expected = dense_locations((40, 36, 32), (16, 16), 8, (2,), slices)
    np.testing.assert_array_equal(rows[:, 1:], expected)
    assert len(set(rows[:, 0])) == 1


def test_the_manifest_describes_each_specimen(shard_folder, cohort):
    manifest = ShardSet(shard_folder).manifest
    assert [record.name for record in manifest.specimens] == [row.name for row in cohort]
    for record in manifest.specimens:
        assert record.shape == (40, 36, 32)
        assert record.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
        assert record.orientation == "RAS"
        assert (record.mask_sha256 is None) == (record.split == "train")
        assert 0.9 < record.overlap <= 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_are_the_foreground(shard_folder, cohort, split):
    shards = ShardSet(shard_folder)
    (name,) = shards.manifest.names(split)
    record = next(row for row in shards.manifest.specimens if row.name == name)
    specimen = next(row for row in cohort if row.name == name)
    expected = prepare_pair(specimen, PreprocessConfig()).mask
    np.testing.assert_array_equal(shards.mask(record), expected)


def test_training_specimens_have_no_mask(shard_folder):
    manifest = ShardSet(shard_folder).manifest
    held = {path.stem for path in (shard_folder / "masks").iterdir()}
    assert held == {*manifest.names("val"), *manifest.names("test")}


def test_blocks_of_three_dimensions(lab):
    config = replace(SMALL, patch_size=(8, 6, 7), stride=6)
    write_shards(rows(lab), lab / "out", config, workers=1)
    shards = ShardSet(lab / "out")
    for split in SPLITS:
        for record in shards.shards(split):
            for block in shards.read(record):
                assert block.source.shape[1:] == (8, 6, 7)
                assert (block.where[:, 1] == BLOCK).all()
    index, _, x, y, z = where(shards, "train")[0].tolist()
    block = shards.read(shards.shards("train")[0])[0]
    specimen = shards.manifest.specimens[index]
    scaled = specimen.target
    data = read_volume(lab / f"{specimen.name}_t.nii.gz").data[x : x + 8, y : y + 6, z : z + 7]
    expected = np.clip((data - scaled.low) / (scaled.high - scaled.low), 0, 1)
    np.testing.assert_allclose(block.target[0] / QUANTUM, expected, atol=1e-5)
    np.testing.assert_array_equal(
        where(shards, "test")[:, 1:], dense_locations((16, 14, 12), (8, 6, 7), 6, (2,))
    )


def test_shards_hold_as_many_records_as_fit(shard_folder, lab):
    train = ShardSet(shard_folder).shards("train")
    assert [shard.patches for shard in train] == [48, 48, 24]
    write_shards(rows(lab), lab / "out", replace(SMALL, shard_mb=1e-9), workers=1)
    assert {shard.patches for shard in ShardSet(lab / "out").manifest.shards} == {4}, (
        "a record too large for its shard stands alone"
    )


# Reproducible


def test_the_same_inputs_give_the_same_bytes_with_any_number_of_workers(
    shard_folder, cohort, small_shards, tmp_path
):
    write_shards(cohort, tmp_path / "again", small_shards, workers=2)
    assert tree(tmp_path / "again") == tree(shard_folder)


def test_another_seed_draws_and_orders_otherwise(lab):
    first = write_shards(rows(lab), lab / "one", SMALL, workers=1)
    again = write_shards(rows(lab), lab / "two", SMALL, workers=1)
    other = write_shards(rows(lab), lab / "three", replace(SMALL, seed=1), workers=1)
    assert first == again
    assert first.sha256 == again.sha256 != other.sha256
    assert tree(lab / "one") == tree(lab / "two")
    drawn, redrawn = (where(ShardSet(lab / name), "train") for name in ("one", "three"))
    assert drawn.shape == redrawn.shape
    assert not np.array_equal(drawn, redrawn)
    assert drawn[:, 0].tolist() != redrawn[:, 0].tolist(), "specimens come in another order"
    for split in ("val", "test"):
        one, three = (where(ShardSet(lab / name), split) for name in ("one", "three"))
        np.testing.assert_array_equal(one, three)


def test_nothing_personal_goes_into_a_shard_set(lab):
    home = lab / "Jane-Doe"
    home.mkdir()
    for path in list(lab.glob("*.nii.gz")):
        image = nib.load(path)
        image.header["descrip"] = b"Jane Doe"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        nib.save(image, home / path.name)
    write_shards(rows(home), home / "out", SMALL, workers=1)
    for name, content in tree(home / "out").items():
        for secret in (b"Jane", b".nii", str(lab).encode(), b"/home", b"root"):
            assert secret not in content, (name, secret)
    with tarfile.open(home / "out" / "train" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.uname, member.gname, member.mtime) == ("distsynth", "distsynth", 0)


# All or nothing


def damaged(lab, which):
    """The cohort with one thing wrong, and what the message must say."""
    cohort, config = rows(lab), SMALL
    last, other = cohort[3], lab / "b_t.nii.gz"
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 15
    noise = np.random.default_rng(9).uniform(1, 9, (16, 14, 12)).astype(np.float32)
    if which == "bad volume":
        write_volume(last.target, Volume(np.ones((16, 14, 12), np.float32), np.eye(4)))
        said = ("d_t.nii.gz", "must not all be equal", "Check the export")
    elif which == "missing source":
        last.source.unlink()
        said = ("d_s.nii.gz", "does not exist", "Check the path")
    elif which == "no source":
        cohort[3] = replace(last, source=None)
        said = ("d", "has no source volume", "distsynth simulate")
    elif which == "no overlap":
        write_volume(last.source, Volume(noise, np.diag([1.0, 1, 1, 1]) + 50 * np.eye(4, k=3)))
        said = ("d_s.nii.gz", "source and target must overlap", "Check the affines")
    elif which == "patch too large":
        config = replace(SMALL, patch_size=(15, 15), axes=(2,))
        said = ("_t.nii.gz", "15x15 cut along axis 2 do not fit .* 16x14x12", "smaller patch")
    elif which == "same scan":
        shutil.copy(other, last.target)
        said = ("manifest.json", "b and d hold the same scan", "Remove one of the two")
    elif which == "target as source":
        shutil.copy(other, last.source)
        said = ("manifest.json", "b and d hold the same scan", "Remove one of the two")
    elif which == "mixed orientation":
        write_volume(last.target, Volume(noise, turned))
        said = ("d", "share one orientation: a is RAS, this one is LAS", "Reorient")
    elif which == "split half filled":
        cohort[3] = replace(last, split=None)
        said = ("d", "have a split and this one has none", "all or leave it empty")
    elif which == "two specimens":
        cohort = [replace(row, split=None) for row in cohort[:2]]
        said = ("cohort", "2 specimens cannot fill 3 splits", "Add specimens")
    else:
        cohort[3] = replace(cohort[0])
        said = ("cohort", "specimen a stands twice", "one row each")
    return cohort, config, said


@pytest.mark.parametrize(
    "which",
    [
        "bad volume",
        "missing source",
        "no source",
        "no overlap",
        "patch too large",
        "same scan",
        "target as source",
        "mixed orientation",
        "split half filled",
        "two specimens",
        "doubled specimen",
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(lab, refused, which):
    cohort, config, said = damaged(lab, which)
    before = tree(lab)
    with refused(*said):
        write_shards(cohort, lab / "out", config, workers=1)
    assert tree(lab) == before
    assert not [path for path in lab.iterdir() if path.is_dir()]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_amid_packing_leaves_what_was_there(lab, monkeypatch, error, existing):
    if existing:
        write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = tree(lab)
    original = __import__("sharding.write", fromlist=["_"])._write_shard

    def fails_late(split, *arguments):
        if split == "test":
            raise error
        return original(split, *arguments)

    monkeypatch.setattr("sharding.write._write_shard", fails_late)
    with pytest.raises(type(error)):
        write_shards(rows(lab), lab / "out", replace(SMALL, seed=5), workers=1, overwrite=True)
    assert tree(lab) == before
    assert [path.name for path in lab.iterdir() if path.is_dir()] == ["out"] * existing


def test_an_existing_set_is_replaced_only_if_told_to(lab, refused):
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = tree(lab)
    other = replace(SMALL, seed=1)
    with refused(lab / "out", "exists already", "--overwrite"):
        write_shards(rows(lab), lab / "out", other, workers=1)
    assert tree(lab) == before
    (lab / "out" / "train" / "stale.tar").touch()
    manifest = write_shards(rows(lab), lab / "out", other, workers=1, overwrite=True)
    assert ShardSet(lab / "out").manifest == manifest
    assert manifest.config.seed == 1
    assert not (lab / "out" / "train" / "stale.tar").exists()
    assert [path.name for path in lab.iterdir() if path.is_dir()] == ["out"]


def test_a_folder_that_is_no_shard_set_is_never_replaced(lab, refused):
    before = tree(lab)
    for out in (lab, lab / "a_t.nii.gz"):
        with refused(out, "nothing of ours to overwrite", "another folder"):
            write_shards(rows(lab), out, SMALL, workers=1, overwrite=True)
    assert tree(lab) == before


def test_one_scan_stored_twice_is_found_by_its_content_and_not_its_bytes(lab):
    image = nib.load(lab / "a_t.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), lab / "d_t.nii.gz")
    digests = {hashlib.sha256((lab / f"{n}_t.nii.gz").read_bytes()).digest() for n in "ad"}
    assert len(digests) == 2
    with pytest.raises(DataError, match="a and d hold the same scan"):
        write_shards(rows(lab), lab / "out", SMALL, workers=1)
