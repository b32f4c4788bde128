from __future__ import annotations

import io
import logging
import sys

import pytest

from sharding.io import progress as module
from sharding.io.progress import progress

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
