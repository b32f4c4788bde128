"""Phantoms, their shards and, where they lie, real scans: made once a session for every test."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from killing import SUPPORT
from programs import with_path
from ray_cluster import Nodes, loopback_nodes
from s3_server import S3Server, s3_server
from tiny_runs import start_fork_server
from warm_workers import server as warm_server

from sharding.io import retries
from sharding.io.errors import DataError
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort

PHANTOM_SHAPE = (40, 36, 32)
DATA = Path(
    os.environ.get("DISTSYNTH_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data"
)

SLOW_FIXTURES = {"nodes", "server", "browser"}
"""Tests that use these are slow: a Ray cluster, an S3 server, a browser."""

settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

ON_THE_CLUSTER = {
    "test_sweep_run.py",
    "test_sweep_failures.py",
    "test_sweep_killed.py",
    "test_sweep_checks.py",
    "test_parallel.py",
}
"""Files whose tests use the same Ray cluster: one process of the tests runs them all."""
# Compiling a network takes one process, not one more for each core, which would load torch anew.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# A shell that runs the tests in the background has them ignored, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

LONGEST = dict.fromkeys(ON_THE_CLUSTER, -3) | {"test_launch_sweeps.py": -2, "test_signals.py": -1}
"""Files that run first of all."""

Refused = Callable[[str | Path, str, str], AbstractContextManager[None]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and run the files that take longest first.

    Modules may also mark themselves. Files are shared out among processes one by one, in this
    order: a long one at the end would keep one process busy while the others have nothing to do.
    """
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    long = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: LONGEST.get(item.path.name, 0 if long[item.path] else 1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share out files as `--dist loadfile` does, but those on the cluster as if they were one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneCluster(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "cluster" if Path(file).name in ON_THE_CLUSTER else file

    return OneCluster(config, log)


WARM = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the server of `warm_workers.py`, one for all processes of the tests.

    Files meet at sockets in the temporary folder; it is made before a test moves TMPDIR to a long
    path.
    """
    get_temp_dir()
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    stack = config.stash[WARM] = contextlib.ExitStack()
    # Tests see nothing that the user's own work left in the cache, and leave nothing there.
    cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="cache-"))
    os.environ["DISTSYNTH_CACHE"] = cache
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))
    os.environ.update(stack.enter_context(warm_server(Path(folder))))


def pytest_collection_finish() -> None:
    """What is loaded by now stays to the end: let no garbage collection look at it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End it."""
    config.stash.get(WARM, contextlib.ExitStack()).close()


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """Processes that tests start are forked, and do not load the libraries anew."""
    os.environ.update(with_path(SUPPORT / "stop_hook", SUPPORT, before=os.environ))
    start_fork_server()


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort.csv of five phantoms and simulated sources. Do not write into it.

    The cohort's split column is empty: the default fractions give 3 train, 1 val, 1 test.
    """
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, specimens=5, shape=PHANTOM_SHAPE, seed=3)
    return folder


@pytest.fixture(scope="session")
def small_shards() -> ShardConfig:
    """The configuration of `shard_folder`: records of 16 patches, shards of three records."""
    return ShardConfig(
        patch_size=(16, 16),
        patches_per_specimen=40,
        stride=8,
        val_slices=4,
        block=16,
        shard_mb=0.05,
        seed=3,
    )


@pytest.fixture(scope="session")
def shard_folder(
    phantom_cohort: Path, small_shards: ShardConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A shard set of 2D 16x16 patches, several shards a split. Do not write into it."""
    folder = tmp_path_factory.mktemp("sharded") / "shards"
    write_shards(read_cohort(phantom_cohort), folder, small_shards, workers=1)
    return folder


@pytest.fixture(scope="session")
def real_t1w() -> Path:
    """Folder of real 3 T T1w volumes with a cohort.csv without sources."""
    return _real("t1w_3t")


@pytest.fixture(scope="session")
def real_pairs() -> Path:
    """Folder of real T2w and T1w pairs with a cohort.csv."""
    return _real("pairs_t2w_t1w")


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    """A real S3 server on loopback. Take a new folder of it for each test."""
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch, tmp_path) -> S3Server:
    """The server, as the environment names it, with waits that are no waits."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "PAUSES_SECONDS", (0.01,) * 4)
    server.spoil("cut", times=0)
    server.requests.clear()
    return server


@pytest.fixture(scope="session")
def nodes(server: S3Server, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """A Ray cluster on loopback: a head without cores, and four nodes with one core each.

    That is room for four trials, more than most machines have cores for: they are small.
    """
    files = {item.path.name for item in request.session.items if "nodes" in item.fixturenames}
    assert files <= ON_THE_CLUSTER, files - ON_THE_CLUSTER
    with loopback_nodes(1, 1, 1, 1, **server.environment) as running:
        yield running


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[str]:
    """The address of these nodes, which this process may join."""
    with nodes.joined():
        yield nodes.address


@pytest.fixture(scope="session")
def refused() -> Refused:
    """A context that must raise DataError, naming the place, the rule and the remedy.

    The place is a part of `where`; rule and remedy are regular expressions.
    """

    @contextlib.contextmanager
    def check(where: str | Path, rule: str, remedy: str) -> Iterator[None]:
        with pytest.raises(DataError) as caught:
            yield
        error = caught.value
        assert str(where) in error.where
        assert re.search(rule, error.rule), error.rule
        assert re.search(remedy, error.remedy), error.remedy
        assert str(error) == f"{error.where}: {error.rule}. {error.remedy}."

    return check


def _real(name: str) -> Path:
    folder = DATA / name
    if not (folder / "cohort.csv").is_file():
        pytest.skip(f"no real scans at {folder}: set DISTSYNTH_DATA to the folder that holds them")
    return folder.resolve()
