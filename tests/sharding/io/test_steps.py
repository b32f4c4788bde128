"""Items that are made in steps: what is under way is shown, wherever it is made."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from sharding.io import progress, steps
from sharding.io.errors import DataError
from sharding.io.parallel import run_each
from sharding.io.steps import StepProgress, begin_step

WEIGHTS = {"cut": 1.0, "sew": 3.0}


@dataclass(frozen=True)
class Shirt:
    """An item; a bad one fails when it is sewn, a finished one takes no step."""

    name: str
    bad: bool = False
    done: bool = False


def make(shirt: Shirt) -> str:
    if shirt.done:
        return shirt.name
    begin_step(shirt.name, "cut")
    begin_step(shirt.name, "sew")
    if shirt.bad:
        raise DataError(shirt.name, "must hold", "Take another thread")
    return shirt.name


@pytest.fixture
def lines(caplog, monkeypatch):
    """Every change of the state, as a line."""
    caplog.set_level(logging.INFO, "sharding")
    for name in ("SECONDS_BETWEEN_LINES", "SHARE_BETWEEN_LINES", "MOST_SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress, name, -1)
    # The time that is left depends on the machine.
    monkeypatch.setattr(progress, "LEAST_SECONDS", 1e9)
    monkeypatch.setattr(steps, "SECONDS_BETWEEN_TICKS", 1e6)
    return lambda: [record.message.rpartition(", ")[0] for record in caplog.records]


def test_each_step_and_each_end_are_shown(lines):
    with StepProgress("making", 4, WEIGHTS) as shown:
        shown.begin(("a", "cut"))
        shown.begin(("b", "cut"))
        shown.begin(("a", "sew"))
        shown.finish("a")
        shown.finish("c")
    assert lines()[:5] == [
        "making: 0 %, 0 of 4 done; a cut",
        "making: 0 %, 0 of 4 done; a cut, b cut",
        "making: 6 %, 0 of 4 done; a sew, b cut",
        "making: 25 %, 1 of 4 done; b cut",
        "making: 50 %, 2 of 4 done; b cut",
    ]


def test_only_some_of_many_are_named(lines):
    with StepProgress("making", 9, WEIGHTS) as shown:
        for name in "abcdef":
            shown.begin((name, "cut"))
    assert lines()[5] == "making: 0 %, 0 of 9 done; a cut, b cut, c cut, d cut and 2 more"


def test_this_process_tells_of_its_steps(lines):
    shirts = [Shirt("a"), Shirt("b", bad=True), Shirt("c", done=True)]
    outcomes = {
        shirt.name: found for shirt, found in run_each(make, shirts, 1, "making", steps=WEIGHTS)
    }
    assert outcomes["a"] == "a" and isinstance(outcomes["b"], DataError)
    assert lines()[:7] == [
        "making: 0 %, 0 of 3 done; a cut",
        "making: 8 %, 0 of 3 done; a sew",
        "making: 33 %, 1 of 3 done",
        "making: 33 %, 1 of 3 done; b cut",
        "making: 42 %, 1 of 3 done; b sew",
        "making: 67 %, 2 of 3 done",
        "making: 100 %, 3 of 3 done",
    ]
    # Nobody listens any more.
    begin_step("d", "cut")
    assert len(lines()) == 8


@pytest.mark.slow
def test_workers_tell_of_their_steps(lines):
    shirts = [Shirt(f"{number}") for number in range(4)]
    list(run_each(make, shirts, 2, "making", steps=WEIGHTS))
    said = " ".join(lines())
    assert "4 of 4 done" in said
    assert any(f"{shirt.name} sew" in said for shirt in shirts)
