"""Specimens and their paired files, from a cohort.csv or a BIDS folder, and their split.

The specimen is the unit of splitting: everything of one specimen stands in one split.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from sharding.io.atomic import atomic_write
from sharding.io.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPECIMEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Specimen:
    """One specimen's files.

    Attributes:
        name: Unique within the cohort; letters, digits, dot, dash and underscore.
        target: The high-field volume.
        source: The low-field volume; None until it is simulated.
        split: Where the cohort puts it; None leaves that to assign_splits.
        mask: Foreground on the target's grid; None leaves that to a threshold.
    """

    name: str
    target: Path
    source: Path | None = None
    split: Split | None = None
    mask: Path | None = None

    def resolved(self) -> Specimen:
        """With paths that are valid in every process, whatever its working folder."""
        source, mask = (path and path.resolve() for path in (self.source, self.mask))
        return replace(self, target=self.target.resolve(), source=source, mask=mask)


def read_cohort(
    path: str | Path,
    source_pattern: str | None = None,
    target_pattern: str | None = None,
) -> list[Specimen]:
    """Read a cohort file, a folder that holds one, or a BIDS folder.

    Args:
        path: A .csv file with the columns specimen, target and optionally source, mask and split,
            paths relative to the file; or a folder with a cohort.csv; or a BIDS folder (sub-*).
        source_pattern: For BIDS: glob of the source below each subject's folder, such as
            "ses-7T/anat/*_T2w.nii.gz".
        target_pattern: The same for the target.

    Returns:
        The specimens, sorted by name.

    Raises:
        DataError: If a file, column or specimen is missing, doubled or malformed.
    """
    path = Path(path)
    if path.is_dir() and (path / "cohort.csv").is_file():
        path = path / "cohort.csv"
    if path.is_dir():
        specimens = _read_bids(path, source_pattern, target_pattern)
    elif path.is_file():
        specimens = _read_csv(path)
    else:
        raise DataError(path, "the cohort does not exist", "Give a cohort.csv or a BIDS folder")
    if not specimens:
        raise DataError(path, "the cohort holds no specimen", "Add a row for each specimen")
    _check(path, specimens)
    return sorted(specimens, key=lambda specimen: specimen.name)


def write_cohort(path: Path, specimens: Sequence[Specimen]) -> None:
    """Write a cohort.csv with paths relative to it, in one atomic step.

    The column mask is written if any specimen has one.
    """
    folder = path.parent.resolve()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    roles = ["source", "target"] + ["mask"] * any(specimen.mask for specimen in specimens)
    rows.writerow(["specimen", *roles, "split"])
    for specimen in specimens:
        files = [getattr(specimen, role) for role in roles]
        paths = [os.path.relpath(file.resolve(), folder) if file else "" for file in files]
        rows.writerow([specimen.name, *paths, specimen.split or ""])
    atomic_write(path, text.getvalue())


def split_sizes(count: int, fractions: Sequence[float]) -> tuple[int, int, int]:
    """Specimens in each split: 70/20/10 makes 44 specimens 31/9/4 (section 5.2).

    Train and validation are rounded, test takes the rest; each gets at least one.

    Raises:
        ValueError: If the fractions do not sum to 1 or there are fewer than three specimens.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split fractions must be three positive numbers of sum 1: {fractions}")
    if count < len(SPLITS):
        raise ValueError(f"{count} specimens cannot fill {len(SPLITS)} splits")
    val = max(1, round(fractions[1] * count))
    train = min(max(1, round(fractions[0] * count)), count - val - 1)
    if train < 1:
        train, val = 1, count - 2
    return train, val, count - train - val


def assign_splits(
    specimens: Sequence[Specimen], fractions: Sequence[float] = (0.7, 0.2, 0.1), seed: int = 0
) -> dict[str, Split]:
    """Give every specimen a split, by the cohort's own column or else at random.

    Args:
        specimens: All of the cohort; either every one or none has a split of its own.
        fractions: Shares of train, val and test, when the cohort does not say.
        seed: Fixes the random split; the order of the specimens does not matter.

    Returns:
        Specimen name to split.

    Raises:
        DataError: If a name stands twice, only some specimens have a split, a split is empty or
            there are too few specimens.
    """
    names = sorted(specimen.name for specimen in specimens)
    for name, after in itertools.pairwise(names):
        if name == after:
            raise DataError("cohort", f"the specimen {name} stands twice", "Keep one row each")
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
    for split in SPLITS:
        if not sizes[split]:
            raise DataError(
                "cohort", f"no specimen is in the split {split}", "Put at least one in each split"
            )
    return {name: given[name] for name in names}


def extend_splits(
    specimens: Sequence[Specimen],
    before: Mapping[str, Split],
    fractions: Sequence[float] = (0.7, 0.2, 0.1),
    seed: int = 0,
) -> dict[str, Split]:
    """Splits of a cohort of which some specimens have theirs already.

    Args:
        specimens: All of the cohort. If it says the splits itself, that holds.
        before: Specimen name to split, as it was; kept.
        fractions: New specimens go, at random, to a split that is empty, or else where most are
            missing for these shares.
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
        given[name] = max(SPLITS, key=lambda split: (not held[split], sizes[split] - held[split]))
    return assign_splits([replace(row, split=given[row.name]) for row in specimens])


def _read_csv(path: Path) -> list[Specimen]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                path, f"not a readable CSV file ({error})", "Save it as CSV in UTF-8"
            ) from error
    for column in ("specimen", "target"):
        if column not in columns:
            raise DataError(path, f"the column {column} is missing", "Add it to the first row")
    return [_specimen_of_row(path, number, row) for number, row in rows]


def _specimen_of_row(path: Path, number: int, row: dict[str, str | None]) -> Specimen:
    where = f"{path}, line {number}"
    if None in row:
        raise DataError(where, "more fields than columns", 'Put fields with commas in "quotes"')
    values = {key: (value or "").strip() for key, value in row.items()}
    for column in ("specimen", "target"):
        if not values[column]:
            raise DataError(where, f"the field {column} is empty", "Fill it or drop the row")
    split = values.get("split") or None
    if split is not None and split not in SPLITS:
        raise DataError(
            where, f"split must be one of {', '.join(SPLITS)}, got {split}", "Correct it"
        )
    source, mask = values.get("source"), values.get("mask")
    return Specimen(
        name=values["specimen"],
        target=path.parent / values["target"],
        source=path.parent / source if source else None,
        split=split,
        mask=path.parent / mask if mask else None,
    )


def _read_bids(root: Path, source: str | None, target: str | None) -> list[Specimen]:
    subjects = sorted(folder for folder in root.glob("sub-*") if folder.is_dir())
    if not subjects:
        raise DataError(
            root,
            "found neither a cohort.csv nor BIDS subjects (sub-*)",
            "Write a cohort.csv with the columns specimen, source, target",
        )
    if not target:
        raise DataError(
            root,
            "a BIDS folder does not say which images are source and target",
            'Give --source-pattern and --target-pattern, e.g. "ses-7T/anat/*_T2w.nii.gz"',
        )
    return [
        Specimen(
            subject.name,
            target=_only_match(subject, target),
            source=_only_match(subject, source) if source else None,
        )
        for subject in subjects
    ]


def _only_match(subject: Path, pattern: str) -> Path:
    found = sorted(subject.glob(pattern))
    if len(found) != 1:
        raise DataError(
            subject,
            f"the pattern {pattern} must match exactly one file, found {len(found)}",
            "Narrow or correct the pattern",
        )
    return found[0]


def _check(path: Path, specimens: Sequence[Specimen]) -> None:
    """Refuse malformed or doubled names, and one file standing under two specimens."""
    owners: dict[Path, str] = {}
    names: set[str] = set()
    for specimen in specimens:
        name = specimen.name
        if not SPECIMEN_NAME.fullmatch(name):
            raise DataError(
                path,
                f"the specimen name {name!r} must be letters, digits, dots, dashes, underscores",
                "Rename it",
            )
        if name in names:
            raise DataError(path, f"the specimen {name} stands twice", "Keep one row a specimen")
        names.add(name)
        files = [file for file in (specimen.source, specimen.target, specimen.mask) if file]
        for file in files:
            if not file.is_file():
                raise DataError(file, f"the file of {name} does not exist", "Check its path")
        if len({file.resolve() for file in files}) < len(files):
            raise DataError(
                specimen.target,
                f"source, target and mask of {name} must be different files",
                "Give the specimen a file for each",
            )
        for file in files:
            owner = owners.setdefault(file.resolve(), name)
            if owner != name:
                raise DataError(
                    file,
                    f"the file stands under {owner} and again under {name}",
                    "Give each specimen files of its own: a shared one leaks between splits",
                )
