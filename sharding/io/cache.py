"""A cache of downloads on this machine: named by content, the least recently used are evicted.

    FOLDER/DIGEST              a complete file
    FOLDER/.DIGEST.*           a download in progress, and the lock that other processes wait for

Files of other names in the folder are neither counted nor touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from sharding.io.atomic import atomic_path
from sharding.io.errors import DataError

DIGEST = re.compile("[0-9a-f]{64}")
ENTRY_OR_PARTIAL = re.compile(rf"({DIGEST.pattern})|\.{DIGEST.pattern}\..*")
ABANDONED_SECONDS = 3600
"""A download that has not grown for this long belongs to a process that died."""


def default_folder() -> Path:
    """DISTSYNTH_CACHE, or else distsynth/shards in the user's cache."""
    given = os.environ.get("DISTSYNTH_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or Path(user, "distsynth", "shards")).expanduser()


@dataclass(frozen=True)
class Cache:
    """A folder of downloads that any number of processes use at once.

    An entry appears complete, by rename. An entry that is evicted while a process has it open or
    mapped stays valid there until it is closed; so open an entry as soon as it is returned.

    Attributes:
        folder: The folder of the entries; it is created when it is first needed.
        gigabytes: Most that the entries may take together, in 1e9 bytes.
    """

    folder: Path = field(default_factory=default_folder)
    gigabytes: float = 32.0

    def __post_init__(self) -> None:
        if not self.gigabytes > 0:
            raise ValueError(f"gigabytes must be > 0, got {self.gigabytes}")

    def find(self, digest: str, size: int | None) -> Path | None:
        """An entry, marked as just used; None if there is none of this size (None accepts any)."""
        entry = self._entry(digest)
        try:
            if size not in (None, entry.stat().st_size):
                entry.unlink(missing_ok=True)  # damaged: nothing else changes a file's size
                return None
            with contextlib.suppress(PermissionError):  # an entry that another user made
                os.utime(entry)
        except FileNotFoundError:
            return None
        return entry

    def add(self, digest: str, size: int, where: str, download: Callable[[Path], None]) -> Path:
        """Download an entry, only once if several processes ask for it at the same time.

        Args:
            digest: Name of the entry: 64 hexadecimal digits.
            size: Its size in bytes.
            where: What is downloaded, for messages.
            download: Writes the content to the path that it is given, or raises.

        Raises:
            DataError: If the file is larger than the whole cache.
        """
        entry = self._entry(digest)
        if size > self._limit:
            raise DataError(
                where,
                f"has {size / 1e9:.3g} GB, more than the whole cache of {self.gigabytes:g} GB at "
                f"{self.folder}",
                "Give the cache more gigabytes, or copy the data to a local folder",
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.folder / f".{digest}.lock"
        with FileLock(lock):
            if self.find(digest, size) is None:
                self._evict(size, digest)
                with atomic_path(entry) as partial:
                    download(partial)
                # Other processes may have added entries meanwhile.
                self._evict(0, digest)
            # At worst, a process that waits here and one that comes later both look for the
            # entry, which is there by now.
            lock.unlink(missing_ok=True)
        return entry

    @property
    def _limit(self) -> float:
        return self.gigabytes * 1e9

    def _entry(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"not a sha256: {digest!r}")
        return self.folder / digest

    def _evict(self, size: int, keep: str) -> None:
        """Evict the entries unused for longest until `size` more bytes fit; never evict `keep`."""
        files = sorted(self._files())
        total = sum(length for _, length, _ in files) + size
        now = time.time_ns()
        for used_ns, length, path in files:
            abandoned = now - used_ns > ABANDONED_SECONDS * 1e9
            entry = DIGEST.fullmatch(path.name) is not None
            if (entry and total > self._limit and path.name != keep) or (not entry and abandoned):
                path.unlink(missing_ok=True)
                total -= length

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each entry or download was last used, in nanoseconds, its size, and its path."""
        for path in self.folder.iterdir():
            if ENTRY_OR_PARTIAL.fullmatch(path.name):
                # Another process may have evicted it meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield status.st_mtime_ns, status.st_size, path
