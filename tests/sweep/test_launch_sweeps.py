"""The three ways to launch a sweep, as a user types them: alone, as a Ray job, by Ray's launcher.

The cluster is a head on loopback that only a token opens. Its launcher reaches it by stand-ins for
ssh and rsync; see launch_shims.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from programs import SHIMS, Program, environment, finished, free_port, home_folder, started
from tiny_runs import tiny_config

from distsynth.cli.main import main
from distsynth.config import to_json
from distsynth.runs.folder import BEST

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[2] / "jobs" / "tune_gan.py"
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
SPACE = "optim.lr_generator: {loguniform: [1.0e-3, 3.0e-2]}\n"
TOKEN = "for-the-tests-of-this-machine-only"
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
TRIALS = 2
PAUSE = 1.0
"""Seconds between looks at what runs."""


@dataclass(frozen=True)
class Lab:
    """What is searched, and where: the sweeps of all ways lie in one storage.

    Attributes:
        tree: Holds jobs/tune_gan.py, config.json and space.yaml.
        sweeps: The storage.
    """

    tree: Path
    sweeps: Path

    def words(self, name: str, tree: Path | None = None) -> list[str | Path]:
        """Arguments of a sweep, whose files are named as those of `tree`."""
        here = self.tree if tree is None else tree
        files = [here / "config.json", "--space", here / "space.yaml"]
        more = ["--name", name, "--storage", self.sweeps, "--trials", str(TRIALS)]
        return [*files, *more]


@dataclass
class Launched:
    """A sweep that was launched, and what was seen as it ran.

    Attributes:
        sweep: Its folder.
        status: Exit status of what launched it.
        said: By the same.
        looks: Exit status and output of each `distsynth sweep --status`.
        listened: Process and address of each TCP socket that accepted connections.
    """

    sweep: Path
    status: int = -1
    said: str = ""
    looks: list[tuple[int, str]] = field(default_factory=list)
    listened: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Head:
    """A cluster's head; its home folder is that of the nodes' user."""

    home: Path
    address: str
    dashboard: str
    program: Program


@pytest.fixture(scope="module")
def lab(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("launched")
    lab = Lab(folder / "tree", folder / "sweeps")
    (lab.tree / "jobs").mkdir(parents=True)
    shutil.copy(JOB, lab.tree / "jobs")
    (lab.tree / "config.json").write_text(to_json(tiny_config(shard_folder)))
    (lab.tree / "space.yaml").write_text(SPACE)
    return lab


@pytest.fixture
def home() -> Iterator[Path]:
    """Of somebody who has used nothing of this yet."""
    with home_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def local(lab: Lab, phantom_cohort: Path) -> Launched:
    """The sweep `local` on this machine alone; its best trial is evaluated.

    The home folder cannot be written: not even root can write to /sys.
    """
    seen = Launched(lab.sweeps / "local")
    look = ["sweep", "--status", "local", "--storage", str(lab.sweeps)]
    words = ["python", JOB, *lab.words("local"), "--cohort", phantom_cohort, "--local"]
    with (
        home_folder() as folder,
        started(words, environment(folder, HOME="/sys"), folder) as program,
    ):
        while program.runs():
            time.sleep(PAUSE)
            seen.listened |= program.listens()
            known = list(seen.sweep.glob("trials/[0-9]*.json"))
            if len(known) == TRIALS and program.runs():
                with contextlib.redirect_stdout(io.StringIO()) as shown:
                    seen.looks.append((main(look), shown.getvalue()))
        seen.status, seen.said = program.end()
    return seen


@pytest.mark.long
def test_more_gpus_than_this_machine_has_are_refused_locally(lab, home):
    words = ["python", JOB, *lab.words("many"), "--local", "--gpus", "64"]
    status, said = finished(words, environment(home), home)
    assert status == 2, said
    assert (
        "sweep.gpus must fit this machine: a trial with sweep.workers=1 needs 1 CPU, 64 GPU, "
        "it has" in said
    )
    assert "Traceback" not in said
    # The corrected command may have the same name.
    assert not (lab.sweeps / "many").exists()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with home_folder() as home:
        ports = {"port": free_port(), "dashboard-port": free_port()}
        words = ["ray", "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"]
        words += [f"--{name}={port}" for name, port in ports.items()]
        words += ["--dashboard-host=127.0.0.1"]
        # Those that are fixed otherwise may be another cluster's.
        words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        words += [f"--ray-client-server-port={free_port()}"]
        words += [f"--object-store-memory={80 * 2**20}"]
        closed = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        patient = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180"}
        with started(words, environment(home, **closed, **patient, **WITH_TOKEN), home) as program:
            program.until_it_says("Ray runtime started")
            address, dashboard = (f"127.0.0.1:{port}" for port in ports.values())
            yield Head(home, address, f"http://{dashboard}", program)


@pytest.fixture(scope="module")
def job(lab: Lab, head: Head) -> Launched:
    """The sweep `job` as a Ray job, with trials of two workers, from where nothing is installed."""
    seen = Launched(lab.sweeps / "job")
    words = ["python", "jobs/tune_gan.py", *lab.words("job", tree=Path()), "--final", "none"]
    words += ["--workers", "2"]
    with (
        home_folder() as home,
        started(*submission(lab, head, home, words, WITH_TOKEN)) as program,
    ):
        while program.runs():
            time.sleep(PAUSE)
            seen.listened |= head.program.listens()
        seen.status, seen.said = program.end()
    if seen.status:
        seen.said += head.program.said
    return seen


def submission(
    lab: Lab, head: Head, home: Path, words: Sequence[str | Path], token: dict[str, str]
) -> tuple[list[str | Path], dict[str, str], Path]:
    """Arguments of `started`: `ray job submit` of some words, by somebody who has the token."""
    command = ["ray", "job", "submit", "--working-dir", lab.tree, "--", *words]
    return command, environment(home, RAY_API_SERVER_ADDRESS=head.dashboard, **token), home


def board(sweep: Path) -> str:
    return (sweep / "leaderboard.csv").read_text()


def rows_of(sweep: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(board(sweep))))


def lines(text: str) -> list[str]:
    """Those that are not empty."""
    return [line for line in text.splitlines() if line]


def assert_listened_on_loopback(seen: Launched) -> None:
    names = {name for name, _ in seen.listened}
    assert {"gcs_server", "raylet"} <= names
    assert any(name.startswith("ray::") for name in names)
    assert {address for _, address in seen.listened} <= LOOPBACK, seen.listened


# On this machine alone.


@pytest.mark.long
def test_a_local_sweep_needs_no_home_folder_that_can_be_written(local):
    assert local.status == 0, local.said


@pytest.mark.long
def test_a_local_sweep_ends_with_its_leaderboard(local):
    assert local.status == 0, local.said
    rows = rows_of(local.sweep)
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["trial"] for row in rows} == {"00000", "00001"}
    assert {(row["status"], row["epochs"], row["cause"]) for row in rows} == {("finished", "2", "")}
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert scores == [float(row["psnr"]) for row in rows]
    assert len({row["optim.lr_generator"] for row in rows}) == TRIALS
    best = local.sweep / "best" / f"1-{rows[0]['trial']}"
    assert (best / BEST).is_file()
    assert local.said.splitlines()[-1] == str(best)
    assert (local.sweep / "evaluation" / "table.txt").read_text().strip() in local.said
    assert not (local.sweep / "ray").exists()


@pytest.mark.long
def test_a_local_sweep_listens_on_loopback_only(local):
    assert_listened_on_loopback(local)


@pytest.mark.long
def test_a_sweep_can_be_looked_at_while_it_runs(local):
    assert local.looks
    for status, shown in local.looks:
        assert status == 0
        counted = re.match(r"local: (.+)\n", shown)
        assert counted, shown
        states = dict(reversed(word.split()) for word in counted[1].split(", "))
        assert states.keys() <= {"waiting", "running", "finished"}
        assert sum(map(int, states.values())) == TRIALS
    assert "finished" not in local.looks[0][1].splitlines()[0]


@pytest.mark.long
def test_a_second_start_under_the_name_is_refused(lab, local, home):
    before = (local.sweep / "sweep.json").read_bytes()
    words = ["python", JOB, *lab.words("local"), "--local"]
    status, said = finished(words, environment(home), home)
    assert status == 1, said
    told = f"{local.sweep}: there is a sweep of this name already. Give --resume to continue"
    assert told in said
    assert (local.sweep / "sweep.json").read_bytes() == before


@pytest.mark.long
def test_resuming_a_finished_sweep_prints_its_table_again(lab, local, capsys):
    text = board(local.sweep)
    assert main(["sweep", "--resume", "local", "--storage", str(lab.sweeps)]) == 0
    shown = capsys.readouterr().out
    note, _, head, *_ = shown.splitlines()
    assert note.startswith("Scores and metrics are those of each trial's best epoch")
    assert head.split()[:4] == ["rank", "trial", "status", "epoch"]
    # In this order; progress stood between.
    said = iter(lines(local.said))
    assert all(line in said for line in lines(shown))
    assert shown.splitlines()[-1] == local.said.splitlines()[-1]
    assert board(local.sweep) == text


@pytest.mark.long
def test_the_status_of_a_finished_sweep_is_its_table(lab, local, capsys):
    assert main(["sweep", "--status", "local", "--storage", str(lab.sweeps)]) == 0
    first, _, *table = capsys.readouterr().out.splitlines()
    assert first == "local: 2 finished"
    assert len([line for line in table if re.match(r"\s*\d+\s", line)]) == TRIALS
    assert "\n".join(table) in local.said


def test_no_cluster_at_the_address_is_told(lab, home):
    address = f"127.0.0.1:{free_port()}"
    words = ["python", JOB, *lab.words("nowhere"), "--address", address]
    status, said = finished(words, environment(home), home)
    assert status == 1, said
    told = said.splitlines()[-1]
    assert told.startswith(f"distsynth: {address}: no Ray cluster answers there")
    assert "Start it, or give --local" in told
    # Else the same line would be refused once there is a cluster.
    assert not (lab.sweeps / "nowhere" / "sweep.json").exists()


# On a cluster.


@pytest.mark.long
def test_a_ray_job_searches_as_this_machine_does(job, local):
    assert job.status == 0, job.said
    assert re.search(r"Job '\w+' succeeded", job.said)
    assert str(job.sweep) in job.said.splitlines()
    # Two workers add up in another order.
    numbers = {"score", "psnr", "ssim_2d", "ssim_global", "mse", "seam_index"}
    for found, alone in zip(rows_of(job.sweep), rows_of(local.sweep), strict=True):
        near = {name: pytest.approx(float(alone[name]), rel=1e-3) for name in numbers}
        assert found | {name: float(found[name]) for name in numbers} == alone | near


@pytest.mark.long
def test_a_cluster_listens_on_loopback_only(job):
    assert_listened_on_loopback(job)


@pytest.mark.long
@pytest.mark.parametrize("token", [None, "another"])
def test_without_the_token_a_job_is_refused(lab, head, home, token):
    given = WITH_TOKEN | {"RAY_AUTH_TOKEN": token} if token else {}
    words = ["touch", home / "ran"]
    status, said = finished(*submission(lab, head, home, words, given))
    assert status == 1
    assert "AuthenticationError" in said
    assert ("Invalid" if token else "Missing") + " authentication token" in said
    assert not (home / "ran").exists()


@pytest.mark.long
@pytest.mark.parametrize("mode", [None, "token"])
def test_without_the_token_a_driver_is_refused(lab, head, home, mode):
    name = f"stranger-{mode}"
    words = ["python", JOB, *lab.words(name), "--address", head.address]
    given = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | ({"RAY_AUTH_MODE": mode} if mode else {})
    # Ray would try twenty times.
    environs = environment(home, RAY_NUM_REDIS_GET_RETRIES="1", **given)
    status, said = finished(words, environs, home)
    assert status == 1, said
    assert not (lab.sweeps / name / "runs").exists()
    told = said.splitlines()[-1]
    assert told.startswith(f"distsynth: {head.address}: ")
    assert "token" in told


@pytest.mark.long
def test_the_launcher_searches_as_this_machine_does(lab, local, head, home):
    """`ray up`, then `ray submit` from another home; the head is what the file's commands find."""
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(TOKEN)
    cluster = {
        "cluster_name": "launch",
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "somebody"},
        "file_mounts": {"~/.ray/auth_token": str(token)},
        # The default ones begin with `ray stop`: it ends every Ray process of this machine.
        "head_start_ray_commands": ["ray status"],
        "worker_start_ray_commands": [],
    }
    (home / "cluster.yaml").write_text(json.dumps(cluster))
    profile = {
        "PATH": f"{environment(home)['PATH'].split(':')[0]}:$PATH",
        "RAY_TMPDIR": head.home,
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    exports = "".join(f'export {name}="{text}"\n' for name, text in profile.items())
    (head.home / ".bashrc").write_text(exports)
    environs = environment(home, FAR_HOME=str(head.home))
    environs["PATH"] = f"{SHIMS}{os.pathsep}{environs['PATH']}"
    up = ["ray", "up", "--yes", home / "cluster.yaml"]
    status, said = finished(up, environs, home)
    assert status == 0, said
    assert (head.home / ".ray" / "auth_token").read_text() == TOKEN
    words = [*lab.words("launcher"), "--final", "none"]
    submit = ["ray", "submit", home / "cluster.yaml", JOB, "--", *words]
    status, said = finished(submit, environs, home)
    assert status == 0, said
    assert (head.home / JOB.name).read_bytes() == JOB.read_bytes()
    assert str(lab.sweeps / "launcher") in said.splitlines()
    assert board(lab.sweeps / "launcher") == board(local.sweep)
