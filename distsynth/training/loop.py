"""The only training loop: one process, every rank of a launch, and a trial of a sweep call it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

from accelerate import PartialState

from distsynth.config import RunConfig, validate
from distsynth.runs.folder import BEST, LAST, open_run
from distsynth.training.checkpointing import read_resumed
from distsynth.training.pace import Clock
from distsynth.training.report import EpochReport, TrainResult
from distsynth.training.run import TrainingRun
from sharding.io.lease import lease
from sharding.io.storage import Folder


def ignore(report: EpochReport) -> None:
    """The default `on_epoch`: it does nothing."""


def train(
    config: RunConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[EpochReport], None] = ignore,
    clock: Clock = time.perf_counter,
) -> TrainResult:
    """Train the configured networks.

    Killed at any moment and called again with `resume`, it ends with the same weights and rows of
    losses as without the interruption; on CPU they agree to the bit. With a budget in time
    (`train.minutes`) the patches and their order agree, and the training time; learning rates and
    the last step follow the clock, which no two runs have alike.

    Args:
        config: The whole run.
        run_dir: Folder for config.json, metrics.jsonl, checkpoints/, samples/ and W&B's files: a
            path, or a URL such as s3://bucket/runs/one.
        resume: Continue from checkpoints/last.pt; without one, start from the beginning.
        overwrite: Remove an existing run in this folder first.
        on_epoch: Called on the first rank after each epoch, when its checkpoint is written. An
            exception from it ends the run.
        clock: What `train.minutes` is measured by, in seconds. With `time.process_time` a run gets
            as much computation on a busy machine as on an idle one.

    Raises:
        ConfigError: If the configuration does not suit the shards, the ranks or the run resumed.
        DataError: If the shards or the checkpoint are bad, or another process writes to the folder.
        FloatingPointError: If a loss is no longer finite.
    """
    run = epochs(config, run_dir, resume=resume, overwrite=overwrite, clock=clock)
    with contextlib.ExitStack() as stack:
        # One process writes to the folder: the first rank, which launchers number so.
        if int(os.environ.get("RANK", "0")) == 0:
            stack.enter_context(lease(run_dir))
        stack.enter_context(contextlib.closing(run))
        while True:
            try:
                report = next(run)
            except StopIteration as end:
                return end.value
            if report.past or not PartialState().is_main_process:
                continue
            try:
                on_epoch(report)
            except BaseException as error:
                # Raised inside the loop, so that the run is recorded as failed.
                run.throw(error)


def epochs(
    config: RunConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    clock: Clock = time.perf_counter,
    encoders: Folder | None = None,
) -> Generator[EpochReport, None, TrainResult]:
    """The loop of `train`, one epoch at a time, on every rank.

    Closing the generator ends the run cleanly after the epoch that it yielded: its records are
    complete and it can be resumed.

    Args:
        config: As for `train`.
        run_dir: As for `train`.
        resume: As for `train`.
        overwrite: As for `train`.
        clock: As for `train`.
        encoders: Where runs that belong together, the trials of a sweep, keep the encoder of the
            perceptual loss (`loss.perceptual_network cohort`), so that one of them trains it.

    Yields:
        A report of each epoch once its checkpoint is written; a resumed run first yields those of
        the epochs that were completed before.

    Returns:
        The result of the run.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_run(run_dir))
        resumed = read_resumed(folder) if resume else None
        run = TrainingRun(validate(config), folder, resumed, clock, encoders)
        stack.enter_context(run.prepared(overwrite))
        stack.enter_context(run.signals_of_ranks())
        yield from list(run.state.reports)
        while not run.over:
            epoch = run.state.position.epoch
            run.train_epoch(epoch)
            yield run.close_epoch(epoch)
    return TrainResult(run_dir, folder.locate(BEST), folder.locate(LAST), run.state.best_score)
