"""Population based training: who copies whom, and what is explored."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.schedulers import (
    PopulationBasedTraining,
)
from scheduled_sweep import CONTINUE, UNET, plan

from distsynth.errors import ConfigError
from distsynth.sweep.hyperparameters import Hyperparameters, Space, draw_candidates, invalid
from distsynth.sweep.schedulers import make_scheduler
from tune_spaces.architectures import conv_stacks, networks
from tune_spaces.domains import zero_or_log
from tune_spaces.learning_rates import learning_rates
from tune_spaces.loss_weights import loss_weights


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
