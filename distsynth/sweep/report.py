"""The page of a sweep: leaderboard, points, and the best trials as the page of a run has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from distsynth.reporting.dashboard import STAND_INS, Dashboard
from distsynth.reporting.evaluation_page import Picture, picture_html
from distsynth.reporting.run_page import (
    Extras,
    data_facts,
    judged_table,
    picture_sections,
    run_rows,
)
from distsynth.reporting.sections import (
    details_section,
    report_page,
    results_section,
    training_section,
    values_sections,
)
from distsynth.runs.folder import CONFIG_FILE
from distsynth.runs.tracking import public_config
from distsynth.sweep.figures import parallel_figure, parameter_figure
from distsynth.sweep.finalists import BEST_FOLDER
from distsynth.sweep.folder import SweepFolder, searched
from distsynth.sweep.leaderboard import LeaderboardRow, counts, rank_trials, text_rows
from distsynth.sweep.plan import SweepPlan
from sharding.io.page import facts_html, paragraph, section
from sharding.io.storage import Folder

LEFT_COLUMNS = 3
"""Columns of the leaderboard that hold words."""


def sweep_page(folder: SweepFolder, extras: Extras) -> str:
    """The page of a sweep's folder, finished or not.

    Raises:
        DataError: If a file cannot be read, or specimens do not fit the sweep.
        ConfigError: If its plan cannot be read, or no specimen is in the split.
    """
    plan = folder.plan()
    trials = searched(folder.records())
    rows = rank_trials(plan, trials)
    best = _best(folder, rows)
    table = judged_table(folder.folder, extras)
    facts = {
        "trials": counts(plan, trials),
        "search": f"{plan.sweep.search}, scheduler {plan.sweep.scheduler}",
        "objective": ", ".join(plan.sweep.objective)
        + f", seam penalty {plan.sweep.seam_penalty:g}",
        "epochs of a trial": str(plan.base.train.epochs),
    }
    return report_page(
        f"Sweep {plan.name}",
        [
            section("The sweep", facts_html(facts)),
            section("Leaderboard", leaderboard_html(plan, rows)),
            *points_sections(plan, rows),
            results_section(table),
            *picture_sections(best, table, extras),
            training_section({name: run_rows(run) for name, run in best.items()}),
            *values_sections(table),
            details_section(data_facts(list(best.values())), _config(plan)),
        ],
    )


def leaderboard_html(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> str:
    """All trials, the best first, as in the terminal."""
    head, *lines = text_rows(plan, rows)
    heads = "".join(f"<th{_kind(k)} scope='col'>{escape(cell)}</th>" for k, cell in enumerate(head))
    body = "\n".join(
        "<tr>" + "".join(f"<td{_kind(k)}>{escape(c)}</td>" for k, c in enumerate(line)) + "</tr>"
        for line in lines
    )
    note = (
        "Scores and metrics are those of each trial's best epoch, of stitched validation volumes."
    )
    return (
        paragraph(note)
        + f'\n<div class="scroll"><table class="many">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def points_sections(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> list[str]:
    """Pictures of the points; none while no trial has a score."""
    if not any(row.rank is not None for row in rows):
        return []
    pictures = [
        Picture(
            parallel_figure(plan, rows),
            "Each line is a trial: its point from axis to axis, coloured by its score; the best is "
            "thick. Scores far below the others share the darkest colour.",
        ),
        Picture(
            parameter_figure(plan, rows),
            "Each parameter against the score. Ringed: the best trial. Triangles: scores below the "
            "panel. Trials that were stopped early have a lower score for that alone.",
        ),
    ]
    return [section("Points", *map(picture_html, pictures))]


def _best(folder: SweepFolder, rows: Sequence[LeaderboardRow]) -> dict[str, Folder]:
    """Name -> run of what was exported; of the best trial if nothing was yet."""
    found = folder.folder.names(BEST_FOLDER)
    names = {name.split("/")[1] for name in found if name.endswith(f"/{CONFIG_FILE}")}
    if names:
        # Ranks before presets.
        ordered = sorted(names, key=lambda name: (not name[0].isdigit(), len(name), name))
        return {name: Folder(folder.folder / f"{BEST_FOLDER}/{name}") for name in ordered}
    ranked = [row.trial.name for row in rows if row.rank is not None]
    return {f"1-{name}": Folder(folder.run_dir(name)) for name in ranked[:1]}


def _config(plan: SweepPlan) -> Mapping[str, Any]:
    """What was asked, without what must not leave this machine."""
    sweep = {name: value for name, value in asdict(plan.sweep).items() if name != "cohort"}
    return {"space": plan.space, "sweep": sweep, "base": public_config(plan.base)}


def _kind(column: int) -> str:
    return " class='text'" if 0 < column < LEFT_COLUMNS else ""


def sweep_dashboard(
    plan: SweepPlan, project: str | None = None, entity: str | None = None
) -> Dashboard:
    """The dashboard of a sweep's runs; project and entity are the plan's unless given."""
    searched = [part for name in plan.space for part in STAND_INS.get(name, (name,))]
    tracking = plan.base.tracking
    return Dashboard(
        project or tracking.project,
        entity or tracking.entity or "",
        plan.name,
        tuple(dict.fromkeys(searched)),
        plan.sweep.objective,
    )
