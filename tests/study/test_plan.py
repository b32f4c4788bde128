"""Each rule of a plan on cohorts of every kind: heads, mice, thick slices, thin brains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsynth.errors import ConfigError
from distsynth.study.plan import (
    REGISTERED,
    SLACK,
    network,
    patches,
    plan_from_json,
    plan_study,
    preparation,
    splits,
)
from distsynth.study.survey import Alignment, PairFacts, Survey
from distsynth.training.precision import Choice
from sharding.io.errors import DataError

FLOAT32 = Choice("no", "as tests compare numbers")


def cohort(*shapes, spacing=(0.8, 0.8, 0.8), alignment=(), count=10):
    """A survey of specimens of these shapes."""
    shapes = shapes * count if len(shapes) == 1 else shapes
    measured = [*alignment, *[None] * len(shapes)]
    return Survey(
        tuple(
            PairFacts(
                f"s{index}",
                shape,
                spacing,
                tuple(2 * size for size in spacing),
                "RAS",
                0.3,
                alignment=known,
            )
            for index, (shape, known) in enumerate(zip(shapes, measured, strict=False))
        )
    )


HEADS = cohort((160, 190, 140))


def test_heads_are_cut_into_blocks():
    config, stitch, reason = patches(HEADS)
    assert config.patch_size == (32, 32, 32)
    assert config.preprocess.intensities == "percentile"
    assert not stitch
    assert "160x190x140" in reason


def test_thick_slices_are_cut_along_them_with_neighbours():
    config, stitch, reason = patches(cohort((256, 256, 30), spacing=(0.9, 0.9, 5.0)))
    assert (config.patch_size, config.axes, config.dense_axes) == ((64, 64), (2,), (2,))
    assert config.neighbours == 2
    assert stitch["stitch.axes"] == [2]
    assert "5.6 times as long" in reason


def test_few_thick_slices_have_no_neighbours():
    config, _, _ = patches(cohort((256, 256, 4), spacing=(0.9, 0.9, 5.0)))
    assert config.neighbours == 0


def test_the_smallest_specimen_decides():
    shapes = [(80, 120, 50)] * 5 + [(46, 90, 28)] * 3
    config, stitch, reason = patches(cohort(*shapes))
    # 28 voxels hold no block: slices along the axis across which 46x90 lie, and no others.
    assert config.patch_size == (16, 16)
    assert "46x90x28" in reason
    assert stitch["stitch.axes"] == list(config.axes) == [0, 1, 2]


def test_slices_too_narrow_for_a_patch_are_not_cut():
    config, _, _ = patches(cohort((60, 60, 12)))
    assert (config.patch_size, config.axes) == ((48, 48), (2,))


def test_what_holds_no_patch_is_refused_by_name():
    with pytest.raises(DataError, match="s1: its 12x9x30 voxels hold no patch of 16"):
        patches(cohort((40, 40, 40), (12, 9, 30)))


@pytest.mark.parametrize(
    ("alignment", "steps"),
    [
        ([Alignment(0.1, False), Alignment(0.3, True)], ()),
        ([Alignment(4.0, False), Alignment(0.0, False)], ()),
        ([Alignment(0.1, False), Alignment(1.2, True)], REGISTERED),
    ],
)
def test_only_pairs_that_fit_better_for_it_are_registered(alignment, steps):
    found, reason = preparation(cohort((60, 60, 60), alignment=alignment))
    assert found == steps
    assert ("1.2 voxels" in reason) == bool(steps)


def test_what_could_not_be_measured_is_not_called_aligned():
    steps, reason = preparation(cohort((60, 60, 60)))
    assert steps == () and "no pair's alignment could be measured" in reason


@pytest.mark.parametrize(
    ("minutes", "gpus", "name"), [(2, 0, "quick"), (10, 0, "best"), (2, 1, "best-gpu")]
)
def test_time_and_device_choose_the_network(minutes, gpus, name):
    assert network(minutes, gpus)[0] == name


def test_the_precision_is_what_the_machine_gains_by():
    asked = []

    def gains(config):
        asked.append(config)
        return Choice("bf16", "a pass takes half its time")

    made = plan_study("/cohort.csv", HEADS, 5.0, 0, lambda *_: 0.25, gains)
    assert made.config("shards").train.precision == "bf16"
    assert made.reasons["precision"] == "bf16: a pass takes half its time"
    assert asked[0].data.sides == made.shards.patch_size


def plan(seen=HEADS, minutes=5.0, seconds=0.25, gpus=0):
    return plan_study("/cohort.csv", seen, minutes, gpus, lambda *_: seconds, lambda _: FLOAT32)


def test_one_pass_over_new_patches_fills_the_minutes():
    made = plan(minutes=3)
    config = made.config("shards")
    steps = 3 * 60 / 0.25
    epoch = 6 * made.shards.patches_per_specimen // config.train.batch_size
    assert config.train.epochs * epoch == pytest.approx(SLACK * steps, rel=0.1)
    assert config.train.epochs / SLACK == 1
    assert made.shards.patches_per_specimen == steps * config.train.batch_size // 6
    assert config.train.minutes == 3
    assert config.train.checkpoint_every == 60 / 0.25
    assert "about 720 fit 3 minutes: one pass over 240 patches" in made.reasons["length"]
    assert "at the end: there is one pass" in made.reasons["validation"]


def test_more_time_than_patches_means_more_epochs():
    made = plan(minutes=600)
    assert made.shards.patches_per_specimen == 300
    config = made.config("shards")
    assert config.train.epochs > 100
    assert config.train.epochs / SLACK // config.train.validate_every <= 2 * 15


def test_validations_take_a_tenth_of_the_training_at_most():
    named = ("train", "val", "val", "val", "test", "test", "test", "test", "test")
    pairs = [replace(pair, split=split) for pair, split in zip(HEADS.pairs, named, strict=False)]
    made = plan(Survey(tuple(pairs)), minutes=5)
    config = made.config("shards")
    validations = config.train.epochs / SLACK
    assert 1 < validations <= 15
    blocks, validated, steps = 5 * 6 * 5, 3, 5 * 60 / 0.25
    cost = config.train.validate_share * blocks * validated * validations * 0.5
    assert 0.09 * steps < cost / config.train.batch_size <= 0.1 * steps
    assert f"{config.train.validate_share:.0%} of the layers" in made.reasons["validation"]


def test_a_training_that_takes_much_longer_than_its_validations_looks_at_all():
    made = plan(minutes=600, seconds=0.01)
    assert made.config("shards").train.validate_share == 1
    assert made.reasons["validation"] == "whole validation specimens"


@pytest.mark.parametrize(
    "seen",
    [
        HEADS,
        cohort((256, 256, 30), spacing=(0.9, 0.9, 5.0)),
        cohort((60, 60, 12)),
        cohort((46, 90, 28)),
    ],
)
@pytest.mark.parametrize(("minutes", "gpus"), [(2, 0), (30, 0), (10, 1)])
def test_every_plan_is_a_valid_training_and_comes_back_from_json(seen, minutes, gpus):
    made = plan(seen, minutes, gpus=gpus)
    assert plan_from_json(made.to_json(), "plan.json") == made
    assert made.config("shards").data.shards == "shards"


def test_a_changed_plan_is_checked():
    text = plan().to_json()
    with pytest.raises(ConfigError, match=r"plan.json: .*train.epochs"):
        plan_from_json(text.replace('"train.epochs": ', '"train.epochs": -'), "plan.json")
    with pytest.raises(ConfigError, match=r"plan.json is not a plan .*minutes"):
        plan_from_json(text.replace('"minutes": 5.0', '"minutes": "many"'), "plan.json")
    with pytest.raises(ConfigError, match=r"plan.json: best-of-all is not a preset"):
        plan_from_json(text.replace('"preset": "quick"', '"preset": "best-of-all"'), "plan.json")


@pytest.mark.parametrize(
    ("minutes", "gpus"), [(0, 0), (float("nan"), 0), (float("inf"), 0), (-1, 0), (5, -1), (5, 2)]
)
def test_no_time_and_several_processes_are_no_plan(minutes, gpus):
    with pytest.raises(ConfigError, match="must be"):
        plan(minutes=minutes, gpus=gpus)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (3, "1 train, 1 val, 1 test"),
        (8, "5 train, 1 val, 2 test"),
        (18, "9 train, 3 val, 6 test"),
        (24, "14 train, 4 val, 6 test"),
        (100, "65 train, 15 val, 20 test"),
    ],
)
def test_enough_specimens_are_tested_on_where_there_are_enough(count, sizes):
    shares, reason = splits(cohort((60, 60, 60), count=count))
    assert sum(shares) == pytest.approx(1)
    assert sizes in reason
    assert ("would make a test possible" in reason) == (count < 18)


def test_splits_of_the_cohort_are_kept():
    named = ("train", "train", "val", "test")
    pairs = [replace(pair, split=split) for pair, split in zip(HEADS.pairs, named, strict=False)]
    made = plan(Survey(tuple(pairs)))
    assert made.reasons["splits"] == "the cohort's own: 2 train, 1 val, 1 test"
    assert "each of 2 training specimens" in made.reasons["length"]


def test_too_few_specimens_are_refused():
    few = replace(HEADS, pairs=HEADS.pairs[:2])
    with pytest.raises(DataError, match="cannot fill 3 splits"):
        plan(few)
