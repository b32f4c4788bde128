"""The command that reproduces the paper's comparison."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Cohort, parse, tell
from sharding.io.errors import DataError
from sharding.io.storage import is_remote


def reproduce(args: Sequence[str]) -> None:
    """train and judge the paper's whole comparison on a cohort, row by row"""
    from distsynth.config import TrackingConfig
    from distsynth.reproduction.budget import Budget, Resources

    @dataclass(frozen=True)
    class Reproduce:
        """Train and judge the networks, the random forest, the baselines and the controls.

        Killed at any moment and started again with --resume, it goes on where it was.
        """

        cohort: Positional[Cohort]
        out: Annotated[str, arg(aliases=["-o"])] = "reproduction"
        """Folder of the reproduction: a path, or a URL that all nodes reach."""
        rows: tuple[str, ...] = ()
        """Rows to run; all by default. See distsynth/reproduction/rows.py."""
        seeds: int = 1
        """How often each network is trained."""
        budget: Budget = field(default_factory=Budget)
        """How much of the paper's training is done; printed beside every number."""
        shards: str | None = None
        """A finished shard set of the cohort; by default one is cut into the folder."""
        vgg_weights: str | None = None
        """File of torchvision's VGG16 weights, for the rows with a perceptual loss."""
        resources: Annotated[Resources, arg(name="")] = field(default_factory=Resources)
        tracking: TrackingConfig = field(default_factory=TrackingConfig)
        resume: bool = False
        """Go on with what is there; more --rows and --seeds may be asked for."""
        address: str | None = None
        """A running Ray cluster; auto for the one that this machine belongs to."""
        local: bool = False
        """A cluster on this machine for the time of the reproduction; so without --address too."""

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
        given.vgg_weights,
    )
    address = None if given.local else given.address
    try:
        failed = run(folder, task, given.tracking, given.resources, address, given.resume)
    except KeyboardInterrupt:
        tell(f"go on with the same command and --resume (--out {folder.url})")
        raise
    print(write_tables(folder, task))
    folder.folder.write(PAGE_FILE, reproduction_page(folder))
    print(folder.url)
    if failed:
        raise DataError(
            folder.url,
            f"{len(failed)} of its runs failed ({'; '.join(failed)})",
            "Mend the cause and give the same command with --resume",
        )


def _lasting(path: str) -> str:
    """A path that means the same wherever a run is."""
    return path if is_remote(path) else str(Path(path).resolve())
