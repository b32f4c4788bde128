"""Standard output whose reader has gone, as in `distsynth presets | head`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

CLOSED = 128 + signal.SIGPIPE
"""The exit status that shells give to a process whose reader has gone."""


def flush_output() -> None:
    """Write what was printed: Python does so after `main`, where a failure is a traceback.

    Raises:
        OSError: If it cannot be written.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def is_output_closed() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    # The output of a test, or none at all, has no descriptor.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        ask = select.poll()
        ask.register(sys.stdout.fileno(), 0)
        return any(found & (select.POLLERR | select.POLLHUP) for _, found in ask.poll(0))
    return False


def discard_output() -> None:
    """Let what is not written yet vanish, so that Python does not fail over it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
