"""What `distsynth dashboard` writes, read back."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from pathlib import Path

import pytest

from distsynth.cli.main import main

OFFLINE = {"tracking.mode": "offline", "tracking.samples": 2, "tracking.project": "phantoms"}


def written(out: Path, *args: str) -> dict[str, dict]:
    """What the command writes, by file name; anything that reaches out fails."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("reached for the network or a login")

    streams = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("wandb.Api", "wandb.login", "wandb.init", "wandb.setup"):
            patch.setattr(name, refuse)
        patch.setattr(socket.socket, "connect", refuse)
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            assert main(["dashboard", "--out", str(out), *args]) == 0
    told, heard = (stream.getvalue() for stream in streams)
    names = ["workspace.json", "report.json", "apply.py"]
    assert told.splitlines() == [str(out / name) for name in names]
    assert "nothing was sent" in heard
    assert "distsynth dashboard" in heard
    assert "--online" in heard
    return {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
