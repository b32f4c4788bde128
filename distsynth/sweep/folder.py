"""What a sweep keeps, as plain files on any storage; nothing else is needed to resume it.

    SWEEP/
      sweep.json         the SweepPlan
      trials/00007.json  a TrialRecord: hyperparameters, status, every epoch's report
      trials.json.gz     on object stores: a copy of those records, in one request
      runs/00007/        the trial's run: config.json, metrics.jsonl, checkpoints/, W&B's files
      encoders/          what the perceptual loss of the trials compares by, trained once
      leaderboard.csv, leaderboard.json
      best/1-00007/      the best trials, as `distsynth predict` takes them
      evaluation/        the best trials and the baselines on the test split
      ray/               Ray Tune's own files, useless once the process that wrote them has ended

Ray's own snapshots are pickles of its internal state: they cannot take a changed space and lose
the scheduler. So a sweep is resumed from these files alone, with any version of Ray.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, TypeAdapter, ValidationError

from distsynth.sweep.plan import SweepPlan, plan_from_json
from distsynth.sweep.snapshot import SNAPSHOT_FILE, read_snapshot, write_snapshot
from sharding.io.atomic import remove_leftovers
from sharding.io.errors import DataError
from sharding.io.records import STRICT, first_complaint
from sharding.io.storage import Folder

logger = logging.getLogger(__name__)

PLAN_FILE = "sweep.json"
RAY_FOLDER = "ray"
Status = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")


def _tuples(value: Any) -> Any:
    """The value with every list as a tuple."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


_JSON_FILE = re.compile(r"trials/([^/.][^/]*)\.json")
_TRIAL = re.compile(r"(final-)?\d{5,}")
"""Names that only a sweep gives; a reproduction names its runs after rows of the table."""
Values = Annotated[dict[str, Any], AfterValidator(_tuples)]
"""Field to plain value; JSON has lists for tuples."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a trial; see distsynth.training.report.EpochReport."""

    __pydantic_config__ = STRICT

    epoch: int
    step: int
    metrics: dict[str, float | None]
    score: float | None
    best_score: float | None


@dataclass(frozen=True)
class CopyRecord:
    """Population based training: a trial took over another's networks and changed its values.

    Attributes:
        epoch: Epochs that the trial had completed.
        trial: The trial whose networks it took.
        hyperparameters: What it continues with.
    """

    __pydantic_config__ = STRICT

    epoch: int
    trial: str
    hyperparameters: Values


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        name: Its number, five digits.
        hyperparameters: Dotted field to value; the latest ones in population based training.
        status: waiting, running, finished (all epochs), stopped (by the scheduler) or failed.
        reports: One for each epoch, in order.
        failures: The message of each crash after which the trial continued from its checkpoint.
        cause: Why it failed, if it is not tried again.
        copies: The networks that population based training made it take over.
        preset: The preset of Table 1 that has these hyperparameters, if there is one.
        taken_from: Sweep and trial that it was taken over from.
    """

    __pydantic_config__ = STRICT

    name: str
    hyperparameters: Values
    status: Status = "waiting"
    reports: tuple[EpochRecord, ...] = ()
    failures: tuple[str, ...] = ()
    cause: str | None = None
    copies: tuple[CopyRecord, ...] = ()
    preset: str | None = None
    taken_from: str | None = None

    @property
    def epochs(self) -> int:
        """Completed epochs."""
        return self.reports[-1].epoch if self.reports else 0

    @property
    def best(self) -> EpochRecord | None:
        """The report of the best epoch."""
        scored = [report for report in self.reports if report.score is not None]
        return max(scored, key=lambda report: report.score or 0.0, default=None)

    def with_reports(self, reports: Iterable[EpochRecord]) -> TrialRecord:
        """With more epochs; one that is known already is replaced."""
        merged = {report.epoch: report for report in (*self.reports, *reports)}
        return replace(self, reports=tuple(merged[epoch] for epoch in sorted(merged)))

    def to_json(self) -> str:
        """Indented JSON."""
        return _RECORD.dump_json(self, indent=1).decode() + "\n"


_RECORD = TypeAdapter(TrialRecord)
_REPORT = TypeAdapter(EpochRecord)


def report_of(values: dict[str, Any]) -> EpochRecord:
    """A report from plain values; numbers that are not finite become None, as in JSON."""
    clean = {
        name: _finite(value) if name != "metrics" else {k: _finite(v) for k, v in value.items()}
        for name, value in values.items()
    }
    return _REPORT.validate_python(clean)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def searched(records: Mapping[str, TrialRecord]) -> dict[str, TrialRecord]:
    """The trials of the search, without those that retrain a finalist."""
    return {name: record for name, record in records.items() if name.isdigit()}


def _files(records: Iterable[TrialRecord]) -> dict[str, str]:
    """Content by file."""
    return {f"trials/{record.name}.json": record.to_json() for record in records}


class SweepFolder:
    """A sweep's folder: a path, or a URL such as s3://bucket/sweeps/lambdas.

    Attributes:
        folder: The storage below it.
        url: As given.
    """

    def __init__(self, url: str | Path) -> None:
        self.folder = Folder(url)
        self.url = self.folder.url

    @property
    def lasting_url(self) -> str:
        """An absolute path or URL, which is valid wherever a trial runs."""
        local = self.folder.local
        return self.url if local is None else str(local.resolve())

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.url.rstrip("/").rpartition("/")[2]

    def exists(self) -> bool:
        """Whether a sweep was started here."""
        return self.folder.exists(PLAN_FILE)

    def plan(self) -> SweepPlan:
        """The plan of the sweep.

        Raises:
            DataError: If there is no sweep here.
            ConfigError: If its plan cannot be read.
        """
        if not self.exists():
            raise DataError(
                self.url,
                f"no sweep here (no {PLAN_FILE}), or its storage is not mounted on this machine",
                "Check the name and --storage; on a cluster give storage that every node reaches",
            )
        return plan_from_json(self.folder.read(PLAN_FILE), self.folder / PLAN_FILE)

    def write_plan(self, plan: SweepPlan) -> None:
        """Write the plan."""
        self.folder.write(PLAN_FILE, plan.to_json())

    def records(self) -> dict[str, TrialRecord]:
        """Every trial by its name, in order; files of others are left alone.

        Raises:
            DataError: If a record cannot be read.
        """
        listed = self.folder.digests("trials")
        files = {file: md5 for file, md5 in listed.items() if _JSON_FILE.fullmatch(file)}
        copied = read_snapshot(self.folder, files)
        others = [file for file in files if file not in copied]
        contents = copied | dict(zip(others, self.folder.read_many(others), strict=True))
        found = [self._record(file, contents[file]) for file in files]
        records = [record for record in found if record]
        return {record.name: record for record in sorted(records, key=lambda row: row.name)}

    def _record(self, file: str, content: bytes) -> TrialRecord | None:
        """The record in a file; None if the file is not one of a sweep's."""
        match = _JSON_FILE.fullmatch(file)
        name = match[1] if match else ""
        try:
            record = _RECORD.validate_json(content)
            reason = f"it is that of {record.name}"
        except ValidationError as error:
            record, reason = None, first_complaint(error)
        if record is not None and record.name == name:
            return record
        if _TRIAL.fullmatch(name):
            raise DataError(
                self.folder / file,
                f"not a trial's record ({reason})",
                "Remove it to try the trial again",
            )
        logger.warning(f"{self.folder / file} is not a trial's record and is left alone")
        return None

    def write_record(self, record: TrialRecord) -> None:
        """Write the record of a trial."""
        self.write_records([record])

    def write_records(self, records: Iterable[TrialRecord]) -> None:
        """Write the records of some trials."""
        self.folder.write_many(_files(records))

    def write_snapshot(self, records: Iterable[TrialRecord]) -> None:
        """Copy all records into one object, where reading them one by one takes long."""
        if self.folder.local is None:
            write_snapshot(self.folder, _files(records))

    def remove_records(self) -> None:
        """Remove the records of all trials."""
        for name in self.records():
            self.folder.remove(f"trials/{name}.json")
        self.folder.remove(SNAPSHOT_FILE)

    def remove_ray_files(self) -> None:
        """Remove Ray Tune's own files, which nothing reads after the search."""
        if self.folder.local is not None:
            shutil.rmtree(self.folder.local / RAY_FOLDER, ignore_errors=True)
            return
        for name in self.folder.names(RAY_FOLDER):
            self.folder.remove(name)

    def remove_leftovers(self) -> None:
        """Remove what drivers that were killed left; runs remove their own."""
        self.remove_ray_files()
        local = self.folder.local
        if local is None or not local.is_dir():
            return
        remove_leftovers(local)
        for part in local.iterdir():
            if part.is_dir() and part.name != "runs":
                remove_leftovers(part, recursive=True)

    @property
    def encoders(self) -> Folder:
        """Where the trials keep the encoder of their perceptual loss."""
        return Folder(self.folder / "encoders")

    def run_dir(self, trial: str) -> str:
        """The folder of a trial's run."""
        return self.folder / f"runs/{trial}"
