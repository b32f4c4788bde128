"""A lease on a folder, on any storage: one process at a time writes there.

The holder renews a small hidden file in the folder as long as it lives. A process that finds a
fresh file is refused. If the holder has ended, or no longer renews the file, it is taken over.

On local disks and on S3 exactly one of several processes that take a lease at once gets it. Other
storages cannot write a file on condition that nobody else has: there each process looks again
after SETTLE_SECONDS, and whoever wrote last has it. Two could both go on only if the writes of one
took longer than that; each renewal looks again, and ends the one that has lost.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import TypeAdapter, ValidationError

from sharding.io.errors import DataError, MissingError
from sharding.io.records import STRICT
from sharding.io.storage import Folder

logger = logging.getLogger(__name__)

LEASE_FILE = ".lease.json"
BEAT_SECONDS = 15.0
"""Time between two renewals."""
STALE_SECONDS = 4 * BEAT_SECONDS
"""Age at which a lease that another machine wrote is no longer fresh."""
SETTLE_SECONDS = 1.0
"""Time after which two processes that take a lease at once on an object store can see which of them
wrote last."""
RENEWAL = "lease-renewal"
"""Name of the thread that renews a lease."""


@dataclass(frozen=True)
class Lease:
    """The process that writes to a folder.

    Attributes:
        token: Random text that each holder makes for itself.
        host: Name of its machine.
        boot: When that machine was started, in s since 1970.
        process: Id of the process there.
        started: When the process was started, in s since 1970.
        since: When it took the lease, in s since 1970.
        renewed: When it last renewed the lease by its own clock, in s since 1970.
    """

    __pydantic_config__ = STRICT

    token: str
    host: str
    boot: float
    process: int
    started: float
    since: float
    renewed: float

    @classmethod
    def own(cls) -> Lease:
        """A new lease of this process."""
        now, process = time.time(), psutil.Process()
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=psutil.boot_time(),
            process=process.pid,
            started=process.create_time(),
            since=now,
            renewed=now,
        )

    def is_here(self) -> bool:
        """Whether its process ran on this machine."""
        return self.host == socket.gethostname() and abs(self.boot - psutil.boot_time()) < 2

    def is_alive(self) -> bool:
        """Whether its process still runs, if that was on this machine."""
        try:
            return abs(psutil.Process(self.process).create_time() - self.started) < 2
        except psutil.Error:
            return False

    def to_json(self) -> str:
        """A line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"process {self.process} on {self.host} since {since:%Y-%m-%d %H:%M:%S %Z}"


_LEASE = TypeAdapter(Lease)


@contextlib.contextmanager
def lease(url: str | Path) -> Iterator[None]:
    """Hold the lease on a folder while the block runs.

    A process that loses its lease, because it was stopped for so long that another one took it
    over, is interrupted.

    Args:
        url: The folder: a path or a URL. It need not exist.

    Raises:
        DataError: If another process holds it; says which one and since when. Also if the path is
            that of a file.
    """
    folder = Folder(url)
    if folder.local is not None and folder.local.is_file():
        raise DataError(folder.url, "is a file", "Give a folder")
    own = Lease.own()
    _take(folder, own)
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, name=RENEWAL, args=(folder, own, ended), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        with contextlib.suppress(DataError):  # a storage that fails now; the lease grows stale
            if (found := read_lease(folder)) and found.token == own.token:
                folder.remove(LEASE_FILE)
        if folder.local is not None:
            # A folder in which nothing was written is not left behind.
            with contextlib.suppress(OSError):
                folder.local.rmdir()


def read_lease(folder: Folder) -> Lease | None:
    """The lease on a folder; None if there is none, or the file is not a lease."""
    return _parsed(_content(folder))


def _content(folder: Folder) -> bytes | None:
    try:
        return folder.read(LEASE_FILE)
    except MissingError:
        return None


def _parsed(content: bytes | None) -> Lease | None:
    try:
        return None if content is None else _LEASE.validate_json(content)
    except ValidationError:
        return None


def _take(folder: Folder, own: Lease) -> None:
    """Write the lease unless another process holds it."""
    content = _content(folder)
    found = _parsed(content)
    if found is not None:
        if _is_held(folder, found):
            raise _refusal(folder, found)
        logger.info(f"taking over {folder.url} from {found}, which no longer runs")
    taken = folder.swap(LEASE_FILE, content, own.to_json().encode())
    if taken and folder.local is None:
        # Some servers ignore the condition: of two that write at once the last one wins.
        time.sleep(SETTLE_SECONDS)
        taken = (last := read_lease(folder)) is not None and last.token == own.token
    if not taken:
        raise _refusal(folder, read_lease(folder))


def _is_held(folder: Folder, found: Lease) -> bool:
    """Whether the process of a lease still renews it."""
    if found.is_here():
        return found.is_alive()
    if time.time() - found.renewed < STALE_SECONDS:
        return True
    # The clocks of two machines may differ by minutes: see whether it is renewed.
    time.sleep(2 * BEAT_SECONDS)
    again = read_lease(folder)
    return again is not None and again != found


def _renew(folder: Folder, own: Lease, ended: threading.Event) -> None:
    """Renew the lease until the block ends, or until another process has taken it over."""
    while not ended.wait(BEAT_SECONDS):
        try:
            content = _content(folder)
            found = _parsed(content)
            if found is not None and found.token != own.token:
                logger.error(f"{folder.url} was taken over by {found}: this process ends")
                _thread.interrupt_main()
                return
            # A takeover in between makes this do nothing, and is found at the next renewal.
            renewed = replace(own, renewed=time.time())
            folder.swap(LEASE_FILE, content, renewed.to_json().encode())
        except DataError as error:
            logger.warning(f"the lease cannot be renewed: {error}")


def _refusal(folder: Folder, holder: Lease | None) -> DataError:
    who = f": {holder}" if holder else ""
    return DataError(
        folder.url,
        f"another process is writing here{who}",
        "Wait for it, end it, or give another folder",
    )
