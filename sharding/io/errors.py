"""The one error that bad input raises: it names the file, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    def __init__(
        self, where: str | Path, failures: Mapping[str, str], total: int, remedy: str
    ) -> None:
        self.failures, self.total = dict(failures), total
        super().__init__(where, list_failures(failures, total), remedy)
        # The last cause ends its own line.
        self.args = (f"{self.where}: {self.rule}\n{self.remedy}.",)

    def __reduce__(  # type: ignore[override]
        self,
    ) -> tuple[type[CohortError], tuple[str, dict[str, str], int, str]]:
        return CohortError, (self.where, self.failures, self.total, self.remedy)


def list_failures(failures: Mapping[str, str], total: int) -> str:
    """Every failed specimen with its cause, one a line."""
    lines = (f"\n  {name}: {failures[name]}" for name in sorted(failures))
    return f"{len(failures)} of {total} specimens failed:{''.join(lines)}"
