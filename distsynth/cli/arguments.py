"""How the commands read their arguments."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from tyro.conf import arg

from distsynth.cli.messages import UsageError
from distsynth.cli.short_help import WHOLE_HELP
from distsynth.errors import ConfigError
from sharding.io.errors import DataError

if TYPE_CHECKING:
    from distsynth.config import RunConfig

Given = TypeVar("Given")
COHORT_HELP = "cohort.csv, a folder that holds one, or a BIDS folder"
Cohort = Annotated[Path, arg(metavar="COHORT", help=COHORT_HELP)]
Out = Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
OutUrl = Annotated[str, arg(aliases=["-o"], metavar="OUT")]
Checkpoint = Annotated[str, arg(metavar="CHECKPOINT")]
Volume = Annotated[Path, arg(metavar="VOLUME")]
FolderOrUrl = Annotated[str, arg(metavar="FOLDER")]
Address = Annotated[str | None, arg(metavar="ADDRESS")]
SourcePattern = Annotated[
    str | None,
    arg(metavar="PATTERN", help="For a BIDS folder: glob of the source below each subject."),
]
TargetPattern = Annotated[
    str | None,
    arg(metavar="PATTERN", help="For a BIDS folder: glob of the target below each subject."),
]


def parse(name: str, command: type[Given], args: Sequence[str]) -> Given:
    """Arguments as the dataclass of a command.

    Raises:
        UsageError: If a configuration refuses its values.
        SystemExit: With status 2 for arguments that cannot be read, with 0 after --help.
    """
    words = ["--help" if word == WHOLE_HELP else word for word in args]
    with usage_errors():
        # The fields of a network are those of its family, which the default decides.
        one_family = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(
            command,
            args=words,
            prog=f"distsynth {name}",
            # As it is written: the parser would move the lines of an example.
            description=inspect.cleandoc(command.__doc__ or ""),
            config=one_family,
        )


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Configurations of sharding and search spaces refuse values by a plain ValueError."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option before the arguments are parsed; None if it is not given."""
    found = None
    for word, value in itertools.pairwise([*args, ""]):
        if word == name:
            found = value
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found


def chosen_families(start: RunConfig, args: Sequence[str]) -> RunConfig:
    """The configuration with the families that options such as --generator.family ask for.

    The parser offers the fields of one family: that of the preset, unless another is asked for.

    Raises:
        ConfigError: If there is no such family, or an option belongs to another one.
    """
    from distsynth.config import FAMILIES, check_owner, with_families

    families = {section: option(args, f"--{section}.family") for section in FAMILIES}
    asked = {section: family for section, family in families.items() if family is not None}
    chosen = with_families(start, asked)
    for word in args:
        if word.startswith(tuple(f"--{section}." for section in FAMILIES)):
            check_owner(chosen, word.removeprefix("--").partition("=")[0].replace("-", "_"))
    return chosen


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as lines of a table, all columns flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
