"""A run's folder, on this machine or on any storage that fsspec knows.

A run writes to a local folder: rows are appended, W&B needs a disk. For a remote folder that is a
temporary copy, uploaded after each checkpoint, so that a run which loses its machine continues from
there on another.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sharding.io.storage import Folder, is_remote

CONFIG_FILE, METRICS_FILE, RUN_ID_FILE = "config.json", "metrics.jsonl", "run_id"
LAST, BEST = Path("checkpoints", "last.pt"), Path("checkpoints", "best.pt")
SAMPLES_FOLDER, WANDB_FOLDER = "samples", "wandb"
RUN_FILES = (CONFIG_FILE, METRICS_FILE, RUN_ID_FILE)
RUN_FOLDERS = (LAST.parent, SAMPLES_FOLDER, WANDB_FOLDER)
"""Everything that a run writes into its folder."""
_EPOCH_CHECKPOINT = re.compile(rf"{LAST.parent}/epoch-(\d{{5,}})\.pt")
_PICTURE = re.compile(r"([^.].*)-(\d{7,})\.png")
_WANDB = re.compile(r"(offline-)?run-\d+_\d+-.+|latest-run|debug.*\.log|settings")
Stamp = tuple[int, int]
"""Modification time and size, by which a changed file is recognised."""


def epoch_checkpoint(epoch: int) -> Path:
    """The file of the checkpoint of an epoch, from 1, in a run's folder; see train.keep_epochs."""
    return LAST.with_name(f"epoch-{epoch:05d}.pt")


def kept_epochs(names: Iterable[str]) -> list[str]:
    """Those names that epoch_checkpoint gives, in the order of their epochs."""
    found = {name: match for name in names if (match := _EPOCH_CHECKPOINT.fullmatch(name))}
    return sorted(found, key=lambda name: int(found[name][1]))


def sample_pictures(run_dir: Path) -> dict[int, dict[str, Path]]:
    """The pictures that a run keeps: step to name to file, in order.

    Other files in the folder are left out, among them what a killed process left unfinished.
    """
    found: dict[int, dict[str, Path]] = {}
    for path in sorted((run_dir / SAMPLES_FOLDER).glob("*.png")):
        if match := _PICTURE.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[match[1]] = path
    return dict(sorted(found.items()))


def picture_path(run_dir: Path, name: str, step: int) -> Path:
    """Where a run keeps a picture."""
    return run_dir / SAMPLES_FOLDER / f"{name}-{step:07d}.png"


def wandb_part(run_id: str) -> re.Pattern[str]:
    """Names of the folders in which W&B kept an offline run, a folder each time that it started.

    A start within the same second as an earlier one has a number at the end.
    """
    return re.compile(rf"offline-run-\d+_\d+-{re.escape(run_id)}(-\d+)?")


def clear_run(run_dir: Path) -> None:
    """Remove what a run writes and leave anything else in its folders alone."""
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for path in _run_folder_contents(run_dir):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for folder in RUN_FOLDERS:
        with contextlib.suppress(OSError):
            (run_dir / folder).rmdir()


def _run_folder_contents(run_dir: Path) -> list[Path]:
    """What a run, and W&B for it, wrote into the run's folders."""
    checkpoints = run_dir / LAST.parent
    kept = kept_epochs(f"{LAST.parent}/{path.name}" for path in checkpoints.glob("epoch-*.pt"))
    pictures = [path for step in sample_pictures(run_dir).values() for path in step.values()]
    wandb = (path for path in (run_dir / WANDB_FOLDER).glob("*") if _WANDB.fullmatch(path.name))
    return [run_dir / LAST, run_dir / BEST, *(run_dir / name for name in kept), *pictures, *wandb]


class RunFolder:
    """The folder that a run works in, and the one that its files are uploaded to.

    Attributes:
        url: As the user gave it.
        path: The local folder to work in.
    """

    def __init__(self, url: str | Path, path: Path, remote: Folder | None) -> None:
        self.url, self.path = str(url), path
        self._remote = remote
        self._uploaded: dict[str, Stamp] = {}

    def pull(self) -> None:
        """Download what an earlier start of the run uploaded."""
        for name in self._remote.names() if self._remote else ():
            # W&B's offline files of an earlier part of the run are complete as they are.
            if self._remote and not name.startswith("wandb/"):
                file = self.path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._remote.fetch(name, None, None), file)
                self._uploaded[name] = _stamp(file)

    def upload(self, wandb: bool = False) -> None:
        """Upload what has changed, checkpoints last: one is never ahead of the rows it goes with.

        Args:
            wandb: Include W&B's files, which change all the time.
        """
        if self._remote is None:
            return
        files = {
            path.relative_to(self.path).as_posix(): path
            for path in self.path.rglob("*")
            if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        }
        for name in set(self._uploaded) - set(files):
            self._remote.remove(name)
            del self._uploaded[name]
        last = [name.as_posix() for name in (BEST, LAST)]
        for name in sorted(files, key=lambda name: (name in last and 1 + last.index(name), name)):
            if name.startswith("wandb/") and not wandb:
                continue
            stamp = _stamp(files[name])
            if self._uploaded.get(name) != stamp:
                with self._remote.writer(name) as partial:
                    shutil.copyfile(files[name], partial)
                self._uploaded[name] = stamp

    def remove_earlier_parts(self) -> None:
        """Remove W&B's offline files that earlier starts of this run uploaded.

        Only for a run whose own part is uploaded and complete, and repeats what they hold.
        """
        if self._remote is None:
            return
        own = (self.path / RUN_ID_FILE).read_text(encoding="utf-8").strip()
        part = wandb_part(own)
        for name in self._remote.names(WANDB_FOLDER):
            if part.fullmatch(name.split("/")[1]) and name not in self._uploaded:
                self._remote.remove(name)

    def locate(self, name: Path) -> str | Path:
        """The permanent location of one of the run's files."""
        return self._remote / name.as_posix() if self._remote else self.path / name


@contextlib.contextmanager
def open_run(url: str | Path) -> Iterator[RunFolder]:
    """The folder for a run to work in, with the files that exist already.

    Raises:
        DataError: If the storage cannot be reached.
    """
    if not is_remote(url):
        yield RunFolder(url, Path(str(url).removeprefix("file://")), None)
        return
    with TemporaryDirectory(prefix="distsynth-run-") as path:
        run = RunFolder(url, Path(path), Folder(url))
        run.pull()
        yield run


def local_file(url: str | Path) -> Path:
    """A local path to a file that may be remote.

    Raises:
        DataError: If a remote one is missing or cannot be fetched.
    """
    if not is_remote(url):
        return Path(str(url).removeprefix("file://"))
    folder, _, name = str(url).rpartition("/")
    return Folder(folder).fetch(name, None, None)


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
