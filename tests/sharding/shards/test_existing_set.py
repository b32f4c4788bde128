"""A folder that holds something already: a finished set, another set, leftovers, other files."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from killing import FileMoment
from lab import (
    SMALL,
    make_lab,
    rows,
    stamps,
    stopped_before_the_manifest,
    stopped_sharding,
    tree,
    unfinished,
    without_split,
)

from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards

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
