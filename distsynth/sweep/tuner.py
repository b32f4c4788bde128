"""Handing trials to Ray Tune: either a list of known trials, or those that Optuna suggests."""

from __future__ import annotations

import logging
import random
import secrets
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ray import tune

from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST, local_file
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.ddp_workers import trial_resources
from distsynth.sweep.folder import ENDED, RAY_FOLDER, SweepFolder, TrialRecord, searched
from distsynth.sweep.hyperparameters import Hyperparameters, Space, hyperparameters_of, invalid
from distsynth.sweep.leaderboard import objectives
from distsynth.sweep.plan import SweepPlan
from distsynth.sweep.schedulers import make_scheduler
from distsynth.sweep.searcher import SuggestingSearcher, Suggestions
from distsynth.sweep.trial import SweepTrial
from sharding.io.interruption import deferred_signals
from sharding.io.storage import Folder

logger = logging.getLogger(__name__)


def search(folder: SweepFolder, plan: SweepPlan, space: Space, callback: SweepCallback) -> None:
    """Run the trials that have not ended, and those that are still to be suggested."""
    sweep, records = plan.sweep, callback.records
    trials = searched(records).values()
    todo = [record for record in trials if record.status not in ENDED]
    ended = [record for record in trials if record.status in ENDED]
    if sweep.scheduler == "pbt":
        # Ray draws a population's changes from these.
        random.seed(sweep.seed)
        np.random.seed(sweep.seed)  # noqa: NPY002
        todo = [_as_trained(folder, callback, record) for record in todo]
        if any(record.reports for record in todo):
            logger.info("the population is ranked again after the next epoch of each member")
    scheduler = make_scheduler(plan, space, trials)
    if sweep.scheduler == "asha" and any(record.reports for record in todo):
        logger.info("ASHA's rungs are rebuilt from the scores of the trials")
    if sweep.search != "optuna":
        fit(folder, plan, callback, listed(todo), None, scheduler)
        return
    suggestions = Suggestions(space, sweep.seed, len(sweep.objective), len(trials))
    for record in ended:
        suggestions.observe(record.hyperparameters, scores_of(plan, record))

    def create(ask: Callable[[str], Hyperparameters]) -> TrialRecord | None:
        count = len(searched(callback.records))
        if count >= sweep.trials:
            return None
        name = f"{count:05d}"
        record = TrialRecord(name, ask(name))
        callback.add(record)
        return record

    def outcome(name: str) -> tuple[Hyperparameters, tuple[float, ...] | None]:
        record = callback.records[name]
        return record.hyperparameters, scores_of(plan, record)

    def valid(hyperparameters: Hyperparameters) -> str | None:
        return invalid(plan.base, hyperparameters)

    searcher = SuggestingSearcher(suggestions, todo, create, outcome, valid)
    # Trials that exist already are run even if fewer are asked for now.
    left = max(sweep.trials - len(ended), len(todo))
    fit(folder, plan, callback, {}, searcher, scheduler, left)


def fit(
    folder: SweepFolder,
    plan: SweepPlan,
    callback: SweepCallback,
    trials: Mapping[str, Any],
    searcher: SuggestingSearcher | None,
    scheduler: Any,
    samples: int = 1,
) -> None:
    """Hand trials to Tune and wait until all have ended.

    Raises:
        Interrupted: After a signal; every trial can be resumed from its last checkpoint.
    """
    sweep = plan.sweep
    folder.remove_ray_files()
    path, system = _ray_storage(folder)
    tuner = tune.Tuner(
        tune.with_resources(SweepTrial, trial_resources(sweep.cpus, sweep.gpus, sweep.workers)),
        param_space={"sweep": folder.lasting_url, **trials},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=sweep.concurrent or None,
            # A process that has loaded everything serves one trial after the other; a trial of
            # several has a process group, which it leaves only by ending.
            reuse_actors=sweep.workers == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=secrets.token_hex(4),
            storage_path=path,
            storage_filesystem=system,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[callback],
            verbose=0,
        ),
    )
    callback.start()
    try:
        with warnings.catch_warnings():
            # Tune advises reusing processes, which trials of several ranks cannot; see above.
            warnings.filterwarnings("ignore", "Consider boosting PBT performance", UserWarning)
            with deferred_signals(_stop_tune):
                tuner.fit()
    finally:
        callback.stop()
        folder.remove_ray_files()


def _stop_tune() -> bool:
    """End the search cleanly by the handler that Tune installs for SIGUSR1.

    Returns:
        False if Tune has not installed it yet.
    """
    handler = signal.getsignal(signal.SIGUSR1)
    if not callable(handler):
        return False
    handler(signal.SIGUSR1, None)
    return True


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def listed(records: Iterable[TrialRecord]) -> dict[str, Any]:
    """Trials that are known beforehand, in order."""
    return {
        "trial": tune.grid_search(
            [{"name": row.name, "hyperparameters": row.hyperparameters} for row in records]
        )
    }


def _as_trained(folder: SweepFolder, callback: SweepCallback, record: TrialRecord) -> TrialRecord:
    """A member of a population with the values that its last checkpoint was trained with.

    Its record is ahead of that if the driver died between a copy and the copy's first epoch.
    """
    run = Folder(folder.run_dir(record.name))
    if not run.exists(LAST.as_posix()):
        return record
    config = load_checkpoint(local_file(run / LAST.as_posix())).config
    return callback.change(
        record.name, hyperparameters=hyperparameters_of(config, record.hyperparameters)
    )


def _ray_storage(folder: SweepFolder) -> tuple[str, Any]:
    """Where Tune puts its own files: below the sweep, where every node reaches it."""
    if folder.folder.local is not None:
        return str((folder.folder.local / RAY_FOLDER).resolve()), None
    from fsspec.core import url_to_fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, path = url_to_fs(folder.folder / RAY_FOLDER)
    return path, PyFileSystem(FSSpecHandler(system))


def scores_of(plan: SweepPlan, record: TrialRecord) -> tuple[float, ...] | None:
    failed = record.cause is not None or record.best is None
    return None if failed else objectives(plan, record)
