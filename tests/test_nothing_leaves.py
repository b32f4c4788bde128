"""Commands that the user did not tell to go online reach for nothing beyond this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_trace import attempts, traced
from small_study import run_study
from warm_workers import COLD

pytestmark = pytest.mark.slow

COMMANDS = ("train", "predict", "evaluate", "report", "export")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards of a study."""
    folder = tmp_path_factory.mktemp("study")
    run_study(folder, ["phantom", "shard"])
    return folder


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """A server on loopback that everything would go to, and the first line of what it was sent."""
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    said.append(connection.recv(4096).partition(b"\r\n")[0])

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", said
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def test_the_trace_sees_connections_datagrams_and_questions_for_names(tmp_path):
    code = """
import contextlib, socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET, kind).connect(("192.0.2.1", 7))
with contextlib.suppress(OSError):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.2", 53))
with contextlib.suppress(OSError):
    socket.socket(socket.AF_INET6).connect(("2001:db8::1", 7))
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname())
"""
    log = tmp_path / "trace"
    subprocess.run([*traced(log), sys.executable, "-c", code], check=True, timeout=60)
    expected = ["192.0.2.1:7", "192.0.2.1:7", "192.0.2.2:53", "2001:db8::1:7"]
    assert attempts(log) == expected


@pytest.mark.long
def test_a_study_reaches_for_no_address(study, tmp_path):
    log = tmp_path / "trace"
    # Where a variable of the user's shell would let it.
    run_study(study, COMMANDS, before=traced(log), WANDB_ERROR_REPORTING="true")
    assert list((study / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert attempts(log) == []


@pytest.mark.long
def test_a_sweep_reaches_for_no_address(study, tmp_path):
    log = tmp_path / "trace"
    run_study(study, ["trial"], before=traced(log), umask=0o077, **COLD)
    trials = study.glob("sweeps/*/runs/*/wandb/offline-run-*/run-*.wandb")
    assert len(list(trials)) == 1
    assert attempts(log) == []
    written = [path for path in (study / "sweeps").rglob("*") if not path.is_symlink()]
    assert [path for path in written if path.stat().st_mode & 0o077] == []


def test_a_training_says_nothing_to_the_server_of_wandb(study, listener, tmp_path):
    url, said = listener
    (tmp_path / "shards").symlink_to(study / "shards")
    run_study(tmp_path, ["train"], WANDB_BASE_URL=url)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert said == []


def test_the_server_would_hear_wandb_as_it_is(listener, tmp_path):
    url, said = listener
    code = """
import numpy as np, wandb
run = wandb.init(mode="offline")
run.log({"picture": wandb.Image(np.zeros((4, 4, 3), np.uint8))})
run.finish()
"""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"WANDB_BASE_URL": url, "WANDB_ERROR_REPORTING": "true"}
    subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=60
    )
    assert any(b"/otel/" in line for line in said)
