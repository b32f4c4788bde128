"""Files and folders that appear whole or not at all, with the permissions of the user's umask."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from sharding.io.errors import DISK_FULL, DataError

PARTIAL = ".partial-"
PARTIAL_NAME = re.compile(r"\..+\.partial-\w{8}(\..+)?")
"""Names of unfinished files: hidden, and distinct from all other hidden files."""

NEW, REPLACED, LOCK = "new", "replaced", ".lock"
"""Names within the folder in which a new folder is prepared."""


@contextlib.contextmanager
def atomic_path(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary name beside `path`; it takes that name only if the block succeeds.

    The user's umask decides who may read the file. Its mode is that of the new, empty file, even if
    a library replaces that file by one of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _unused_name(path, suffix)
    # The files of tempfile, in contrast, are private whatever the umask is.
    partial.touch(mode=0o666, exist_ok=False)
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(partial.stat().st_mode) != mode:
            partial.chmod(mode)
        partial.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL:
            # Writing does not say which file it was, and the temporary one means nothing to a user.
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a small file in one atomic step."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(path: Path, mark: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes that name only if the block succeeds.

    Leftovers of earlier attempts that were killed are removed.

    Args:
        path: The folder to create.
        mark: A file that identifies a folder of this kind; one without it is never replaced.
        overwrite: Replace a folder of this kind.

    Raises:
        DataError: If `path` exists and may not be replaced.
    """
    _remove_attempts(path)
    if path.exists() and not overwrite:
        raise DataError(path, "the folder exists already", "Give --overwrite or another folder")
    if path.exists() and not (path / mark).is_file():
        rule = f"exists and holds no {mark}, so another program wrote it"
        raise DataError(path, rule, "Give another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = _unused_name(path)
    work.mkdir()
    lock = FileLock(work / LOCK)
    try:
        # Without locks it cannot be known whether a process is at work: nothing is removed then.
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire(timeout=0)
        folder = work / NEW
        folder.mkdir()
        yield folder
        if path.exists():
            path.replace(work / REPLACED)
        folder.replace(path)
    finally:
        lock.release()
        shutil.rmtree(work, ignore_errors=True)


def _remove_attempts(path: Path) -> None:
    """Remove the leftovers of killed processes; a folder that was complete takes its name.

    Its process was killed between moving the old folder aside and renaming the new one. An attempt
    that has no lock yet may belong to a process that has just begun.
    """
    for work in path.parent.glob(f".{glob.escape(path.name)}{PARTIAL}*"):
        if not (work / LOCK).is_file():
            continue
        lock = FileLock(work / LOCK)
        try:
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError):
            continue  # a process is at work there
        if (work / REPLACED).is_dir() and (work / NEW).is_dir() and not path.exists():
            (work / NEW).replace(path)
        lock.release()
        shutil.rmtree(work, ignore_errors=True)


def _unused_name(path: Path, suffix: str = "") -> Path:
    """A hidden name beside `path` that no other process is likely to choose."""
    return path.with_name(f".{path.name}{PARTIAL}{secrets.token_hex(4)}{suffix}")


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Remove the unfinished files and folders that killed processes left in a folder.

    Args:
        folder: No other process may be writing to it; it need not exist.
        recursive: Look in the folders below it as well.
    """
    found = folder.rglob(".*") if recursive else folder.glob(".*")
    for path in sorted(found):
        if not PARTIAL_NAME.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise DataError if one of the files exists and may not be overwritten."""
    for path in paths:
        if path.exists() and not overwrite:
            raise DataError(path, "the file exists already", "Give --overwrite or another name")
