"""Rows, budgets and tasks of the paper's comparison."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsynth.config import dotted_fields
from distsynth.errors import ConfigError
from distsynth.presets import OURS, PRESETS
from distsynth.reproduction.budget import Budget
from distsynth.reproduction.paper_values import PAPER_VALUES
from distsynth.reproduction.rows import (
    CNNS,
    FORESTS,
    GANS,
    NETWORKS,
    QUESTIONS,
    ROWS,
    USUAL,
    chosen_rows,
)
from distsynth.reproduction.run import warn_of_untrained
from distsynth.reproduction.task import Task, check_same_task, task_from_json

CLEAN = ("dcgan-4", "dcgan-3")


# What is compared.


def test_every_preset_of_the_paper_is_a_row():
    assert set(CNNS + GANS) == set(PAPER_VALUES) == set(PRESETS) - set(OURS)
    assert set(CNNS + GANS) | set(FORESTS) < set(ROWS)
    for name in CNNS + GANS:
        assert NETWORKS[name].config == PRESETS[name]


def differing(first: str, second: str) -> set[str]:
    one, other = (dict(dotted_fields(NETWORKS[name].config)) for name in (first, second))
    none = object()
    return {n for n in one.keys() | other.keys() if one.get(n, none) != other.get(n, none)}


@pytest.mark.parametrize("name", ["dcgan-2", "unet-7"])
def test_a_generator_alone_differs_in_its_discriminator_only(name):
    found = differing(name, f"{name}-alone")
    assert {"loss.lambda_bce", "discriminator.family"} <= found
    # The other fields of a discriminator belong to its family.
    rest = found - {"loss.lambda_bce"}
    assert {field.partition(".")[0] for field in rest} == {"discriminator"}


def test_gradient_and_sharpening_are_crossed():
    gradient, sharpening = {"loss.lambda_gradient"}, {"generator.sharpen"}
    assert differing("unet-5", "unet-5-no-gradient") == gradient
    assert differing("unet-6", "unet-6-no-gradient") == gradient
    assert differing("unet-5", "unet-6") == sharpening
    assert differing("unet-5-no-gradient", "unet-6-no-gradient") == sharpening


def test_questions_are_asked_of_rows():
    assert {name for first, second, _ in QUESTIONS for name in (first, second)} <= set(ROWS)


def test_rows_come_in_the_order_of_the_table():
    assert chosen_rows(()) == USUAL
    assert set(GANS + CNNS + FORESTS) < set(USUAL) < set(ROWS)
    assert chosen_rows(("unet-5-margin", "fcn-1")) == ("fcn-1", "unet-5-margin")
    assert chosen_rows(("rfsr", "unet-5", "fcn-1")) == ("fcn-1", "unet-5", "rfsr")
    with pytest.raises(ConfigError, match="unet-55 is not a row"):
        chosen_rows(("unet-55",))


# What was asked for.


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("epochs", 1.5), ("patches", 0), ("stride", 49), ("trees", 0)],
)
def test_a_budget_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"budget.{field} must be"):
        Budget(**{field: value})


def test_a_budget_is_told_in_words():
    assert (
        Budget(0.1, patches=60, stride=44).in_words(30)
        == "3 of 30 epochs, 60 of 300 patches a specimen, stride 44"
    )
    assert Budget(0.01).epochs_of(30) == 1
    assert Budget(0.01, least_epochs=7).epochs_of(30) == 7
    assert Budget(least_epochs=7, slow_epochs=2).epochs_of(30, slow=True) == 2
    assert Budget(least_epochs=7, slow_epochs=2).epochs_of(30) == 30
    assert Budget(0.1, slow_epochs=2).in_words(30, slow=True).startswith("2 of 30 epochs")
    assert Budget().in_words(10) == "10 of 10 epochs, 300 of 300 patches a specimen, stride 20"


def test_the_full_budget_changes_nothing_but_seed_and_precision():
    task = Task("cohort", "shards", ROWS, seeds=2)
    # All rows train in float32, so that they compare.
    changed = {"train.validate_every", "train.seed", "train.precision"}
    for name in task.networks():
        assert task.config(name, 1).train.precision == "no"
        before, now = (
            dict(dotted_fields(c)) for c in (NETWORKS[name].config, task.config(name, 1))
        )
        assert {field for field in now if now[field] != before[field]} <= changed


def test_slow_rows_have_a_budget_of_their_own_and_all_have_the_precision():
    budget = Budget(0.01, least_epochs=7, slow_epochs=2)
    task = Task("cohort", "shards", ROWS, budget=budget, precision="bf16")
    assert {name for name in task.networks() if task.config(name).train.epochs == 2} == {
        *("fcn-1", "dcgan-2", "dcgan-3", "dcgan-4", "dcgan-2-alone")
    }
    assert {task.config(name).train.epochs for name in task.networks()} == {2, 7}
    assert {task.config(name).train.precision for name in task.networks()} == {"bf16"}


def test_a_task_comes_back_from_json_and_another_one_is_refused():
    task = Task("cohort", "shards", ("unet-5",), 1, Budget(0.1))
    assert task_from_json(task.to_json(), "here") == task
    check_same_task(task, Task("cohort", "shards", ROWS, 3, Budget(0.1)))
    with pytest.raises(ConfigError, match=r'budget: \{"epochs": 0.1.* before, \{"epochs": 0.2'):
        check_same_task(task, Task("cohort", "shards", ("unet-5",), 1, Budget(0.2)))
    with pytest.raises(ConfigError, match=r"here is not a reproduction .*budget\.epochs"):
        task_from_json(task.to_json().replace("0.1", '"many"'), "here")


def test_rows_that_the_budget_leaves_untrained_are_named_beforehand(caplog):
    task = Task("cohort", "shards", ("fcn-1", "dcsrn-perceptual", "unet-7", "rfsr"))
    assert task.steps("unet-7", 9300) == 30 * (9300 // 32)
    warn_of_untrained(task, 9300)
    assert not caplog.records
    warn_of_untrained(replace(task, budget=Budget(0.1)), 9300)
    assert "2 of 2 networks below 1,000 optimiser steps (fcn-1 290, unet-7 870)" in caplog.text


def test_the_only_clean_pair_for_the_gradient_term_is_asked():
    asked = {metric for first, second, metric in QUESTIONS if (first, second) == CLEAN}
    assert asked == {"psnr_mask", "ssim_mask", "seam_index"}
    assert differing(*CLEAN) == {"loss.lambda_gradient"}


# The whole of it.
