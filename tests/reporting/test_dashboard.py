from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from dashboards import OFFLINE, written
from tiny_runs import ADVERSARIAL, losses, tiny_config
from torch import nn
from wandb_offline import OfflineRun, read_offline_run

import distsynth.losses.perceptual
import distsynth.training.loop
from distsynth.cli.main import main
from distsynth.config import FAMILIES
from distsynth.errors import ConfigError
from distsynth.losses.registry import LossConfig
from distsynth.reporting.dashboard import (
    BEST,
    STAND_INS,
    WORDS,
    Dashboard,
    public_fields,
    report,
    workspace,
)

# wandb-workspaces is written for the first pydantic.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Pydantic V1 style `@validator`:pydantic.warnings.PydanticDeprecatedSince20"
)
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


def offline_run(folder: Path) -> tuple[Path, OfflineRun]:
    (file,) = folder.rglob("*.wandb")
    return file.parent / "files", read_offline_run(file)


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


@pytest.mark.slow
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


def test_a_report_says_what_it_is_and_what_each_section_shows():
    blocks = report(
        Dashboard("phantoms", group="lambdas", fields=("loss.lambda_bce",), objectives=("mse",))
    ).blocks
    texts = [str(getattr(block, "text", "")) for block in blocks]
    assert "the group lambdas of the project phantoms" in texts[0]
    assert "varied loss.lambda_bce, and ranks by mse" in texts[0]
    titles = [at for at, block in enumerate(blocks) if type(block).__name__ == "H2"]
    assert {texts[at] for at in titles} == set(WORDS)
    for at in titles:
        assert texts[at + 1] == WORDS[texts[at]]
        assert type(blocks[at + 2]).__name__ == "PanelGrid"


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
