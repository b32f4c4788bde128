"""Messages of the program on standard error: logs, and the errors that end a command."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from distsynth.cli.continuing import what_now
from distsynth.errors import ConfigError
from sharding.io.errors import DISK_FULL, DataError
from sharding.io.interruption import Interrupted

logger = logging.getLogger(__name__)
LOGGERS = ("distsynth", "sharding", "tune_spaces")
"""What this program's own messages go through; those of libraries are left alone."""

FAILURE, USAGE = 1, 2
MEMORY_REMEDY = (
    "Use smaller volumes, batches or patches, fewer workers, or a machine with more memory"
)


class UsageError(ConfigError):
    """Arguments that do not go together, or that a command lacks."""


class _StandardError(logging.Handler):
    """Writes to whatever standard error is now, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # Only a bar that was shown needs room, and it has loaded tqdm.
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """For the time of the block, what the program logs goes to standard error as plain lines."""
    handler = _StandardError()
    before = []
    for name in LOGGERS:
        package_logger = logging.getLogger(name)
        before.append((package_logger, package_logger.level, package_logger.propagate))
        package_logger.addHandler(handler)
        package_logger.setLevel(logging.INFO)
        # A library that gives the root logger a handler must not make every line appear twice.
        package_logger.propagate = False
    try:
        yield
    finally:
        for package_logger, level, propagate in before:
            package_logger.removeHandler(handler)
            package_logger.setLevel(level)
            package_logger.propagate = propagate


def report_error(error: BaseException, args: Sequence[str], debug: bool) -> int:
    """Say in one line what ended a command.

    Args:
        error: What it raised.
        args: The command with its arguments.
        debug: Show the traceback too.

    Returns:
        The exit status: 1 for bad input and other failures, 2 for usage and configuration, 128
        and the signal's number for an interruption.
    """
    # Where both go to one file, the error stands below what was printed before it.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        ended = error if isinstance(error, Interrupted) else Interrupted()
        for line in what_now(error, args):
            logger.info(line)
        _say(str(ended))
        return ended.status
    if isinstance(error, ConfigError):
        _say(str(error))
        return USAGE
    _say(_expected(error) or _bug(error, args, debug))
    return FAILURE


def _expected(error: BaseException) -> str | None:
    """The message of an error that is not the program's fault; None for a bug."""
    if isinstance(error, DataError | FloatingPointError):
        return str(error)
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, MemoryError):
        return f"out of memory. {MEMORY_REMEDY}."
    # PyTorch's errors are RuntimeErrors; importing it to ask for their class would take seconds.
    kind, text = type(error).__name__, str(error)
    if kind == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        first = text.strip().splitlines()[0].rstrip(".")
        return f"out of memory: {first}. {MEMORY_REMEDY}."
    return None


def _system_error(error: OSError) -> str:
    where = error.filename2 or error.filename
    if error.errno in DISK_FULL:
        place = f"{where}: " if where else ""
        return f"{place}no space is left on the disk. Free some, or write to another disk."
    if error.errno is not None and where and error.strerror:
        return f"{where}: {error.strerror}"
    return str(error)


def _bug(error: BaseException, args: Sequence[str], debug: bool) -> str:
    lines = traceback.format_exception_only(error)[-1].strip().splitlines()
    name = lines[0] if lines else type(error).__name__
    message = f"unexpected error, which is a bug of distsynth: {name}"
    if debug:
        return message
    again = shlex.join(["distsynth", "--debug", *args])
    log = _write_log(error, args)
    where = f"The traceback is in {log}; to see it here: {again}" if log else f"Traceback: {again}"
    return f"{message}\n{where}"


def _write_log(error: BaseException, args: Sequence[str]) -> Path | None:
    """Write the traceback to a file of its own that only the user can read."""
    lines = [f"distsynth {shlex.join(args)}\n\n", *traceback.format_exception(error)]
    try:
        handle, name = tempfile.mkstemp(prefix="distsynth-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError:
        return None
    return Path(name)


def _say(message: str) -> None:
    logger.error("distsynth: %s", message)
