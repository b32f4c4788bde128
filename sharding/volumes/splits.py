"""Splits: which specimens train, validate and test."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sharding.io.errors import DataError
from sharding.volumes.cohort import SPLITS, Specimen, Split


def split_sizes(count: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Specimens in each split: 70/20/10 makes 44 specimens 31/9/4 (section 5.2).

    Train and validation are rounded, test takes the rest; each gets at least one, except that a
    test fraction of 0 leaves the test split empty.

    Raises:
        ValueError: If the fractions do not sum to 1, or there are too few specimens.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split fractions must be three numbers of sum 1, got {fractions}")
    if not fractions[0] or not fractions[1]:
        raise ValueError(f"the fractions of train and val must be positive, got {fractions}")
    tested = 1 if fractions[2] else 0
    if count < 2 + tested:
        raise ValueError(f"{count} specimens cannot fill {2 + tested} splits")
    val = max(1, round(fractions[1] * count))
    if not tested:
        val = min(val, count - 1)
        return count - val, val, 0
    train = min(max(1, round(fractions[0] * count)), count - val - 1)
    if train < 1:
        train, val = 1, count - 2
    return train, val, count - train - val


def assign_splits(
    specimens: Sequence[Specimen], fractions: Sequence[float] = (0.7, 0.2, 0.1), seed: int = 0
) -> dict[str, Split]:
    """Give every specimen a split, by the cohort's own column or else at random.

    Args:
        specimens: The whole cohort; either every specimen or none has a split of its own.
        fractions: Shares of train, val and test, when the cohort does not say.
        seed: Fixes the random split; the order of the specimens does not matter.

    Returns:
        Specimen name to split. The test split may be empty if the cohort, or a fraction of 0,
        leaves it so: then all specimens train or validate and there is nothing to evaluate.

    Raises:
        DataError: If a name is listed twice, only some specimens have a split, no specimen trains
            or validates, or there are too few specimens.
    """
    names = sorted(specimen.name for specimen in specimens)
    for name, after in itertools.pairwise(names):
        if name == after:
            raise DataError("cohort", f"the specimen {name} is listed twice", "Keep one row each")
    given: dict[str, Split] = {
        specimen.name: specimen.split for specimen in specimens if specimen.split
    }
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise DataError(
            missing,
            "some specimens of the cohort have a split and this one has none",
            "Fill the split column for all or leave it empty for all",
        )
    if not given:
        try:
            sizes = split_sizes(len(names), fractions)
        except ValueError as error:
            raise DataError("cohort", str(error), "Add specimens") from error
        order = np.random.default_rng(seed).permutation(names).tolist()
        labels: list[Split] = [
            split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)
        ]
        given = dict(zip(order, labels, strict=True))
    sizes = Counter(given.values())
    for split in ("train", "val"):
        if not sizes[split]:
            raise DataError(
                "cohort", f"no specimen is in the split {split}", "Put at least one in each split"
            )
    return {name: given[name] for name in names}


def fold_splits(
    specimens: Sequence[Specimen], folds: int, fold: int, seed: int = 0
) -> list[Specimen]:
    """Deal a cohort to folds of cross-validation: one validates, the others train.

    Args:
        specimens: The whole cohort. Those whose split is test stay there; every other one
            validates in exactly one fold.
        folds: How many there are.
        fold: Which one validates, from 1.
        seed: Fixes the folds; the order of the specimens does not matter.

    Returns:
        The specimens with their splits in this fold.

    Raises:
        DataError: If there are fewer than two folds, or fewer specimens than folds.
    """
    names = sorted(specimen.name for specimen in specimens if specimen.split != "test")
    if not 2 <= folds <= len(names) or not 1 <= fold <= folds:
        raise DataError(
            "cohort",
            f"folds must be from 2 to the {len(names)} specimens outside the test split, got "
            f"fold {fold} of {folds}",
            "Give fewer folds or add specimens",
        )
    order = np.random.default_rng(seed).permutation(names).tolist()
    validating = set(order[fold - 1 :: folds])

    def split_of(specimen: Specimen) -> Split:
        if specimen.split == "test":
            return "test"
        return "val" if specimen.name in validating else "train"

    return [replace(specimen, split=split_of(specimen)) for specimen in specimens]


def extend_splits(
    specimens: Sequence[Specimen],
    before: Mapping[str, Split],
    fractions: Sequence[float] = (0.7, 0.2, 0.1),
    seed: int = 0,
) -> dict[str, Split]:
    """Assign splits to a cohort of which some specimens have theirs already.

    Args:
        specimens: The whole cohort. If it gives the splits itself, those hold.
        before: Specimen name to earlier split, which is kept.
        fractions: New specimens go, at random, to a split that is empty, or else to the one that
            lacks most for these shares.
        seed: Fixes which go where.

    Returns:
        Specimen name to split.

    Raises:
        DataError: As assign_splits.
    """
    known = [specimen.name for specimen in specimens if specimen.name in before]
    if not known or any(specimen.split for specimen in specimens):
        return assign_splits(specimens, fractions, seed)
    given = {name: before[name] for name in known}
    new = sorted({specimen.name for specimen in specimens} - set(known))
    sizes = dict(zip(SPLITS, split_sizes(max(len(specimens), len(SPLITS)), fractions), strict=True))
    for name in np.random.default_rng(seed).permutation(new).tolist():
        held = Counter(given.values())
        wanted: list[Split] = [split for split in SPLITS if sizes[split]]
        given[name] = max(wanted, key=lambda split: (not held[split], sizes[split] - held[split]))
    return assign_splits([replace(row, split=given[row.name]) for row in specimens])
