"""Locks between processes of one machine, whose files are removed afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs; its file is removed afterwards.

    A process that dies releases the lock, and leaves a file that the next holder removes.

    Args:
        path: The lock's file; its folder must exist.
        wait: Wait for another process that holds the lock.

    Raises:
        Timeout: If another process holds it and `wait` is not given.
    """
    while True:
        lock = FileLock(path)
        lock.acquire(timeout=-1 if wait else 0)
        if _is_current(lock, path):
            break
        # The previous holder has removed the file, so that this lock excludes no other process.
        lock.release()
    try:
        yield
    finally:
        # Removed before the release, so that a process that waits for it notices.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _is_current(lock: FileLock, path: Path) -> bool:
    """Whether the file that is locked is the one that the path names."""
    descriptor = lock._context.lock_file_fd
    try:
        return descriptor is not None and os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


__all__ = ["Timeout", "exclusive"]
