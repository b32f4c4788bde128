"""How the commands read their arguments and speak."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from tyro.conf import arg

Given = TypeVar("Given")
Cohort = Annotated[Path, arg(help="cohort.csv, a folder that holds one, or a BIDS folder")]
Out = Annotated[Path, arg(aliases=["-o"])]


def parse(name: str, command: type[Given], args: Sequence[str]) -> Given:
    """Arguments as the dataclass of a command; usage errors end the program with status 2."""
    return tyro.cli(command, args=list(args), prog=f"distsynth {name}")


def tell(message: str) -> None:
    """Progress and messages: standard error, so that results stay alone on standard output."""
    print(message, file=sys.stderr, flush=True)
