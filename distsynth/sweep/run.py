"""A sweep from its first trial to its last: start, resume, extend."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from distsynth.config import RunConfig, with_overrides
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.runs.folder import CONFIG_FILE, LAST, METRICS_FILE, SAMPLES_FOLDER
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.checks import check_plan, check_resources, warn_of_short_trials
from distsynth.sweep.cluster import LOCAL, cluster
from distsynth.sweep.folder import ENDED, SweepFolder, TrialRecord, searched
from distsynth.sweep.hyperparameters import (
    Hyperparameters,
    Space,
    combinations,
    draw_candidates,
    grid_candidates,
    manifest_of,
    mutations,
)
from distsynth.sweep.leaderboard import leaderboard_rows, rank_trials, write_leaderboard
from distsynth.sweep.plan import SweepConfig, SweepPlan, check_same_sweep
from distsynth.sweep.searcher import importances
from distsynth.sweep.space import check_grid, check_shards, check_space, presets_in
from distsynth.sweep.trial import FINAL
from distsynth.sweep.tuner import fit, listed, scores_of, search
from sharding.io.errors import DataError
from sharding.io.lease import lease
from sharding.io.storage import Folder, is_remote
from tune_spaces.plain import space_from_plain, space_to_plain

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

COPIED = (f"{LAST.parent}/", f"{SAMPLES_FOLDER}/", CONFIG_FILE, METRICS_FILE)
"""Files and folders of a run that an extended sweep takes over."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        folder: The folder of the sweep.
        records: Every trial by name.
        complete: Whether every trial has ended; if not, the sweep was interrupted.
    """

    folder: SweepFolder
    records: dict[str, TrialRecord]
    complete: bool

    def frame(self) -> pd.DataFrame:
        """The leaderboard: hyperparameters and metrics of every trial, the best first."""
        import pandas as pd

        plan = self.folder.plan()
        return pd.DataFrame(leaderboard_rows(plan, rank_trials(plan, searched(self.records))))


def make_plan(
    name: str,
    base: RunConfig,
    space: Mapping[str, Any],
    sweep: SweepConfig,
    extends: str | None = None,
) -> SweepPlan:
    """A plan with the objective in its base and paths that hold on every node.

    Raises:
        ConfigError: If the space holds what cannot be run, or its shards do not match.
    """
    check_grid(space, sweep.search)
    domains = searchable(space)
    base = with_overrides(
        base,
        {
            "train.objective": sweep.objective[0],
            "train.seam_penalty": sweep.seam_penalty,
            "data.shards": _lasting(base.data.shards),
        },
    )
    if sweep.cohort is not None:
        sweep = replace(sweep, cohort=_lasting(sweep.cohort))
    if "data.shards" in domains:
        shards = [_lasting(folder) for folder in domains["data.shards"].categories]
        check_shards(shards)
        domains["data.shards"] = tune.choice(shards)
    else:
        base = resolved(base, manifest_of(base.data.shards))
    check_space(domains, base, sweep.seed)
    if sweep.search == "grid":
        grid_candidates(domains, base)
    if sweep.scheduler == "pbt":
        mutations(domains)
    return SweepPlan(name, secrets.token_hex(4), base, space_to_plain(domains), sweep, extends)


def centre_of(base: RunConfig, sweep: SweepConfig) -> dict[str, float] | None:
    """The rates around which a named space searches: the preset's own.

    None, for the paper's ranges, where the presets of Table 1 are to be tried first: they must lie
    in the space.
    """
    if sweep.presets_first:
        return None
    rates = ("lr_generator", "lr_discriminator")
    return {f"optim.{name}": getattr(base.optim, name) for name in rates}


def searchable(space: Mapping[str, Any]) -> dict[str, Any]:
    """The space with Tune's `grid_search` entries as choices."""
    return {
        name: tune.choice(domain["grid_search"]) if isinstance(domain, Mapping) else domain
        for name, domain in space.items()
    }


def start_sweep(folder: SweepFolder, plan: SweepPlan, address: str | None = None) -> SweepResult:
    """Run a new sweep to its end.

    Raises:
        DataError: If there is a sweep of this name already.
        ConfigError: If the plan cannot be carried out.
    """
    # The cluster comes first: without one no sweep is created, and the same command can start it.
    _refuse_existing(folder)
    check_plan(plan)
    with lease(folder.url), cluster(address):
        _refuse_existing(folder)
        check_resources(plan, local=address in (None, LOCAL))
        # Left by a start that was killed before there was a plan.
        folder.remove_records()
        folder.write_plan(plan)
        warn_of_short_trials(plan)
        return _carry_out(folder, plan, {}, address)


def resume_sweep(
    folder: SweepFolder,
    plan: SweepPlan | None = None,
    address: str | None = None,
    retry_failed: bool = False,
) -> SweepResult:
    """Resume a sweep whose driver ended, from its files alone.

    Trials that have ended stay; those that were running continue from their last checkpoints.

    Args:
        folder: The folder of the sweep.
        plan: The plan as it is given now, if it is; only the fields in plan.FREE may differ.
        address: As for `cluster`.
        retry_failed: Try failed trials again, from their last checkpoints.

    Raises:
        DataError: If there is no such sweep.
        ConfigError: If the plan differs; shows the differences.
    """
    before = folder.plan()
    if plan is not None:
        check_same_sweep(before, plan)
        plan = replace(plan, id=before.id, extends=before.extends)
    check_plan(plan or before)
    with lease(folder.url):
        folder.remove_leftovers()
        folder.write_plan(plan or before)
        records = folder.records()
        for record in records.values():
            if record.status == "failed" and retry_failed:
                records[record.name] = replace(record, status="waiting", cause=None)
        return _carry_out(folder, plan or before, records, address)


def extend_sweep(
    old: SweepFolder, new: SweepFolder, trials: int, epochs: int | None, address: str | None = None
) -> SweepResult:
    """Start a sweep that begins where a finished one ended.

    The old trials are taken over with their scores and checkpoints: optuna learns from them, the
    leaderboard lists them, and with more epochs they continue from where they ended.

    Args:
        old: A finished sweep.
        new: The folder of the new one.
        trials: How many more trials to run.
        epochs: Epochs of every trial, old and new; None keeps the old number. If it grows, learning
            rates must be constant over a run.

    Raises:
        DataError: If the old sweep has not ended or the new one exists.
    """
    plan, records = old.plan(), old.records()
    open_trials = [name for name, record in records.items() if record.status not in ENDED]
    if open_trials or not records:
        raise DataError(
            old.url, f"{len(open_trials)} of its trials have not ended", "Resume it first"
        )
    _refuse_existing(new)
    base = plan.base
    longer = epochs is not None and epochs > base.train.epochs
    if epochs is not None and not longer and epochs != base.train.epochs:
        raise ConfigError(f"train.epochs must be >= {base.train.epochs}, got {epochs}")
    if longer and base.optim.schedule != "constant":
        raise ConfigError(
            "train.epochs cannot grow with a learning rate schedule, which spans the whole run"
        )
    if longer:
        base = with_overrides(base, {"train.epochs": epochs})
    known = searched(records)
    sweep = replace(plan.sweep, trials=len(known) + trials, presets_first=False)
    extended = SweepPlan(new.name, secrets.token_hex(4), base, plan.space, sweep, plan.name)
    check_plan(extended)
    with lease(new.url):
        _refuse_existing(new)
        taken = {}
        for name, record in known.items():
            copy_run(old, new, name)
            goes_on = longer and record.status == "finished"
            status = "waiting" if goes_on else record.status
            taken[name] = replace(record, status=status, taken_from=f"{plan.name}/{name}")
            new.write_record(taken[name])
        # Last: before this the old trials are not all here.
        new.write_plan(extended)
        return _carry_out(new, extended, taken, address)


def _refuse_existing(folder: SweepFolder) -> None:
    if folder.exists():
        raise DataError(
            folder.url,
            "there is a sweep of this name already",
            "Give --resume to continue it, or another --name",
        )


def _carry_out(
    folder: SweepFolder, plan: SweepPlan, records: dict[str, TrialRecord], address: str | None
) -> SweepResult:
    """Search, from wherever the records are, until every trial has ended."""
    space = space_from_plain(plan.space)
    planned = _planned_trials(plan, space, records)
    new = {name: record for name, record in planned.items() if name not in records}
    folder.write_records(new.values())
    records |= new
    records = dict(sorted(records.items()))
    folder.write_snapshot(records.values())
    callback = SweepCallback(folder, plan, records)
    if _unended(plan, records):
        with cluster(address):
            check_resources(plan, local=address in (None, LOCAL))
            search(folder, plan, space, callback)
    _close_leaderboard(folder, plan, records)
    return SweepResult(folder, records, not _unended(plan, records))


def run_final(
    folder: SweepFolder, plan: SweepPlan, names: Iterable[str], address: str | None = None
) -> dict[str, TrialRecord]:
    """Retrain trials as runs `final-NAME` of the same sweep, as many at a time as fit the cluster.

    Returns:
        Their records by name.
    """
    records = folder.records()
    wanted = {}
    for name in names:
        again = f"{FINAL}{name}"
        start = TrialRecord(again, records[name].hyperparameters)
        found = records.get(again, start)
        wanted[again] = found if found.hyperparameters == start.hyperparameters else start
    callback = SweepCallback(folder, plan, records | wanted)
    open_runs = [record for record in wanted.values() if record.status not in ENDED]
    if open_runs:
        with lease(folder.url), cluster(address):
            for record in open_runs:
                callback.add(record)
            fit(folder, plan, callback, listed(open_runs), None, FIFOScheduler())
            _close_leaderboard(folder, plan, callback.records)
    return {name: callback.records[name] for name in wanted}


def _planned_trials(
    plan: SweepPlan, space: Space, records: Mapping[str, TrialRecord]
) -> dict[str, TrialRecord]:
    """Every trial that is known before it runs; calling it again gives the same trials.

    Args:
        plan: What is searched.
        space: Its domains.
        records: Trials so far; those taken over from another sweep come first.
    """
    sweep = plan.sweep
    taken = [record for record in searched(records).values() if record.taken_from]
    candidates: list[tuple[str | None, Hyperparameters]] = []
    if sweep.presets_first:
        found = presets_in(space, plan.base)
        candidates += list(found.items())
        names = ", ".join(found) or "none"
        logger.info(f"presets of Table 1 that lie in the space, tried first: {names}")
    if sweep.search == "grid":
        grid = grid_candidates(space, plan.base)
        candidates += [(None, hyperparameters) for hyperparameters in grid]
        if len(grid) != sweep.trials:
            logger.info(
                f"the grid has {len(grid)} combinations, and a grid search tries all of them "
                f"whatever --trials says ({sweep.trials})"
            )
    elif sweep.search == "random":
        count = max(0, sweep.trials - len(candidates) - len(taken))
        # An extended sweep must not draw what the old one drew again.
        seed = sweep.seed + len(taken)
        drawn, refused = draw_candidates(space, plan.base, count, seed, sweep.scheduler == "pbt")
        candidates += [(None, hyperparameters) for hyperparameters in drawn]
        if refused:
            logger.info(
                f"{len(refused)} of {len(drawn) + len(refused)} candidates make no valid "
                f"configuration and were drawn again: {refused[0]}"
            )
    known = [record.hyperparameters for record in taken]
    found_trials: dict[str, TrialRecord] = {}
    for preset, hyperparameters in candidates:
        if hyperparameters not in known:
            name = f"{len(known):05d}"
            found_trials[name] = TrialRecord(name, hyperparameters, preset=preset)
            known.append(hyperparameters)
    if len(found_trials) < len(candidates):
        logger.warning(
            f"only {len(found_trials)} of {len(candidates)} trials are run: the others would have "
            "the same hyperparameters"
        )
    if sweep.search == "optuna" and (distinct := combinations(space)) < sweep.trials:
        logger.warning(
            f"the space holds only {distinct} different sets of hyperparameters for "
            f"{sweep.trials} trials: optuna repeats some; ask for {distinct} or fewer, or give "
            "--search grid"
        )
    return found_trials


def _close_leaderboard(
    folder: SweepFolder, plan: SweepPlan, records: Mapping[str, TrialRecord]
) -> None:
    """Write the leaderboard, with how much each field matters for the first objective."""
    space, trials = space_from_plain(plan.space), searched(records)
    scored = [
        (record.hyperparameters, scores[0])
        for record in trials.values()
        if record.status in ENDED and (scores := scores_of(plan, record))
    ]
    # A population may be seeded with what its space does not hold.
    inside = [row for row in scored if all(space[n].is_valid(row[0][n]) for n in space)]
    write_leaderboard(folder, plan, trials, importances(space, inside) or None)


def _unended(plan: SweepPlan, records: Mapping[str, TrialRecord]) -> bool:
    trials = searched(records).values()
    missing = plan.sweep.search == "optuna" and len(trials) < plan.sweep.trials
    return missing or any(record.status not in ENDED for record in trials)


def _lasting(path: str) -> str:
    """An absolute path or URL, which is valid wherever a trial runs."""
    return path if is_remote(path) else str(Path(path.removeprefix("file://")).resolve())


def copy_run(old: SweepFolder, new: SweepFolder, name: str) -> None:
    """Copy a run without W&B's files, which belong to the old sweep."""
    source, target = Folder(old.run_dir(name)), Folder(new.run_dir(name))
    for file in source.names():
        if file.startswith(COPIED):
            with target.writer(file) as partial:
                partial.write_bytes(source.read(file))
