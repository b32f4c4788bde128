"""The comparison, the paper's questions and the seams, collected from a reproduction's folder.

comparison.txt, .csv, .tex, .json   all rows
questions.csv                       differences between pairs of rows
seams.txt, .csv, .tex, .json        gradient term, sharpening, trim and blend weights
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distsynth.config import RunConfig
from distsynth.metrics.steps import is_untrained
from distsynth.models import build_generator, parameter_count
from distsynth.presets import PAPER_PATCH
from distsynth.reporting.run_page import run_rows
from distsynth.reproduction.comparison import (
    BASELINE,
    FOREST,
    ComparedRow,
    Comparison,
    compare,
    with_seeds,
)
from distsynth.reproduction.comparison_files import comparison_csv, comparison_json, controls_csv
from distsynth.reproduction.comparison_tables import comparison_latex, comparison_text
from distsynth.reproduction.row_evaluation import (
    BASELINES,
    RowEvaluation,
    read_evaluation,
    stitching_name,
)
from distsynth.reproduction.rows import NETWORKS, QUESTIONS, SEAM_ROWS, STITCHINGS
from distsynth.reproduction.task import Task
from distsynth.runs.tracking import log_table
from distsynth.sweep.folder import SweepFolder, TrialRecord
from sharding.io.storage import Folder


def write_tables(folder: SweepFolder, task: Task) -> str:
    """Write every table, and log the comparison as a W&B run of the group.

    Returns:
        The comparison, and the seams where they were evaluated, as text.
    """
    compared = comparison_of(folder, task)
    seams = seams_of(folder, task)
    texts = [comparison_text(compared)]
    _write(folder.folder, "comparison", compared)
    folder.folder.write("questions.csv", controls_csv(compared))
    if seams:
        texts.append(comparison_text(seams))
        _write(folder.folder, "seams", seams)
    plan = folder.plan()
    log_table(
        folder.folder,
        plan.base.tracking,
        plan.trial_id("comparison"),
        f"{plan.name}-comparison",
        plan.name,
        "comparison",
        _logged_rows(compared),
    )
    return "\n".join(texts)


def comparison_of(folder: SweepFolder, task: Task) -> Comparison:
    """All rows that were asked for, and the baselines."""
    records = folder.records()
    rows = [_network_row(folder, task, name, records) for name in task.networks()]
    rows += [_forest_row(folder, task, name) for name in task.forests()]
    if found := read_evaluation(folder.folder, BASELINES):
        rows += [
            ComparedRow(name, BASELINE, None, _fitting(name, found), results=found.values(name))
            for name in found.results
        ]
    names = {row.name for row in rows}
    questions = [question for question in QUESTIONS if names.issuperset(question[:2])]
    return compare(rows, questions)


def seams_of(folder: SweepFolder, task: Task) -> Comparison | None:
    """Each of SEAM_ROWS under each way of stitching; None if none was evaluated."""
    rows = []
    for name in task.networks():
        found = read_evaluation(folder.folder, name) if name in SEAM_ROWS else None
        if found:
            trained = task.trained(name)
            rows += [
                ComparedRow(
                    f"{name}, {way}",
                    name,
                    None,
                    trained,
                    results=found.values(way),
                    steps=_steps(folder, name),
                )
                for way in map(stitching_name, STITCHINGS)
                if way in found.results
            ]
    return compare(rows) if rows else None


def ranked(compared: Comparison) -> list[ComparedRow]:
    """The rows that were run, the best PSNR in the mask first."""
    if compared.table is None:
        return []
    summary = compared.table.summary
    return sorted(compared.run, key=lambda row: summary[row.name]["psnr_mask"].mean, reverse=True)


def _logged_rows(compared: Comparison) -> list[dict[str, Any]]:
    """What W&B's table shows: means over specimens, what they cost, and what was not run."""
    metrics = compared.table.columns if compared.table else ()

    def cells(row: ComparedRow) -> dict[str, Any]:
        summary = compared.table.summary[row.name] if compared.table and row.results else {}
        means = {name: summary[name].mean if name in summary else math.nan for name in metrics}
        return {
            "method": row.name,
            "group": row.group,
            **{name: None if math.isnan(mean) else mean for name, mean in means.items()},
            "parameters": row.parameters,
            "seconds": row.seconds,
            "steps": row.steps,
            "untrained": is_untrained(row.steps),
            "budget": row.trained,
            "not run": row.reason,
        }

    return [cells(row) for row in (*ranked(compared), *compared.not_run)]


def _network_row(
    folder: SweepFolder, task: Task, name: str, records: Mapping[str, TrialRecord]
) -> ComparedRow:
    row, config = NETWORKS[name], task.config(name)
    size = parameter_count(build_generator(config.generator, PAPER_PATCH))
    start = ComparedRow(
        name, row.group, size, task.trained(name), reason="it has not been evaluated yet"
    )
    if reason := task.missing(name):
        return replace(start, reason=reason)
    names = task.run_names(name)
    evaluations = [found for run in names if (found := read_evaluation(folder.folder, run))]
    if not evaluations:
        causes = [known.cause for run in names if (known := records.get(run)) and known.cause]
        return replace(start, reason=f"it failed: {causes[0]}") if causes else start
    seconds = [_seconds(folder, found.name, config) for found in evaluations]
    averaged = with_seeds(start, [found.values(found.name) for found in evaluations])
    known = [value for value in seconds if value is not None]
    steps = [count for found in evaluations if (count := _steps(folder, found.name)) is not None]
    return replace(
        averaged,
        seconds=sum(known) / len(known) if known else None,
        steps=min(steps, default=None),
    )


def _forest_row(folder: SweepFolder, task: Task, name: str) -> ComparedRow:
    trained = task.budget.in_words_of_forest(task.forest_config(name))
    found = read_evaluation(folder.folder, name)
    if found is None:
        return ComparedRow(name, FOREST, None, trained, reason="it has not been evaluated yet")
    return ComparedRow(name, FOREST, None, trained, found.fit_seconds, results=found.values(name))


def _fitting(name: str, found: RowEvaluation) -> str:
    if name in ("identity", "cubic"):
        return "nothing to fit"
    return f"on {found.fitted_on} training specimens"


def _seconds(folder: SweepFolder, run: str, config: RunConfig) -> float | None:
    """Time that the steps of a run took, summed over its rows: each has its own throughput."""
    key, rows = "throughput/patches_per_s", run_rows(Folder(folder.run_dir(run)))
    timed = [(row["step"], row[key]) for row in rows if key in row]
    if not timed:
        return None
    before = [0, *(step for step, _ in timed[:-1])]
    work = [(step - last) / speed for last, (step, speed) in zip(before, timed, strict=True)]
    return float(config.train.batch_size * sum(work))


def _steps(folder: SweepFolder, run: str) -> int | None:
    """Optimiser steps that a run took; None if it logged none."""
    return max((row["step"] for row in run_rows(Folder(folder.run_dir(run)))), default=None)


def _write(folder: Folder, name: str, comparison: Comparison) -> None:
    folder.write(f"{name}.txt", comparison_text(comparison))
    folder.write(f"{name}.csv", comparison_csv(comparison))
    folder.write(f"{name}.tex", comparison_latex(comparison))
    folder.write(f"{name}.json", comparison_json(comparison))
