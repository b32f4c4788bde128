from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tiny_runs import ADVERSARIAL, losses, tiny_config
from tiny_sweeps import tiny_plan
from torch import nn
from wandb_offline import OfflineRun, read_offline_run
from warm_workers import PROGRAMS

import distsynth.losses.perceptual
import distsynth.training.loop
from distsynth.cli.main import main
from distsynth.config import FAMILIES
from distsynth.errors import ConfigError
from distsynth.losses.registry import LossConfig
from distsynth.reporting.dashboard import (
    BEST,
    STAND_INS,
    Dashboard,
    public_fields,
    report,
    workspace,
)
from distsynth.sweep.finalists import log_sweep
from distsynth.sweep.folder import SweepFolder, TrialRecord, report_of

# wandb-workspaces is written for the first pydantic.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Pydantic V1 style `@validator`:pydantic.warnings.PydanticDeprecatedSince20"
)
OFFLINE = {"tracking.mode": "offline", "tracking.samples": 2, "tracking.project": "phantoms"}
SECONDS = 90
"""A command that takes longer hangs."""


class FewFeatures(nn.Module):
    """A perceptual loss without VGG's weights."""

    def __init__(self, _weights: str | None, _scale: str) -> None:
        super().__init__()

    def forward(self, synthetic: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (synthetic.mean() - target.mean()).abs()


@pytest.fixture(scope="module")
def everything(shard_folder, tmp_path_factory):
    """Folder of an offline run with every loss, both networks and pictures."""
    run_dir = tmp_path_factory.mktemp("everything") / "run"
    options = {
        **{f"loss.{item.name}": 0.1 for item in fields(LossConfig) if "lambda_" in item.name},
        "train.epochs": 1,
        **OFFLINE,
    }
    config = tiny_config(shard_folder, ADVERSARIAL, options)
    weights = {name: value for name, value in vars(config.loss).items() if "lambda" in name}
    assert all(value > 0 for value in weights.values()), "a term that is not trained is not logged"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distsynth.losses.perceptual, "PerceptualLoss", FewFeatures)
        distsynth.training.loop.train(config, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def sweep(shard_folder, tmp_path_factory):
    """Folder of a sweep of two trials, its leaderboard logged offline."""
    place = tmp_path_factory.mktemp("sweep")
    folder = SweepFolder(place / "tiny")
    plan = tiny_plan(shard_folder, run=OFFLINE, objective=("mse",))
    folder.write_plan(plan)
    for number, error in enumerate((0.5, 0.25)):
        metrics = {f"val/{name.rpartition('/')[2]}": error for name in BEST if "score" not in name}
        values = {"epoch": 1, "step": 5, "metrics": metrics, "score": -error, "best_score": -error}
        hyperparameters = dict.fromkeys(plan.space, 0.1)
        folder.write_record(
            TrialRecord(f"{number:05}", hyperparameters, "finished", (report_of(values),))
        )
    log_sweep(folder, plan)
    return folder


def offline_run(folder: Path) -> tuple[Path, OfflineRun]:
    (file,) = folder.rglob("*.wandb")
    return file.parent / "files", read_offline_run(file)


def written(out: Path, *args: str) -> dict[str, dict]:
    """What the command writes, by file name; anything that reaches out fails."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("reached for the network or a login")

    streams = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("wandb.Api", "wandb.login", "wandb.init", "wandb.setup"):
            patch.setattr(name, refuse)
        patch.setattr(socket.socket, "connect", refuse)
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            assert main(["dashboard", "--out", str(out), *args]) == 0
    told, heard = (stream.getvalue() for stream in streams)
    assert told.splitlines() == [str(out / "workspace.json"), str(out / "report.json")]
    assert "nothing was sent" in heard
    assert "distsynth dashboard" in heard
    assert "--online" in heard
    return {path.name: json.loads(path.read_text()) for path in out.iterdir()}


def nodes(spec: object) -> Iterator[dict]:
    """Every JSON object within."""
    if isinstance(spec, dict):
        yield spec
    for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from nodes(part)


def panels(spec: dict) -> list[dict]:
    return [node for node in nodes(spec) if "viewType" in node]


def shown_names(spec: dict) -> set[str]:
    """Names of what runs log, as far as any panel shows it."""
    found: set[str] = set()
    for panel in panels(spec):
        config = panel["config"]
        found |= {*config.get("metrics", ()), *config.get("mediaKeys", ())}
        found |= {config[key] for key in ("xAxis", "targetKey") if key in config}
        columns = [column["accessor"] for column in config.get("columns", ())]
        found |= {name.removeprefix("summary:") for name in columns if name.startswith("summary:")}
        if panel["viewType"] == "Weave":
            picks = [node["key"] for node in nodes(config) if "key" in node and "obj" in node]
            found |= {pick["val"] for pick in picks}
    return {name for name in found if not name.startswith("_")}


def config_columns(spec: dict) -> list[str]:
    """Fields of the configuration in the parallel coordinates, as W&B addresses them."""
    columns = [column for panel in panels(spec) for column in panel["config"].get("columns", ())]
    return [column["accessor"] for column in columns if column["accessor"].startswith("config:")]


def test_every_logged_name_has_a_panel_and_every_panel_shows_a_logged_name(
    everything, sweep, tmp_path
):
    _, run = offline_run(everything)
    _, table = offline_run(Path(sweep.url))
    logged = {name for row in (*run.rows, *table.rows) for name in row if not name.startswith("_")}
    assert {"train/bce", "val/psnr", "lr/generator", "samples", "leaderboard"} < logged
    # The rest of the first row of the leaderboard is seen in the table itself.
    best = {name for name in table.summary if name in BEST}
    for name, spec in written(tmp_path, "--sweep", sweep.url).items():
        assert shown_names(spec) == logged | best, name


def test_runs_of_no_sweep_have_no_panels_of_one(everything, tmp_path):
    logged = {name for row in losses(everything) for name in row} - {"step"}
    for spec in written(tmp_path, "--project", "phantoms").values():
        assert shown_names(spec) == logged | {
            "samples",
            "throughput/patches_per_s",
            "throughput/seconds",
        }
        assert not [node for node in nodes(spec) if node.get("op") == "="]


def test_a_sweep_gives_project_group_fields_and_objective(sweep, tmp_path):
    for spec in written(tmp_path, "--sweep", sweep.url, "--entity", "lab").values():
        project = spec["project"]
        if isinstance(project, str):
            project = {"name": project, "entityName": spec["entity"]}
        assert project == {"name": "phantoms", "entityName": "lab"}
        fields = [name.split(":")[1].replace(".value", "") for name in config_columns(spec)]
        assert fields == list(sweep.plan().space)
        filters = [node for node in nodes(spec) if node.get("op") == "="]
        assert filters
        assert all((found["key"]["name"], found["value"]) == ("group", "tiny") for found in filters)
        (parallel,) = (panel["config"] for panel in panels(spec) if "columns" in panel["config"])
        assert parallel["columns"][-1]["accessor"] == "summary:val/mse"
        # Lower is better.
        assert parallel["columns"][-1]["inverted"] is True
        (importance,) = (p["config"] for p in panels(spec) if "targetKey" in p["config"])
        assert importance["targetKey"] == "val/mse"


def test_the_columns_are_where_wandb_keeps_the_configuration(everything, tmp_path):
    _, run = offline_run(everything)
    fields = public_fields()
    spec = written(tmp_path, "--project", "p", "--fields", *fields)["workspace.json"]
    accessors = config_columns(spec)
    assert len(accessors) == len(fields)
    for name, accessor in zip(fields, accessors, strict=True):
        section, _, leaf = name.partition(".")
        assert accessor == f"config:{section}.value.{leaf}"
        # Fields of other families than those of the run have no value in it.
        assert leaf in run.config[section] or section in FAMILIES


def test_a_searched_network_is_told_by_fields_that_wandb_has():
    assert {part for parts in STAND_INS.values() for part in parts} < set(public_fields())


@pytest.mark.parametrize(
    "name", ["it's \"a\" \\ and 'b'", "lr=1e-3", "a<b>c", "a within_last 5 days", "Größe"]
)
def test_the_group_is_found_whatever_its_name(name, tmp_path):
    for spec in written(tmp_path, "--project", "p", "--group", name).values():
        values = [node["value"] for node in nodes(spec) if node.get("op") == "="]
        assert set(values) == {name}


def test_panels_of_a_report_do_not_overlap():
    built = report(Dashboard("p", fields=("loss.lambda_bce",)))
    grids = [block for block in built.blocks if hasattr(block, "panels")]
    assert len(grids) == 5
    for grid in grids:
        taken: set[tuple[int, int]] = set()
        for panel in grid.panels:
            at = panel.layout
            cells = {(x, y) for x in range(at.x, at.x + at.w) for y in range(at.y, at.y + at.h)}
            assert at.x + at.w <= 24
            assert not cells & taken
            taken |= cells


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fields": ("loss.lambda_bec",)},
            "loss.lambda_bec is not .* did you mean loss.lambda_bce",
        ),
        ({"fields": ("data.shards",)}, "data.shards is not a field that W&B has"),
        ({"objectives": ("train/bce",)}, "must not be an adversarial loss"),
    ],
)
def test_what_wandb_does_not_have_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Dashboard("p", **given)


def test_a_missing_package_is_told_in_one_line(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.workspaces", raising=False)
    with refused("wandb-workspaces", "not installed", r'pip install "distsynth\[dashboard\]"'):
        workspace(Dashboard("p"))


def test_files_are_not_replaced_unasked(tmp_path, capsys):
    written(tmp_path, "--project", "p")
    before = (tmp_path / "report.json").read_text()
    assert main(["dashboard", "--project", "q", "--out", str(tmp_path)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == before
    written(tmp_path, "--project", "q", "--overwrite")
    assert (tmp_path / "report.json").read_text() != before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--project PROJECT or --sweep FOLDER"),
        (["--sweep", "s", "--fields", "loss.lambda_bce"], "leave them out"),
        (["--project", "p", "--online"], "entity must name"),
    ],
)
def test_usage_is_told(args, message, capsys):
    assert main(["dashboard", *args]) == 2
    assert message in capsys.readouterr().err


# --- sent to a server


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


def without_ids(spec: object) -> object:
    """The specification without the ids that each building draws anew."""
    if isinstance(spec, list):
        return [without_ids(part) for part in spec]
    if isinstance(spec, dict):
        return {
            name: without_ids(part) for name, part in spec.items() if name not in ("id", "__id__")
        }
    return spec


def test_a_refusal_is_told(tmp_path):
    with answering(refusing=True) as (address, _seen):
        ended = sent(address, tmp_path, "--project", "phantoms", "--entity", "lab")
    assert ended.returncode == 1, ended.stderr
    assert "W&B project lab/phantoms: the dashboard could not be sent" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- what a run that was written offline leaves to be sent later


@pytest.mark.parametrize(
    ("place", "kinds"), [("everything", {"image-file"}), ("sweep", {"table-file"})]
)
def test_every_image_and_table_of_an_offline_run_is_there(place, kinds, request):
    where = request.getfixturevalue(place)
    files, run = offline_run(where if place == "everything" else Path(where.url))
    media = [part for row in run.rows for part in row.values() if isinstance(part, dict)]
    assert {part["_type"] for part in media} == kinds
    for part in media:
        content = (files / part["path"]).read_bytes()
        assert len(content) == part["size"]
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
    # What is to be uploaded is what lies there, no less and no more.
    assert {part["path"] for part in media} <= set(run.files)
    assert all((files / name).is_file() for name in run.files)
    lying = {path.relative_to(files).as_posix() for path in files.rglob("media/**/*.*")}
    assert lying == {part["path"] for part in media}


def test_a_table_lies_in_the_folder_that_is_synced_and_nowhere_else(sweep):
    files, run = offline_run(Path(sweep.url))
    assert not run.staged
    (name,) = run.files
    assert [row[1] for row in json.loads((files / name).read_text())["data"]] == ["00001", "00000"]
