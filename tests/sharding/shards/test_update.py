"""Sets that grow: an update cuts what is new or has changed, and nothing else."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import (
    SMALL,
    change_target,
    make_lab,
    rows,
    stamps,
    stopped_before_the_manifest,
    tree,
    without_split,
)

from sharding.io.errors import CohortError
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards
from sharding.volumes.cohort import SPLITS

COHORT = "a train, b train, c train, d val, e test, f test"


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path, "abcdef")


def finish(lab, splits, out="out", config=SMALL, **options):
    return write_shards(rows(lab, splits), lab / out, config, workers=1, **options).manifest


def update(lab, splits, out="out", **options):
    manifest = finish(lab, splits, out, update=True, **options)
    shards = ShardSet(lab / out)
    assert shards.manifest == manifest
    assert verify(shards) == []
    assert not (lab / out / "parts").exists()
    return manifest


def specimens_of(manifest, split):
    """Shard to the specimens that it holds."""
    found = [shard for shard in manifest.shards if shard.split == split]
    return {shard.name: {span.specimen for span in shard.spans} for shard in found}


def recut(lab, splits, **options):
    """Specimens that an update cuts; it is killed before its end."""
    options = {"update": True} | options
    with stopped_before_the_manifest(rows(lab, splits), lab / "out", SMALL, lab / "log", **options):
        return {path.stem for path in (lab / "out/parts/specimens").glob("*.json")}


def contents(folder):
    """Specimen to the split, and the voxels and places of all its patches in order."""
    shards = ShardSet(folder)
    splits = {row.name: row.split for row in shards.manifest.specimens}
    found = defaultdict(list)
    for shard in shards.manifest.shards:
        for block in shards.read(shard):
            rows = zip(block.where, block.source, block.target, strict=True)
            found[block.specimen] += [tuple(part.tobytes() for part in row) for row in rows]
    return {name: (splits[name], sorted(found[name])) for name in splits}


def test_a_specimen_is_added(lab):
    first = finish(lab, "a train, b train, d val, e test")
    before = stamps(lab / "out")
    assert recut(lab, COHORT) == {"c", "f"}
    second = update(lab, COHORT)
    after = stamps(lab / "out")
    del before["manifest.json"], after["manifest.json"]
    assert before.items() <= after.items(), "the old shards and masks are not touched"
    assert second.shards[: len(first.shards)] != second.shards
    old = {shard.name: shard for shard in first.shards}
    new = {shard.name: shard for shard in second.shards if shard.name not in old}
    assert [shard for shard in second.shards if shard.name in old] == list(first.shards)
    numbers = [name.rpartition("-")[2] for name in old if name.startswith("train")]
    assert min(new, key=lambda name: not name.startswith("train")) == (
        f"train/train-{len(numbers):06d}.tar"
    )
    assert {span.specimen for shard in new.values() for span in shard.spans} == {"c", "f"}
    finish(lab, COHORT, "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")


def test_a_specimen_is_dropped(lab):
    finish(lab, COHORT)
    held = specimens_of(ShardSet(lab / "out").manifest, "train")
    before = stamps(lab / "out")
    second = update(lab, "a train, c train, d val, e test, f test")
    assert [row.name for row in second.specimens] == list("acdef")
    after = stamps(lab / "out")
    for name, specimens in held.items():
        assert (name in after) == ("b" not in specimens)
        if name in after:
            assert after[name] == before[name]
    assert not list((lab / "out" / "masks").glob("b-*"))
    kept = ("val/", "test/", *(f"masks/{name}" for name in "acdef"))
    untouched = [name for name in before if name.startswith(kept)]
    assert all(after[name] == before[name] for name in untouched)
    finish(lab, "a train, c train, d val, e test, f test", "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")


def test_moved_to_validation_a_specimen_is_cut_anew(lab):
    finish(lab, COHORT)
    moved = "a train, b train, c val, d val, e test, f test"
    assert recut(lab, moved) == {"c"}
    second = update(lab, moved)
    assert second.names("val") == ["c", "d"]
    finish(lab, moved, "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")
    # And back again.
    update(lab, COHORT)
    finish(lab, COHORT, "first")
    assert contents(lab / "out") == contents(lab / "first")


@pytest.mark.parametrize("slices", [0, 5])
def test_moved_to_the_test_a_specimen_is_cut_only_if_validation_has_fewer_slices(lab, slices):
    config = replace(SMALL, val_slices=slices)
    before, after = "a train, b train, c val, d val, e test", "a train, b train, c val, d test"
    finish(lab, before, config=config)
    after += ", e test"
    with stopped_before_the_manifest(
        rows(lab, after), lab / "out", config, lab / "log", update=True
    ):
        cut = {path.stem for path in (lab / "out/parts/specimens").glob("*.json")}
    assert cut == ({"d"} if slices else set())
    update(lab, after, config=config)
    finish(lab, after, "fresh", config=config)
    assert contents(lab / "out") == contents(lab / "fresh")


def test_specimens_keep_their_splits_when_the_cohort_leaves_them_open(lab):
    def write(names, **options):
        cohort = without_split(rows(lab, ", ".join(f"{name} train" for name in names)))
        return write_shards(cohort, lab / "out", SMALL, workers=1, **options).manifest

    first = {row.name: row.split for row in write("abcd").specimens}
    second = {row.name: row.split for row in write("abcdef", update=True).specimens}
    assert first.items() < second.items()
    assert verify(ShardSet(lab / "out")) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"patch_size": (6, 8), "stride": 6}, r"patch_size must be \(8, 8\) .*, got \(6, 8\)"),
        ({"seed": 1}, "seed must be 0 as in the set, got 1: patches cut in another way"),
        ({"patches_per_specimen": 11}, "patches_per_specimen must be 10"),
        ({"neighbours": 1}, "neighbours must be 0"),
        ({"val_slices": 3}, "val_slices must be 0"),
        ({"block": 5}, "block must be 4"),
        ({"preprocess": replace(SMALL.preprocess, min_overlap=0.3)}, "preprocess must be"),
    ],
)
def test_an_update_with_another_configuration_is_refused(lab, refused, changes, rule):
    finish(lab, COHORT)
    before = stamps(lab / "out")
    with refused(lab / "out", rule, "Give the same value, or shard into another folder"):
        finish(lab, COHORT, config=replace(SMALL, **changes), update=True)
    assert stamps(lab / "out") == before


def test_how_shards_are_packed_may_change(lab):
    finish(lab, "a train, b train, d val, e test")
    before = stamps(lab / "out")
    other = replace(SMALL, shard_mb=64.0, fractions=(0.5, 0.3, 0.2))
    second = update(lab, COHORT, config=other)
    assert second.config == other
    del before["manifest.json"]
    assert before.items() <= stamps(lab / "out").items()
    assert list(specimens_of(second, "train").values())[-1] == {"c"}


def test_a_killed_update_leaves_the_old_set_valid(lab):
    old = finish(lab, "a train, b train, d val, e test")
    shutil.copytree(lab / "out", lab / "copy")
    before = tree(lab / "out")
    for _ in range(2):
        with stopped_before_the_manifest(
            rows(lab, "b train, c train, d test, e val, f test"),
            lab / "out",
            SMALL,
            lab / "log",
            update=True,
        ):
            assert before.items() < tree(lab / "out").items()
        assert ShardSet(lab / "out").manifest == old
        contents(lab / "out")
        faults = verify(ShardSet(lab / "out"))
        assert {fault.rule for fault in faults} == {"the manifest does not name this file"}
    update(lab, "b train, c train, d test, e val, f test")
    update(lab, "b train, c train, d test, e val, f test", "copy")
    assert tree(lab / "out") == tree(lab / "copy")


def test_an_update_may_be_given_up(lab):
    old = finish(lab, "a train, b train, d val, e test")
    before = stamps(lab / "out")
    assert recut(lab, COHORT)
    assert finish(lab, "a train, b train, d val, e test") == old
    assert stamps(lab / "out") == before


def test_an_update_without_changes_touches_no_shard(lab):
    finish(lab, COHORT)
    before, content = stamps(lab / "out"), tree(lab / "out")
    for _ in range(2):
        update(lab, COHORT)
    after = stamps(lab / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}
    assert tree(lab / "out") == content


@pytest.mark.parametrize("name", ["a", "d"])
def test_a_changed_scan_is_noticed_and_cut_anew(lab, refused, name):
    finish(lab, COHORT)
    before = stamps(lab / "out")
    change_target(lab, name)
    with refused(lab / "out", "another cohort or configuration", "--update"):
        finish(lab, COHORT)
    assert stamps(lab / "out") == before
    assert recut(lab, COHORT) == {name}
    update(lab, COHORT)
    finish(lab, COHORT, "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")


def test_an_update_that_fails_leaves_the_old_set(lab):
    old = finish(lab, "a train, b train, d val, e test")
    (lab / "f_t.nii.gz").write_bytes(b"nothing")
    with pytest.raises(CohortError, match=r"1 of 6 specimens failed:\n  f: .*f_t\.nii\.gz"):
        finish(lab, COHORT, update=True)
    assert ShardSet(lab / "out").manifest == old
    manifest = update(lab, COHORT, skip_failed=True)
    assert manifest.left_out == ("f",)
    assert [row.name for row in manifest.specimens] == list("abcde")


COHORTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(SPLITS), min_size=3).filter(
    lambda splits: set(splits.values()) == set(SPLITS)
)


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A lab that nobody changes, and what each specimen gives in each split."""
    folder = make_lab(tmp_path_factory.mktemp("steady"), "abcdef")
    cut = {}
    for turn in range(3):
        splits = ", ".join(
            f"{name} {SPLITS[(index + turn) % 3]}" for index, name in enumerate("abcdef")
        )
        write_shards(rows(folder, splits), folder / f"turn{turn}", SMALL, workers=1)
        for name, (split, patches) in contents(folder / f"turn{turn}").items():
            cut[name, split] = patches
    return folder, cut


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.lists(COHORTS, min_size=2, max_size=4))
def test_whatever_the_updates_a_set_holds_its_cohort(steady, cohorts):
    lab, cut = steady
    shutil.rmtree(lab / "out", ignore_errors=True)
    for splits in cohorts:
        update(lab, ", ".join(f"{name} {split}" for name, split in splits.items()))
        found = contents(lab / "out")
        assert {name: split for name, (split, _) in found.items()} == splits
        for name, (split, patches) in found.items():
            assert patches == cut[name, split]
