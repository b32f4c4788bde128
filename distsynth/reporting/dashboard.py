"""Panels for what runs log: a workspace of W&B and a report, as JSON or sent to a server.

The names of metrics follow from the configuration's losses, the validator's terms and the
leaderboard's metrics; a test holds them against what runs really log.
"""

from __future__ import annotations

import difflib
import importlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distsynth.config import field_names
from distsynth.errors import ConfigError
from distsynth.losses.registry import TERMS as LOSS_TERMS
from distsynth.metrics.objective import (
    OBJECTIVES,
    SEAM_METRICS,
    VALIDATION_METRICS,
    check_objective,
)
from distsynth.runs.tracking import PATH_FIELDS
from distsynth.training.validation import SUPERVISED
from sharding.io.errors import DataError

TERMS = tuple(term.name for term in LOSS_TERMS)
"""Terms of the generator's loss."""
LEARNERS = ("generator", "discriminator")
STITCHED = (*VALIDATION_METRICS, *SEAM_METRICS, "psnr255")
"""Stitched validation metrics, in the mask unless their names say outside."""
SAMPLES, LEADERBOARD = "samples", "leaderboard"
"""Names of the logged picture and of the logged table."""
BEST = tuple(f"best/{name}" for name in ("score", *VALIDATION_METRICS))
"""Summary of a sweep's leaderboard: its first row."""

WORDS = {
    "Losses by term": (
        "Each term of the generator's loss in training, and in validation where it needs no "
        "discriminator. A validation curve that rises while training falls tells of overfitting."
    ),
    "Stitched validation metrics": (
        "After each epoch the validation volumes are put together from patches and measured in the "
        "mask; the epoch with the best objective is the one that is kept. A seam index of 1 means "
        "that the borders of patches cannot be seen."
    ),
    "Sample patches": (
        "The same validation patches after each epoch. Change is synthetic minus source, error is "
        "synthetic minus target; blue is positive, red negative."
    ),
    "Learning rates and throughput": (
        "Learning rates over the steps, gradient norms before clipping, patches a second, and the "
        "time that the steps took."
    ),
    "Sweep": (
        "Each line is a trial, from its hyperparameters to its score. The leaderboard ranks trials "
        "by their best epoch; importance is estimated from few trials and says where to look first."
    ),
}
"""Title of each section -> what it shows, for the report."""

Curves = dict[str, tuple[str, ...]]
"""Title of a panel -> names of its lines."""

STAND_INS = {
    "generator": ("generator.family", "generator.channels"),
    "discriminator": ("discriminator.family", "discriminator.channels"),
    "adversarial": ("loss.adversarial", "loss.penalty", "discriminator.spectral_norm"),
    "data.shards": ("data.patch_size", "data.neighbours", "data.alignment", "data.contrasts"),
}
"""What a sweep may search that is no field of W&B's configuration -> the fields that tell it."""


@dataclass(frozen=True)
class Dashboard:
    """What to show.

    Attributes:
        project: The project of the runs.
        entity: User or team of the project; may be empty as long as nothing is sent.
        group: Only runs of this group, a sweep's name; None shows all of the project.
        fields: Searched fields of the configuration, dotted.
        objectives: Stitched validation metrics that were searched by; the first ranks.

    Raises:
        ConfigError: If a field or an objective is unknown, or W&B does not get the field.
    """

    project: str
    entity: str = ""
    group: str | None = None
    fields: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("psnr",)

    def __post_init__(self) -> None:
        known = public_fields()
        for name in self.fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"{name} is not a field that W&B has of a run{hint}")
        for name in self.objectives:
            if check_objective(name) != name:
                raise ConfigError(f"objective must be {check_objective(name)}, got {name}")


def public_fields() -> list[str]:
    """Dotted fields that W&B gets of a configuration, for all families of networks."""
    return [name for name in field_names() if tuple(name.split(".")) not in PATH_FIELDS]


def loss_curves() -> Curves:
    """Each term, training and validation in one panel, and the totals of both networks."""
    terms = {
        term: (f"train/{term}", *((f"val/{term}",) if term in SUPERVISED else ())) for term in TERMS
    }
    return terms | {f"{name} total": (f"train/{name}",) for name in LEARNERS}


def stitched_curves() -> Curves:
    """Each stitched validation metric, over epochs."""
    return {metric: (f"val/{metric}",) for metric in STITCHED}


def step_curves() -> Curves:
    """Learning rates, gradient norms and throughput."""
    return {
        "learning rates": tuple(f"lr/{name}" for name in LEARNERS),
        "gradient norms before clipping": tuple(f"grad_norm/{name}" for name in LEARNERS),
        "throughput (patches/s)": ("throughput/patches_per_s",),
        "seconds of training": ("throughput/seconds",),
    }


def workspace(shown: Dashboard) -> Any:
    """The workspace, a wandb_workspaces.workspaces.Workspace; no server is asked.

    Raises:
        DataError: If wandb-workspaces is not installed.
    """
    ws = _library("wandb_workspaces.workspaces")
    return ws.Workspace(
        entity=shown.entity,
        project=shown.project,
        name=_title(shown),
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in _sections(shown).items()
        ],
        runset_settings=ws.RunsetSettings(filters=_filter(shown)),
    )


def report(shown: Dashboard) -> Any:
    """The report, a wandb_workspaces.reports.v2.Report; no server is asked.

    Raises:
        DataError: If wandb-workspaces is not installed.
    """
    wr = _library("wandb_workspaces.reports.v2")
    blocks = [wr.P(text=_introduction(shown)), wr.TableOfContents()]
    for title, panels in _sections(shown).items():
        # A run set without a project is that of the report. Naming the project again would make
        # the library ask a server for its id.
        runs = wr.Runset(name="runs", filters=_filter(shown))
        grid = wr.PanelGrid(runsets=[runs], panels=_placed(wr, panels))
        blocks += [wr.H2(text=title), wr.P(text=WORDS[title]), grid]
    # The entity is given even if empty: the library would ask a server for the default one.
    return wr.Report(
        project=shown.project,
        entity=shown.entity,
        title=_title(shown),
        blocks=blocks,
        width="fluid",
    )


def spec_json(built: Any) -> str:
    """A workspace or a report as indented JSON, in the form that a server gets."""
    # `_to_model` is not public, but the only way to the specification that sends nothing: the
    # public `save` uploads what it returns. A test compares both.
    values = built._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(values, indent=1) + "\n"


def apply(shown: Dashboard) -> tuple[str, str]:
    """Send both to the server that W&B is configured for, under its login; makes new ones.

    Returns:
        Addresses of the workspace and of the report.

    Raises:
        ConfigError: If there is no entity.
        DataError: If the server refuses or there is no login.
    """
    if not shown.entity:
        raise ConfigError("entity must name the user or team that owns the project, got none")
    built = workspace(shown), report(shown)
    try:
        # The workspace first: saving a report makes a project that does not exist, a misspelt one
        # too, so that it should not be what finds out.
        for part in built:
            part.save()
        return built[0].url, built[1].url
    # The library raises what its transport raises, plain Exceptions among it.
    except Exception as error:
        raise DataError(
            f"W&B project {shown.entity}/{shown.project}",
            f"the dashboard could not be sent ({error})",
            "Check that you are logged in (wandb login) and may write to the project",
        ) from error


def _introduction(shown: Dashboard) -> str:
    """What the runs of a report are, in a sentence or two."""
    which = f"of the group {shown.group} " if shown.group else ""
    text = (
        f"These are the runs {which}of the project {shown.project}: networks that predict a "
        "high-field MRI from a lower-field one of the same specimen, trained by distsynth."
    )
    if shown.fields:
        text += f" The search varied {', '.join(shown.fields)}, and ranks by {shown.objectives[0]}."
    return text


def _sections(shown: Dashboard) -> dict[str, list[Any]]:
    """Title of each section to its panels, newly made, because a report moves them."""
    wr = _library("wandb_workspaces.reports.v2")

    def lines(curves: Curves, x: str = "Step") -> list[Any]:
        return [wr.LinePlot(title=title, x=x, y=list(names)) for title, names in curves.items()]

    samples = wr.MediaBrowser(
        title="source, synthetic, target, change, error", media_keys=[SAMPLES]
    )
    found = {
        "Losses by term": lines(loss_curves()),
        "Stitched validation metrics": lines(stitched_curves(), x="epoch"),
        "Sample patches": [samples],
        "Learning rates and throughput": lines(step_curves()),
    }
    if shown.fields:
        found["Sweep"] = _sweep_panels(wr, shown)
    return found


def _sweep_panels(wr: Any, shown: Dashboard) -> list[Any]:
    """The searched fields against the metrics; runs do not log the score itself."""

    def field(name: str) -> Any:
        return wr.ParallelCoordinatesPlotColumn(
            # Rates are positive, weights may be zero.
            metric=wr.Config(name),
            display_name=name,
            log=name.startswith("optim.lr_") or None,
        )

    def objective(name: str) -> Any:
        return wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(f"val/{name}"),
            display_name=f"val/{name}",
            inverted=not OBJECTIVES[name] or None,
        )

    columns = [*map(field, shown.fields), *map(objective, shown.objectives)]
    return [
        wr.ParallelCoordinatesPlot(title="searched fields and objective", columns=columns),
        wr.ParameterImportancePlot(with_respect_to=f"val/{shown.objectives[0]}"),
        wr.WeavePanelSummaryTable(table_name=LEADERBOARD),
        *(wr.ScalarChart(title=name, metric=name) for name in BEST),
    ]


def _placed(wr: Any, panels: Sequence[Any]) -> list[Any]:
    """The panels on a report's grid of 24 columns: curves in threes, others across."""
    x = y = 0
    for panel in panels:
        width, height = (8, 6) if isinstance(panel, wr.LinePlot | wr.ScalarChart) else (24, 10)
        if x + width > 24:
            x, y = 0, y + 6
        panel.layout = wr.Layout(x=x, y=y, w=width, h=height)
        x, y = (x + width, y) if width < 24 else (0, y + height)
    return list(panels)


def _title(shown: Dashboard) -> str:
    """The title of both; the library refuses long ones, and symbols such as = and +."""
    title = f"distsynth: {shown.group or shown.project}"[:128]
    return "".join("-" if unicodedata.category(c).startswith("S") else c for c in title)


def _filter(shown: Dashboard) -> str:
    """The library's filter expression for the runs to show; empty for all."""
    if shown.group is None:
        return ""
    # The library rewrites = and < before it parses the expression, within quotes too.
    escaped = "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in shown.group)
    return f"Metric('Group') == '{escaped}'"


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise DataError(
            "wandb-workspaces", "it is not installed", 'Run pip install "distsynth[dashboard]"'
        ) from None
