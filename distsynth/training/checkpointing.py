"""The state of a run: claimed, written into its folder, and restored from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distsynth.config import RunConfig, from_json
from distsynth.models.encoder import Encoder
from distsynth.runs.checkpoint import (
    Checkpoint,
    Position,
    check_same_run,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import (
    CONFIG_FILE,
    LAST,
    SAMPLES_FOLDER,
    RunFolder,
    clear_run,
    epoch_checkpoint,
    kept_epochs,
)
from distsynth.sections import Resolved
from distsynth.training.pace import Pace
from distsynth.training.records import LossRecord
from distsynth.training.report import EpochReport
from distsynth.training.steps import Learner
from sharding.io.atomic import remove_leftovers
from sharding.io.errors import DataError
from sharding.shards.manifest import Manifest

ENCODER = "encoder"
"""Name of the encoder among the networks of a checkpoint."""


@dataclass
class RunState:
    """Everything that changes while a run trains.

    Attributes:
        learners: Name to network and optimizer.
        losses: Sums of losses since the last row.
        pace: The progress of the run, with its training time.
        position: How far the run is.
        best_score: The best score of all epochs so far.
        reports: One for each completed epoch.
        encoder: The encoder of the perceptual loss, if the run trains one.
        encoder_trained: Whether it has been trained, or taken over from a checkpoint.
    """

    learners: dict[str, Learner]
    losses: LossRecord
    pace: Pace
    encoder: Encoder | None = None
    encoder_trained: bool = False
    position: Position = field(default_factory=Position)
    best_score: float = float("-inf")
    reports: list[EpochReport] = field(default_factory=list)


@dataclass(frozen=True)
class Resumed:
    """What a run continues from.

    Attributes:
        checkpoint: Its last one; None if the run was interrupted before it wrote any.
        precision: The one that it was started with; None if that was not recorded yet.
    """

    checkpoint: Checkpoint | None = None
    precision: Resolved | None = None


def read_resumed(folder: RunFolder) -> Resumed:
    """Find what to resume in a run's folder; every rank does, before the first one changes it.

    Raises:
        ConfigError: If there is no checkpoint and the run's configuration cannot be read.
        DataError: If its checkpoint cannot be read.
    """
    last, config = folder.path / LAST, folder.path / CONFIG_FILE
    if last.exists():
        checkpoint = load_checkpoint(last)
        precision = checkpoint.config.train.precision
        return Resumed(checkpoint, None if precision == "auto" else precision)
    if config.exists():
        precision = from_json(config.read_bytes(), config).train.precision
        return Resumed(None, None if precision == "auto" else precision)
    return Resumed()


def claim_folder(
    folder: RunFolder, accelerator: Accelerator, resume: bool, overwrite: bool
) -> None:
    """Make the run's folder, or accept the one to resume.

    Raises:
        DataError: If there is a run already and neither option is given.
    """
    exists = (folder.path / CONFIG_FILE).exists()
    accelerator.wait_for_everyone()
    if exists and not resume:
        if not overwrite:
            raise DataError(
                folder.url,
                "the folder holds a run already",
                "Give --resume to continue it, --overwrite to replace it, or another --run-dir",
            )
        if accelerator.is_main_process:
            clear_run(folder.path)
    folder.path.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        for name in ("", LAST.parent, SAMPLES_FOLDER):
            remove_leftovers(folder.path / name)


class RunCheckpoints:
    """Writes the checkpoints of a run and restores its state from one."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, accelerator: Accelerator, manifest: Manifest
    ) -> None:
        self._config, self._folder, self._accelerator = config, folder, accelerator
        self._manifest = manifest

    def save(self, name: Path, state: RunState) -> None:
        """Write a checkpoint from the first rank, with the random states of all."""
        accelerator = self._accelerator
        states = [random_state(accelerator.device)]
        if accelerator.num_processes > 1:
            gathered: list[Any] = [None] * accelerator.num_processes
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        if accelerator.is_main_process:
            save_checkpoint(self._folder.path / name, self._checkpoint(state, states))
            self._folder.upload()
        accelerator.wait_for_everyone()

    def save_epoch(self, epoch: int, state: RunState) -> None:
        """Write the checkpoint of an epoch and remove those before the latest keep_epochs."""
        self.save(epoch_checkpoint(epoch), state)
        if self._accelerator.is_main_process:
            run_dir = self._folder.path
            found = (run_dir / LAST.parent).glob("epoch-*.pt")
            kept = kept_epochs(f"{LAST.parent}/{path.name}" for path in found)
            for name in kept[: -self._config.train.keep_epochs]:
                (run_dir / name).unlink()

    def restore(self, checkpoint: Checkpoint, state: RunState) -> None:
        """Take over the state of an interrupted run.

        Raises:
            ConfigError: If the run was started under another configuration or on other data.
            DataError: If the checkpoint lacks something, or holds something else in its place.
        """
        check_same_run(self._config, checkpoint, self._manifest.sha256)
        try:
            self._restore(checkpoint, state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(
                self._folder.path / LAST,
                f"not the state of a run that can be resumed ({reason})",
                "Take another checkpoint of this run, or start it again with --overwrite",
            ) from error

    def _restore(self, checkpoint: Checkpoint, state: RunState) -> None:
        for name, learner in state.learners.items():
            learner.load_state_dict(checkpoint.learners[name])
        # Absent if the run is forked from one without the perceptual term.
        if state.encoder is not None and ENCODER in checkpoint.learners:
            state.encoder.load_state_dict(checkpoint.learners[ENCODER]["network"])
            state.encoder_trained = True
        record, device = checkpoint.record, self._accelerator.device
        state.position = checkpoint.position
        state.best_score = record["best_score"]
        state.pace.seconds = record["seconds"]
        state.losses.sums = {name: value.to(device) for name, value in record["sums"].items()}
        state.losses.counts = dict(record["summed"])
        last = self._folder.path / LAST
        state.reports = [
            EpochReport(**report, checkpoint=last, past=True)
            for report in record.get("reports", ())
        ]
        rank = self._accelerator.process_index
        if rank < len(checkpoint.random):
            set_random_state(checkpoint.random[rank], device)

    def _checkpoint(self, state: RunState, random_states: list[dict[str, Any]]) -> Checkpoint:
        learners = {name: learner.state_dict() for name, learner in state.learners.items()}
        if state.encoder is not None:
            learners[ENCODER] = {"network": state.encoder.state_dict()}
        return Checkpoint(
            config=self._config,
            data=DataRecord.of(self._manifest),
            position=state.position,
            learners=learners,
            random=random_states,
            record={
                "best_score": state.best_score,
                "seconds": state.pace.seconds,
                "sums": {term: value.cpu() for term, value in state.losses.sums.items()},
                "summed": dict(state.losses.counts),
                "reports": [report.to_record() for report in state.reports],
            },
        )
