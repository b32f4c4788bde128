from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import distsynth.cli.main
from distsynth.cli.main import main


def failing_command(error, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setitem(distsynth.cli.main.COMMANDS, "presets", fail)


def test_a_bug_is_one_line_with_the_place_of_its_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing_command(ValueError("this cannot be"), monkeypatch)
    assert main(["presets", "--two words"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert (
        first
        == "distsynth: unexpected error, which is a bug of distsynth: ValueError: this cannot be"
    )
    found = re.fullmatch(
        r"The traceback is in (.*\.log); to see it here: "
        r"distsynth --debug presets '--two words'",
        second,
    )
    assert found
    log = Path(found[1])
    assert log.parent == tmp_path
    assert "Traceback" in log.read_text()
    assert "in fail\n    raise error" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_debug_shows_the_traceback_of_any_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing_command(KeyError("missing"), monkeypatch)
    assert main(["--debug", "presets"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("bug of distsynth: KeyError: 'missing'\n")
    assert not list(tmp_path.iterdir())
    assert main(["--debug", "train", "none.json", "-o", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith(
        "distsynth: none.json: the configuration does not exist. Check the path.\n"
    )


def test_a_bug_without_room_for_its_log(monkeypatch, capsys):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    failing_command(RuntimeError("this cannot be"), monkeypatch)
    assert main(["presets"]) == 1
    assert capsys.readouterr().err.endswith("\nTraceback: distsynth --debug presets\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory. Use smaller volumes"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 4000000000000 bytes."
            ),
            "out of memory: [enforce fail",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/checkpoints/last.pt"),
            "run/checkpoints/last.pt: no space is left on the disk. Free some",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), "out: Is a directory"),
    ],
)
def test_failures_of_the_machine_are_one_line(error, message, monkeypatch, capsys):
    failing_command(error, monkeypatch)
    assert main(["presets"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"distsynth: {message}")
    assert len(said.splitlines()) == 1


def test_a_real_allocation_that_fails_is_one_line(monkeypatch, capsys):
    import torch

    def allocate(_):
        torch.empty(10**15)

    monkeypatch.setitem(distsynth.cli.main.COMMANDS, "presets", allocate)
    assert main(["presets"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("distsynth: out of memory: ")
    assert len(said.splitlines()) == 1


def test_logs_go_to_standard_error_for_the_time_of_a_command(monkeypatch, capsys):
    logger = logging.getLogger("sharding.io.progress")
    before = logging.getLogger("sharding").level, list(logging.getLogger("sharding").handlers)

    def speak(_):
        logger.info("some progress")
        logger.debug("some detail")
        print("a result")

    monkeypatch.setitem(distsynth.cli.main.COMMANDS, "presets", speak)
    assert main(["presets"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("a result\n", "some progress\n")
    logger.info("nobody listens any more")
    assert capsys.readouterr().err == ""
    after = logging.getLogger("sharding").level, list(logging.getLogger("sharding").handlers)
    assert before == after


def test_python_m_distsynth_is_the_program():
    ended = subprocess.run(
        [sys.executable, "-m", "distsynth", "trian"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("distsynth: there is no command trian\n\nusage: distsynth ")


def test_in_one_file_an_error_stands_below_what_was_printed_before_it():
    program = """
import sys
from distsynth.cli.messages import messages_on_stderr, report_error
from sharding.io.errors import DataError
print("the table")
with messages_on_stderr():
    sys.exit(report_error(DataError("a.nii.gz", "broken", "Replace it"), ["evaluate"], False))
"""
    # A shell may ask for output without a buffer, in which the order is never lost.
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=buffered,
    )
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first == "the table"
    assert last.startswith("distsynth: a.nii.gz: broken")
