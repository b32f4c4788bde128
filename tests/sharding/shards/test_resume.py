"""Runs that end early: finished work is kept, and closed shards are complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from killing import SUPPORT, FileMoment, is_stopped
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
)
from programs import with_path

from sharding.io.errors import CohortError, DataError
from sharding.io.storage import Folder
from sharding.shards.manifest import read_manifest
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards

pytestmark = pytest.mark.slow

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
        (amid,) = filter(is_stopped, pool_workers(process.pid))
        kill(amid)
        process.join(30)
        assert process.exitcode == 1, (lab / "log").read_text()
        assert not children(process.pid)
    said = (lab / "log").read_text()
    assert "DataError: worker processes: one was killed, perhaps by the system" in said
    assert "Use fewer --workers and start again: finished work is kept." in said
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
        # The last one may have been written and its note not.
        assert len(shards - set(untouched)) <= 1
