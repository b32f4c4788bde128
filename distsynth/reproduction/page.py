"""The page of a reproduction: its tables, pictures, seams, curves, and what was asked."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from distsynth.reporting.evaluation_page import figure_picture
from distsynth.reporting.figures import comparison_figure
from distsynth.reporting.run_page import (
    Extras,
    curves_pictures,
    record_facts,
    run_pictures,
    run_rows,
)
from distsynth.reproduction.budget import Budget
from distsynth.reproduction.collect import comparison_of, ranked, seams_of
from distsynth.reproduction.comparison import Comparison
from distsynth.reproduction.comparison_tables import comparison_tables
from distsynth.reproduction.row_evaluation import (
    BASELINES,
    EVALUATE_AGAIN,
    EVALUATIONS,
    read_evaluation,
    read_slices,
)
from distsynth.reproduction.rows import NETWORKS
from distsynth.reproduction.task import Task, read_task
from distsynth.runs.data_record import DataRecord
from distsynth.runs.versions import installed_versions
from distsynth.sweep.folder import SweepFolder
from sharding.io.errors import DataError
from sharding.io.page import Picture, render
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet

PAGE_FILE = "comparison.html"
PICTURES = 8
"""Methods of a still picture at most: those with the best PSNR in the mask."""
SLID = 3
"""Networks whose slices can be slid through at most: also those with the best PSNR."""


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
    runs = {name: Folder(folder.run_dir(name)) for name in task.networks()}
    curves = {name: rows for name, run in runs.items() if (rows := run_rows(run))}
    best = [row.name for row in ranked(compared) if row.name in NETWORKS][:SLID]
    extras = replace(extras or Extras(), evaluation=None)
    viewer, checks, note = run_pictures({n: runs[n] for n in best}, compared.table, extras)
    return render(
        "distsynth.reproduction/reproduction.html",
        title="Reproduction of the paper's comparison",
        comparison=comparison_tables(compared),
        seams=comparison_tables(seams) if seams else [],
        pictures=_pictures(folder, compared) if compared.table else [],
        viewer=viewer,
        note=note,
        checks=checks,
        curves=curves_pictures(curves),
        results=compared.table,
        asked=_facts(task),
        data=record_facts(DataRecord.of(ShardSet(task.shards).manifest)),
        config={"rows": task.rows, "seeds": task.seeds, "budget": asdict(task.budget)},
        versions=installed_versions(),
    )


def _facts(task: Task) -> dict[str, Any]:
    """The task without paths."""
    manifest = ShardSet(task.shards).manifest
    budget = task.budget
    return {
        "rows": ", ".join(task.rows),
        "seeds": task.seeds,
        "epochs": _epochs(budget),
        "precision": task.precision,
        "training patches a specimen": budget.patches,
        "stride of stitched prediction": budget.stride,
        **{split: f"{len(manifest.names(split))} specimens" for split in ("train", "val", "test")},
    }


def _epochs(budget: Budget) -> str:
    """The share of each row's epochs in words, with its exceptions."""
    words = f"{budget.epochs:.4g} of each row's, at least {budget.least_epochs}"
    return f"{words}; {budget.slow_epochs} of the slow rows" if budget.slow_epochs else words


def _pictures(folder: SweepFolder, compared: Comparison) -> list[Picture]:
    """A slice of each specimen through the best methods, in the order of the table."""
    assert compared.table is not None
    best = {row.name for row in ranked(compared)[:PICTURES]}
    shown = [row.name for row in compared.run if row.name in best]
    files = {name: name if read_evaluation(folder.folder, name) else BASELINES for name in shown}
    slices = {file: read_slices(folder.folder, file) for file in {BASELINES, *files.values()}}
    found = []
    for specimen in compared.table.specimens:
        keys = [(BASELINES, f"{specimen}/{name}") for name in ("source", "target", "mask")]
        keys += [(files[name], f"{specimen}/{name}") for name in shown]
        for file, key in keys:
            if key not in slices[file]:
                where = folder.folder / f"{EVALUATIONS}/{file}.npz"
                raise DataError(where, f"the slice {key} is missing", EVALUATE_AGAIN)
        source, target, mask, *made = (slices[file][key] for file, key in keys)
        synthetic = dict(zip(shown, made, strict=True))
        figure = comparison_figure(synthetic, source, target, mask)
        caption = f"{specimen}, slice with most tissue. Differences: blue positive, red negative."
        found.append(figure_picture(figure, caption))
    return found
