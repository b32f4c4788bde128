"""Several contrasts of a specimen's source, such as T1 and T2: their names, columns and order.

A cohort names each of them by a column of its own, `source_t1` and `source_t2`. All specimens have
the same contrasts; the first one leads: it is what a residual adds to, and what stands for the
source wherever there is room for one image only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sharding.io.errors import DataError

if TYPE_CHECKING:
    from sharding.volumes.cohort import Specimen

CONTRAST_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
"""Names of contrasts; those of columns are read in lower case."""
SOURCE, NATIVE = "source_", "native_source_"
"""How the columns of several contrasts begin."""


@dataclass(frozen=True)
class Contrast:
    """A contrast of a source after the first one.

    Attributes:
        name: Such as t2.
        source: The low-field volume.
        native_source: That of a prepared specimen on its own grid, before it was resampled.
    """

    name: str
    source: Path
    native_source: Path | None = None


def is_contrast_column(column: str) -> bool:
    """Whether a column of a cohort file names a contrast."""
    return any(
        column.startswith(start) and CONTRAST_NAME.fullmatch(column.removeprefix(start))
        for start in (SOURCE, NATIVE)
    )


def contrast_names(where: str | Path, columns: Sequence[str]) -> tuple[str, ...]:
    """The contrasts that the columns of a cohort file name, in their order; none for one source.

    Raises:
        DataError: If `source` stands beside them, there is a single one, or a native source has no
            source.
    """
    names = tuple(column.removeprefix(SOURCE) for column in columns if column.startswith(SOURCE))
    native = [column.removeprefix(NATIVE) for column in columns if column.startswith(NATIVE)]
    if names and "source" in columns:
        rule = f"the column source stands beside {_columns(names)}"
        raise DataError(where, rule, "Give one source, or a column source_NAME for each contrast")
    if len(names) == 1:
        rule = f"{_columns(names)} is the only column of a contrast"
        raise DataError(where, rule, "Name it source, or add the other contrasts")
    for name in native:
        if name not in names:
            rule = f"the column {NATIVE}{name} needs the column {SOURCE}{name}"
            raise DataError(where, rule, "Add it, or remove the former")
    if names and "native_source" in columns:
        rule = f"the column native_source belongs to one source, there are {_columns(names)}"
        raise DataError(where, rule, f"Name it {NATIVE}{names[0]}")
    return names


def common_contrasts(specimens: Sequence[Specimen]) -> tuple[str, ...]:
    """The contrasts that all specimens have, in one order; none for one source.

    Raises:
        DataError: If a specimen has others than the first one.
    """
    if not specimens:
        return ()
    first = specimens[0]
    for row in specimens[1:]:
        if row.contrasts != first.contrasts:
            raise DataError(
                row.name,
                f"all specimens must have the same contrasts in the same order: {first.name} has "
                f"{in_words(first.contrasts)}, this one {in_words(row.contrasts)}",
                "Give every specimen the same, or leave it out",
            )
    return first.contrasts


def in_order(specimen: Specimen, names: Sequence[str]) -> Specimen:
    """The specimen with its contrasts in the order of a model.

    Args:
        specimen: Its files.
        names: The contrasts that the model was trained on; none for one source.

    Raises:
        DataError: If it has others.
    """
    if specimen.contrasts == tuple(names):
        return specimen
    check_contrasts(specimen.name, specimen.contrasts, names)
    assert specimen.source is not None
    first = Contrast(specimen.contrast, specimen.source, specimen.native_source)
    if specimen.transform:
        rule = f"a prepared specimen must have {names[0]} first, to which its transform belongs"
        raise DataError(specimen.name, rule, "Keep the order of its cohort")
    by_name = {each.name: each for each in (first, *specimen.further)}
    first, *further = (by_name[name] for name in names)
    return replace(
        specimen,
        contrast=first.name,
        source=first.source,
        native_source=first.native_source,
        further=tuple(further),
    )


def check_contrasts(where: object, found: Sequence[str], names: Sequence[str]) -> None:
    """Refuse contrasts other than those that a model was trained on.

    Raises:
        DataError: Names both.
    """
    if sorted(found) != sorted(names):
        raise DataError(
            str(where),
            f"the model was trained on {in_words(names)}, and here is {in_words(found)}",
            "Give the same contrasts, by the same names",
        )


def in_words(names: Sequence[str]) -> str:
    """`one source`, or `the contrasts t1, t2`."""
    return f"the contrasts {', '.join(names)}" if names else "one source"


def _columns(names: Sequence[str]) -> str:
    return ", ".join(f"{SOURCE}{name}" for name in names)
