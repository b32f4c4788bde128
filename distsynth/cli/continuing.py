"""The command that continues what was interrupted, or starts it again.

A command that keeps what it has finished wraps its work in `continued_by`; the line is a note of
the exception, which `report_error` shows. Of every other command the same line starts it again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence

RESUME, OVERWRITE = "--resume", "--overwrite"


@contextlib.contextmanager
def continued_by(
    command: str,
    args: Sequence[str],
    option: str | None = None,
    begun: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """After an interruption of the block, note the command that continues.

    Args:
        command: Name of the command.
        args: Its arguments; --overwrite is left out, because it would start again.
        option: What makes the command continue; None if it does so by itself.
        begun: Whether there is something to continue.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not begun():
            raise
        words = [word for word in args if word not in (OVERWRITE, option)]
        again = shlex.join(["distsynth", command, *words, *([option] if option else [])])
        error.add_note(f"to continue: {again}")
        raise


def what_now(error: KeyboardInterrupt, args: Sequence[str]) -> Sequence[str]:
    """What to run after an interruption, in a line.

    Args:
        error: The interruption.
        args: The command with its arguments.

    Returns:
        The note of `continued_by`, or the same command; nothing on further ranks of a launcher.
    """
    if os.environ.get("RANK", "0") != "0":
        return []
    notes = getattr(error, "__notes__", [])
    return notes or [f"nothing was kept; to start again: {shlex.join(['distsynth', *args])}"]
