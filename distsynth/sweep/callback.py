"""The Tune callback of the driver: it writes what happens to a trial into its record at once.

A terminal shows a live table; elsewhere each trial that ends gets a line, and in between a line a
minute says where the running ones are. A trial that has room on
the cluster is starting until its process has loaded the libraries, and waiting only if it lacks
resources. If no trial can start for a minute, a message says what it lacks.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from distsynth.sweep.checks import slots
from distsynth.sweep.folder import ENDED, CopyRecord, SweepFolder, TrialRecord, report_of, searched
from distsynth.sweep.hyperparameters import plain
from distsynth.sweep.leaderboard import counts, leaderboard_table, rank_trials, write_leaderboard
from distsynth.sweep.plan import SweepPlan

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BOARDS = 5.0
BOARD_SHARE = 0.05
"""Most of the driver's time that leaderboards and copies of records take, each written whole."""
SECONDS_BETWEEN_TABLES = 1.0
SECONDS_OF_WAITING = 60.0
SECONDS_BETWEEN_LINES = 60.0
"""Of silence, where there is no terminal."""
ROWS = 15
"""How many trials the live table shows."""


class SweepCallback(Callback):
    """Keeps the records of a sweep up to date.

    Attributes:
        records: Every trial by name.
    """

    def __init__(
        self, folder: SweepFolder, plan: SweepPlan, records: dict[str, TrialRecord]
    ) -> None:
        self.folder, self.plan, self.records = folder, plan, records
        self._shown = self._looked = 0.0
        self._spoken = time.monotonic()
        self._next_board = 0.0
        self._stale = False
        self._waiting_since: float | None = None
        self._starting: tuple[str, ...] = ()
        self._live: Live | None = None

    def start(self) -> None:
        """Show the table, where there is a terminal."""
        waiting = [name for name, row in self.records.items() if row.status not in ENDED]
        self._starting = tuple(waiting[: slots(self.plan.sweep)])
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        elif self._starting:
            self._say("the first trials are starting: their processes load the libraries")

    def stop(self) -> None:
        """Show the last table and bring the leaderboard up to date."""
        self.update_leaderboard()
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
            self._live = None

    def change(self, name: str, **values: Any) -> TrialRecord:
        """Change a record and write it."""
        record = replace(self.records[name], **values)
        if record != self.records.get(name):
            self.records[name] = record
            self.folder.write_record(record)
        return record

    def add(self, record: TrialRecord) -> None:
        """Write the record of a new trial."""
        self.records[record.name] = record
        self.folder.write_record(record)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial runs, for the first time or again; its hyperparameters may have changed."""
        del iteration, trials, info
        name, hyperparameters = str(trial), _hyperparameters(trial)
        record = self.records[name]
        self._waiting_since = None
        self._starting = tuple(other for other in self._starting if other != name)
        if record.status != "running" or record.hyperparameters != hyperparameters:
            self.change(name, status="running", hyperparameters=hyperparameters)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """An epoch is complete, or the trial cannot continue."""
        del iteration, trials, info
        name = str(trial)
        record = self.records[name].with_reports(report_of(r) for r in result["reports"])
        copies = tuple(CopyRecord(**copied) for copied in result.get("copied", ()))
        reason = result.get("diverged")
        diverged = (reason,) if reason and reason not in record.failures else ()
        self.change(
            name,
            hyperparameters=_hyperparameters(trial),
            reports=record.reports,
            copies=record.copies + copies,
            failures=record.failures + diverged,
            cause=result.get("failed"),
        )
        self._changed()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial ended: at its last epoch, by the scheduler, or for a reason that would recur."""
        del iteration, trials, info
        name = str(trial)
        record = self.records[name]
        ended = record.epochs >= self.epochs_of(name)
        status = "failed" if record.cause else "finished" if ended else "stopped"
        self._ended(self.change(name, status=status))

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial crashed or lost its node, and will be continued."""
        del iteration, trials, info
        name = str(trial)
        failures = (*self.records[name].failures, _cause(trial))
        self.change(name, failures=failures, status="waiting")
        self._say(f"trial {name} continues after: {failures[-1]}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial crashed more often than it is retried."""
        del iteration, trials, info
        name = str(trial)
        cause = _cause(trial)
        failures = (*self.records[name].failures, cause)
        self._ended(self.change(name, status="failed", cause=cause, failures=failures))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Show the progress, and what trials wait for."""
        del iteration, info
        now = time.monotonic()
        if self._stale and now >= self._next_board:
            self.update_leaderboard()
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        pending = [str(trial) for trial in trials if trial.status == Trial.PENDING]
        if running or not pending:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > SECONDS_OF_WAITING:
            self._waiting_since = now
            self._say(_missing(self.plan))
        if running and not self._live and now - self._spoken > SECONDS_BETWEEN_LINES:
            self._say(self._where([str(trial) for trial in running]))
        if now - self._looked > SECONDS_BETWEEN_TABLES:
            self._looked = now
            room = slots(self.plan.sweep) - len(running)
            self._starting = tuple(pending[: max(room, 0)])
        if self._live and now - self._shown > SECONDS_BETWEEN_TABLES:
            self._shown = now
            self._live.update(self._table(), refresh=True)

    def epochs_of(self, name: str) -> int:
        """The number of epochs that a trial trains."""
        again = not name.isdigit() and self.plan.sweep.final_epochs
        own = self.records[name].hyperparameters.get("train.epochs")
        return again or own or self.plan.base.train.epochs

    def update_leaderboard(self) -> None:
        """Bring the leaderboard, and the copy of the records, up to date."""
        started = time.monotonic()
        if trials := searched(self.records):
            write_leaderboard(self.folder, self.plan, trials)
        self.folder.write_snapshot(self.records.values())
        ended = time.monotonic()
        self._stale = False
        self._next_board = ended + max(SECONDS_BETWEEN_BOARDS, (ended - started) / BOARD_SHARE)

    def _changed(self) -> None:
        """Bring the leaderboard up to date, now or when it is due again."""
        self._stale = True
        if time.monotonic() >= self._next_board:
            self.update_leaderboard()

    def _ended(self, record: TrialRecord) -> None:
        self._changed()
        best = record.best
        score = f", best score {best.score:.4f} in epoch {best.epoch}" if best else ""
        cause = f": {record.cause}" if record.cause else ""
        self._say(f"trial {record.name} {record.status} after {record.epochs} epochs{score}{cause}")

    def _say(self, message: str) -> None:
        # The live table shows the counts itself, and what is written meanwhile stands above it.
        self._spoken = time.monotonic()
        suffix = "" if self._live else f"  [{counts(self.plan, self.records, self._starting)}]"
        logger.info("%s%s", message, suffix)

    def _where(self, running: Sequence[str]) -> str:
        """The epochs that running trials have completed, in words."""
        each = [
            f"{name} ({self.records[name].epochs} of {self.epochs_of(name)} epochs)"
            for name in running[:ROWS]
        ]
        more = f" and {len(running) - ROWS} more" if len(running) > ROWS else ""
        return f"running: {', '.join(each)}{more}"

    def _table(self) -> Table:
        rows = rank_trials(self.plan, self.records)
        shown = leaderboard_table(self.plan, rows, ROWS, self._starting)
        title = f"{self.plan.name}: {counts(self.plan, self.records, self._starting)}"
        found = Table(title=title, box=None, title_justify="left", header_style="bold")
        for column in shown.columns:
            justify = "left" if column.words else "right"
            found.add_column(column.name, justify=justify, no_wrap=True)
        for _, lines in shown.groups:
            for line in lines:
                found.add_row(*(cell.text for cell in line))
        return found


def _hyperparameters(trial: Trial) -> dict[str, Any]:
    return {name: plain(value) for name, value in trial.config["trial"]["hyperparameters"].items()}


def _cause(trial: Trial) -> str:
    """The last line of a trial's error, which names the cause, or what Ray says of a lost node."""
    error = trial.get_error()
    text = str(getattr(error, "cause", None) or error or "its process died")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    died = next((line for line in lines if "died" in line or "crashed" in line), None)
    return died or lines[-1]


def _missing(plan: SweepPlan) -> str:
    """What a trial needs and what the cluster has."""
    sweep = plan.sweep
    needs = {"CPU": float(sweep.cpus)} | ({"GPU": sweep.gpus} if sweep.gpus else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in needs}
    free = ray.available_resources()
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    have = ", ".join(f"{total[n]:g} {n} ({free.get(n, 0.0):g} free)" for n in needs)
    each = f"{sweep.workers} workers of {wanted} each" if sweep.workers > 1 else wanted
    lacks = [n for n in needs if total[n] < needs[n] * sweep.workers]
    lacks += [
        n for n in needs if n not in lacks and all(node.get(n, 0) < needs[n] for node in nodes)
    ]
    advice = (
        f"it lacks {' and '.join(lacks)}: add nodes, or start again with fewer --cpus, --gpus or "
        "--workers"
        if lacks
        else "they are in use, by others or by processes of this sweep that are still loading: it "
        "continues by itself"
    )
    return (
        f"no trial has started for {SECONDS_OF_WAITING:g} s: a trial needs {each}, and the cluster "
        f"of {len(nodes)} nodes has {have}; {advice}"
    )
