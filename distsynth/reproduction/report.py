"""The page of a reproduction: its tables, pictures, seams, curves, and what was asked."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from distsynth.reporting.evaluation_page import Picture, picture_html
from distsynth.reporting.figures import comparison_figure
from distsynth.reporting.run_page import Extras, picture_sections, record_facts, run_rows
from distsynth.reporting.sections import (
    details_section,
    report_page,
    training_section,
    values_sections,
)
from distsynth.reproduction.comparison import Comparison
from distsynth.reproduction.comparison_tables import comparison_html
from distsynth.reproduction.judge import BASELINES, read_judged, read_slices
from distsynth.reproduction.rows import NETWORKS
from distsynth.reproduction.tables import comparison_of, ranked, seams_of
from distsynth.reproduction.task import Task, read_task
from distsynth.runs.checkpoint import DataRecord
from distsynth.sweep.folder import SweepFolder
from sharding.io.page import facts_html, section
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet

PAGE_FILE = "comparison.html"
PICTURES = 8
"""Methods of a still picture at most: those with the best PSNR in the mask."""
SLID = 3
"""Networks whose slices can be slid through at most: the best likewise."""


def reproduction_page(folder: SweepFolder, extras: Extras | None = None) -> str:
    """The page of a reproduction's folder, finished or not.

    Args:
        folder: Where it lies.
        extras: The cohort, for slices to slide through and pictures of seams and consistency.

    Raises:
        DataError: If a file cannot be read, or specimens do not fit.
        ConfigError: If the task cannot be read, or no specimen is in the split.
    """
    task = read_task(folder.folder)
    compared, seams = comparison_of(folder, task), seams_of(folder, task)
    sections = [
        section("What was asked", facts_html(_facts(task))),
        section("Comparison", comparison_html(compared)),
    ]
    if seams:
        sections.append(section("Seams", comparison_html(seams)))
    if compared.table:
        sections.append(section("Pictures", *map(picture_html, _pictures(folder, compared))))
        sections += _slices(folder, compared, extras or Extras())
    runs = {name: Folder(folder.run_dir(name)) for name in task.networks()}
    if curves := {name: rows for name, run in runs.items() if (rows := run_rows(run))}:
        sections.append(training_section(curves))
    sections += values_sections(compared.table)
    asked = {"rows": task.rows, "seeds": task.seeds, "budget": asdict(task.budget)}
    data = DataRecord.of(ShardSet(task.shards).manifest)
    sections.append(details_section(record_facts(data), asked))
    return report_page("Reproduction of the paper's comparison", sections)


def _facts(task: Task) -> dict[str, Any]:
    """The task without paths."""
    manifest = ShardSet(task.shards).manifest
    budget = task.budget
    return {
        "rows": ", ".join(task.rows),
        "seeds": task.seeds,
        "epochs": f"{budget.epochs:.4g} of each row's",
        "training patches a specimen": budget.patches,
        "stride of stitched prediction": budget.stride,
        **{split: f"{len(manifest.names(split))} specimens" for split in ("train", "val", "test")},
    }


def _slices(folder: SweepFolder, compared: Comparison, extras: Extras) -> list[str]:
    """What needs the cohort: the best networks through its specimens."""
    best = [row.name for row in ranked(compared) if row.name in NETWORKS][:SLID]
    runs = {name: Folder(folder.run_dir(name)) for name in best}
    return picture_sections(runs, compared.table, replace(extras, evaluation=None))


def _pictures(folder: SweepFolder, compared: Comparison) -> list[Picture]:
    """A slice of each specimen through the best methods, in the order of the table."""
    assert compared.table is not None
    best = {row.name for row in ranked(compared)[:PICTURES]}
    shown = [row.name for row in compared.run if row.name in best]
    files = {name: name if read_judged(folder.folder, name) else BASELINES for name in shown}
    slices = {file: read_slices(folder.folder, file) for file in {BASELINES, *files.values()}}
    found = []
    for specimen in compared.table.specimens:
        synthetic = {name: slices[files[name]][f"{specimen}/{name}"] for name in shown}
        source, target, mask = (
            slices[BASELINES][f"{specimen}/{name}"] for name in ("source", "target", "mask")
        )
        figure = comparison_figure(synthetic, source, target, mask)
        caption = f"{specimen}, slice with most tissue. Differences: blue positive, red negative."
        found.append(Picture(figure, caption))
    return found
