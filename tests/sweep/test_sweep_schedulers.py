from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from distsynth.config import with_overrides
from distsynth.errors import ConfigError
from distsynth.presets import preset
from distsynth.sweep.folder import EpochRecord, TrialRecord
from distsynth.sweep.hyperparameters import Hyperparameters, Space, draw_candidates, invalid
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.schedulers import Halving, make_scheduler
from tune_spaces.architectures import conv_stacks, networks
from tune_spaces.domains import zero_or_log
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_weights import loss_weights

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
EPOCHS = 9
UNET = with_overrides(preset("unet-7"), {"train.epochs": EPOCHS})
NOBODY: Any = SimpleNamespace()


def plan(scheduler: Any, **sweep: Any) -> SweepPlan:
    return SweepPlan("lambdas", "0a1b2c3d", UNET, {}, SweepConfig(scheduler=scheduler, **sweep))


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


class Controller:
    """What a scheduler asks of Tune's controller: every trial runs, every save succeeds."""

    search_alg = None

    def __init__(self, trials: list[Any]) -> None:
        self.trials = trials

    def get_trials(self) -> list[Any]:
        return self.trials

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"

    def _schedule_trial_save(self, trial: Any, result: Any) -> str:  # noqa: ARG002
        return f"pointer to {trial.trial_id}"


class Member:
    """A trial of a population."""

    experiment_tag = ""

    def __init__(self, number: int, hyperparameters: Hyperparameters) -> None:
        self.trial_id = f"{number:05d}"
        self.config = {
            "sweep": "s",
            "trial": {"name": self.trial_id, "hyperparameters": hyperparameters},
        }
        self.status = "RUNNING"
        settings = SimpleNamespace(num_to_keep=None)
        manager = SimpleNamespace(checkpoint_config=settings, _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)
        self.evaluated_params: dict[str, Any] = {}

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.config["trial"]["hyperparameters"]

    def is_finished(self) -> bool:
        return False

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Ray tells of every exploration at length."""
    caplog.set_level(logging.WARNING, "ray.tune.schedulers.pbt")


def evolved(
    space: Space, candidates: list[Hyperparameters], epochs: int, moving: bool = False, **sweep: Any
) -> tuple[list[Member], list[Hyperparameters]]:
    """A population after some epochs, and all hyperparameters that were explored.

    In the first epoch nobody has a checkpoint yet that could be copied.

    Args:
        space: What is searched.
        candidates: One a member.
        epochs: How long all train.
        moving: Whether others are the best in each epoch; else those with the highest number.
        sweep: Of the plan.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    ranks = np.random.default_rng(0)
    scheduler = make_scheduler(plan("pbt", **sweep), space, ())
    assert isinstance(scheduler, PopulationBasedTraining)
    members: list[Any] = [
        Member(number, hyperparameters) for number, hyperparameters in enumerate(candidates)
    ]
    controller: Any = Controller(members)
    for member in members:
        scheduler.on_trial_add(controller, member)
    explored = []
    for epoch in range(1, epochs + 1):
        scores = ranks.permutation(len(candidates)) if moving else range(len(candidates))
        for member, score in zip(members, scores, strict=True):
            before = member.hyperparameters
            result = {"epoch": epoch, "score": float(score), "best_score": float(score)}
            scheduler.on_trial_result(controller, member, result)
            member.status = "RUNNING"
            if member.hyperparameters is not before:
                explored.append(member.hyperparameters)
    return members, explored


TUNED = {**loss_weights(), **learning_rates()}


def test_the_worse_copy_the_better_and_explore():
    candidates = draw_candidates(TUNED, UNET, 8, 0, keep_discriminator=True)[0]
    members, explored = evolved(TUNED, candidates, 2)
    assert [member.hyperparameters for member in members] == [*explored, *candidates[2:]]
    assert len(explored) == 2
    assert not [hyperparameters for hyperparameters in explored if hyperparameters in candidates]
    for member in members:
        assert member.config["sweep"] == "s"
        assert member.config["trial"]["name"] in ("00006", "00007", member.trial_id)


@pytest.mark.parametrize("resample", [0.0, 0.25, 1.0])
def test_explored_values_stay_in_their_domains(resample):
    space = {**TUNED, **networks()}
    candidates = draw_candidates(space, UNET, 8, 1, keep_discriminator=True)[0]
    _, explored = evolved(space, candidates, 100, moving=True, pbt_resample=resample)
    assert len({repr(hyperparameters) for hyperparameters in explored}) > 100
    pairs = [[hyperparameters[name] for name in networks()] for hyperparameters in candidates]
    for hyperparameters in explored:
        assert all(domain.is_valid(hyperparameters[name]) for name, domain in space.items()), (
            hyperparameters
        )
        assert [hyperparameters[name] for name in networks()] in pairs


@pytest.mark.parametrize("resample", [0.25, 1.0])
def test_explored_hyperparameters_can_be_run(resample):
    candidates = draw_candidates(TUNED, UNET, 8, 1, keep_discriminator=True)[0]
    _, explored = evolved(TUNED, candidates, 200, moving=True, pbt_resample=resample)
    reasons = {
        invalid(UNET, hyperparameters, keep_discriminator=True) for hyperparameters in explored
    }
    assert reasons == {None}


def test_without_resampling_a_value_is_scaled_and_zero_stays_zero():
    space = {
        "loss.lambda_bce": zero_or_log(0.01, 4),
        "loss.lambda_recon": tune.uniform(0.5, 1.0),
        "optim.lr_generator": tune.loguniform(1e-5, 1e-1),
    }
    hyperparameters = {"loss.lambda_bce": 0.0, "loss.lambda_recon": 0.9, "optim.lr_generator": 1e-3}
    _, explored = evolved(space, [dict(hyperparameters) for _ in range(8)], 9, pbt_resample=0.0)
    assert len(explored) == 16
    assert {row["loss.lambda_bce"] for row in explored} == {0.0}
    assert {row["loss.lambda_recon"] for row in explored} == {0.9 * 0.8, 1.0}
    assert {row["optim.lr_generator"] for row in explored} == {1e-3 * 0.8, 1e-3 * 1.2}


def test_choices_are_stepped_through():
    weights = [0.25, 0.5, 1.0, 2.0, 4.0]
    space = {"loss.lambda_recon": tune.choice(weights), **conv_stacks()}
    start = {**draw_candidates(space, UNET, 1, 0)[0][0], "loss.lambda_recon": 1.0}
    _, explored = evolved(space, [dict(start) for _ in range(8)], 9, pbt_resample=0.0)
    assert {row["loss.lambda_recon"] for row in explored} == {0.5, 2.0}
    assert all({**row, "loss.lambda_recon": 1.0} == start for row in explored)
    last = [start | {"loss.lambda_recon": 4.0} for _ in range(8)]
    _, explored = evolved(space, last, 9, pbt_resample=0.0)
    assert {row["loss.lambda_recon"] for row in explored} == {2.0, 4.0}


def test_an_epoch_without_a_score_moves_nobody():
    candidates = draw_candidates(TUNED, UNET, 4, 0, keep_discriminator=True)[0]
    scheduler = make_scheduler(plan("pbt"), TUNED, ())
    members: list[Any] = [
        Member(number, hyperparameters) for number, hyperparameters in enumerate(candidates)
    ]
    controller: Any = Controller(members)
    for member in members:
        scheduler.on_trial_add(controller, member)
    for member in members:
        assert scheduler.on_trial_result(controller, member, {"epoch": 1}) == CONTINUE
    assert [member.hyperparameters for member in members] == candidates


def test_members_are_moved_only_every_so_many_epochs():
    candidates = draw_candidates(TUNED, UNET, 8, 0, keep_discriminator=True)[0]
    counts = [len(evolved(TUNED, candidates, epochs, pbt_every=3)[1]) for epochs in (5, 6)]
    assert counts == [0, 2]
    assert len(evolved(TUNED, candidates, 2, pbt_quantile=0.5)[1]) == 4


def test_a_population_needs_something_to_mutate():
    with pytest.raises(ConfigError, match="pbt needs a loss weight or a learning rate"):
        make_scheduler(plan("pbt"), networks(), ())
