"""One function over many items: whoever runs it, every item has its outcome."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from killing import FileMoment, alongside
from lab import (
    SMALL,
    break_target,
    is_running,
    kill,
    make_lab,
    pool_workers,
    rows,
    stamps,
    tree,
    until,
)
from tiny_runs import start
from work_items import end_at, root, run_waiting, wait_for

from sharding.io.errors import CohortError, DataError
from sharding.io.parallel import run_each
from sharding.shards.write import write_shards
from sharding.volumes.cohort import write_cohort

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[3] / "jobs" / "shard_volumes.py"
COHORT = "a train, b train, c train, d val, e test, f test"


def assert_outcomes(outcomes, items):
    assert sorted(outcomes) == sorted(items)
    for number in items:
        outcome = outcomes[number]
        if number < 0:
            assert type(outcome) is DataError
            parts = (outcome.where, outcome.rule, outcome.remedy)
            assert parts == (f"item {number}", "must be >= 0", "Correct it")
        elif number == 13:
            assert isinstance(outcome, FileNotFoundError)
            assert "unlucky" in str(outcome)
        else:
            assert outcome[1] == number**0.5


# In this process and in several


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_its_outcome_whatever_fails(workers):
    items = [4, -1, 9, 13, 0, 16, -5]
    outcomes = dict(run_each(root, items, workers))
    assert_outcomes(outcomes, items)
    processes = {outcome[0] for outcome in outcomes.values() if isinstance(outcome, tuple)}
    assert (os.getpid() in processes) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_is_nobodys_failure(workers):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run_each(root, [4, -1, 666, 9], workers))


def test_one_item_needs_no_other_process():
    ((_, (process, _)),) = run_each(root, [1], workers=8)
    assert process == os.getpid()


def test_nothing_to_do():
    assert list(run_each(root, [])) == []
    assert list(run_each(root, [], workers=4)) == []


def test_many_more_items_than_workers():
    assert_outcomes(dict(run_each(root, range(100, 400), 2)), range(100, 400))


def test_a_process_that_is_killed_is_told(refused):
    with refused("worker processes", "one was killed", "fewer --workers and start again"):
        list(run_each(partial(end_at, bad=3), range(8), 2))
    assert not pool_workers(os.getpid())


def test_whoever_stops_reading_leaves_no_process():
    outcomes = run_each(root, range(100, 200), 2)
    next(outcomes)
    assert len(pool_workers(os.getpid())) == 2
    outcomes.close()
    assert not pool_workers(os.getpid())


def test_processes_end_with_the_one_that_started_them(tmp_path):
    process = start(run_waiting, tmp_path, environment={}, log=tmp_path.with_suffix(".log"))
    until(lambda: len(list(tmp_path.iterdir())) == 2, process)
    workers = [int(path.name.split("-")[1]) for path in tmp_path.iterdir()]
    assert set(workers) == set(pool_workers(process.pid))
    process.kill()
    process.join()
    until(lambda: not any(map(is_running, workers)), seconds=20)


# On a Ray cluster of this machine


def test_an_address_that_nobody_has_is_refused(refused):
    import ray

    ray.shutdown()
    with refused("nowhere", "no Ray cluster answers there", "Start it, or leave --address away"):
        list(run_each(root, [1], address="nowhere"))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_port_at_which_nothing_listens_is_refused_before_ray_is_asked(monkeypatch, refused, form):
    import ray

    ray.shutdown()
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    with refused(address, "no Ray cluster answers there", "Start it, or leave --address away"):
        list(run_each(root, [1], address=address))


@pytest.fixture
def lab(tmp_path):
    make_lab(tmp_path, "abcdef")
    write_shards(rows(tmp_path, COHORT), tmp_path / "here", SMALL, workers=1)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_tasks_of_a_cluster_have_their_outcomes_whatever_fails(cluster, workers):
    items = [4, -1, 9, 13, 0, 16, -5]
    outcomes = dict(run_each(root, items, workers, address=cluster))
    assert_outcomes(outcomes, items)
    processes = {outcome[0] for outcome in outcomes.values() if isinstance(outcome, tuple)}
    assert os.getpid() not in processes


def test_a_bug_in_a_task_is_nobodys_failure(cluster):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run_each(root, [4, -1, 666, 9], address=cluster))


def test_tasks_of_a_node_that_is_lost_run_again_elsewhere(nodes, cluster, tmp_path):
    doomed = nodes.add(2)
    lost = {}

    def lose_it() -> None:
        until(lambda: len(list(tmp_path.iterdir())) == 6)
        for path in tmp_path.iterdir():
            number, process, place = path.name.split("-")
            if place == doomed.node_id:
                lost[int(number)] = int(process)
        nodes.remove(doomed)
        until(lambda: not any(map(is_running, lost.values())))
        (tmp_path / "go").touch()

    function = partial(wait_for, folder=tmp_path)
    with alongside(lose_it):
        outcomes = dict(run_each(function, range(8), address=cluster))
    assert outcomes == {number: number for number in range(8)}
    assert len(lost) == 2
    for number in range(8):
        begun = len(list(tmp_path.glob(f"{number}-*")))
        assert begun == (2 if number in lost else 1)


def test_a_process_that_dies_again_and_again_is_an_outcome(cluster):
    outcomes = dict(run_each(partial(end_at, bad=1), range(3), address=cluster))
    assert (outcomes[0], outcomes[2]) == (0, 2)
    assert isinstance(outcomes[1], Exception)


def test_a_cluster_writes_the_bytes_that_one_process_does(cluster, lab, monkeypatch):
    monkeypatch.chdir(lab)
    cohort = rows(Path(), COHORT)
    break_target(lab, "b")
    with pytest.raises(CohortError, match=r"1 of 6 specimens failed:\n  b: .*b_t.nii.gz: voxels"):
        write_shards(cohort, "out", SMALL, address=cluster)
    before = stamps(lab / "out")
    make_lab(lab, "abcdef")
    write_shards(cohort, "out", SMALL, address=cluster)
    assert before
    assert tree(lab / "out") == tree(lab / "here")
    assert not (lab / "out" / "parts").exists()


def run_job(lab, *more, **environment):
    write_cohort(lab / "cohort.csv", rows(lab, COHORT))
    options = "--patch-size 8 8 --patches-per-specimen 10 --stride 8 --block 4 --shard-mb 0.01"
    command = [sys.executable, str(JOB), str(lab / "cohort.csv"), "-o", "out", *options.split()]
    return subprocess.Popen(
        [*command, *more],
        cwd=lab,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_job_script_goes_on_where_a_killed_one_ended(nodes, cluster, lab):
    out = lab / "out"
    third = FileMoment("*/out/parts/specimens/c.json", "rename")
    with nodes.stopping(third) as stop:
        with run_job(lab, "--workers", "1", RAY_ADDRESS=cluster) as process:
            task = stop.wait_anywhere()
            process.kill()
        kill(task)
    written = {name for name in stamps(out) if not Path(name).name.startswith(".")}
    finished = {name for name in written if name.endswith(".json")}
    assert not (out / "manifest.json").exists()
    assert finished == {"parts/specimens/a.json", "parts/specimens/b.json"}
    with run_job(lab, f"--address={cluster}", RAY_ADDRESS="nowhere") as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert tree(out) == tree(lab / "here")


def test_the_job_script_runs_on_this_machine_alone(lab):
    with run_job(lab, "--workers", "1") as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert tree(lab / "out") == tree(lab / "here")
