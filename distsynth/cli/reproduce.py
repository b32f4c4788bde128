"""The command that reproduces the paper's comparison."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Address, Cohort, OutUrl, parse
from distsynth.cli.continuing import RESUME, continued_by
from distsynth.cli.listed_names import FURTHER_ROWS, USUAL_ROWS
from sharding.io.errors import DataError
from sharding.io.storage import is_remote

ROWS_HELP = (
    "Rows of the comparison to run; without it the paper's and their controls: "
    f"{', '.join(USUAL_ROWS)}. There are also {', '.join(FURTHER_ROWS)}."
)


def reproduce(args: Sequence[str]) -> None:
    """reproduce the paper's comparison on a cohort, row by row"""
    from distsynth.reproduction.budget import Budget, Resources
    from distsynth.sections import Resolved, TrackingConfig

    @dataclass(frozen=True)
    class Reproduce:
        """Train and evaluate the networks, the random forest, the baselines and the controls.

            distsynth reproduce cohort.csv -o reproduction
            distsynth reproduce cohort.csv --rows unet-7 dcsrn-l1 rfsr --budget.epochs 0.1

        If it is interrupted, the same command with --resume continues where it was.
        """

        cohort: Positional[Cohort]
        out: OutUrl = "reproduction"
        """Folder of the reproduction: a path, or a URL that all nodes reach."""
        rows: Annotated[tuple[str, ...], arg(metavar="ROW...", help=ROWS_HELP)] = ()
        seeds: int = 1
        """Number of times that each network is trained, each time with another seed."""
        budget: Budget = field(default_factory=Budget)
        """Share of the paper's training that is done; printed beside every number."""
        precision: Resolved = "no"
        """Precision in which all networks are trained; no is float32, as the paper's were. There is
        no auto: rows that differ in it would not compare."""
        shards: Annotated[str | None, arg(metavar="SHARDS")] = None
        """A finished shard set of the cohort; by default one is written to the folder."""
        vgg_weights: Annotated[str | None, arg(metavar="FILE")] = None
        """File of torchvision's VGG16 weights, for the rows with a perceptual loss."""
        resources: Annotated[Resources, arg(name="")] = field(default_factory=Resources)
        tracking: TrackingConfig = field(default_factory=TrackingConfig)
        resume: bool = False
        """Continue a reproduction; --rows and --seeds may be extended."""
        address: Address = None
        """Address of a running Ray cluster; auto for the one that this machine belongs to."""
        local: bool = False
        """Start a cluster on this machine for the duration; the default without --address."""

    given = parse("reproduce", Reproduce, args)
    from distsynth.reproduction.collect import write_tables
    from distsynth.reproduction.page import PAGE_FILE, reproduction_page
    from distsynth.reproduction.rows import chosen_rows
    from distsynth.reproduction.run import reproduce as run
    from distsynth.reproduction.task import Task
    from distsynth.sweep.folder import SweepFolder

    folder = SweepFolder(_lasting(given.out))
    task = Task(
        _lasting(str(given.cohort)),
        folder.folder / "shards" if given.shards is None else _lasting(given.shards),
        chosen_rows(given.rows),
        given.seeds,
        given.budget,
        given.precision,
        given.vgg_weights,
    )
    address = None if given.local else given.address
    with continued_by("reproduce", args, RESUME):
        failed = run(folder, task, given.tracking, given.resources, address, given.resume)
    print(write_tables(folder, task))
    folder.folder.write(PAGE_FILE, reproduction_page(folder))
    print(folder.url)
    if failed:
        raise DataError(
            folder.url,
            f"{len(failed)} of its runs failed ({'; '.join(failed)})",
            "Fix the cause and run the same command with --resume",
        )


def _lasting(path: str) -> str:
    """A path that means the same wherever a run is."""
    return path if is_remote(path) else str(Path(path).resolve())
