"""A dashboard that is sent: to a server on loopback that answers as W&B's does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dashboards import written
from warm_workers import PROGRAMS

# wandb-workspaces is written for the first pydantic.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Pydantic V1 style `@validator`:pydantic.warnings.PydanticDeprecatedSince20"
)


SECONDS = 90
"""A command that takes longer hangs."""


class Answers(BaseHTTPRequestHandler):
    """As much of W&B's GraphQL as saving a view takes; `refusing` allows nothing."""

    seen: list[dict]
    refusing = False

    def do_POST(self) -> None:
        body = (
            json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            if (self.path == "/graphql")
            else {}
        )
        if body:
            self.seen.append(body)
        refused = self.refusing and "upsertView" in body.get("query", "")
        content = json.dumps(
            {"errors": [{"message": "permission denied"}]}
            if refused
            else {"data": self.data(body.get("query", ""), body.get("variables") or {})}
        ).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def data(self, query: str, variables: dict) -> dict:
        project = {"id": "cA==", "name": "phantoms", "entityName": "lab"}
        if "upsertView" in query:
            view = {"id": "dg==", "type": variables["type"], "name": variables["name"]}
            view |= {"displayName": variables["displayName"], "description": ""}
            view |= {"project": project, "spec": variables["spec"]}
            return {"upsertView": {"view": view, "inserted": True}}
        if "models(" in query:
            node = project | {"__typename": "Project", "createdAt": "2024-01-01T00:00:00Z"}
            node |= {"isBenchmark": False, "user": None}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node}]}}
        return {"viewer": {"id": "dQ==", "entity": "lab", "username": "lab", "flags": "{}"}}

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def answering(refusing: bool = False) -> Iterator[tuple[str, list[dict]]]:
    """Address of a server on loopback, and the requests that it got."""
    seen: list[dict] = []
    handler = type("Own", (Answers,), {"seen": seen, "refusing": refusing})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def sent(address: str, home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if "WANDB" not in name}
    environment |= {"HOME": str(home), "WANDB_BASE_URL": address, "WANDB_API_KEY": 40 * "0"}
    environment |= PROGRAMS
    return subprocess.run(
        [sys.executable, "-m", "distsynth", "dashboard", *args, "--online"],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.slow
def test_online_sends_the_specifications_that_offline_writes(sweep, tmp_path):
    offline = written(tmp_path / "offline", "--sweep", sweep.url, "--entity", "lab")
    (tmp_path / "home").mkdir()
    with answering() as (address, seen):
        ended = sent(address, tmp_path / "home", "--sweep", sweep.url, "--entity", "lab")
    assert ended.returncode == 0, ended.stderr
    views = [one["variables"] for one in seen if "upsertView" in one["query"]]
    assert [view["type"] for view in views] == ["project-view", "runs"]
    for view, file in zip(views, ("workspace.json", "report.json"), strict=True):
        assert (view["entityName"], view["projectName"]) == ("lab", "phantoms")
        assert without_ids(json.loads(view["spec"])) == without_ids(offline[file]["spec"])
    urls = ended.stdout.splitlines()
    assert len(urls) == 2
    assert all("/lab/phantoms" in url for url in urls)
    assert not list((tmp_path / "home").glob("dashboard*"))


def applied(address: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """What the script beside the files says, in a process without any library of the project."""
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "WANDB_BASE_URL": address}
    environment["WANDB_API_KEY"] = 40 * "0"
    return subprocess.run(
        [sys.executable, "-I", "-S", str(folder / "apply.py"), *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_script_beside_the_files_sends_them_as_they_are(sweep, tmp_path):
    offline = written(tmp_path / "offline", "--sweep", sweep.url)
    with answering() as (address, seen):
        ended = applied(address, tmp_path / "offline", "lab")
        again = applied(address, tmp_path / "offline", "lab", "another")
    assert (ended.returncode, again.returncode) == (0, 0), ended.stderr + again.stderr
    views = [one["variables"] for one in seen]
    assert [view["type"] for view in views] == ["project-view", "runs"] * 2
    assert [view["projectName"] for view in views] == ["phantoms"] * 2 + ["another"] * 2
    for view, file in zip(views[:2], ("workspace.json", "report.json"), strict=True):
        assert (view["entityName"], view["description"]) == ("lab", "")
        assert json.loads(view["spec"]) == offline[file]["spec"]
        assert view["displayName"] == offline[file]["displayName"]
    assert len({view["name"] for view in views}) == 4
    assert "report.json: lab/phantoms" in ended.stdout


def test_the_script_says_what_it_lacks_and_what_the_server_refuses(tmp_path):
    written(tmp_path / "offline", "--project", "phantoms")
    usage = applied("http://127.0.0.1:1", tmp_path / "offline")
    assert (usage.returncode, "apply.py ENTITY [PROJECT]" in usage.stderr) == (1, True)
    with answering(refusing=True) as (address, _seen):
        refused = applied(address, tmp_path / "offline", "lab")
    absent = applied("http://127.0.0.1:1", tmp_path / "offline", "lab")
    for ended in (refused, absent):
        assert ended.returncode == 1
        assert "did not take it" in ended.stderr
        assert "Traceback" not in ended.stderr


def without_ids(spec: object) -> object:
    """The specification without the ids that each building draws anew."""
    if isinstance(spec, list):
        return [without_ids(part) for part in spec]
    if isinstance(spec, dict):
        return {
            name: without_ids(part) for name, part in spec.items() if name not in ("id", "__id__")
        }
    return spec


@pytest.mark.slow
def test_a_refusal_is_told(tmp_path):
    with answering(refusing=True) as (address, _seen):
        ended = sent(address, tmp_path, "--project", "phantoms", "--entity", "lab")
    assert ended.returncode == 1, ended.stderr
    assert "W&B project lab/phantoms: the dashboard could not be sent" in ended.stderr
    assert "Traceback" not in ended.stderr
