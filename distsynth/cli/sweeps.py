"""The command that searches over configurations."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from distsynth.cli.arguments import Address, FolderOrUrl, chosen_families, parse, usage_errors
from distsynth.cli.continuing import RESUME, continued_by
from distsynth.cli.listed_names import SPACE_NAMES
from distsynth.cli.messages import UsageError
from distsynth.cli.short_help import HELP, WHOLE_HELP, sweep_help
from sharding.io.errors import DataError
from sharding.io.storage import Folder, is_remote

if TYPE_CHECKING:
    from distsynth.sweep.folder import SweepFolder
    from distsynth.sweep.run import SweepResult

logger = logging.getLogger(__name__)
USAGE = """usage: distsynth sweep PRESET|CONFIG.json --name NAME --space SPACE... [options]
       distsynth sweep --resume NAME | --status NAME | --extend N --from NAME
"""
SPACE_HELP = (
    "Search spaces, by name or as YAML files; for a field in several, the last one counts: "
    f"{', '.join(SPACE_NAMES)}."
)


def sweep(args: Sequence[str]) -> None:
    """search loss weights, learning rates and architectures with Ray Tune"""
    if not args:
        raise UsageError(f"name a preset, a configuration file, or a sweep\n{USAGE}")
    named = not args[0].startswith("-")
    if args[0] in HELP or (named and set(HELP) & set(args)):
        print(sweep_help(args[0]) if named else sweep_help())
    elif not named:
        # The name that an option lacks must not keep its help back.
        _known_sweep(["--help"] if {*HELP, WHOLE_HELP} & set(args) else args)
    else:
        _new_sweep(args)


def _new_sweep(args: Sequence[str]) -> None:
    from distsynth.api import load_config
    from distsynth.config import RunConfig, validate
    from distsynth.sweep.plan import SweepConfig

    start = chosen_families(load_config(args[0]), args[1:])

    @dataclass(frozen=True)
    class Sweep:
        """Search from the named preset; every field of its configuration is an option."""

        name: Annotated[str, arg(metavar="NAME")]
        """Name of the sweep: of its folder below --storage and of the group of its W&B runs."""
        space: Annotated[tuple[str, ...], arg(metavar="SPACE...", help=SPACE_HELP)]
        storage: FolderOrUrl = "sweeps"
        """Folder of all sweeps: a path or a URL (s3://bucket/sweeps) that all nodes reach."""
        sweep: Annotated[SweepConfig, arg(name="")] = field(default_factory=SweepConfig)
        config: Annotated[RunConfig, arg(name="")] = field(default_factory=lambda: start)
        resume: bool = False
        """Continue if there is a sweep of this name, started with the same options."""
        retry_failed: bool = False
        """With --resume, try failed trials again."""
        address: Address = None
        """Address of a running Ray cluster; auto for the one that this machine belongs to."""
        local: bool = False
        """Start a cluster on this machine for the duration; the default without --address."""

    given = parse(f"sweep {args[0]}", Sweep, args[1:])
    from distsynth.sweep.run import centre_of, make_plan, resume_sweep, start_sweep
    from tune_spaces.named import named_space

    address = None if given.local else given.address
    if address:
        _check_shared(storage=given.storage, shards=given.config.data.shards)
    folder = _folder(given.storage, given.name)
    with usage_errors():
        space = named_space(given.space, centre_of(given.config, given.sweep))
    plan = make_plan(given.name, validate(given.config), space, given.sweep)
    with _continued(folder, address):
        if given.resume and folder.exists():
            result = resume_sweep(folder, plan, address, given.retry_failed)
        else:
            result = start_sweep(folder, plan, address)
        _finish(result, address)


def _known_sweep(args: Sequence[str]) -> None:
    @dataclass(frozen=True)
    class Known:
        """Continue a sweep, show its state, or extend it.

            distsynth sweep --status rates
            distsynth sweep --resume rates
            distsynth sweep --extend 10 --from rates

        The folder of the sweep holds everything: its options need not be given again.
        """

        resume: Annotated[str | None, arg(metavar="NAME")] = None
        """Name of the sweep to continue."""
        status: Annotated[str | None, arg(metavar="NAME")] = None
        """Name of the sweep to show; it may be running, on any machine."""
        extend: int | None = None
        """Number of further trials, in a new sweep that takes over the trials of --from."""
        old: Annotated[str | None, arg(name="from", metavar="NAME")] = None
        """Name of the finished sweep to extend."""
        name: Annotated[str | None, arg(metavar="NAME")] = None
        """Name of the new sweep; by default that of the old one with -extended."""
        epochs: int | None = None
        """Epochs of every trial of the new sweep; old trials continue from their checkpoints."""
        storage: FolderOrUrl = "sweeps"
        """Folder of all sweeps."""
        retry_failed: bool = False
        """With --resume, try failed trials again."""
        address: Address = None
        """Address of a running Ray cluster; auto for the one that this machine belongs to."""
        local: bool = False
        """Start a cluster on this machine for the duration; the default without --address."""

    given = parse("sweep", Known, args)
    address = None if given.local else given.address
    if given.status:
        _status(given.storage, given.status)
        return
    from distsynth.sweep.run import extend_sweep, resume_sweep

    if given.resume:
        folder = _folder(given.storage, given.resume)
        with _continued(folder, address):
            _finish(resume_sweep(folder, None, address, given.retry_failed), address)
    elif given.extend is not None and given.old:
        old = _folder(given.storage, given.old)
        folder = _folder(given.storage, given.name or f"{given.old}-extended")
        with _continued(folder, address):
            _finish(extend_sweep(old, folder, given.extend, given.epochs, address), address)
    else:
        raise UsageError(f"give --resume, --status, or --extend with --from\n{USAGE}")


def _status(storage: str, name: str) -> None:
    from distsynth.sweep.folder import searched
    from distsynth.sweep.leaderboard import counts, leaderboard_table, rank_trials
    from sharding.io.tables import table_text

    folder = _folder(storage, name)
    plan, records = folder.plan(), folder.records()
    trials = searched(records)
    print(f"{plan.name}: {counts(plan, trials)}\n")
    print(table_text(leaderboard_table(plan, rank_trials(plan, trials))))
    for record in records.values():
        if record.cause or record.failures:
            print(f"\n{record.name} {record.status}: {record.cause or 'continued after a crash'}")
            print("".join(f"  crashed: {failure}\n" for failure in record.failures), end="")


def _finish(result: "SweepResult", address: str | None) -> None:
    from distsynth.sweep.finalists import evaluate_finalists, export_best, finalists, log_sweep
    from distsynth.sweep.folder import searched
    from distsynth.sweep.leaderboard import leaderboard_table, rank_trials
    from distsynth.sweep.run import run_final
    from sharding.io.tables import table_text

    folder = result.folder
    plan = folder.plan()
    if not result.complete:
        raise KeyboardInterrupt
    records = searched(result.records)
    rows = rank_trials(plan, records)
    print(table_text(leaderboard_table(plan, rows)))
    failed = [record for record in records.values() if record.status == "failed"]
    for record in failed:
        logger.warning("trial %s failed: %s", record.name, record.cause)
    if rows[0].rank is None:
        raise DataError(folder.url, "no trial has a score", "See the causes above")
    if plan.sweep.final == "none":
        log_sweep(folder, plan)
        print(folder.url)
        return
    if plan.sweep.final == "retrained":
        run_final(folder, plan, finalists(plan, records).values(), address)
    exported = export_best(folder, plan)
    text = evaluate_finalists(folder, plan, exported)
    log_sweep(folder, plan)
    if text:
        print(text)
    else:
        logger.info("not evaluated on the test split: give --cohort, or run distsynth evaluate")
    for best in exported:
        print(best.folder)


def _continued(
    folder: "SweepFolder", address: str | None
) -> contextlib.AbstractContextManager[None]:
    """After an interruption, note the command that continues, if the sweep has begun."""
    storage = folder.url.rpartition("/")[0] or "."
    again = [RESUME, folder.name, "--storage", storage]
    again += ["--address", address] if address else []
    return continued_by("sweep", again, begun=folder.exists)


def _check_shared(**paths: str) -> None:
    """On a cluster a relative path means another folder on every node, and in every job."""
    for name, path in paths.items():
        if not is_remote(path) and not Path(path).is_absolute():
            raise UsageError(
                f"{name} must be an absolute path or a URL on a cluster, got {path}: every node "
                "must reach it under the same name"
            )


def _folder(storage: str, name: str) -> "SweepFolder":
    from distsynth.sweep.folder import SweepFolder

    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"a sweep's name must be that of a folder, got {name!r}")
    return SweepFolder(Folder(storage) / name)
