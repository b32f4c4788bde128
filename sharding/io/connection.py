"""Asking a storage with patience: passing failures are tried again, all end in plain words."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.config

from sharding.io.errors import DataError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

PAUSES_SECONDS: tuple[float, ...] = (0.5, 1, 2, 4)
"""Waits between the attempts at one request; so there is one attempt more than waits."""
PATIENCE_SECONDS = 30.0
"""Nothing is tried again when the first attempt failed this long ago."""
CONNECT_SECONDS, SILENCE_SECONDS = 5, 10
"""How long an s3 server may take to accept a connection, and to send the next byte."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Which of the package's extras serves a protocol."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

_ACCOUNTS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to an account that may",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the key of an account that may",
}
# By name, for the packages that define them are optional.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
}


class MissingError(DataError):
    """A file that does not exist, where its bucket does."""


class Connection:
    """The way to one storage; opened by every process that asks, when it first does.

    Attributes:
        protocol: Such as s3; "file" for local disks, which are asked once only.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._systems: dict[int, Any] = {}

    def ask(self, where: str, action: Callable[[Any, str], Answer]) -> Answer:
        """Do `action(file system, path of where)`, again if it fails in a way that may pass.

        Raises:
            DataError: In place of whatever the storage's package raises; MissingError if there is
                no such file.
        """
        pauses = iter(PAUSES_SECONDS if self.protocol != "file" else ())
        first_failure = None
        while True:
            try:
                system = self._system(where)
                return action(system, system._strip_protocol(where))
            except DataError:
                raise
            except Exception as error:
                now = time.monotonic()
                first_failure = first_failure or now
                late = now - first_failure > PATIENCE_SECONDS
                pause = next(pauses, None)
                if pause is None or late or not _may_pass(error):
                    raise self._explained(where, error) from error
                logger.warning("%s: %s; again in %g s", where, _text(error), pause)
            time.sleep(pause)

    def _system(self, where: str) -> Any:
        """The file system of this process: neither threads nor connections survive a fork."""
        # Those of parent processes are kept, as closing them here would disturb the parent.
        if os.getpid() not in self._systems:
            self._systems[os.getpid()] = _open(self.protocol, where)
        return self._systems[os.getpid()]

    def _explained(self, where: str, error: Exception) -> DataError:
        """The error in plain words."""
        if self.protocol == "file" and isinstance(error, OSError):
            return disk_error(where, error)
        kind = EXTRAS.get(self.protocol, self.protocol)
        account = _ACCOUNTS.get(kind, "Give the storage's package an account that may")
        endpoint = " and the endpoint" + (" (AWS_ENDPOINT_URL)" if kind == "s3" else "")
        if isinstance(error, FileNotFoundError):
            # A listing of a folder that does not exist is empty; what it can lack is the bucket.
            if "bucket does not exist" in str(error) or "ListObjects" in str(error.__cause__):
                return DataError(where, "the bucket does not exist", f"Check its name{endpoint}")
            return _missing(where)
        if isinstance(error, PermissionError):
            return DataError(where, f"access is refused ({_text(error)})", account)
        if type(error).__name__ in _NO_CREDENTIALS:
            return DataError(where, f"there are no credentials ({_text(error)})", account)
        rule = f"the storage did not do as asked ({_text(error)})"
        return DataError(where, rule, f"Check the name, the network{endpoint}")


def disk_error(where: str | Path, error: OSError) -> DataError:
    """What went wrong on a local disk, in plain words."""
    if isinstance(error, FileNotFoundError):
        return _missing(where)
    if error.errno in DISK_FULL:
        remedy = "Free some, or use another disk (cache: DISTSYNTH_CACHE, scratch: TMPDIR)"
        return DataError(where, "no space left on its disk", remedy)
    rule = f"cannot be read or written ({error.strerror or _text(error)})"
    return DataError(where, rule, "Check the path and its permissions")


@contextlib.contextmanager
def disk_errors(where: str | Path) -> Iterator[None]:
    """Turn errors of the operating system, in the block, into DataErrors."""
    try:
        yield
    except OSError as error:
        raise disk_error(where, error) from error


def _missing(where: str | Path) -> MissingError:
    return MissingError(where, "there is no such file", "Check the name, or copy the file again")


def _open(protocol: str, where: str) -> Any:
    """A file system of our own. It remembers no listings, as others may write there too."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    extra = EXTRAS.get(protocol)
    if extra == "s3":
        options["config_kwargs"] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENCE_SECONDS,
            "retries": {"total_max_attempts": 1},
            **fsspec.config.conf.get("s3", {}).get("config_kwargs", {}),
        }
    if protocol not in fsspec.available_protocols():
        rule = f"no storage is known as {protocol}://"
        raise DataError(where, rule, "Give a folder, s3://... or gs://...")
    try:
        system: Any = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        rule = f"{protocol}:// needs a package that is not installed ({_text(error)})"
        remedy = f'pip install "distsynth[{extra}]"' if extra else "Install that package"
        raise DataError(where, rule, remedy) from error
    if extra == "s3":
        system.retries = 1  # so that there is one count of attempts: ours
    return system


def _may_pass(error: Exception) -> bool:
    """Whether it is worth asking again."""
    if isinstance(error, FileNotFoundError | PermissionError | NotImplementedError):
        return False
    if type(error) is ValueError or type(error).__name__ == "ParamValidationError":
        return False
    return type(error).__name__ not in _NO_CREDENTIALS


def _text(error: Exception) -> str:
    """The error's own words, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:300].rstrip(".")
