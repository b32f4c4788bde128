"""The one error that bad input raises: it names the file, the rule and the remedy."""

from __future__ import annotations

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
