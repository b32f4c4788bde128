from __future__ import annotations

import io
import logging
import sys
from itertools import pairwise

import pytest

from sharding.io import progress as module
from sharding.io.progress import OverallProgress, duration, progress

logger = logging.getLogger("sharding.io.progress")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "sharding")
    return caplog


def test_a_line_at_the_end_when_piped(lines):
    assert list(progress("abc", "working", 3)) == ["a", "b", "c"]
    assert [record.message for record in lines.records] == ["working: 3/3, 0 s"]


def test_a_line_every_so_often_when_piped(lines, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert list(progress("abcd", "working", 6, initial=2, last_line=False)) == list("abcd")
    assert [record.message for record in lines.records] == [
        "working: 4/6, 12 s",
        "working: 6/6, 24 s",
    ]


@pytest.mark.parametrize("silent", [logging.WARNING, logging.CRITICAL])
def test_a_level_above_info_silences_lines_and_bars(silent, caplog, monkeypatch):
    caplog.set_level(silent, "sharding")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress("abc", "working", 3)) == ["a", "b", "c"]
    assert terminal.getvalue() == ""
    assert not caplog.records


def test_a_bar_on_a_terminal(lines, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress("abc", "working", 5, initial=2)) == ["a", "b", "c"]
    assert "working" in terminal.getvalue()
    assert "/5" in terminal.getvalue()
    assert not lines.records


def test_quiet(lines):
    assert list(progress("abc", "working", 3, quiet=True)) == ["a", "b", "c"]
    assert not lines.records


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_of_unequal_work_come_more_rarely_and_tell_the_time_that_is_left(lines, clock):
    shown = OverallProgress("working")
    shown.start()
    told = []
    for second in range(2000):
        clock[0] = float(second)
        shown.show(second / 2000, "on a part")
        if len(lines.records) > len(told):
            told.append(second)
    assert told[:3] == [11, 22, 33]
    assert all(later - before > before / 10 for before, later in pairwise(told[10:]))
    messages = [record.message for record in lines.records]
    assert messages[0] == "working: 1 %, on a part, 11 s so far"
    assert messages[1] == "working: 1 %, on a part, 22 s so far, about 33 min left"
    shown.end("all of it")
    assert lines.records[-1].message == "working: all of it in 33 min"


def test_what_was_done_before_says_nothing_about_the_rest(lines, clock):
    shown = OverallProgress("working")
    shown.start()
    clock[0] = 60.0
    shown.show(0.75, "on a part", free=0.5)
    assert lines.records[-1].message == "working: 75 %, on a part, 60 s so far, about 60 s left"


def test_a_bar_of_unequal_work(lines, monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = OverallProgress("working")
    shown.start()
    clock[0] = 10.0
    shown.show(0.5, "on a part")
    shown.end("all of it")
    shown.close()
    assert " 50%|" in terminal.getvalue()
    assert "working: on a part, 10 s so far, about 10 s left" in terminal.getvalue()
    assert not lines.records


def test_unequal_work_that_is_quiet_or_has_not_started(lines, clock):
    for shown in (OverallProgress("working", quiet=True), OverallProgress("working")):
        if shown._quiet:
            shown.start()
        clock[0] += 1000
        assert not shown.due
        shown.show(0.5, "on a part")
        shown.end("all of it")
        shown.close()
    assert not lines.records


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
