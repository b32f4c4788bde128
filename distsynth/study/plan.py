"""A plan of a study: how to prepare, cut and train, by rules that look at data, machine and time.

Each rule is a function from what was seen to a choice and its reason; docs/how-to/run-a-study.md
states them in words. The plan is a small file that a person may read and change before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.presets import EVEN_BLOCKS, preset
from distsynth.study.survey import DISPLACED, Survey
from distsynth.training.precision import Choice
from sharding.io.errors import DataError
from sharding.io.records import STRICT, first_complaint
from sharding.registration.config import StepName
from sharding.shards.config import ShardConfig
from sharding.shards.patches import dense_locations
from sharding.volumes.cohort import SPLITS
from sharding.volumes.splits import split_sizes

ISOTROPIC = 2.0
"""Blocks are cut where the voxels are at most this many times as long as they are wide."""
LARGEST_PATCH, LEAST_PATCH, PATCH_STEP = 64, 16, 16
"""Sides of a slice's patch."""
LARGEST_BATCH = 64
"""Patches of slices in a batch, which else holds as many voxels as one of blocks."""
NEIGHBOURS = 2
"""Slices on each side that a patch of thick slices carries."""
QUICK_MINUTES = 10.0
"""A training of less time takes the smaller network."""
TESTED, VALIDATED, LEAST_TESTED = 0.2, 0.15, 6
"""Shares of the cohort that are tested and validated on, and the fewest that allow a test."""
VALIDATIONS = 15
"""Of a training of more epochs, about."""
VALIDATION_TIME, VALIDATION_COST = 0.1, 0.5
"""The share of the training's time that validations may take while it goes on, and what a patch
costs in one, metrics included, of what it costs in a training step: 0.36 was measured."""
SLACK = 4
"""Times as many epochs as are expected to fit: the clock ends the training."""
CHECKPOINT_SECONDS = 60
"""A training that is killed loses about so much of its work."""
LEAST_PATCHES, MOST_PATCHES = 8, 300
"""Training patches a specimen: as many as one pass over them takes the time, for new ones teach
more than those seen before; the paper's 300 at most."""
REGISTERED: tuple[StepName, ...] = ("correct", "scale", "rigid", "resample")


@dataclass(frozen=True)
class StudyPlan:
    """What a study does.

    Attributes:
        cohort: Absolute path of the cohort.
        minutes: Time that the training is given.
        prepare: Steps of the preparation; none leaves the scans as they are.
        shards: What is cut.
        preset: What the training starts from.
        changes: Dotted fields that differ from the preset.
        reasons: Topic -> why it was chosen so.
        survey: What the cohort is like.
        gpus: 1 to train on a GPU, 0 to train on the processor.
    """

    __pydantic_config__ = STRICT

    cohort: str
    minutes: float
    prepare: tuple[StepName, ...]
    shards: ShardConfig
    preset: str
    changes: dict[str, Any]
    reasons: dict[str, str]
    survey: Survey
    gpus: int = 0

    def config(self, shards: str) -> RunConfig:
        """The training on shards that lie there."""
        return with_overrides(preset(self.preset), {**self.changes, "data.shards": shards})

    def to_json(self) -> str:
        """Indented JSON."""
        return _PLAN.dump_json(self, indent=1).decode() + "\n"


_PLAN = TypeAdapter(StudyPlan)


def plan_from_json(text: str | bytes, where: str) -> StudyPlan:
    """Inverse of StudyPlan.to_json.

    Raises:
        ConfigError: If it is no plan that can be read, or its training is not valid; names the
            file and the field.
    """
    try:
        plan = _PLAN.validate_json(text)
        plan.config("shards")
    except ValidationError as error:
        raise ConfigError(
            f"{where} is not a plan that can be read ({first_complaint(error)}): correct it, or "
            "remove it to plan anew"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; correct it, or remove it to plan anew") from None
    return plan


def plan_study(
    cohort: str,
    seen: Survey,
    minutes: float,
    gpus: int,
    timed_step: Callable[[RunConfig, ShardConfig], float],
    precision: Callable[[RunConfig], Choice],
) -> StudyPlan:
    """Choose by the rules.

    Args:
        cohort: Absolute path of the cohort.
        seen: What it is like.
        minutes: Time that the training is given.
        gpus: GPUs that it may use.
        timed_step: Measures the seconds of a step on this machine.
        precision: Chooses the precision of the training on this machine.

    Raises:
        ConfigError: If minutes or gpus make no sense.
        DataError: If the smallest specimen holds no patch.
    """
    check_asked(minutes, gpus)
    reasons: dict[str, str] = {}
    prepare, reasons["preparation"] = preparation(seen)
    shards, cut, reasons["patches"] = patches(seen)
    name, reasons["network"] = network(minutes, gpus)
    fractions, reasons["splits"] = splits(seen)
    shards = replace(shards, fractions=fractions)
    changes: dict[str, Any] = {**cut, "train.minutes": minutes}
    changes["train.device"] = "auto" if gpus else "cpu"
    config = with_overrides(
        preset(name),
        {
            **changes,
            "data.patch_size": shards.patch_size,
            "data.neighbours": shards.neighbours,
            "data.contrasts": max(1, len(seen.contrasts)),
        },
    )
    choice = precision(config)
    changes["train.precision"], reasons["precision"] = choice.precision, str(choice)
    config = with_overrides(config, {"train.precision": choice.precision})
    seconds = timed_step(config, shards)
    training = training_specimens(seen, shards)
    steps = max(1, int(minutes * 60 / seconds))
    each = steps * config.train.batch_size // training
    shards = replace(shards, patches_per_specimen=min(MOST_PATCHES, max(LEAST_PATCHES, each)))
    epoch_steps = max(1, training * shards.patches_per_specimen // config.train.batch_size)
    epochs = max(1, round(steps / epoch_steps))
    changes["train.epochs"] = SLACK * epochs
    validate_every = changes["train.validate_every"] = max(1, epochs // VALIDATIONS)
    share = validate_share(seen, shards, config.train.batch_size, steps, epochs)
    changes["train.validate_share"] = share
    changes["train.checkpoint_every"] = max(1, int(CHECKPOINT_SECONDS / seconds))
    reasons["validation"] = describe_validation(share, validate_every, epochs)
    passes = "one pass over" if epochs == 1 else f"{epochs} epochs of"
    counted = "by the clock" if gpus else "of processor time a thread, whatever else runs"
    reasons["length"] = (
        f"a step takes {seconds:.3g} s here ({counted}), so that about {steps:,} fit "
        f"{minutes:g} minutes: {passes} {shards.patches_per_specimen} patches from each of "
        f"{training} training specimens"
    )
    return StudyPlan(cohort, minutes, prepare, shards, name, changes, reasons, seen, gpus)


def check_asked(minutes: float, gpus: int) -> None:
    """Refuse a plan for no time, or for other than one process.

    Raises:
        ConfigError: Names the option, the rule and the value.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes must be > 0 and finite, got {minutes}")
    if gpus not in (0, 1):
        raise ConfigError(
            f"--gpus must be 0 or 1, got {gpus}: a study trains in one process; for more, shard "
            "and train stage by stage with accelerate launch"
        )


def preparation(seen: Survey) -> tuple[tuple[StepName, ...], str]:
    """Register rigidly what the headers do not align, and leave alone what they do."""
    moved, count = seen.displacement_voxels, sum(pair.alignment is not None for pair in seen.pairs)
    if not count:
        return (), "none: no pair's alignment could be measured; look at some before you train"
    if moved < DISPLACED:
        return (), (
            f"none: the headers align the {count} pairs that were measured; a rigid registration "
            f"improves none of them by moving it {DISPLACED:g} voxels or more"
        )
    return REGISTERED, (
        f"bias correction and rigid registration: it moves one of {count} measured pairs by "
        f"{moved:.1f} voxels, and they fit better for it. Add affine and deform to `prepare` where "
        "the tissue itself is deformed, by distortion or another holder"
    )


def patches(seen: Survey) -> tuple[ShardConfig, dict[str, Any], str]:
    """Blocks where they fit and voxels are nearly cubes, else slices, with neighbours if thick.

    Returns:
        What to cut, fields of the training that go with it, and the reason.

    Raises:
        DataError: If no patch of LEAST_PATCH fits.
    """
    sides, spacing, block = seen.smallest, seen.spacing_mm, EVEN_BLOCKS.patch_size[0]
    shape = "x".join(map(str, sides))
    stretched = max(spacing) / min(spacing)
    if min(sides) >= block and stretched <= ISOTROPIC:
        reason = f"blocks of {block}: the smallest specimen has {shape} voxels, nearly cubes"
        return EVEN_BLOCKS, {}, reason
    thick = max(range(3), key=lambda axis: spacing[axis])
    wanted = (thick,) if stretched > ISOTROPIC else (0, 1, 2)
    planes = {axis: min(sides[other] for other in range(3) if other != axis) for axis in wanted}
    axes = tuple(axis for axis in wanted if planes[axis] >= LEAST_PATCH)
    if not axes:
        small = min(seen.pairs, key=lambda pair: min(pair.shape))
        raise DataError(
            small.specimen,
            f"its {'x'.join(map(str, small.shape))} voxels hold no patch of {LEAST_PATCH}",
            "Leave the specimen out, or resample the cohort to a finer grid",
        )
    fitting = min(planes[axis] for axis in axes)
    side = min(LARGEST_PATCH, fitting // PATCH_STEP * PATCH_STEP)
    neighbours = NEIGHBOURS if stretched > ISOTROPIC and sides[thick] > 2 * NEIGHBOURS else 0
    config = replace(
        EVEN_BLOCKS,
        patch_size=(side, side),
        axes=axes,
        dense_axes=axes,
        neighbours=neighbours,
        stride=side,
    )
    why = (
        f"voxels are {stretched:.1f} times as long as they are wide"
        if stretched > ISOTROPIC
        else f"the smallest specimen, {shape} voxels, holds no block of {block}"
    )
    slices = f"slices along axis {', '.join(map(str, axes))}"
    more = f" with {neighbours} neighbours on each side" if neighbours else ""
    batch = min(LARGEST_BATCH, 2 * block**3 // side**2)
    changes = {"stitch.stride": side, "stitch.axes": list(axes), "train.batch_size": batch}
    return config, changes, f"{side}x{side} {slices}{more}: {why}"


def splits(seen: Survey) -> tuple[tuple[float, float, float], str]:
    """The cohort's own splits; else a fifth to test, six or more where that leaves most to train.

    Six is the fewest specimens with which a paired test can be significant.
    """
    usual = EVEN_BLOCKS.fractions
    if named := [pair.split for pair in seen.pairs if pair.split]:
        counts = ", ".join(f"{named.count(split)} {split}" for split in SPLITS)
        return usual, f"the cohort's own: {counts}"
    count = len(seen.pairs)
    tested = max(TESTED * count, LEAST_TESTED if count >= 3 * LEAST_TESTED else 1.0) / count
    tested = min(tested, 0.4)
    shares = (1 - VALIDATED - tested, VALIDATED, tested)
    try:
        train, val, test = split_sizes(count, shares)
    except ValueError as error:
        raise DataError("cohort", str(error), "Add specimens") from error
    few = f"; {LEAST_TESTED} or more would make a test possible" if test < LEAST_TESTED else ""
    return shares, f"at random by specimen: {train} train, {val} val, {test} test{few}"


def network(minutes: float, gpus: int) -> tuple[str, str]:
    """The preset for the time and the device."""
    if gpus:
        return "best-gpu", "best-gpu: there is a GPU"
    if minutes < QUICK_MINUTES:
        return "quick", f"quick: less than {QUICK_MINUTES:g} minutes on processor cores"
    return "best", f"best: {minutes:g} minutes on processor cores"


def training_specimens(seen: Survey, shards: ShardConfig) -> int:
    """How many specimens train, by the cohort's own splits or else by shares."""
    return _specimens(seen, shards)[0]


def validate_share(
    seen: Survey, shards: ShardConfig, batch_size: int, steps: int, epochs: int
) -> float:
    """The share of validation specimens that keeps all validations within VALIDATION_TIME.

    Args:
        seen: The cohort.
        shards: Its patches.
        batch_size: Patches a step.
        steps: Of the training.
        epochs: Of the training.

    Returns:
        In hundredths, at least one.
    """
    shapes = [pair.shape for pair in seen.pairs]
    middle = [int(np.median(sides)) for sides in zip(*shapes, strict=True)]
    grid = shards.patch_size, shards.stride, shards.dense_axes
    each = len(dense_locations(middle, *grid, alignment=shards.alignment))
    validations = epochs // max(1, epochs // VALIDATIONS)
    full = VALIDATION_COST * each * _specimens(seen, shards)[1] * validations / batch_size
    return min(1.0, max(0.01, math.floor(100 * VALIDATION_TIME * steps / max(full, 1)) / 100))


def describe_validation(share: float, every: int, epochs: int) -> str:
    """How much is validated, and when, in words."""
    if epochs == 1:
        return "whole validation specimens at the end: there is one pass over the patches"
    if share == 1:
        return "whole validation specimens"
    often = "each epoch" if every == 1 else f"every {every} epochs"
    return (
        f"{share:.0%} of the layers of each validation specimen after {often}, so that it takes "
        f"about {VALIDATION_TIME:.0%} of the training's time at most; everything at the end"
    )


def _specimens(seen: Survey, shards: ShardConfig) -> tuple[int, int]:
    """How many specimens train and how many validate."""
    if named := [pair.split for pair in seen.pairs if pair.split]:
        return named.count("train"), named.count("val")
    train, val, _ = split_sizes(len(seen.pairs), shards.fractions)
    return train, val
