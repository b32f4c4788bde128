"""Programs stop where a test says, whoever else uses the machine."""

from __future__ import annotations

import signal
import sys

import moments
import pytest
from killing import CallMoment, FileMoment, changes_of, killed_at, stopped_at

from sharding.io.lease import RENEWAL

PROGRAM = """
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir()
for number in range(3):
    (out / ".partial").write_text("0123456789")
    (out / ".partial").replace(out / str(number))
print(json.dumps([1]), flush=True)
(out / "0").unlink()
"""
CHANGES = ["mkdir", *["write", "rename"] * 3, "remove"]


@pytest.fixture
def words(tmp_path):
    return [sys.executable, "-c", PROGRAM, tmp_path / "out"]


def files(tmp_path):
    return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}


def test_all_changes_are_told_in_order(words, tmp_path):
    found = changes_of(words, tmp_path)
    assert [event for event, _ in found] == CHANGES
    assert found[2] == ("rename", f"{tmp_path}/out/0")
    assert changes_of([*words[:3], tmp_path / "other"], tmp_path / "out") == []


def test_renewals_of_a_lease_do_not_count(words, tmp_path):
    """A slow machine renews more often: the N-th change would be another one."""
    renewing = f"""
import threading
def renew():
    exec({PROGRAM!r}, {{}})
thread = threading.Thread(target=renew, name={RENEWAL!r})
thread.start()
thread.join()
"""
    assert moments.RENEWAL == RENEWAL
    assert changes_of([*words[:2], renewing, tmp_path / "out"], tmp_path) == []
    assert set(files(tmp_path)) == {"1", "2"}


def test_it_is_killed_before_a_change(words, tmp_path):
    killed_at(FileMoment(f"{tmp_path}/*", count=4), words)
    assert files(tmp_path) == {"0": "0123456789"}


def test_a_file_is_left_torn(words, tmp_path):
    killed_at(FileMoment("*/out/2", "rename", torn=True), words)
    assert files(tmp_path) == {"0": "0123456789", "1": "0123456789", ".partial": "01234"}


@pytest.mark.parametrize("after", [False, True])
def test_it_is_killed_at_a_call(words, tmp_path, after):
    said = killed_at(CallMoment("json:JSONEncoder.encode", after=after), words)
    assert said == ""
    assert set(files(tmp_path)) == {"0", "1", "2"}


def test_a_stopped_program_gets_a_signal_and_goes_on(words, tmp_path):
    with stopped_at(FileMoment("*/out/0", "remove"), words) as program:
        assert set(files(tmp_path)) == {"0", "1", "2"}
        program.resume()
        assert program.end() == (0, "[1]\n")
    assert set(files(tmp_path)) == {"1", "2"}
    with stopped_at(FileMoment("*/again", "mkdir"), [*words[:3], tmp_path / "again"]) as program:
        program.send(signal.SIGINT)
        program.resume()
        status, said = program.end()
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in said


def test_a_moment_that_does_not_come_is_an_error(words):
    with pytest.raises(AssertionError, match="it ended before"):
        killed_at(FileMoment("*/nothing"), words)
    with pytest.raises(AssertionError, match="it ended before"):
        killed_at(CallMoment("json:dumps", "*/nothing"), words)
