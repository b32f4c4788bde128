"""Writing shards: true to the volumes, reproducible to the byte, bad specimens told apart."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import shutil
import tarfile
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from killing import FileMoment
from lab import (
    SHAPE,
    SMALL,
    break_target,
    change_target,
    make_lab,
    rows,
    stamps,
    stopped_before_the_manifest,
    stopped_sharding,
    tree,
    without_split,
)

from sharding.io.errors import CohortError, DataError
from sharding.io.storage import Folder
from sharding.shards.patches import BLOCK, cut, dense_locations
from sharding.shards.records import QUANTUM, quantise
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import Sharded, write_shards
from sharding.volumes.cohort import SPLITS, Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import Volume, read_volume, write_volume


@pytest.fixture
def cohort(phantom_cohort):
    return read_cohort(phantom_cohort)


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path)


def blocks_of(shards, split):
    return [block for record in shards.shards(split) for block in shards.read(record)]


def where(shards, split):
    return np.concatenate([block.where for block in blocks_of(shards, split)])


def record_of(shards, name):
    return next(row for row in shards.manifest.specimens if row.name == name)


def unfinished(lab):
    """Names of the parts in lab/out, which must not be openable."""
    with pytest.raises(
        DataError, match=r"manifest\.json: (this shard set is not finished|there is no sh)"
    ):
        ShardSet(lab / "out")
    return {path.stem for path in (lab / "out" / "parts" / "specimens").glob("*.json")}


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
        assert (record.mask_sha256 is None) == (record.split == "train")
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


@pytest.mark.parametrize("split", ["val", "test"])
def test_masks_are_the_foreground(shard_folder, cohort, split):
    shards = ShardSet(shard_folder)
    (name,) = shards.manifest.names(split)
    specimen = next(row for row in cohort if row.name == name)
    expected = prepare_pair(specimen, PreprocessConfig()).mask
    np.testing.assert_array_equal(shards.mask(record_of(shards, name)), expected)


def test_training_specimens_have_no_mask(shard_folder):
    manifest = ShardSet(shard_folder).manifest
    held = {path.stem.rpartition("-")[0] for path in (shard_folder / "masks").iterdir()}
    assert held == {*manifest.names("val"), *manifest.names("test")}


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


# Bad input


def damaged(lab, which):
    """The cohort with one thing wrong, and what the message must say."""
    cohort, config = rows(lab), SMALL
    last, other = cohort[3], lab / "b_t.nii.gz"
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 15
    noise = np.random.default_rng(9).uniform(1, 9, SHAPE).astype(np.float32)
    if which == "same scan":
        shutil.copy(other, last.target)
        said = (lab / "out", "b and d hold the same scan", "Remove one of the two")
    elif which == "target as source":
        shutil.copy(other, last.source)
        said = (lab / "out", "b and d hold the same scan", "Remove one of the two")
    elif which == "mixed orientation":
        write_volume(last.target, Volume(noise, turned))
        said = ("d", "share one orientation: a is RAS, this one is LAS", "Reorient")
    elif which == "mixed spacing":
        write_volume(last.target, Volume(noise, np.diag([0.8, 0.8, 0.8, 1.0])))
        said = (
            lab / "out",
            r"one voxel size, found 2:[^d]*\n.* 0\.8x0\.8x0\.8 mm: d",
            "target-spacing",
        )
    elif which == "split half filled":
        cohort[3] = replace(last, split=None)
        said = ("d", "have a split and this one has none", "all or leave it empty")
    elif which == "two specimens":
        cohort = without_split(cohort[:2])
        said = ("cohort", "2 specimens cannot fill 3 splits", "Add specimens")
    else:
        cohort[3] = replace(cohort[0])
        said = ("cohort", "specimen a is listed twice", "one row each")
    return cohort, config, said


@pytest.mark.parametrize(
    ("which", "cut"),
    [
        ("same scan", True),
        ("target as source", True),
        ("mixed orientation", True),
        ("mixed spacing", True),
        ("split half filled", False),
        ("two specimens", False),
        ("doubled specimen", False),
    ],
)
def test_a_bad_cohort_is_refused_and_leaves_nothing_openable(lab, refused, which, cut):
    cohort, config, said = damaged(lab, which)
    for _ in range(2):
        with refused(*said):
            write_shards(cohort, lab / "out", config, workers=1)
        assert unfinished(lab) == (set("abcd") if cut else set())
        assert not list((lab / "out").glob("*/*.tar")), "and no shard is packed"


def bad_specimen(lab, which):
    """What to make of specimen d, the configuration, and what the message must say of it."""
    last = rows(lab)[3]
    noise = np.random.default_rng(9).uniform(1, 9, SHAPE).astype(np.float32)
    if which == "bad volume":
        break_target(lab, "d")
        return last, SMALL, "d_t.nii.gz: .* must not all be equal.* Check the export"
    if which == "missing source":
        last.source.unlink()
        return last, SMALL, r"d_s.nii.gz: the file does not exist\. Check the path"
    if which == "no source":
        return replace(last, source=None), SMALL, "d: .* has no source volume.* distsynth simulate"
    if which == "no overlap":
        write_volume(last.source, Volume(noise, np.diag([1.0, 1, 1, 1]) + 50 * np.eye(4, k=3)))
        return last, SMALL, "d_s.nii.gz: source and target must overlap.* Check the affines"
    if which == "cut short":
        last.target.write_bytes(last.target.read_bytes()[:3000])
        return last, SMALL, "d_t.nii.gz: .*cut short or damaged"
    write_volume(last.target, Volume(noise[:9, :9], np.eye(4)))
    config = replace(SMALL, patch_size=(10, 10), dense_axes=(2,))
    return last, config, "d_t.nii.gz: .* 10x10 cut along axis 2 do not fit .*9x9x12.*smaller patch"


BAD = ["bad volume", "missing source", "no source", "no overlap", "cut short", "patch too large"]


@pytest.mark.parametrize("which", BAD)
def test_a_bad_specimen_is_named_and_the_others_are_kept(lab, which):
    last, config, message = bad_specimen(lab, which)
    with pytest.raises(CohortError) as caught:
        write_shards([*rows(lab)[:3], last], lab / "out", config, workers=1)
    error = caught.value
    assert (error.where, error.total) == (str(lab / "out"), 4)
    assert list(error.failures) == ["d"]
    assert error.rule == f"1 of 4 specimens failed:\n  d: {error.failures['d']}"
    assert "run the same command again" in error.remedy
    assert "--skip-failed" in error.remedy
    assert re.search(message, error.failures["d"])
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.failures, copy.total, str(copy)) == (error.failures, 4, str(error))
    assert unfinished(lab) == set("abc")


@pytest.mark.parametrize("workers", [1, 2])
def test_specimens_that_fail_do_not_stop_the_others(lab, workers):
    make_lab(lab, "abcdefg")
    cohort = rows(lab, "a train, b train, c val, d test, e train, f val, g test")
    for name in "aef":
        break_target(lab, name)
    with pytest.raises(CohortError) as caught:
        write_shards(cohort, lab / "out", SMALL, workers=workers)
    assert sorted(caught.value.failures) == ["a", "e", "f"]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{lab / 'out'}: 3 of 7 specimens failed:"
    for line, name in zip(lines[1:4], "aef", strict=True):
        assert line.startswith(f"  {name}: {lab / name}_t.nii.gz: voxels must not all be equal")
    assert unfinished(lab) == set("bcdg")
    # Mended, only they are cut.
    before = stamps(lab / "out" / "parts")
    make_lab(lab, "abcdefg")
    with stopped_before_the_manifest(cohort, lab / "out", SMALL, lab / "log"):
        after = stamps(lab / "out" / "parts")
    assert before.items() <= after.items()
    assert len(after) > len(before)


# Skipping what fails


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_can_be_closed_without_those_that_fail(lab, workers):
    make_lab(lab, "abcde")
    cohort = rows(lab, "a train, b train, c val, d test, e test")
    break_target(lab, "a")
    (lab / "e_s.nii.gz").unlink()
    manifest, failures = _fields(
        write_shards(cohort, lab / "out", SMALL, workers=workers, skip_failed=True)
    )
    assert list(manifest.left_out) == ["a", "e"] == sorted(failures)
    assert "a_t.nii.gz: voxels must not all be equal" in failures["a"]
    assert "e_s.nii.gz: the file does not exist" in failures["e"]
    shards = ShardSet(lab / "out")
    assert shards.manifest == manifest
    assert [row.name for row in manifest.specimens] == list("bcd")
    assert verify(shards) == []
    assert str(lab).encode() not in (lab / "out" / "manifest.json").read_bytes()
    # The same again changes nothing, and does not forget what is missing.
    before = stamps(lab / "out")
    again = write_shards(cohort, lab / "out", SMALL, workers=workers, skip_failed=True)
    assert again.manifest == manifest
    assert list(again.failures) == ["a", "e"]
    assert stamps(lab / "out") == before
    with pytest.raises(DataError, match="another cohort or configuration"):
        write_shards(cohort, lab / "out", SMALL, workers=workers)
    # Mended, they are added.
    make_lab(lab, "abcde")
    done = write_shards(cohort, lab / "out", SMALL, workers=workers, update=True)
    assert done.manifest.left_out == ()
    assert done.failures == {}
    assert [row.name for row in done.manifest.specimens] == list("abcde")
    assert verify(ShardSet(lab / "out")) == []


def _fields(sharded):
    assert isinstance(sharded, Sharded)
    return sharded.manifest, sharded.failures


def test_a_split_of_which_all_fail_cannot_be_skipped(lab, refused):
    break_target(lab, "d")
    with refused(lab / "out", "no specimen is left in test", "Correct what failed"):
        write_shards(rows(lab), lab / "out", SMALL, workers=1, skip_failed=True)
    assert unfinished(lab) == set("abc")


# What is there already


def test_a_finished_set_is_returned_untouched(lab):
    first = write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = stamps(lab / "out")
    for cohort in (rows(lab), rows(lab)[::-1]):
        assert write_shards(cohort, lab / "out", SMALL, workers=1) == first
    assert stamps(lab / "out") == before


def test_leftovers_of_a_run_killed_at_its_very_end_are_cleared(lab):
    first = write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = stamps(lab / "out")
    folder = Folder(lab / "out")
    for name in ("parts/specimens/a.tar", "parts/shards/x.json", "train/train-000099.tar"):
        folder.write(name, b"left over")
    (lab / "out" / "parts" / "specimens" / ".b.tar.partial-abcdefgh.tar").write_bytes(b"half")
    (lab / "out" / "val" / ".val-000000.tar.partial-abcdefgh.tar").write_bytes(b"half")
    assert write_shards(rows(lab), lab / "out", SMALL, workers=1) == first
    assert stamps(lab / "out") == before
    assert not (lab / "out" / "parts").exists()


@pytest.mark.parametrize("which", ["seed", "split", "fewer", "more"])
def test_another_cohort_or_configuration_is_refused(lab, refused, which):
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = stamps(lab / "out")
    make_lab(lab, "abcde")
    cohort, config = rows(lab), SMALL
    if which == "seed":
        config = replace(SMALL, seed=1)
    elif which == "split":
        cohort = rows(lab, "a test, b train, c val, d test")
    elif which == "fewer":
        cohort = rows(lab, "a train, c val, d test")
    else:
        cohort = rows(lab, "a train, b train, c val, d test, e test")
    with refused(lab / "out", "another cohort or configuration", "--update .* --overwrite"):
        write_shards(cohort, lab / "out", config, workers=1)
    assert stamps(lab / "out") == before


def test_an_existing_set_is_replaced_only_if_told_to(lab):
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    other = replace(SMALL, seed=1)
    (lab / "out" / "train" / "stale.tar").touch()
    manifest = write_shards(rows(lab), lab / "out", other, workers=1, overwrite=True).manifest
    assert ShardSet(lab / "out").manifest == manifest
    assert manifest.config.seed == 1
    assert not (lab / "out" / "train" / "stale.tar").exists()
    write_shards(rows(lab), lab / "fresh", other, workers=1)
    assert tree(lab / "out") == tree(lab / "fresh")


def test_a_cohort_that_is_refused_does_not_cost_the_old_set(lab, refused):
    write_shards(rows(lab), lab / "out", SMALL, workers=1)
    before = stamps(lab / "out")
    with refused("cohort", "2 specimens cannot fill 3 splits", "Add specimens"):
        write_shards(without_split(rows(lab)[:2]), lab / "out", SMALL, workers=1, overwrite=True)
    assert stamps(lab / "out") == before


def test_a_run_killed_while_it_replaced_a_set_can_be_started_again(lab):
    other, out = replace(SMALL, seed=1), lab / "out"
    write_shards(rows(lab), out, SMALL, workers=1, overwrite=True)
    for number in range(100):
        (out / "train" / f"stale-{number:04d}.tar").touch()
    amid = FileMoment("*/train/stale-*", "remove", count=50)
    with stopped_sharding(amid, rows(lab), out, other, lab / "log", overwrite=True):
        pass
    assert len(list((out / "train").glob("stale*"))) == 51, "killed amid removing"
    assert unfinished(lab) == set()
    write_shards(rows(lab), out, other, workers=1, overwrite=True)
    write_shards(rows(lab), lab / "fresh", other, workers=1)
    assert tree(out) == tree(lab / "fresh")
    # Killed a moment before, the old set is whole.
    Folder(out).write("parts/replacing", "")
    assert write_shards(rows(lab), out, other, workers=1).manifest == ShardSet(out).manifest
    assert tree(out) == tree(lab / "fresh")


def test_a_folder_that_is_no_shard_set_is_never_touched(lab, refused):
    before = stamps(lab)
    for out in (lab, lab / "a_t.nii.gz"):
        for options in ({}, {"overwrite": True}, {"update": True}):
            with pytest.raises(DataError) as caught:
                write_shards(rows(lab), out, SMALL, workers=1, **options)
            assert caught.value.where == str(out)
    with refused(lab, "holds no manifest.json, so this program did not write it", "another folder"):
        write_shards(rows(lab), lab, SMALL, workers=1, overwrite=True)
    assert stamps(lab).items() >= before.items()
    assert {path.name for path in lab.iterdir()} == set(before)


def test_two_runs_at_once_are_refused(lab, refused):
    with stopped_before_the_manifest(rows(lab), lab / "out", SMALL, lab / "log") as first:
        before = stamps(lab / "out")
        for _ in range(2):
            with refused(lab / "out", f"process {first.pid} on", "Wait for it"):
                write_shards(rows(lab), lab / "out", SMALL, workers=1)
        assert stamps(lab / "out") == before
        assert first.is_alive()
    done = write_shards(rows(lab), lab / "out", SMALL, workers=1)
    assert ShardSet(lab / "out").manifest == done.manifest


def test_two_sets_beside_each_other_do_not_wait(lab):
    failures = []

    def run(name):
        try:
            write_shards(rows(lab), lab / name, SMALL, workers=1)
        except DataError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tree(lab / "one") == tree(lab / "two")


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
