"""The record of a run: rows of numbers, and pictures, in a local file and in W&B.

`metrics.jsonl` is complete by itself. W&B gets the same rows, under explicit steps; it stays
offline, in the run's folder, unless the user asks for online. Nothing that names a path, host, user
or program is left in W&B's files, and W&B reports nothing about itself to its makers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distsynth.config import RunConfig, TrackingConfig, to_dict
from distsynth.runs.folder import (
    METRICS_FILE,
    RUN_ID_FILE,
    SAMPLES_FOLDER,
    WANDB_FOLDER,
    picture_path,
    sample_pictures,
    wandb_part,
)
from distsynth.runs.rows import read_rows, row_line
from distsynth.runs.wandb_file import becomes_complete
from sharding.io.atomic import atomic_path, atomic_write
from sharding.io.errors import file_errors
from sharding.io.storage import Folder
from sharding.volumes.profile import TrainingProfile

logger = logging.getLogger(__name__)
TELEMETRY = "WANDB_ERROR_REPORTING"
"""Environment variable: whether W&B reports to its makers what it does and how it fails."""
SERVICE = "WANDB_SERVICE"
"""Environment variable: where W&B's service listens, which this process or a parent started."""
PATH_FIELDS = (("data", "shards"), ("train", "start_from"), ("loss", "vgg_weights"))
"""Fields of the configuration that hold a path; W&B does not get them."""


class Tracker(Protocol):
    """A destination of rows and pictures."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        ...

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Record an RGB picture, shape (height, width, 3)."""
        ...

    def finish(self, failed: bool = False) -> bool:
        """Close the record.

        Returns:
            Whether it is complete.
        """
        ...


class LocalTracker:
    """metrics.jsonl and pictures in the run's folder.

    Args:
        run_dir: The run's folder.
        step: Step at which a resumed run continues: rows of later steps, written by the interrupted
            process after its last checkpoint, are dropped and will be written again.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self._run_dir = run_dir
        self._path = path = run_dir / METRICS_FILE
        kept = [row for row in read_rows(path) if row["step"] <= step] if step else []
        with file_errors(path):
            atomic_write(path, "".join(map(row_line, kept)))
            self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Append a line, at once; JSON has no NaN, so a number that is not finite is null."""
        with file_errors(self._path):
            self._file.write(row_line({"step": step, **row}))
            self._file.flush()

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Write samples/NAME-STEP.png."""
        path = picture_path(self._run_dir, name, step)
        with file_errors(path), atomic_path(path, ".png") as partial:
            Image.fromarray(image).save(partial)

    def finish(self, failed: bool = False) -> bool:  # noqa: ARG002
        """Close the file."""
        # Every row was flushed when it was logged; one that a full disk cut short raised then.
        with contextlib.suppress(OSError):
            self._file.close()
        return True


class WandbTracker:
    """A W&B run that keeps its id over interruptions."""

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        data_sha256: str,
        resumed: bool,
        sources: TrainingProfile | None = None,
    ) -> None:
        tracking = config.tracking
        self._run_dir = run_dir
        self._wandb = _silent_wandb(tracking)
        self._run = self._wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            name=tracking.name or run_dir.resolve().name,
            id=run_id(run_dir),
            resume="allow" if resumed else None,
            # Its service may have been started in another folder, by this process or one above it.
            dir=run_dir.resolve(),
            mode="online" if tracking.mode == "online" else "offline",
            config={
                **public_config(config),
                "data_sha256": data_sha256,
                "training_sources": sources and asdict(sources),
            },
            settings=_private_settings(),
        )
        _remove_logs(run_dir)
        self._offline = _offline_file(self._run)
        # This part of an offline run will repeat what those before it hold; see _tell_again.
        repeats = resumed and tracking.mode == "offline"
        self._repeated = self._earlier_parts() if repeats else []

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Log under an explicit step: a resumed run does not begin at 0 again."""
        self._run.log(dict(row), step=step)

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image under the same step."""
        self._run.log({name: self._wandb.Image(Image.fromarray(image))}, step=step)

    def finish(self, failed: bool = False) -> bool:
        """Flush and close; a resumed offline run then keeps one part, which holds every row.

        W&B says nothing of a disk that was full. The run has its rows and pictures without W&B, so
        this is a warning.
        """
        self._run.finish(exit_code=int(failed))
        complete = self._offline is None or becomes_complete(self._offline)
        if not complete:
            logger.warning(
                f"{self._offline}: W&B could not record the whole run: is its disk full? "
                f"{METRICS_FILE} and {SAMPLES_FOLDER}/ are complete. Free some space and resume "
                "the run, and W&B's record is written again."
            )
        # Not earlier: until this part is complete, the earlier ones are the record. If the run
        # failed, this part does not reach the run's end.
        for part in self._repeated if complete and not failed else []:
            shutil.rmtree(part, ignore_errors=True)
        _remove_logs(self._run_dir)
        return complete

    def _earlier_parts(self) -> list[Path]:
        """Folders of this run that W&B wrote offline before it was resumed."""
        own = Path(self._run.dir).resolve().parent
        folders = (self._run_dir / WANDB_FOLDER).glob("offline-run-*")
        parts = [path for path in folders if wandb_part(self._run.id).fullmatch(path.name)]
        return [part for part in parts if part.resolve() != own]


def _offline_file(run: Any) -> Path | None:
    """The file in which W&B records a run; None for one that it sends to its server."""
    return Path(run.settings.sync_file).resolve() if run.offline else None


def _silent_wandb(tracking: TrackingConfig) -> Any:
    """The library of W&B, which sends no telemetry about itself.

    By default it does, in every mode. It reads the variable when it is imported and when it starts
    its service, so each process that tracks a run must call this first. The service of another
    process, which W&B would take over from the environment, may not be silent.
    """
    if "wandb" not in sys.modules:
        os.environ.pop(SERVICE, None)
    if tracking.mode == "online":
        os.environ.setdefault(TELEMETRY, "false")
    else:
        os.environ[TELEMETRY] = "false"
    import wandb

    return wandb


def _remove_logs(folder: Path) -> None:
    """Remove the logs that W&B keeps beside its runs, because they name paths of this machine.

    W&B has no setting to write none. Where a file that is open can be removed, nothing of them
    reaches the disk after this, even if the process is killed; elsewhere they go at the end.
    """
    wandb = folder / "wandb"
    for path in (*wandb.glob("debug*.log"), *wandb.glob("*run-*/logs/debug*.log")):
        with contextlib.suppress(OSError):
            path.unlink()
    for path in wandb.glob("*run-*/logs"):
        with contextlib.suppress(OSError):
            path.rmdir()
    # A full disk would else be reported here, by a traceback for each line of such a log.
    library = logging.getLogger("wandb")
    for handler in list(library.handlers):
        if isinstance(handler, logging.FileHandler) and not Path(handler.baseFilename).exists():
            library.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def _private_settings() -> Any:
    """Settings of a W&B run that reveal nothing about this machine, its user or the program."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        program="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # The default of 15 s loses what a killed process logged last.
        x_transaction_log_flush_interval=0.5,
    )


def log_table(
    folder: Folder,
    tracking: TrackingConfig,
    run_id: str,
    name: str,
    group: str,
    kind: str,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """A table as a W&B run of its own, its first row as the summary.

    An offline run lies below the folder's `wandb/`, in the place of an earlier one of this id.

    Args:
        folder: What the table sums up: a path or a URL.
        tracking: Project and mode; nothing happens if disabled.
        run_id: Id of the W&B run.
        name: Name of the W&B run.
        group: Group of the W&B run.
        kind: What the table is, such as leaderboard: its key and the run's job type.
        rows: Column to value; all have the same columns.
    """
    if tracking.mode == "disabled" or not rows:
        return
    wandb = _silent_wandb(tracking)
    with tempfile.TemporaryDirectory(prefix="distsynth-") as scratch:
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=group,
            name=name,
            id=run_id,
            job_type=kind,
            dir=scratch,
            mode="online" if tracking.mode == "online" else "offline",
            settings=_private_settings(),
        )
        cells: list[Any] = [list(row.values()) for row in rows]
        names: list[Any] = list(rows[0])
        shown = wandb.Table(columns=names, data=cells)
        # A table that is already bound is media of the run alone. W&B would else make an artifact
        # of it too, whose content lies outside the run's folder, and name that path.
        shown.bind_to_run(run, kind, 0)
        run.log({kind: shown}, step=0)
        run.summary.update({f"best/{column}": value for column, value in rows[0].items()})
        file = _offline_file(run)
        run.finish()
        if file and not becomes_complete(file):
            logger.warning(
                f"{file}: W&B could not record the {kind}: is its disk full? Free some space, or "
                "set TMPDIR to a folder on another disk."
            )
            return
        _remove_logs(Path(scratch))
        _bring_in(folder, Path(scratch), run_id)


def _bring_in(folder: Folder, made: Path, run_id: str) -> None:
    """Copy an offline run into a folder, then remove earlier ones: one is always complete."""
    found = (path for path in (made / "wandb").rglob("*") if not path.is_symlink())
    files = {path.relative_to(made).as_posix(): path for path in found if path.is_file()}
    known = [name for name in folder.names("wandb") if f"-{run_id}/" in name]
    for name, path in sorted(files.items()):
        folder.write(name, path.read_bytes())
    for name in known:
        if name not in files:
            folder.remove(name)
            if folder.local is not None:
                _remove_empty(folder.local / name, folder.local)


def _remove_empty(path: Path, top: Path) -> None:
    """Remove the folders from a path up to `top` that are empty now."""
    with contextlib.suppress(OSError):
        for parent in path.relative_to(top).parents:
            (top / parent).rmdir()


class Trackers:
    """Several trackers as one; none at all on ranks other than the first."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Pass it on to all trackers."""
        for tracker in self._trackers:
            tracker.log(step, row)

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Pass it on to all trackers."""
        for tracker in self._trackers:
            tracker.picture(step, name, image)

    def finish(self, failed: bool = False) -> bool:
        """Close all trackers; whether all records are complete."""
        complete = [tracker.finish(failed) for tracker in self._trackers]
        return all(complete)


def start_trackers(
    run_dir: Path,
    config: RunConfig,
    data_sha256: str,
    step: int,
    resumed: bool,
    sources: TrainingProfile | None = None,
) -> Trackers:
    """The local record, and W&B unless disabled; `sources` says what was trained on."""
    local = LocalTracker(run_dir, step)
    if config.tracking.mode == "disabled":
        return Trackers(local)
    wandb = WandbTracker(run_dir, config, data_sha256, resumed, sources)
    if resumed and config.tracking.mode == "offline":
        _tell_again(wandb, run_dir, step)
    return Trackers(local, wandb)


def _tell_again(tracker: Tracker, run_dir: Path, step: int) -> None:
    """Give a resumed offline run what was logged before.

    Each part of an offline run is a file of its own, and a process that is killed takes its last
    half second with it. With the earlier rows, the last file is complete and replaces the others.
    """
    pictures = sample_pictures(run_dir)
    rows = [row for row in read_rows(run_dir / METRICS_FILE) if row["step"] <= step]
    steps = sorted({row["step"] for row in rows} | {at for at in pictures if at <= step})
    for at in steps:
        for row in rows:
            if row["step"] == at:
                tracker.log(at, {name: value for name, value in row.items() if name != "step"})
        for name, path in pictures.get(at, {}).items():
            with Image.open(path) as picture:
                image = np.asarray(picture.convert("RGB"))
            tracker.picture(at, name, image)


def run_id(run_dir: Path) -> str:
    """The run's id, made once and kept in its folder."""
    path = run_dir / RUN_ID_FILE
    if not path.is_file():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def public_config(config: RunConfig) -> dict[str, Any]:
    """The configuration without the fields that hold paths of this machine."""
    values = to_dict(config)
    for section, name in PATH_FIELDS:
        del values[section][name]
    return values
