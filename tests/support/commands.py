"""Commands run in this process, and what they say."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from distsynth.cli.main import main


class Ended(NamedTuple):
    """What a command left: exit status and both streams."""

    status: int
    out: str
    err: str


def cli(*args):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    return Ended(status, out.getvalue(), err.getvalue())


def done(*args):
    ended = cli(*args)
    assert ended.status == 0, ended.err
    return ended
