"""How the commands read their arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from tyro.conf import arg

from distsynth.cli.messages import UsageError
from distsynth.errors import ConfigError
from sharding.io.errors import DataError

if TYPE_CHECKING:
    pass

Given = TypeVar("Given")
Cohort = Annotated[Path, arg(help="cohort.csv, a folder that holds one, or a BIDS folder")]
Out = Annotated[Path, arg(aliases=["-o"])]


def parse(name: str, command: type[Given], args: Sequence[str]) -> Given:
    """Arguments as the dataclass of a command.

    Raises:
        UsageError: If a configuration refuses its values.
        SystemExit: With status 2 for arguments that cannot be read, with 0 after --help.
    """
    with usage_errors():
        return tyro.cli(command, args=list(args), prog=f"distsynth {name}")


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Configurations of sharding and search spaces refuse values by a plain ValueError."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise DataError if the output exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise DataError(path, "the file exists already", "Give --overwrite or another --out")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as lines of a table, all columns flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
