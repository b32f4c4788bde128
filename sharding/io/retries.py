"""Requests to a storage: a temporary failure is retried, any other is explained in plain words."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import fsspec.config

from sharding.io.errors import DataError, disk_error, missing_file, one_line

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

PAUSES_SECONDS: tuple[float, ...] = (0.5, 1, 2, 4)
"""Pauses between the attempts at a request: there is one more attempt than there are pauses."""
PATIENCE_SECONDS = 30.0
"""A request is not retried when its first attempt failed this long ago."""
CONNECT_SECONDS, SILENCE_SECONDS = 5, 10
"""How long an s3 server may take to accept a connection, and to send the next byte."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Which of the package's extras serves a protocol."""

_ACCOUNTS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to an account that may",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the key of an account that may",
}
# By name, because the packages that define them are optional.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
}


AT_ONCE = 16
"""Requests for small files that are under way at once."""


class RetryingConnection:
    """A connection to one storage; each process opens its own at its first request.

    Attributes:
        protocol: Such as s3; "file" stands for local disks, whose requests are never retried.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._systems: dict[int, Any] = {}

    def request(self, where: str, action: Callable[[Any, str], Answer]) -> Answer:
        """Call `action(file system, path of where)`, and again if its failure may be temporary.

        Raises:
            DataError: In place of the exceptions of the storage's package; MissingError if there
                is no such file.
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
                if pause is None or late or not _may_be_temporary(error):
                    raise self._explained(where, error) from error
                logger.warning("%s: %s; retrying in %g s", where, one_line(error), pause)
            time.sleep(pause)

    def _system(self, where: str) -> Any:
        """Return this process's file system: neither threads nor connections survive a fork."""
        # The parent's stay open: closing them here would disturb the parent.
        if os.getpid() not in self._systems:
            self._systems[os.getpid()] = _open(self.protocol, where)
        return self._systems[os.getpid()]

    def _explained(self, where: str, error: Exception) -> DataError:
        """Explain the error in plain words."""
        if self.protocol == "file" and isinstance(error, OSError):
            return disk_error(where, error)
        kind = EXTRAS.get(self.protocol, self.protocol)
        account = _ACCOUNTS.get(kind, "Give the storage's package an account that may")
        endpoint = " and the endpoint" + (" (AWS_ENDPOINT_URL)" if kind == "s3" else "")
        if isinstance(error, FileNotFoundError):
            # A listing of a folder that does not exist is empty; what it can lack is the bucket.
            if "bucket does not exist" in str(error) or "ListObjects" in str(error.__cause__):
                return DataError(where, "the bucket does not exist", f"Check its name{endpoint}")
            return missing_file(where)
        if isinstance(error, PermissionError):
            return DataError(where, f"access is refused ({one_line(error)})", account)
        if type(error).__name__ in _NO_CREDENTIALS:
            return DataError(where, f"there are no credentials ({one_line(error)})", account)
        rule = f"the request to the storage failed ({one_line(error)})"
        return DataError(where, rule, f"Check the name, the network{endpoint}")


def _open(protocol: str, where: str) -> Any:
    """Open a file system that caches no listings, because other programs may write there too."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    extra = EXTRAS.get(protocol)
    if extra == "s3":
        options["config_kwargs"] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENCE_SECONDS,
            "max_pool_connections": AT_ONCE,
            "retries": {"total_max_attempts": 1},
            **fsspec.config.conf.get("s3", {}).get("config_kwargs", {}),
        }
    if protocol not in fsspec.available_protocols():
        rule = f"no storage is known as {protocol}://"
        raise DataError(where, rule, "Give a folder, s3://... or gs://...")
    try:
        system: Any = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        rule = f"{protocol}:// needs a package that is not installed ({one_line(error)})"
        remedy = f'pip install "distsynth[{extra}]"' if extra else "Install that package"
        raise DataError(where, rule, remedy) from error
    if extra == "s3":
        system.retries = 1  # Retries are counted here, not there.
    return system


def _may_be_temporary(error: Exception) -> bool:
    """Whether a retry may succeed."""
    if isinstance(error, FileNotFoundError | PermissionError | NotImplementedError):
        return False
    if type(error) is ValueError or type(error).__name__ == "ParamValidationError":
        return False
    return type(error).__name__ not in _NO_CREDENTIALS
