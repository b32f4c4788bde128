"""Trials in order of their score, as text, CSV and JSON.

It does not depend on clocks, machines or interruptions: two sweeps with the same results have the
same leaderboard, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsynth.metrics.objective import OBJECTIVES, VALIDATION_METRICS
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepPlan
from sharding.io.tables import Cell, Column, Table, rows_csv

CSV_FILE, JSON_FILE = "leaderboard.csv", "leaderboard.json"
DIGITS = {"psnr": 2, "ssim_2d": 4, "ssim_global": 4, "mse": 4, "seam_index": 3}


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial of the leaderboard.

    Attributes:
        rank: From 1; None while a trial has no score.
        trial: Its record.
        best: Its best epoch.
        pareto: With several objectives, whether no other trial is better in all.
    """

    rank: int | None
    trial: TrialRecord
    best: EpochRecord | None
    pareto: bool | None = None


def rank_trials(plan: SweepPlan, records: Mapping[str, TrialRecord]) -> list[LeaderboardRow]:
    """Rows by score, then by number; those without a score last. A failed trial has no rank."""
    scored, others = [], []
    for record in records.values():
        failed = record.status == "failed"
        (others if failed or record.best is None else scored).append(record)
    others.sort(key=lambda record: record.name)
    scored.sort(key=lambda record: (-_score(record), record.name))
    front = pareto_front(plan, scored) if len(plan.sweep.objective) > 1 else None
    rows = [
        LeaderboardRow(rank, record, record.best, None if front is None else record.name in front)
        for rank, record in enumerate(scored, start=1)
    ]
    return rows + [LeaderboardRow(None, record, record.best) for record in others]


def pareto_front(plan: SweepPlan, records: Sequence[TrialRecord]) -> set[str]:
    """Names of the trials that no other is at least as good as in all objectives, better in one."""
    values = {record.name: objectives(plan, record) for record in records}

    def dominated(own: tuple[float, ...]) -> bool:
        return any(
            other != own and all(b >= a for a, b in zip(own, other, strict=True))
            for other in values.values()
        )

    return {name for name, own in values.items() if not dominated(own)}


def objectives(plan: SweepPlan, record: TrialRecord) -> tuple[float, ...]:
    """A trial's scores, higher being better: of its best epoch, the first with the seam penalty.

    Raises:
        ValueError: If the trial has no score yet.
    """
    best = record.best
    if best is None:
        raise ValueError(f"trial {record.name} has no score")
    others = []
    for name in plan.sweep.objective[1:]:
        value = best.metrics.get(f"val/{name}")
        sign = 1.0 if OBJECTIVES[name] else -1.0
        others.append(float("-inf") if value is None else sign * value)
    return (_score(record), *others)


def write_leaderboard(
    folder: SweepFolder,
    plan: SweepPlan,
    records: Mapping[str, TrialRecord],
    importance: Mapping[str, float] | None = None,
) -> None:
    """Write leaderboard.csv and leaderboard.json."""
    rows = rank_trials(plan, records)
    folder.folder.write(CSV_FILE, leaderboard_csv(plan, rows))
    folder.folder.write(JSON_FILE, leaderboard_json(plan, rows, importance))


def leaderboard_rows(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> list[dict[str, Any]]:
    """One flat row for each trial: rank, trial, status, score, metrics, hyperparameters, cause."""
    several = len(plan.sweep.objective) > 1
    found = []
    for row in rows:
        record, best = row.trial, row.best
        metrics = best.metrics if best else {}
        found.append(
            {
                "rank": row.rank,
                "trial": record.name,
                "status": record.status,
                "epochs": record.epochs,
                "score": best.score if best else None,
                "best_epoch": best.epoch if best else None,
                **({"pareto": row.pareto} if several else {}),
                **{name: metrics.get(f"val/{name}") for name in VALIDATION_METRICS},
                **{name: _cell(record.hyperparameters.get(name)) for name in plan.space},
                "preset": record.preset,
                "cause": record.cause,
            }
        )
    return found


def leaderboard_csv(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> str:
    """The rows as CSV at full precision; missing values are empty fields."""
    return rows_csv(leaderboard_rows(plan, rows)) if rows else ""


def leaderboard_json(
    plan: SweepPlan, rows: Sequence[LeaderboardRow], importance: Mapping[str, float] | None
) -> str:
    """The rows, what was searched for, and how much each hyperparameter matters."""
    content = {
        "sweep": plan.name,
        "objective": list(plan.sweep.objective),
        "seam_penalty": plan.sweep.seam_penalty,
        "trials": leaderboard_rows(plan, rows),
        "importance": importance,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def leaderboard_table(
    plan: SweepPlan,
    rows: Sequence[LeaderboardRow],
    most: int | None = None,
    starting: Collection[str] = (),
) -> Table:
    """The trials for a reader, the best first: rounded, the fields by their last names.

    Args:
        plan: The sweep.
        rows: Its trials, ranked.
        most: Rows that are shown; None shows all.
        starting: As for `counts`.
    """
    front = any(row.pareto is not None for row in rows)
    columns = [
        Column("rank"),
        *(Column(name, words=True) for name in ("trial", "status")),
        Column("epoch"),
        Column("score"),
        *([Column("front")] if front else []),
        *map(Column, VALIDATION_METRICS),
        *(Column(_last_name(plan, name), name, legend=False) for name in plan.space),
    ]
    lines = [
        [
            "-" if flat["rank"] is None else str(flat["rank"]),
            flat["trial"] + (f" {flat['preset']}" if flat["preset"] else ""),
            "starting" if flat["trial"] in starting else flat["status"],
            f"{flat['epochs']}/{plan.base.train.epochs}",
            _number(flat["score"], 4),
            *(["*" if flat.get("pareto") else ""] if front else []),
            *(_number(flat[name], DIGITS[name]) for name in VALIDATION_METRICS),
            *(_short(flat[name]) for name in plan.space),
        ]
        for flat in leaderboard_rows(plan, rows)[:most]
    ]
    note = (
        "Scores and metrics are those of each trial's best epoch, of stitched validation volumes."
    )
    return Table(columns, [("", [[*map(Cell, line)] for line in lines])], notes=(note,), heads=2)


def counts(
    plan: SweepPlan, records: Mapping[str, TrialRecord], starting: Collection[str] = ()
) -> str:
    """How many trials are in each state, in words.

    Args:
        plan: The sweep.
        records: Its trials.
        starting: Names of those that wait for nothing but their own processes.
    """
    found: dict[str, int] = {}
    for record in records.values():
        status = "starting" if record.name in starting else record.status
        found[status] = found.get(status, 0) + 1
    order = ("finished", "stopped", "running", "starting", "waiting", "failed")
    text = ", ".join(f"{found[name]} {name}" for name in order if name in found) or "no trials yet"
    # Optuna's trials become known one by one.
    missing = plan.sweep.trials - len(records) if plan.sweep.search == "optuna" else 0
    return f"{text}, {missing} to be suggested" if missing > 0 else text


def _score(record: TrialRecord) -> float:
    best = record.best
    assert best is not None and best.score is not None
    return best.score


def _last_name(plan: SweepPlan, field: str) -> str:
    """The last part of a dotted field, or the whole where two fields end alike."""
    last = field.rpartition(".")[2]
    return last if sum(name.rpartition(".")[2] == last for name in plan.space) == 1 else field


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)
