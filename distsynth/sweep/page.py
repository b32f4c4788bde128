"""The page of a sweep: its leaderboard, its hyperparameters, and a run's sections of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distsynth.reporting.dashboard import STAND_INS, Dashboard
from distsynth.reporting.evaluation_page import figure_picture
from distsynth.reporting.run_page import (
    Extras,
    curves_pictures,
    evaluated_table,
    report_values,
    run_rows,
)
from distsynth.runs.folder import CONFIG_FILE
from distsynth.runs.tracking import public_config
from distsynth.sweep.figures import hyperparameter_figure, parallel_figure
from distsynth.sweep.finalists import BEST_FOLDER
from distsynth.sweep.folder import SweepFolder, searched
from distsynth.sweep.leaderboard import LeaderboardRow, counts, leaderboard_table, rank_trials
from distsynth.sweep.plan import SweepPlan
from sharding.io.page import Picture, render
from sharding.io.storage import Folder


def sweep_page(folder: SweepFolder, extras: Extras) -> str:
    """The page of a sweep's folder, finished or not.

    Raises:
        DataError: If a file cannot be read, or specimens do not fit the sweep.
        ConfigError: If its plan cannot be read, or no specimen is in the split.
    """
    plan = folder.plan()
    trials = searched(folder.records())
    ranked = rank_trials(plan, trials)
    best = _best(folder, ranked)
    table = evaluated_table(folder.folder, extras)
    facts = {
        "trials": counts(plan, trials),
        "search": f"{plan.sweep.search}, scheduler {plan.sweep.scheduler}",
        "objective": ", ".join(plan.sweep.objective)
        + f", seam penalty {plan.sweep.seam_penalty:g}",
        "epochs of a trial": str(plan.base.train.epochs),
    }
    return render(
        "distsynth.sweep/sweep.html",
        title=f"Sweep {plan.name}",
        sweep=facts,
        leaderboard=leaderboard_table(plan, ranked),
        hyperparameters=_pictures(plan, ranked),
        curves=curves_pictures({name: run_rows(run) for name, run in best.items()}),
        config=_config(plan),
        **report_values(best, table, extras),
    )


def sweep_dashboard(
    plan: SweepPlan, project: str | None = None, entity: str | None = None
) -> Dashboard:
    """The dashboard of a sweep's runs; project and entity are the plan's unless given."""
    fields = [part for name in plan.space for part in STAND_INS.get(name, (name,))]
    tracking = plan.base.tracking
    return Dashboard(
        project or tracking.project,
        entity or tracking.entity or "",
        plan.name,
        tuple(dict.fromkeys(fields)),
        plan.sweep.objective,
    )


def _pictures(plan: SweepPlan, ranked: Sequence[LeaderboardRow]) -> list[Picture]:
    """Pictures of the hyperparameters; none while no trial has a score."""
    if not any(row.rank is not None for row in ranked):
        return []
    return [
        figure_picture(
            parallel_figure(plan, ranked),
            "Each line is a trial: its values from axis to axis, coloured by its score; the best "
            "is thick. Scores far below the others share the darkest colour.",
        ),
        figure_picture(
            hyperparameter_figure(plan, ranked),
            "Each hyperparameter against the score. Ringed: the best trial. Triangles: scores "
            "below the panel. Trials that were stopped early have a lower score for that alone.",
        ),
    ]


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
