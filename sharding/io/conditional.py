"""Writing a file only if it still is as it was read, where the storage can do both in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharding.io.atomic import atomic_write
from sharding.io.locks import exclusive

REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
"""What S3 answers when an object is not, or no longer, as the request demands."""
UNKNOWN = {"NotImplemented", "501"}
"""What some servers answer that speak S3 and know no conditional requests."""


def swap_local(path: Path, old: bytes | None, new: bytes) -> bool:
    """Replace the content of a file that is `old`; None is that of a file that does not exist.

    Processes that call this for one file do so one after the other, on all machines whose file
    system shares its locks.

    Returns:
        Whether the file was `old`, and now is `new`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(path.with_name(f".{path.name}.lock")):
        found = path.read_bytes() if path.is_file() else None
        if found == old:
            atomic_write(path, new)
    return found == old


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold a lock in the block; without one, where the file system has none."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            stack.enter_context(exclusive(lock, wait=True))
        yield


def swap_object(system: Any, path: str, old: bytes | None, new: bytes) -> bool:
    """The same for an object of a storage.

    On S3 it is one step, by a conditional request. Of other storages, and of servers that speak
    S3 and know no such request, the object is read, compared and then written.

    Args:
        system: The storage's fsspec file system.
        path: The object's name there.
        old: Its content, as it was read; None if it does not exist.
        new: Its new content.
    """
    found, version = _read(system, path)
    if found != old:
        return found == new  # An earlier attempt at this request may have written it.
    if "s3" not in system.protocol:
        system.pipe_file(path, new)
        return True
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        system.pipe_file(path, new, **condition)
    except OSError as error:
        code = _code(error)
        if code in UNKNOWN:
            system.pipe_file(path, new)
        elif code in REFUSED or (isinstance(error, FileNotFoundError) and version is not None):
            return _read(system, path)[0] == new
        else:
            raise
    return True


def _read(system: Any, path: str) -> tuple[bytes | None, str | None]:
    """Content and version of an object; the version is at most as new as the content."""
    try:
        version = system.info(path).get("ETag")
        return system.cat_file(path), version
    except FileNotFoundError:
        return None, None


def _code(error: OSError) -> str | None:
    """The storage's own name of an error."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("Error", {}).get("Code")
