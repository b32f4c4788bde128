"""Errors that bad input and failing disks raise: each names the file, the rule and the remedy."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path


class DataError(ValueError):
    """Input that cannot be used.

    Args:
        where: The file, folder or specimen at fault.
        rule: What must hold and what was found instead.
        remedy: What the user can do about it.
    """

    def __init__(self, where: str | Path, rule: str, remedy: str) -> None:
        self.where = str(where)
        self.rule = rule
        self.remedy = remedy
        super().__init__(f"{where}: {rule}. {remedy}.")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str]]:
        # Exceptions are pickled from their message alone, which would lose the three parts
        # when a worker process raises.
        return DataError, (self.where, self.rule, self.remedy)


class CohortError(DataError):
    """Specimens that failed while the rest of their cohort was finished.

    Args:
        where: The output folder.
        failures: Specimen to what went wrong with it.
        total: Specimens in the cohort.
        remedy: What the user can do about it.
        what: What they are called.
    """

    def __init__(
        self,
        where: str | Path,
        failures: Mapping[str, str],
        total: int,
        remedy: str,
        what: str = "specimens",
    ) -> None:
        self.failures, self.total, self.what = dict(failures), total, what
        super().__init__(where, list_failures(failures, total, what), remedy)
        # The last cause ends its own line.
        self.args = (f"{self.where}: {self.rule}\n{self.remedy}.",)

    def __reduce__(  # type: ignore[override]
        self,
    ) -> tuple[type[CohortError], tuple[str, dict[str, str], int, str, str]]:
        return CohortError, (self.where, self.failures, self.total, self.remedy, self.what)


def list_failures(failures: Mapping[str, str], total: int, what: str = "specimens") -> str:
    """Everything that failed, with its cause; what failed alike shares a line."""
    return f"{len(failures)} of {total} {what} failed:{list_causes(failures)}"


def list_causes(causes: Mapping[str, str]) -> str:
    """A line for each cause with the names that it concerns.

    Args:
        causes: Name to cause. Causes that differ only in the file that they begin with count as
            the same, and the first one stands for all.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(causes):
        _, colon, rest = causes[name].partition(": ")
        groups.setdefault(rest if colon else causes[name], []).append(name)
    lines = []
    for names in groups.values():
        if len(names) < LEAST_ALIKE:
            lines += [f"\n  {name}: {causes[name]}" for name in names]
        else:
            first = causes[names[0]]
            lines.append(f"\n  {', '.join(names)} ({len(names)} alike, {names[0]} stated): {first}")
    return "".join(lines)


LEAST_ALIKE = 4
"""Specimens of one cause that share a line."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class MissingError(DataError):
    """A file that does not exist, in a folder or bucket that does."""


def disk_error(where: str | Path, error: OSError) -> DataError:
    """Explain in plain words what went wrong on a local disk."""
    if isinstance(error, FileNotFoundError):
        return missing_file(where)
    if error.errno in DISK_FULL:
        remedy = "Free some space, or use another disk (cache: DISTSYNTH_CACHE, scratch: TMPDIR)"
        return DataError(where, "no space left on its disk", remedy)
    rule = f"cannot be read or written ({error.strerror or one_line(error)})"
    return DataError(where, rule, "Check the path and its permissions")


@contextlib.contextmanager
def file_errors(where: str | Path) -> Iterator[None]:
    """Turn what the system raises over a file, and what its content exhausts, into DataErrors.

    Args:
        where: The file that is read or written in the block.

    Raises:
        DataError: In the place of OSError, MemoryError and RecursionError.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(where, error) from error
    except MemoryError as error:
        rule = "its content does not fit into the memory that is free"
        raise DataError(where, rule, "Check the file, or use a machine with more memory") from error
    except RecursionError as error:
        rule = "its content is nested too deeply"
        raise DataError(where, rule, "Check the file, or write it again") from error


def missing_file(where: str | Path) -> MissingError:
    return MissingError(where, "there is no such file", "Check the name, or copy the file again")


def cause(error: Exception) -> str:
    """What a failure says; one that is not this program's own says its kind first."""
    if isinstance(error, DataError):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """The error's own words on one line, at most 300 characters."""

    words = " ".join(str(error).split()) or type(error).__name__
    return words[:300].rstrip(".")
