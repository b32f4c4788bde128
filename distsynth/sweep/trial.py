"""One run of a sweep, as Ray Tune sees it: `train()`'s own loop, where a step is an epoch.

The state of a trial is its run's folder. Wherever and whenever a trial is started, it continues
from the last checkpoint there. Tune's checkpoints are only pointers to it, a hundred bytes each, by
which population based training says whose networks to copy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from ray.tune import Trainable
from ray.tune.result import DONE

from distsynth.config import RunConfig, to_dict, with_overrides
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Checkpoint, fork, load_checkpoint, save_checkpoint
from distsynth.runs.folder import LAST, RUN_ID_FILE, epoch_checkpoint, kept_epochs, local_file
from distsynth.sweep.ddp_workers import DdpWorkers
from distsynth.sweep.folder import ENDED, SweepFolder
from distsynth.sweep.hyperparameters import configure
from distsynth.sweep.plan import SweepPlan
from distsynth.training.loop import epochs
from distsynth.training.report import EpochReport, TrainResult
from sharding.io.errors import DataError
from sharding.io.storage import Folder

POINTER = "pointer.json"
KEPT_EPOCHS = 3
"""Checkpoints of a member of a population that others may still copy."""
PERMANENT = (FloatingPointError, ConfigError, DataError)
"""Errors that would recur: a trial that raises one fails at once and is not retried."""
DONOR_PAUSES_SECONDS = (0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Waits of a diverged member of a population for another one to take over."""
FINAL = "final-"
"""Prefix of the name of a run that retrains one of the best trials."""


def run_config(plan: SweepPlan, name: str, hyperparameters: dict[str, Any]) -> RunConfig:
    """The run of a trial.

    Raises:
        ConfigError: If the hyperparameters make no valid configuration.
    """
    sweep, population = plan.sweep, plan.sweep.scheduler == "pbt"
    config = configure(plan.base, hyperparameters, keep_discriminator=population)
    more: dict[str, Any] = {
        "tracking.group": plan.name,
        "tracking.name": f"{plan.name}-{name}",
        "train.device": "auto" if sweep.gpus else "cpu",
    }
    if name.startswith(FINAL):
        more["train.seed"] = config.train.seed + 1
        more["train.epochs"] = sweep.final_epochs or config.train.epochs
    elif population:
        more["train.keep_epochs"] = KEPT_EPOCHS
    return with_overrides(config, more)


class SweepTrial(Trainable):
    """A trial; its configuration holds the sweep's folder and the hyperparameters."""

    def setup(self, config: dict[str, Any]) -> None:
        """Read the plan of the trial; training starts with the first step."""
        # W&B's service of the driver, where the cluster inherited it, outlives this process, and
        # would hold the run of a trial that crashed.
        os.environ.pop("WANDB_SERVICE", None)
        self._run: Generator[EpochReport, None, TrainResult] | None = None
        self._workers: DdpWorkers | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve another trial with the same process, which has loaded everything already."""
        self._close()
        # Frees GPU memory of the previous trial for others that share the GPU.
        torch.cuda.empty_cache()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch.

        Returns:
            epoch, score and best_score (absent without validation), `reports` with the epochs that
            were not reported by this process yet, `copied` with the trials taken over since,
            `diverged` with the reason if the member of a population waits to take over another,
            `failed` with the reason if the trial cannot continue.
        """
        if self._diverged:
            return self._wait_for_donor(self._diverged)
        try:
            if self._run is None:
                self._start()
            return self._next()
        except PERMANENT as error:
            return self._failed(error)
        except Exception as error:
            cause = self._workers.error if self._workers else None
            if isinstance(cause, PERMANENT):
                return self._failed(cause)
            if cause:
                raise cause from error
            raise

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write a pointer to the run and its epoch."""
        pointer = {"trial": self.trial_name, "epoch": self._epoch}
        Path(checkpoint_dir, POINTER).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take over the networks of another trial; the trial's own run needs no pointer."""
        pointer = json.loads(Path(checkpoint, POINTER).read_text(encoding="utf-8"))
        if pointer["trial"] != self.trial_name:
            self._copy(pointer["trial"], pointer["epoch"])

    def cleanup(self) -> None:
        """End the run cleanly: W&B gets its last rows, and the other ranks end."""
        self._close()

    def _take(self, config: dict[str, Any]) -> None:
        """Serve the trial of a configuration; its first step finds out whether it can be run."""
        self._folder = SweepFolder(config["sweep"])
        self._plan = self._folder.plan()
        self._hyperparameters = config["trial"]["hyperparameters"]
        self._run_dir = self._folder.run_dir(self.trial_name)
        self._epoch = 0
        self._diverged = ""
        self._waits: list[float] = []
        self._copied: list[dict[str, Any]] = []

    def _failed(self, error: BaseException) -> dict[str, Any]:
        """The result of a trial that cannot continue by itself.

        A member of a population that diverges waits to take over a better one; any other trial has
        failed.
        """
        self._close()
        member = self._plan.sweep.scheduler == "pbt" and not self.trial_name.startswith(FINAL)
        if member and isinstance(error, FloatingPointError):
            return self._wait_for_donor(str(error))
        return {DONE: True, "failed": str(error), "reports": []}

    def _wait_for_donor(self, reason: str) -> dict[str, Any]:
        """The result of a diverged member of a population.

        It has the worst possible score, so that at the next perturbation the member takes over a
        better one and other hyperparameters. Early in a sweep no other member may have been saved
        yet.
        """
        if self._waits and self._others_live():
            time.sleep(self._waits.pop(0))
        elif self._diverged:
            return {DONE: True, "failed": reason, "reports": []}
        if not self._diverged:
            self._diverged, self._waits = reason, list(DONOR_PAUSES_SECONDS)
        self._epoch += self._plan.sweep.pbt_every
        worst = {"score": -math.inf, "best_score": -math.inf}
        return {"epoch": self._epoch, "reports": [], "diverged": reason, DONE: False} | worst

    def _others_live(self) -> bool:
        """Whether another member has not ended yet: only such a member can be taken over."""
        records = self._folder.records().values()
        return any(each.name != self.trial_name and each.status not in ENDED for each in records)

    def _start(self) -> None:
        self._config = run_config(self._plan, self.trial_name, self._hyperparameters)
        sweep = self._plan.sweep
        torch.set_num_threads(sweep.cpus)
        run = Folder(self._run_dir)
        if not run.exists(RUN_ID_FILE):
            run.write(RUN_ID_FILE, self._plan.trial_id(self.trial_name))
        if sweep.workers > 1:
            values = to_dict(self._config)
            self._workers = DdpWorkers(self._folder.url, self.trial_name, values, sweep.workers)
        self._run = epochs(self._config, self._run_dir, resume=True, encoders=self._folder.encoders)

    def _next(self) -> dict[str, Any]:
        assert self._run is not None
        reports = []
        done = False
        try:
            while not reports or reports[-1].past:
                reports.append(next(self._run))
            if reports[-1].epoch == self._config.train.epochs:
                # To the end, so that all records are closed before Tune may end this process.
                next(self._run)
        except StopIteration:
            done = True
        if not reports:
            return {DONE: True, "reports": []}
        last = reports[-1]
        self._epoch = last.epoch
        result: dict[str, Any] = {
            "epoch": last.epoch,
            "reports": [report.to_record() for report in reports],
            "copied": self._copied,
            DONE: done,
        }
        self._copied = []
        if not math.isnan(last.score):
            result |= {"score": last.score, "best_score": last.best_score}
        return result

    def _copy(self, trial: str, epoch: int) -> None:
        """Continue from another trial's networks with this trial's hyperparameters."""
        donor = Folder(self._folder.run_dir(trial))
        own = Folder(self._run_dir)
        before = None
        if own.exists(LAST.as_posix()):
            before = load_checkpoint(local_file(own / LAST.as_posix()))
        config = run_config(self._plan, self.trial_name, self._hyperparameters)
        state = fork(donated(donor, epoch), config, before)
        with own.writer(LAST.as_posix()) as partial:
            save_checkpoint(partial, state)
        copied = {
            "epoch": state.position.epoch,
            "trial": trial,
            "hyperparameters": self._hyperparameters,
        }
        self._copied.append(copied)

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:
            if self._workers:
                stack.callback(self._workers.close)
            if self._run:
                self._run.close()
        self._run = self._workers = None


def donated(donor: Folder, epoch: int) -> Checkpoint:
    """The checkpoint of a run's epoch or, if the run has removed it since, of a later one.

    The run continues meanwhile, and may remove a checkpoint between its listing and its reading.

    Args:
        donor: Folder of the run.
        epoch: The epoch wanted.

    Raises:
        DataError: If the checkpoint exists and is damaged.
    """
    wanted = epoch_checkpoint(epoch).as_posix()
    for _ in range(KEPT_EPOCHS):
        kept = kept_epochs(donor.names("checkpoints"))
        chosen = next((name for name in kept if name >= wanted), LAST.as_posix())
        try:
            return load_checkpoint(local_file(donor / chosen))
        except (DataError, OSError):
            if donor.exists(chosen):
                raise
    # This one is replaced, never removed.
    return load_checkpoint(local_file(donor / LAST.as_posix()))
