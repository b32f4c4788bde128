from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
)
from scheduled_sweep import CONTINUE, EPOCHS, NOBODY, STOP, plan

from distsynth.sweep.folder import EpochRecord, TrialRecord
from distsynth.sweep.schedulers import Halving, make_scheduler

# --- halving


class Named:
    """A trial as Tune holds it: an id that changes with every driver, and our name."""

    def __init__(self, name: str, driver: str) -> None:
        self.name, self.trial_id = name, f"{driver}-{name}"

    def __str__(self) -> str:
        return self.name


def plain_halving(grace: int = 1, reduction: float = 3.0) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="best_score",
        mode="max",
        max_t=EPOCHS,
        grace_period=grace,
        reduction_factor=reduction,
        stop_last_trials=False,
    )


class Sweep:
    """Trials that are trained in a given order of epochs, compared by a scheduler.

    Args:
        scores: Of each trial and epoch; None where it was not validated.
    """

    def __init__(self, scores: list[list[float | None]]) -> None:
        self.scores = scores
        self.records = {
            f"{number:05d}": TrialRecord(f"{number:05d}", {}) for number in range(len(scores))
        }
        self.ended: set[str] = set()

    def drive(self, scheduler: Any, driver: str, turns: list[int]) -> list[str]:
        """Train the trial of each turn for one epoch; returns what the scheduler decided."""
        trials: dict[str, Any] = {
            name: Named(name, driver) for name in self.records if name not in self.ended
        }
        for trial in trials.values():
            scheduler.on_trial_add(NOBODY, trial)
        decisions = []
        for turn in turns:
            name = f"{turn:05d}"
            if name in self.ended:
                decisions.append("ended")
                continue
            result = self.train(name)
            if self.records[name].epochs == EPOCHS:
                # Tune asks no scheduler whether a trial that is done shall go on.
                scheduler.on_trial_complete(NOBODY, trials[name], result)
                decision = STOP
            else:
                decision = scheduler.on_trial_result(NOBODY, trials[name], result)
            if decision == STOP:
                self.ended.add(name)
            decisions.append(decision)
        return decisions

    def train(self, name: str) -> dict[str, Any]:
        """One more epoch; returns the result that a trial gives to Tune."""
        record = self.records[name]
        epoch = record.epochs + 1
        score = self.scores[int(name)][epoch - 1]
        scores = (*(row.score for row in record.reports), score)
        best = max((each for each in scores if each is not None), default=None)
        self.records[name] = record.with_reports([EpochRecord(epoch, 5 * epoch, {}, score, best)])
        if score is None:
            return {"epoch": epoch}
        return {"epoch": epoch, "score": score, "best_score": best}


TRIALS = 5
SCORES = st.lists(
    st.lists(st.integers(-20, 20).map(float), min_size=EPOCHS, max_size=EPOCHS),
    min_size=TRIALS,
    max_size=TRIALS,
)
TURNS = st.lists(st.integers(0, TRIALS - 1), min_size=20, max_size=45)
SETTINGS = st.tuples(st.integers(1, 4), st.sampled_from([1.5, 2.0, 3.0, 4.0]))


def assert_rebuilding_changes_no_decision(scores, turns, cut, grace, reduction):
    whole, broken = Sweep(scores), Sweep(scores)
    expected = whole.drive(plain_halving(grace, reduction), "a", turns)
    first = broken.drive(plain_halving(grace, reduction), "a", turns[:cut])
    again = Halving(EPOCHS, grace, reduction)
    again.remember(broken.records.values())
    assert first + broken.drive(again, "b", turns[cut:]) == expected
    assert broken.records == whole.records


@settings(deadline=None)
@given(SCORES, TURNS, st.floats(0, 1), SETTINGS)
def test_rebuilt_rungs_decide_as_unbroken_ones(scores, turns, share, settings):
    cut = int(share * len(turns))
    assert_rebuilding_changes_no_decision(scores, turns, cut, *settings)


@settings(deadline=None)
@given(SCORES, TURNS, st.floats(0, 1), SETTINGS, st.integers(2, 4))
def test_rebuilt_rungs_decide_likewise_where_not_every_epoch_is_validated(
    scores, turns, share, settings, every
):
    rare = [
        [
            score if epoch % every == 0 or epoch == EPOCHS else None
            for epoch, score in enumerate(row, start=1)
        ]
        for row in scores
    ]
    cut = int(share * len(turns))
    assert_rebuilding_changes_no_decision(rare, turns, cut, *settings)


def test_an_epoch_that_was_not_validated_is_on_no_rung():
    """It has no score to report, only the best one of before."""
    scores = [[None, 5.0, None, 9.0, *[9.0] * 5], [None, 6.0, None, 7.0, *[9.0] * 5]]
    turns = [0, 0, 0, 0, 1, 1, 1, 1]
    assert Sweep(scores).drive(plain_halving(), "a", turns) == [CONTINUE] * 7 + [STOP]
    assert_rebuilding_changes_no_decision(scores, turns, 4, 1, 3.0)


def test_these_sweeps_have_trials_that_are_stopped():
    scores: list[list[float | None]] = [[float(-number)] * EPOCHS for number in range(TRIALS)]
    sweep = Sweep(scores)
    turns = [number for _ in range(EPOCHS) for number in range(TRIALS)]
    decisions = sweep.drive(plain_halving(), "a", turns)
    assert decisions[:TRIALS] == [CONTINUE] + [STOP] * (TRIALS - 1)
    assert sweep.records["00000"].epochs == EPOCHS
    assert [sweep.records[f"{number:05d}"].epochs for number in range(1, TRIALS)] == [1] * (
        TRIALS - 1
    )


def test_a_trial_that_goes_on_is_not_judged_again_at_its_old_rungs():
    scores: list[list[float | None]] = [[1.0] * EPOCHS, [5.0] * EPOCHS, [9.0] * EPOCHS]
    sweep = Sweep(scores)
    assert sweep.drive(plain_halving(), "a", [0, 1, 2]) == [CONTINUE] * 3
    scheduler = Halving(EPOCHS, 1, 3.0)
    scheduler.remember(sweep.records.values())
    assert sweep.drive(scheduler, "b", [0]) == [CONTINUE]


def test_a_new_trial_is_judged_against_those_of_before():
    for remembered, decision in ((True, STOP), (False, CONTINUE)):
        sweep = Sweep([[5.0] * EPOCHS, [1.0] * EPOCHS])
        sweep.drive(plain_halving(), "a", [0])
        scheduler = Halving(EPOCHS, 1, 3.0)
        if remembered:
            scheduler.remember(sweep.records.values())
        assert sweep.drive(scheduler, "b", [1]) == [decision]


def rungs(scheduler: Halving) -> dict[int, dict[str, float]]:
    return {int(milestone): dict(recorded) for milestone, recorded in scheduler._brackets[0]._rungs}


def report(epoch: int, best: float | None) -> EpochRecord:
    return EpochRecord(epoch, epoch, {}, best, best)


def test_rungs_know_a_trial_by_tunes_id_from_when_it_is_added():
    records = [
        TrialRecord("00000", {}, reports=(report(1, 1.0), report(2, 2.0), report(3, 3.0))),
        TrialRecord("00001", {}, status="stopped", reports=(report(1, 0.5),)),
        TrialRecord("00002", {}, reports=(report(1, None),)),
        TrialRecord("00003", {}),
    ]
    scheduler = Halving(EPOCHS, 1, 3.0)
    scheduler.remember(records)
    assert rungs(scheduler) == {9: {}, 3: {"00000": 3.0}, 1: {"00000": 1.0, "00001": 0.5}}
    trials: list[Any] = [Named("00000", "b"), Named("00003", "b")]
    for trial in trials:
        scheduler.on_trial_add(NOBODY, trial)
    assert rungs(scheduler) == {9: {}, 3: {"b-00000": 3.0}, 1: {"b-00000": 1.0, "00001": 0.5}}
    assert scheduler.on_trial_result(NOBODY, trials[1], {"epoch": 1, "best_score": 0.0}) == STOP


@pytest.mark.parametrize(("epochs", "grace", "expected"), [(9, 2, [6, 2]), (2, 5, [2])])
def test_rungs_lie_between_grace_and_the_last_epoch(epochs, grace, expected):
    assert list(rungs(Halving(epochs, grace, 3.0))) == expected


def test_a_plan_makes_the_scheduler_that_it_names():
    records = [TrialRecord("00000", {}, reports=(report(1, 1.0), report(2, 2.0)))]
    assert type(make_scheduler(plan("fifo"), {}, records)) is FIFOScheduler
    halving = make_scheduler(plan("asha", asha_grace=2, asha_reduction=4.0), {}, records)
    assert isinstance(halving, Halving)
    assert rungs(halving) == {8: {}, 2: {"00000": 2.0}}


# --- a population
