"""One training run in one process: its setup, its steps, its epochs, its checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator

import torch
from accelerate.utils import set_seed
from torch import Tensor

from distsynth.config import RunConfig, to_json
from distsynth.data.loader import Batch, Rank, TrainingBatches
from distsynth.data.memory import keep_freed_memory
from distsynth.data.standardiser import Standardiser
from distsynth.metrics.objective import score
from distsynth.models.intensity_map import IntensityCurve
from distsynth.runs.checkpoint import Position
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST, RunFolder
from distsynth.runs.tracking import Trackers, start_trackers
from distsynth.training.augmentation import Augmentation
from distsynth.training.checkpointing import (
    Resumed,
    RunCheckpoints,
    RunState,
    claim_folder,
)
from distsynth.training.display import RunDisplay, validation_summary, what_is_trained
from distsynth.training.encoder import train_encoder
from distsynth.training.intensity_map import fit_curve
from distsynth.training.pace import Clock, run_pace
from distsynth.training.precision import resolve_precision
from distsynth.training.records import LossRecord, sample_picture
from distsynth.training.report import EpochReport, fruitless
from distsynth.training.setup import (
    build_accelerator,
    build_encoder,
    build_foreground,
    build_learners,
    build_loss,
    check_setup,
    open_shards,
)
from distsynth.training.start import start_from
from distsynth.training.steps import (
    MicroBatch,
    Terms,
    adversarial_step,
    interpolation_shares,
    supervised_step,
)
from distsynth.training.validation import Validator
from sharding.io.atomic import atomic_write
from sharding.io.interruption import DeferredSignals, Interrupted, deferred_signals
from sharding.io.storage import Folder

logger = logging.getLogger(__name__)

WHOLE = "val_whole"
"""Metrics of whole validation specimens, where `train.validate_share` takes less while training."""


class TrainingRun:
    """One training run in one process.

    Args:
        config: The whole run.
        folder: Where it works.
        resumed: What it continues from; None begins anew.
        clock: What its budget in time is measured by, in seconds.
        encoders: Where encoders of the perceptual loss are kept for other runs; None keeps none.

    Attributes:
        state: The state that a checkpoint keeps.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        resumed: Resumed | None = None,
        clock: Clock = time.perf_counter,
        encoders: Folder | None = None,
    ) -> None:
        config, self.shards = open_shards(config)
        config = resolve_precision(config, resumed.precision if resumed else None)
        self._resumed, self._encoders = resumed, encoders
        self.config, self.folder = config, folder
        self.accelerator = accelerator = build_accelerator(config)
        self.trackers = Trackers()
        gpu = accelerator.device.type != "cpu"
        check_setup(config, self.shards.manifest, accelerator.num_processes, gpu)
        set_seed(config.train.seed)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.standardise = Standardiser(self.shards.manifest, accelerator.device)
        self.batches = TrainingBatches(
            self.shards,
            config.data,
            config.train.batch_size,
            config.train.seed,
            Rank.of(accelerator),
        )
        self.loss = build_loss(config, accelerator)
        pace = run_pace(config.train, self.batches.steps, accelerator, clock)
        self.state = RunState(
            build_learners(config, accelerator, pace),
            LossRecord(config, accelerator, pace),
            pace,
            build_encoder(config, accelerator),
        )
        self.foreground = build_foreground(self.loss, self.shards, accelerator)
        self.validator = Validator(
            self.shards, config, accelerator, self.standardise, self.loss, self.foreground
        )
        self.checkpoints = RunCheckpoints(config, folder, accelerator, self.shards.manifest)
        self.augment = Augmentation(
            config.augment, config.train.seed, config.data.sides, config.data.contrasts or 1
        )
        self.display = RunDisplay(config, pace, self.batches.steps, accelerator)
        self._signals: DeferredSignals | None = None

    @contextlib.contextmanager
    def prepared(self, overwrite: bool = False) -> Iterator[None]:
        """Claim the folder, restore the state and start the trackers; close them at the end."""
        accelerator, config = self.accelerator, self.config
        resume = self._resumed is not None
        claim_folder(self.folder, accelerator, resume, overwrite)
        if self._resumed and (checkpoint := self._resumed.checkpoint):
            self.checkpoints.restore(checkpoint, self.state)
            self._log_once(f"resuming from step {self.state.position.step}")
        elif config.train.start_from:
            start_from(config.train.start_from, self.state.learners)
        elif config.generator.intensity_map:
            self._fit_curve()
        self._take_encoder()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            atomic_write(self.folder.path / CONFIG_FILE, to_json(config))
            self.trackers = start_trackers(
                self.folder.path,
                config,
                self.shards.manifest.sha256,
                self.state.position.step,
                resumed=resume,
                sources=DataRecord.of(self.shards.manifest).profile,
            )
        self._begin_display()
        failed = True
        try:
            yield
            failed = False
        except GeneratorExit:
            # Ended from outside between two epochs.
            failed = False
            raise
        finally:
            self.display.close()
            complete = self.trackers.finish(failed)
            if accelerator.is_main_process:
                self.folder.upload(wandb=True)
                if resume and complete and not failed and config.tracking.mode == "offline":
                    self.folder.remove_earlier_parts()

    @contextlib.contextmanager
    def signals_of_ranks(self) -> Iterator[None]:
        """Where there are several ranks, hold signals back until all of them agree to stop.

        Raises:
            Interrupted: At the end, if there was a signal that they did not come to agree on.
        """
        if self.accelerator.num_processes == 1:
            yield
            return
        with deferred_signals() as self._signals:
            yield

    def _begin_display(self) -> None:
        """Say what is trained, and show the progress from here on."""
        learners, patches = self.state.learners, self.shards.manifest.patches("train")
        self._log_once(
            what_is_trained(self.config, self.accelerator, learners, patches, self.batches.steps)
        )
        self.display.start(self.state.position.step)

    def _fit_curve(self) -> None:
        """Fit the curve that the generator applies to its source."""
        generator = self.state.learners["generator"]
        curve = generator.raw.curve
        assert isinstance(curve, IntensityCurve)
        fit_curve(curve, self.shards, self.standardise)
        generator.start_with(generator.raw.state_dict())

    def _take_encoder(self) -> None:
        """Train the encoder of the perceptual loss, unless a checkpoint has provided it."""
        encoder, state = self.state.encoder, self.state
        if encoder is None:
            return
        if not state.encoder_trained:
            steps = self.config.loss.encoder_steps
            train_encoder(
                *(encoder, self.shards, self.standardise, steps, self.accelerator), self._encoders
            )
            state.encoder_trained = True
        self.loss.use_encoder(encoder)

    @property
    def over(self) -> bool:
        """Whether the run has reached its end, or learns no more."""
        state, patience = self.state, self.config.train.patience or math.inf
        if state.position.step_in_epoch:
            return False  # Its last epoch has not been closed.
        return self._ends_with(state.position.epoch - 1) or fruitless(state.reports) >= patience

    def _ends_with(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is the last one."""
        return epoch + 1 >= self.config.train.epochs or self.state.pace.over

    def train_epoch(self, epoch: int) -> None:
        """Take those steps of an epoch that have not been taken yet.

        Raises:
            Interrupted: After a signal, when the step is done and its checkpoint is written.
        """
        held_back = contextlib.nullcontext(self._signals) if self._signals else deferred_signals()
        with held_back as signals:
            self._take_steps(epoch, signals)
        self.accelerator.wait_for_everyone()

    def _take_steps(self, epoch: int, signals: DeferredSignals) -> None:
        config, state = self.config, self.state
        start = state.position.step_in_epoch
        # One may have come while the epoch before was closed: its checkpoint is written.
        self._stop_if_told(signals)
        batches = self.batches.epoch(epoch, start)
        state.losses.start_clock(state.position.step)
        state.pace.start()
        for done, batch in enumerate(batches, start=start + 1):
            if state.pace.over:
                break
            step = state.position.step
            state.losses.add(self._step(batch, step))
            state.pace.tick()
            state.position = Position(epoch, done, step + 1)
            self.display.stepped(step + 1)
            logged = state.position.step % config.train.log_every == 0
            if logged:
                self._log(epoch)
            every = config.train.checkpoint_every
            if every and state.position.step % every == 0 and done < self.batches.steps:
                self._save_in_epoch()
                state.pace.start()
            # Ranks exchange a row where it is logged: to agree costs little more there.
            if logged or self._signals is None:
                self._stop_if_told(signals, self._save_in_epoch)
        if self._ends_with(epoch) and state.losses.sums:
            self._log(epoch)

    def _save_in_epoch(self) -> None:
        self._merge_ranks()
        self.checkpoints.save(LAST, self.state)

    def _stop_if_told(
        self, signals: DeferredSignals, save: Callable[[], None] | None = None
    ) -> None:
        """Raise Interrupted on all ranks if a signal came to one of them, saved first if asked."""
        told = signals.signal is not None
        if self._signals is not None:
            flag = torch.tensor(float(told), device=self.accelerator.device)
            told = bool(float(self.accelerator.reduce(flag, "sum")))  # type: ignore[arg-type]
        if told:
            if save is not None:
                save()
            raise Interrupted(signals.signal or signal.SIGTERM)

    def close_epoch(self, epoch: int) -> EpochReport:
        """Validate if it is due, write the checkpoints and log samples."""
        config, state, done = self.config, self.state, epoch + 1
        self._merge_ranks()
        metrics: dict[str, float] = {}
        try:
            if done % config.train.validate_every == 0 or self._ends_with(epoch):
                metrics = self._validate(done)
            if self._ends_with(epoch) and config.train.validate_share < 1:
                self._validate_everything(done)
            self._show_samples()
        except KeyboardInterrupt:
            # The epoch's steps are done: resumed, the run validates again.
            if self.accelerator.num_processes == 1:
                self.checkpoints.save(LAST, state)
            raise
        state.position = Position(done, 0, state.position.step)
        found = score(metrics, config.train)
        better = found > state.best_score
        if better:
            state.best_score = found
        last = self.folder.path / LAST
        report = EpochReport(done, state.position.step, metrics, found, state.best_score, last)
        state.reports.append(report)
        if better:
            self.checkpoints.save(BEST, state)
        if config.train.keep_epochs:
            self.checkpoints.save_epoch(done, state)
        self.checkpoints.save(LAST, state)
        return report

    def _validate(self, done: int) -> dict[str, float]:
        """Metrics of the validation split after `done` epochs, logged."""
        state = self.state
        generator = state.learners["generator"].evaluated
        metrics = self.validator(generator, self.display.validating)
        state.losses.check_finite("val/mse", metrics["val/mse"], state.position.step)
        self.trackers.log(state.position.step, {"epoch": done, **metrics})
        self._log_once(validation_summary(done, f"/{self.config.train.epochs}", metrics))
        return metrics

    def _validate_everything(self, done: int) -> None:
        """Log the metrics of whole validation specimens as `val_whole/<metric>`."""
        state = self.state
        generator = state.learners["generator"].evaluated
        metrics = self.validator(generator, self.display.validating, everything=True)
        rows = {name.replace("val/", f"{WHOLE}/"): value for name, value in metrics.items()}
        self.trackers.log(state.position.step, {"epoch": done, **rows})
        title = f"/{self.config.train.epochs}, whole specimens"
        self._log_once(validation_summary(done, title, metrics))

    def _step(self, batch: Batch, step: int) -> Terms:
        micro_batches = self._micro_batches(batch)
        generator = self.state.learners["generator"]
        if self.config.adversarial:
            discriminator = self.state.learners["discriminator"]
            return adversarial_step(
                generator,
                discriminator,
                self.loss,
                micro_batches,
                step,
                self._interpolation_shares(step),
                with_generator=(step + 1) % self.config.optim.discriminator_steps == 0,
            )
        return supervised_step(generator, self.loss, micro_batches, step)

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """A batch as the networks see it, augmented, in parts."""
        source, target = self.standardise(batch)
        if self.foreground:
            # The mask moves as the target does.
            target = torch.cat((target, self.foreground(batch.where).to(target)), 1)
        source, target = self.augment(source, target, batch.where, self.state.position.epoch)
        parts = self.config.train.accumulation
        pairs = zip(source.chunk(parts), target.chunk(parts), strict=True)
        if self.foreground:
            return [MicroBatch(image, both[:, :1], both[:, 1:] > 0) for image, both in pairs]
        return [MicroBatch(image, truth) for image, truth in pairs]

    def _interpolation_shares(self, step: int) -> Tensor | None:
        """Interpolation shares of this rank's patches for a gradient penalty; None without one."""
        if self.config.loss.penalty != "gradient":
            return None
        train, accelerator = self.config.train, self.accelerator
        shares = interpolation_shares(train.seed, step, train.batch_size)
        own = shares.chunk(accelerator.num_processes)[accelerator.process_index]
        return own.to(accelerator.device)

    def _log(self, epoch: int) -> None:
        """Write a row of means over the steps since the last one; `epoch` counts from 0."""
        state = self.state
        row = state.losses.take_row(epoch, state.position.step, state.learners)
        self.trackers.log(state.position.step, row)
        self.display.loss(row)

    def _merge_ranks(self) -> None:
        """Give all ranks the mean of the sums since the last row, before they are saved.

        A resumed run then continues from the same numbers as one that was not interrupted.
        """
        self.state.losses.merge_ranks(self.state.position.step)

    def _show_samples(self) -> None:
        count = self.config.tracking.samples
        if count and self.accelerator.is_main_process:
            generator = self.state.learners["generator"].evaluated
            picture = sample_picture(generator, self.shards, self.standardise, count)
            self.trackers.picture(self.state.position.step, "samples", picture)

    def _log_once(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.info(message)
