"""Specimens and cohorts that cannot be sharded: refused, named, or left out on request."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from lab import (
    SHAPE,
    SMALL,
    break_target,
    make_lab,
    rows,
    stamps,
    stopped_before_the_manifest,
    unfinished,
    without_split,
)

from sharding.io.errors import CohortError, DataError
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import Sharded, write_shards
from sharding.volumes.volume import Volume, write_volume

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


@pytest.mark.slow
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
    # Once corrected, only they are cut.
    before = stamps(lab / "out" / "parts")
    make_lab(lab, "abcdefg")
    with stopped_before_the_manifest(cohort, lab / "out", SMALL, lab / "log"):
        after = stamps(lab / "out" / "parts")
    assert before.items() <= after.items()
    assert len(after) > len(before)


# Skipping what fails


@pytest.mark.slow
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
    # Once corrected, they are added.
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
