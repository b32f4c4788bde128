"""How the commands read their arguments and speak."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from tyro.conf import arg

from sharding.io.errors import DataError

if TYPE_CHECKING:
    from distsynth.config import RunConfig

Given = TypeVar("Given")
Cohort = Annotated[Path, arg(help="cohort.csv, a folder that holds one, or a BIDS folder")]
Out = Annotated[Path, arg(aliases=["-o"])]


def parse(name: str, command: type[Given], args: Sequence[str]) -> Given:
    """Arguments as the dataclass of a command; usage errors end the program with status 2."""
    # The fields of a network are those of its family, which the default decides.
    one_family = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(command, args=list(args), prog=f"distsynth {name}", config=one_family)


def starting_config(name: str) -> RunConfig:
    """The configuration of a preset or of a .json file.

    Raises:
        DataError: If there is no such file.
        ConfigError: If there is no such preset, or the file holds no valid configuration.
    """
    from distsynth.config import from_json
    from distsynth.presets import preset

    if not name.endswith(".json"):
        return preset(name)
    if not Path(name).is_file():
        raise DataError(name, "the configuration does not exist", "Check the path")
    return from_json(Path(name).read_text(encoding="utf-8"))


def chosen_families(start: RunConfig, args: Sequence[str]) -> RunConfig:
    """The configuration with the families that options such as --generator.family ask for.

    The parser offers the fields of one family: that of the preset, unless another is asked for.

    Raises:
        ConfigError: If there is no such family, or an option belongs to another one.
    """
    from distsynth.config import FAMILIES, check_owner, with_families

    asked = {}
    for section in FAMILIES:
        option = f"--{section}.family"
        for word, value in itertools.pairwise([*args, ""]):
            if word == option:
                asked[section] = value
            elif word.startswith(f"{option}="):
                asked[section] = word.removeprefix(f"{option}=")
    chosen = with_families(start, asked)
    for word in args:
        if word.startswith(tuple(f"--{section}." for section in FAMILIES)):
            check_owner(chosen, word.removeprefix("--").partition("=")[0].replace("-", "_"))
    return chosen


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a table, flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def tell(message: str) -> None:
    """Progress and messages: standard error, so that results stay alone on standard output."""
    print(message, file=sys.stderr, flush=True)
