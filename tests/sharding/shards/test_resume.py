"""Runs that end early: what is finished is kept, what is closed is whole. And sets that grow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import SUPPORT, FileMoment
from lab import (
    SMALL,
    change_target,
    children,
    is_running,
    kill,
    make_lab,
    pool_workers,
    rows,
    stamps,
    stopped_before_the_manifest,
    stopped_sharding,
    tree,
    until,
    without_split,
)
from programs import with_path

from sharding.io.errors import CohortError, DataError
from sharding.io.storage import Folder
from sharding.shards.manifest import read_manifest
from sharding.shards.shard_set import ShardSet
from sharding.shards.verify import verify
from sharding.shards.write import write_shards
from sharding.volumes.cohort import SPLITS

COHORT = "a train, b train, c train, d val, e test, f test"


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path, "abcdef")


@pytest.fixture
def whole(lab):
    """What an undisturbed run in one process gives."""
    write_shards(rows(lab, COHORT), lab / "whole", SMALL, workers=1)
    return tree(lab / "whole")


def parts(out):
    """Specimens that are cut, with both files of each."""
    names = [path.stem for path in (out / "parts" / "specimens").glob("[!.]*.json")]
    return {f"parts/specimens/{name}.{kind}" for name in names for kind in ("tar", "json")}


def packed(out):
    """Shards that are packed, with the note of each."""
    notes = [path.stem for path in (out / "parts" / "shards").glob("[!.]*.json")]
    shards = {f"{name.partition('-')[0]}/{name}.tar" for name in notes}
    return shards | {f"parts/shards/{name}.json" for name in notes}


def partials(out):
    return {path.name for path in out.rglob(".*.partial-*")}


def kept(out):
    """Everything finished, with its stamps."""
    names = parts(out) | packed(out)
    return {name: stamp for name, stamp in stamps(out).items() if name in names}


# Killed


AMID_A_PART = FileMoment("*/parts/specimens/*.tar", "rename", count=2, torn=True)
AFTER_A_PART = FileMoment("*/parts/specimens/*.json", "rename", count=2)
MIDWAY = FileMoment("*/parts/specimens/*.json", "rename", count=4)
AMID_PACKING = FileMoment("*/parts/shards/*.json", "rename", count=2)


def killed(lab, moment):
    with stopped_sharding(moment, rows(lab, COHORT), lab / "out", SMALL, lab / "log"):
        pass
    return lab / "out"


@pytest.mark.parametrize(
    ("moment", "cut", "shards"),
    [(AMID_A_PART, 1, 0), (AFTER_A_PART, 1, 0), (MIDWAY, 3, 0), (AMID_PACKING, 6, 1)],
)
def test_a_killed_run_is_gone_on_with(lab, whole, moment, cut, shards):
    out = killed(lab, moment)
    finished = kept(out)
    assert (len(parts(out)), len(packed(out))) == (2 * cut, 2 * shards)
    assert len(partials(out)) == 1
    with pytest.raises(DataError, match=r"not finished.*Run the same|no shard set here"):
        ShardSet(out)
    # Killed once more, when everything is there and nothing is cleared away.
    with stopped_before_the_manifest(rows(lab, COHORT), out, SMALL, lab / "log"):
        redone = kept(out)
        assert finished.items() <= redone.items(), "what was finished is not touched"
        assert len(redone) == 6 * 2 + len(read_manifest(Folder(lab / "whole")).shards) * 2
        assert not partials(out)
        with pytest.raises(DataError, match="not finished"):
            ShardSet(out)
    write_shards(rows(lab, COHORT), out, SMALL, workers=1)
    closed = stamps(out)
    assert {name: stamp for name, stamp in redone.items() if name in closed}.items() <= (
        closed.items()
    )
    assert tree(out) == whole
    assert not (out / "parts").exists()


def test_a_run_of_several_processes_is_killed_and_gone_on_with_by_several(lab, whole):
    out = lab / "out"
    # A worker stops and the other one goes on, until the process that started them is killed.
    with stopped_sharding(
        AFTER_A_PART, rows(lab, COHORT), out, SMALL, lab / "log", workers=2
    ) as process:
        until(lambda: len(parts(out)) >= 2, process)
        workers = pool_workers(process.pid)
        finished = kept(out)
    assert process.exitcode == -9
    assert len(workers) == 2
    # They would wait for work for ever, or write beside the next run.
    for worker in filter(is_running, workers):
        os.kill(worker, signal.SIGCONT)
    until(lambda: not any(map(is_running, workers)), seconds=30)
    assert (out / "parts").exists()
    assert len(finished) >= 2
    with stopped_before_the_manifest(rows(lab, COHORT), out, SMALL, lab / "log", workers=2):
        assert finished.items() <= kept(out).items()
    write_shards(rows(lab, COHORT), out, SMALL, workers=2)
    assert tree(out) == whole


def test_a_killed_worker_ends_the_run_with_the_remedy(lab, whole):
    out = lab / "out"
    with stopped_sharding(
        AMID_A_PART, rows(lab, COHORT), out, SMALL, lab / "log", workers=2
    ) as process:
        kill(pool_workers(process.pid)[0])
        process.join(30)
        assert process.exitcode == 1, (lab / "log").read_text()
        assert not children(process.pid)
    said = (lab / "log").read_text()
    assert "DataError: worker processes: one was killed, by the system for want of memory" in said
    assert "Use fewer --workers and start again: what is finished is kept." in said
    write_shards(rows(lab, COHORT), out, SMALL, workers=1)
    assert tree(out) == whole


def test_an_unfinished_set_can_be_finished_with_another_configuration(lab):
    out = killed(lab, MIDWAY)
    other = replace(SMALL, seed=5, stride=4)
    write_shards(rows(lab, COHORT), out, other, workers=1)
    write_shards(rows(lab, COHORT), lab / "fresh", other, workers=1)
    assert tree(out) == tree(lab / "fresh")


def test_a_part_is_not_taken_for_one_of_the_same_size(lab):
    """Cut from one scan; from another, ended between part and record; from the first again."""
    out = lab / "out"
    (lab / "f_s.nii.gz").rename(lab / "away")

    def fail(scan, specimens):
        change_target(lab, "d", scan)
        with pytest.raises(CohortError) as caught:
            write_shards(rows(lab, COHORT), out, SMALL, workers=1)
        assert sorted(caught.value.failures) == specimens

    fail(72, ["f"])
    (mask,) = (out / "masks").glob("d-*")
    fail(71, ["f"])
    # The mask is written between the two: let that fail.
    mask.unlink()
    mask.mkdir()
    fail(72, ["d", "f"])
    mask.rmdir()
    fail(71, ["f"])
    (lab / "away").rename(lab / "f_s.nii.gz")
    write_shards(rows(lab, COHORT), out, SMALL, workers=1)
    write_shards(rows(lab, COHORT), lab / "fresh", SMALL, workers=1)
    assert tree(out) == tree(lab / "fresh")


def test_what_lost_nodes_leave_is_cleared_away(lab, whole):
    """Its tasks run again elsewhere, and what they had begun lies in the folder they share."""
    out = lab / "out"
    with stopped_sharding(AFTER_A_PART, rows(lab, COHORT), out, SMALL, lab / "log") as process:
        for name in ("parts/specimens/.f.tar.partial-lostnode.tar", ".x.json.partial-lostnode"):
            (out / name).write_bytes(b"half")
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    assert process.exitcode == 0, (lab / "log").read_text()
    assert tree(out) == whole


# A full disk

ON_A_FULL_DISK = """
import json, sys
from pathlib import Path
from lab import SMALL, rows, stamps, tree
from sharding.io.errors import DataError
from sharding.shards.write import write_shards

lab, disk, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cohort, out = rows(lab, sys.argv[4]), disk / "out"
out.mkdir()
ballast = disk / "ballast"
with ballast.open("wb", buffering=0) as file:
    while True:
        try:
            file.write(bytes(4096))
        except OSError:
            break
with ballast.open("r+b") as file:
    file.truncate(ballast.stat().st_size - room)
said = kind = None
try:
    write_shards(cohort, out, SMALL, workers=1)
except DataError as error:
    said, kind = str(error), type(error).__name__
before = stamps(out)
ballast.unlink()
write_shards(cohort, out, SMALL, workers=1)
after = stamps(out)
names = sorted(name for name in before if after.get(name) == before[name])
same = {name: content.hex() for name, content in tree(out).items()}
print(json.dumps([kind, said, sorted(before), names, same]))
"""


@pytest.mark.parametrize("share", [0.4, 1.3])
def test_a_full_disk_is_named_and_what_is_finished_is_kept(lab, whole, share):
    with stopped_before_the_manifest(rows(lab, COHORT), lab / "out", SMALL, lab / "log"):
        sizes = [path.stat().st_size for path in (lab / "out" / "parts").rglob("*.*")]
    pages = sum(-(-size // 4096) for size in sizes) + 20
    disk = lab / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=4m none "{disk}" && exec "$0" "$@"'
    arguments = [ON_A_FULL_DISK, lab, disk, int(share * pages) * 4096, COHORT]
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, "-c", *map(str, arguments)]
    environment = os.environ | with_path(SUPPORT)
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, said, before, untouched, finished = json.loads(done.stdout)
    assert "no space left on its disk. Free some" in said
    assert "manifest.json" not in before
    assert not any(".partial-" in name for name in before)
    assert finished == {name: content.hex() for name, content in whole.items()}
    cut = {name for name in before if name.startswith("parts/specimens/") and "json" in name}
    shards = {name for name in before if name.endswith(".tar") and not name.startswith("parts/")}
    if share < 1:
        assert kind == "CohortError"
        assert 0 < len(cut) < 6
        assert not shards
    else:
        assert kind == "DataError"
        assert len(cut) == 6
        assert shards
        assert shards <= set(untouched)


# Updates


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
    untouched = [name for name in before if name.startswith(("val/", "test/", "masks/"))]
    assert all(after[name] == before[name] for name in untouched)
    finish(lab, "a train, c train, d val, e test, f test", "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")


def test_moved_to_validation_a_specimen_is_cut_anew(lab):
    finish(lab, COHORT)
    moved = "a train, b train, c val, d val, e test, f test"
    assert recut(lab, moved) == {"c"}
    second = update(lab, moved)
    assert second.names("val") == ["c", "d"]
    assert {row.name for row in second.specimens if row.mask_sha256} == set("cdef")
    finish(lab, moved, "fresh")
    assert contents(lab / "out") == contents(lab / "fresh")
    # And back again: its mask goes.
    update(lab, COHORT)
    assert not list((lab / "out" / "masks").glob("c-*"))
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
