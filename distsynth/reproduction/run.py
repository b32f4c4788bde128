"""All rows trained and evaluated, in parallel where there is room; what is done stays done.

REPRODUCTION/
  reproduction.json   the Task
  sweep.json          the same as a plan of a sweep, whose trials are the rows' runs
  shards/             what was cut from the cohort
  trials/, runs/      as in a sweep
  evaluations/        what each row showed on the test split
  comparison.*        tables and page; see distsynth.reproduction.collect and .page
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.tune.schedulers import FIFOScheduler

from distsynth.config import (
    RunConfig,
    TrackingConfig,
    dotted_fields,
    overrides_between,
    with_overrides,
)
from distsynth.metrics.steps import LEAST_STEPS, MARK, is_untrained
from distsynth.reproduction.budget import Resources
from distsynth.reproduction.row_evaluation import (
    BASELINES,
    evaluate_baselines,
    evaluate_forest,
    evaluate_network,
    read_evaluation,
    with_threads,
)
from distsynth.reproduction.rows import NETWORKS, SEAM_ROWS, STITCHINGS
from distsynth.reproduction.task import TASK_FILE, Task, check_same_task, read_task, task_from_json
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.cluster import cluster
from distsynth.sweep.folder import ENDED, SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.tuner import fit, listed
from sharding.io.errors import CohortError, DataError
from sharding.io.lease import lease
from sharding.io.progress import progress
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from sharding.volumes.contrasts import common_contrasts

logger = logging.getLogger(__name__)


def reproduce(
    folder: SweepFolder,
    task: Task,
    tracking: TrackingConfig,
    resources: Resources,
    address: str | None = None,
    resume: bool = False,
) -> list[str]:
    """Train and evaluate the rows of a task that are not finished yet.

    Args:
        folder: The reproduction's folder.
        task: What is compared.
        tracking: Tracking of every run; its group becomes the folder's name.
        resources: Resources of every run.
        address: A Ray cluster; None starts one on this machine.
        resume: Continue a reproduction that was started; the task may then have more rows and
            seeds, and what failed is tried again.

    Returns:
        Runs that could not be trained or evaluated, each with the cause; rows that cannot be run
        here are not among them.

    Raises:
        DataError: If it was started before and `resume` is false, another process is working on
            it, a scan cannot be used, or specimens differ in their contrasts.
        ConfigError: If it was started as another task.
    """
    contrasts = common_contrasts(read_cohort(Path(task.cohort)))
    if contrasts:
        logger.warning(
            "the paper's networks take one source; here they, the regression and all forests but "
            "rfsr see %s, and rfsr and the other baselines %s alone",
            ", ".join(contrasts),
            contrasts[0],
        )
    with lease(folder.url):
        if resume:
            folder.remove_leftovers()
        _open(folder, task, resume)
        _cut(folder, task)
        warn_of_untrained(task, ShardSet(task.shards).manifest.patches("train"))
        plan = _plan(folder, task, tracking, resources)
        records = folder.records()
        wanted = _wanted(plan, task, records)
        todo = [record for record in wanted.values() if record.status not in ENDED]
        with cluster(address):
            if todo:
                callback = SweepCallback(folder, plan, records | wanted)
                for record in todo:
                    callback.add(record)
                fit(folder, plan, callback, listed(todo), None, FIFOScheduler())
                wanted = {name: callback.records[name] for name in wanted}
            return [
                *(f"{name}: {record.cause}" for name, record in wanted.items() if record.cause),
                *_evaluate_all(folder, task, wanted, resources),
            ]


def warn_of_untrained(task: Task, patches: int) -> None:
    """Say which rows the budget leaves untrained, before time is spent on them.

    Args:
        task: What is compared.
        patches: Training patches that the shards hold.
    """
    steps = {row: task.steps(row, patches) for row in task.networks() if not task.missing(row)}
    if few := {row: count for row, count in steps.items() if is_untrained(count)}:
        named = ", ".join(f"{row} {count:,}" for row, count in few.items())
        logger.warning(
            f"the budget leaves {len(few)} of {len(steps)} networks below {LEAST_STEPS:,} "
            f"optimiser steps ({named}): they are marked {MARK} in the tables, and say how a "
            "network starts, not what it is worth. "
            "Raise --budget.epochs or --budget.patches"
        )


def _open(folder: SweepFolder, task: Task, resume: bool) -> None:
    """Write the task into the folder, or compare it with the one that is there."""
    if folder.folder.exists(TASK_FILE):
        if not resume:
            raise DataError(
                folder.url,
                "there is a reproduction already",
                "Give --resume to continue it, or another --out",
            )
        check_same_task(read_task(folder.folder), task)
    folder.folder.write(TASK_FILE, task.to_json())


def _cut(folder: SweepFolder, task: Task) -> None:
    """Cut the cohort, unless the task names a finished shard set."""
    if task.shards != folder.folder / "shards":
        return
    try:
        write_shards(read_cohort(Path(task.cohort)), task.shards, task.shard_config())
    except CohortError as error:
        raise CohortError(
            error.where,
            error.failures,
            error.total,
            "Correct them and give --resume, which cuts only what is missing; or cut the others by "
            "distsynth shard --skip-failed, and give that folder as --shards",
        ) from None


def _plan(
    folder: SweepFolder, task: Task, tracking: TrackingConfig, resources: Resources
) -> SweepPlan:
    """The plan that the runs belong to; its id stays."""
    changes = {f"tracking.{name}": value for name, value in dotted_fields(tracking)}
    base = with_overrides(RunConfig(), changes | {"data.shards": task.shards})
    sweep = SweepConfig(
        trials=max(1, len(task.networks()) * task.seeds),
        search="grid",
        final="none",
        cpus=resources.cpus,
        gpus=resources.gpus,
        concurrent=resources.concurrent,
        retries=resources.retries,
    )
    if folder.exists():
        plan = replace(folder.plan(), base=base, sweep=sweep)
    else:
        plan = SweepPlan(folder.name, secrets.token_hex(4), base, {}, sweep)
    folder.write_plan(plan)
    return plan


def _wanted(
    plan: SweepPlan, task: Task, records: Mapping[str, TrialRecord]
) -> dict[str, TrialRecord]:
    """The runs of the rows that can be run, with what is known of them; the failed ones again."""
    found = {}
    rows = []
    for row in task.networks():
        if reason := task.missing(row):
            logger.info(f"{row} is not run: {reason}")
        else:
            rows.append(row)
    # Every row with its first seed before any other seed: an interrupted reproduction then has a
    # complete table.
    for seed in range(task.seeds):
        for row in rows:
            name = task.run_names(row)[seed]
            hyperparameters = _differences(plan.base, task.config(row, seed))
            known = records.get(name) or TrialRecord(
                name, hyperparameters, preset=NETWORKS[row].preset
            )
            failed = known.status == "failed"
            found[name] = replace(known, status="waiting", cause=None) if failed else known
    return found


def _differences(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """How a run differs from the base, apart from the place of the data and the tracking."""
    return {
        name: value
        for name, value in overrides_between(base, config).items()
        if not name.startswith(("data.", "tracking."))
    }


def _evaluate_all(
    folder: SweepFolder,
    task: Task,
    runs: Mapping[str, TrialRecord],
    resources: Resources,
) -> list[str]:
    """Evaluate the remaining rows as tasks of the cluster; return what failed and why."""
    here = folder.lasting_url
    tasks = {}
    if read_evaluation(folder.folder, BASELINES) is None:
        tasks[BASELINES] = ("baselines", ())
    for name in task.forests():
        if read_evaluation(folder.folder, name) is None:
            tasks[name] = ("forest", (name, resources.cpus))
    for name, record in runs.items():
        if record.status == "finished" and read_evaluation(folder.folder, name) is None:
            stitchings = STITCHINGS if name in SEAM_ROWS else ()
            tasks[name] = ("network", (name, folder.run_dir(name), stitchings))
    each = _evaluate.options(num_cpus=resources.cpus, num_gpus=resources.gpus)  # type: ignore[attr-defined]
    waiting = {
        each.remote(kind, here, task.to_json(), resources.cpus, args): name
        for name, (kind, args) in tasks.items()
    }
    failed = []
    for _ in progress(range(len(waiting)), "evaluating", len(waiting)):
        (ended,), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(ended)
        try:
            ray.get(ended)
        except ray.exceptions.RayError as error:
            # Its own error, or that of a process that was killed several times.
            failed.append(f"{name}, when evaluated: {getattr(error, 'cause', None) or error}")
    return failed


@ray.remote(max_retries=2)
def _evaluate(kind: str, here: str, task: str, cpus: int, args: tuple[Any, ...]) -> None:
    with_threads(cpus)
    folder, asked = Folder(here), task_from_json(task, here)
    evaluators = {
        "baselines": evaluate_baselines,
        "forest": evaluate_forest,
        "network": evaluate_network,
    }
    evaluators[kind](folder, asked, *args)
