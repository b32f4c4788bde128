"""The only training loop: one process, every rank of a launch, and a trial of a sweep call it."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from distsynth.config import RunConfig, to_json, validate
from distsynth.data.loader import Batch, PatchDataset, Standardiser, TrainingBatches
from distsynth.data.memory import keep_freed_memory
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.metrics.objective import score
from distsynth.models import build_discriminator, build_generator
from distsynth.runs.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    DataRecord,
    Position,
    check_same_run,
    epoch_checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from distsynth.runs.folder import RunFolder, open_run
from distsynth.runs.tracking import METRICS_FILE, RUN_ID_FILE, Trackers, patch_grid, start_trackers
from distsynth.training.compile import compile_networks
from distsynth.training.steps import (
    Learner,
    Terms,
    adversarial_step,
    average_buffers,
    make_accelerator,
    supervised_step,
)
from distsynth.training.validation import Validator
from sharding.io.atomic import atomic_write
from sharding.io.cache import Cache
from sharding.io.errors import DataError
from sharding.shards.format import ShardSet

CONFIG_FILE = "config.json"
RUN_FILES = (CONFIG_FILE, METRICS_FILE, RUN_ID_FILE)
RUN_FOLDERS = (LAST.parent, "samples", "wandb")
RECORDED = ("epoch", "step", "metrics", "score", "best_score")
"""Fields of an EpochReport that a checkpoint keeps."""


@dataclass(frozen=True)
class EpochReport:
    """How a run stands after an epoch.

    Attributes:
        epoch: Epochs done, from 1.
        step: Optimizer steps taken in the run.
        metrics: Stitched validation metrics, empty in an epoch without validation.
        score: What the best epoch is chosen by, higher being better; NaN without validation.
        best_score: Of this epoch and all before it.
        checkpoint: The checkpoint just written; of a past epoch the run's last one.
        past: Whether the epoch was done before the run was resumed.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    score: float
    best_score: float
    checkpoint: Path
    past: bool = False

    def to_record(self) -> dict[str, Any]:
        """As plain values, without what depends on where the run lies."""
        return {name: getattr(self, name) for name in RECORDED}


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        run_dir: Its folder.
        best: Checkpoint of the best validation score.
        last: Checkpoint of the last epoch.
        best_score: Of the best epoch, see distsynth.metrics.objective; by default its stitched PSNR
            in the mask, in dB at the target's own range.
    """

    run_dir: str | Path
    best: str | Path
    last: str | Path
    best_score: float


def ignore(report: EpochReport) -> None:
    """The `on_epoch` of a run that nobody watches."""


def train(
    config: RunConfig,
    run_dir: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[EpochReport], None] = ignore,
) -> TrainResult:
    """Train the configured networks.

    Killed at any moment and called again with `resume`, it ends with the weights and the rows
    of losses that it would have had, on CPU to the bit.

    Args:
        config: The whole run.
        run_dir: Folder for config.json, metrics.jsonl, checkpoints/, samples/ and W&B's files: a
            path, or a URL such as s3://bucket/runs/one.
        resume: Go on from checkpoints/last.pt; starts afresh if there is none yet.
        overwrite: Remove an existing run in this folder first.
        on_epoch: Called on the first rank after each epoch, the checkpoint written. An exception
            from it ends the run.

    Raises:
        ConfigError: If the configuration does not suit the shards, the ranks or the run resumed.
        DataError: If the shards or the checkpoint are bad.
        FloatingPointError: If a loss is no longer finite.
    """
    run = epochs(config, run_dir, resume, overwrite)
    with contextlib.closing(run):
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
                # Into the loop, so that the run's records tell that it failed.
                run.throw(error)


def epochs(
    config: RunConfig, run_dir: str | Path, resume: bool = False, overwrite: bool = False
) -> Generator[EpochReport, None, TrainResult]:
    """The loop of `train`, an epoch at a time, on every rank.

    Closing the generator ends the run in good order after the epoch that it yielded: its records
    are complete and it can be resumed.

    Args:
        config: As for `train`, with the other arguments.
        run_dir: Likewise.
        resume: Likewise.
        overwrite: Likewise.

    Yields:
        A report of each epoch, its checkpoint written; of a resumed run, first those of the epochs
        that were done before.

    Returns:
        What the run leaves.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_run(run_dir))
        run = _Run(validate(config), folder)
        stack.enter_context(run.prepared(resume, overwrite))
        yield from list(run.reports)
        for epoch in range(run.position.epoch, config.train.epochs):
            run.train_epoch(epoch)
            yield run.close_epoch(epoch)
    return TrainResult(run_dir, folder.locate(BEST), folder.locate(LAST), run.best_score)


class _Run:
    """The state of one training run in one process."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.shards = _open_shards(config)
        config = resolved(config, self.shards.manifest)
        self.config, self.folder, self.run_dir = config, folder, folder.path
        self.accelerator = _accelerator(config)
        self.position = Position()
        self.best_score = float("-inf")
        self.reports: list[EpochReport] = []
        # Sums of loss terms since the last row, on the device, and how many steps they hold.
        self.sums: Terms = {}
        self.summed = 0
        # Time and step at the start of what throughput is measured over.
        self.window = 0.0, 0
        self.trackers = Trackers()

        accelerator = self.accelerator
        _check_accumulation(config, accelerator.num_processes)
        set_seed(config.train.seed)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.standardise = Standardiser(self.shards.manifest, accelerator.device)
        self.batches = TrainingBatches(
            self.shards,
            config.data,
            config.train.batch_size,
            config.train.seed,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
        )
        self.loss = GeneratorLoss(config.loss).to(accelerator.device)
        self.learners = self._build_learners()
        self.validator = Validator(self.shards, config, accelerator, self.standardise, self.loss)

    @contextlib.contextmanager
    def prepared(self, resume: bool, overwrite: bool) -> Iterator[None]:
        """The run's folder, state and trackers set up; trackers closed and ranks left after."""
        accelerator, config = self.accelerator, self.config
        checkpoint = self._claim_folder(resume, overwrite)
        if checkpoint:
            self._restore(checkpoint)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            atomic_write(self.run_dir / CONFIG_FILE, to_json(config))
            self.trackers = start_trackers(
                self.run_dir,
                config,
                self.shards.manifest.sha256,
                self.position.step,
                resumed=resume,
            )
        failed = True
        try:
            yield
            failed = False
        except GeneratorExit:
            # Ended from outside between two epochs.
            failed = False
            raise
        finally:
            self.trackers.finish(failed)
            if accelerator.is_main_process:
                self.folder.publish(wandb=True)

    def train_epoch(self, epoch: int) -> None:
        """Take the steps of an epoch that are not taken yet."""
        config, accelerator = self.config, self.accelerator
        start = self.position.step_in_epoch
        batches = self.batches.epoch(epoch, start)
        self.window = time.perf_counter(), self.position.step
        for done, batch in enumerate(self._progress(batches, epoch, start), start=start + 1):
            step = self.position.step
            self._add(self._step(batch, step))
            self.position = Position(epoch, done, step + 1)
            if self.position.step % config.train.log_every == 0:
                self._log(epoch)
            every = config.train.checkpoint_every
            if every and self.position.step % every == 0 and done < self.batches.steps:
                self._merge_ranks()
                self._save(LAST)
        if epoch + 1 == config.train.epochs and self.summed:
            self._log(epoch)
        accelerator.wait_for_everyone()

    def close_epoch(self, epoch: int) -> EpochReport:
        """Validate where it is due, write the checkpoints, show samples."""
        config, done = self.config, epoch + 1
        generator = self.learners["generator"].raw
        self._merge_ranks()
        metrics: dict[str, float] = {}
        if done % config.train.validate_every == 0 or done == config.train.epochs:
            metrics = self.validator(generator)
            self._check_finite("val/mse", metrics["val/mse"])
            self.trackers.log(self.position.step, {"epoch": done, **metrics})
            if self.accelerator.is_main_process:
                _tell(f"epoch {done}/{config.train.epochs}: " + _summary(metrics))
        self._show_samples()
        self.position = Position(done, 0, self.position.step)
        found = score(metrics, config.train)
        better = found > self.best_score
        if better:
            self.best_score = found
        last = self.run_dir / LAST
        report = EpochReport(done, self.position.step, metrics, found, self.best_score, last)
        self.reports.append(report)
        if better:
            self._save(BEST)
        if config.train.keep_epochs:
            self._keep_epoch(done)
        self._save(LAST)
        return report

    def _build_learners(self) -> dict[str, Learner]:
        config = self.config
        total = self.batches.steps * config.train.epochs

        def learner(network: torch.nn.Module, rate: float) -> Learner:
            return Learner(network, rate, config.optim, total, self.accelerator)

        size, channels = config.data.sides, config.data.channels
        generator = build_generator(config.generator, size, channels)
        learners = {"generator": learner(generator, config.optim.lr_generator)}
        if config.adversarial:
            discriminator = build_discriminator(config.discriminator, size, channels)
            learners["discriminator"] = learner(discriminator, config.optim.lr_discriminator)
        if config.train.compile:
            networks = (each.raw for each in learners.values())
            compile_networks(networks, self.accelerator.device)
        return learners

    def _step(self, batch: Batch, step: int) -> Terms:
        source, target = self.standardise(batch)
        parts = self.config.train.accumulation
        micro_batches = list(zip(source.chunk(parts), target.chunk(parts), strict=True))
        generator = self.learners["generator"]
        if self.config.adversarial:
            discriminator = self.learners["discriminator"]
            return adversarial_step(generator, discriminator, self.loss, micro_batches, step)
        return supervised_step(generator, self.loss, micro_batches, step)

    def _add(self, terms: Terms) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.summed += 1

    def _log(self, epoch: int) -> None:
        """Write a row of means over the steps since the last one; `epoch` counts from 0."""
        names = list(self.sums)
        means: Tensor = torch.stack([self.sums[name] for name in names]) / self.summed
        means = self.accelerator.reduce(means, "mean")  # type: ignore[assignment]
        values = dict(zip(names, means.tolist(), strict=True))
        self.sums, self.summed = {}, 0
        now = time.perf_counter()
        seconds, steps = now - self.window[0], self.position.step - self.window[1]
        self.window = now, self.position.step
        row: dict[str, float] = {"epoch": epoch + 1}
        for name, value in values.items():
            self._check_finite(name, value)
            row[name if name.startswith("grad_norm/") else f"train/{name}"] = value
        for name, learner in self.learners.items():
            row[f"lr/{name}"] = learner.learning_rate(self.position.step - 1)
        row["throughput/patches_per_s"] = steps * self.config.train.batch_size / seconds
        self.trackers.log(self.position.step, row)

    def _merge_ranks(self) -> None:
        """Give all ranks the mean of what each keeps for itself.

        These are the sums since the last row and BatchNorm's statistics, before they are saved: a
        resumed run goes on from the very numbers of one that was not interrupted.
        """
        for learner in self.learners.values():
            average_buffers(learner.raw, self.accelerator)
        for name, value in self.sums.items():
            self.sums[name] = self.accelerator.reduce(value, "mean")  # type: ignore[assignment]
            self._check_finite(name, float(self.sums[name]))

    def _check_finite(self, name: str, value: float) -> None:
        """Raise FloatingPointError for a loss, or a gradient that no scaler makes skip its step."""
        skipped = name.startswith("grad_norm/") and self.config.train.precision == "fp16"
        if not skipped and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {self.position.step}: the run diverged. "
                "Lower optim.lr_generator or optim.lr_discriminator, set optim.clip_norm, or "
                "use train.precision no or bf16"
            )

    def _show_samples(self) -> None:
        """Log the first validation patches that hold some tissue, through the generator."""
        count = self.config.tracking.samples
        if not count or not self.accelerator.is_main_process:
            return
        batch = self._sample_batch(count)
        source, target = self.standardise(batch)
        generator = self.learners["generator"].raw
        generator.eval()
        with torch.no_grad():
            synthetic = generator(source).float()
        generator.train()
        # Of a source with neighbouring slices, the middle one.
        parts = [part[:, part.shape[1] // 2].cpu().numpy() for part in (source, synthetic, target)]
        self.trackers.picture(self.position.step, "samples", patch_grid(*parts))

    def _sample_batch(self, count: int) -> Batch:
        """Evenly spread validation patches of the richest contrast of their neighbourhood."""
        dataset = PatchDataset(self.shards, "val")
        candidates = torch.linspace(0, len(dataset) - 1, min(len(dataset), 16 * count)).long()
        batch = dataset[candidates.numpy()]
        spread = batch.target.float().flatten(1).std(dim=1)
        best = spread.argsort(descending=True, stable=True)[:count].sort().values
        return Batch(*(part[best] for part in batch))

    def _save(self, name: Path) -> None:
        """Write a checkpoint from the first rank, with the random states of all."""
        states = [random_state(self.accelerator.device)]
        if self.accelerator.num_processes > 1:
            gathered: list[Any] = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                config=self.config,
                data=DataRecord.of(self.shards.manifest),
                position=self.position,
                learners={name: learner.state_dict() for name, learner in self.learners.items()},
                random=states,
                record={
                    "best_score": self.best_score,
                    "sums": {term: value.cpu() for term, value in self.sums.items()},
                    "summed": self.summed,
                    "reports": [report.to_record() for report in self.reports],
                },
            )
            save_checkpoint(self.run_dir / name, checkpoint)
            self.folder.publish()
        self.accelerator.wait_for_everyone()

    def _keep_epoch(self, epoch: int) -> None:
        """Write the checkpoint of an epoch and remove those that are no longer among the latest."""
        self._save(epoch_checkpoint(epoch))
        if self.accelerator.is_main_process:
            kept = sorted((self.run_dir / LAST.parent).glob("epoch-*.pt"))
            for path in kept[: -self.config.train.keep_epochs]:
                path.unlink()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of an interrupted run."""
        check_same_run(self.config, checkpoint, self.shards.manifest.sha256)
        for name, learner in self.learners.items():
            learner.load_state_dict(checkpoint.learners[name])
        self.position = checkpoint.position
        record, device = checkpoint.record, self.accelerator.device
        self.best_score = record["best_score"]
        self.sums = {name: value.to(device) for name, value in record["sums"].items()}
        self.summed = record["summed"]
        # Runs of older versions kept none.
        last = self.run_dir / LAST
        past = record.get("reports", ())
        self.reports = [EpochReport(**report, checkpoint=last, past=True) for report in past]
        rank = self.accelerator.process_index
        if rank < len(checkpoint.random):
            set_random_state(checkpoint.random[rank], device)
        if self.accelerator.is_main_process:
            _tell(f"going on from step {self.position.step}")

    def _claim_folder(self, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Make the run's folder, or find what to resume in it."""
        exists = (self.run_dir / CONFIG_FILE).exists()
        last = self.run_dir / LAST
        # Every rank looks before the first one changes anything.
        checkpoint = load_checkpoint(last) if resume and last.exists() else None
        self.accelerator.wait_for_everyone()
        if exists and not resume:
            if not overwrite:
                raise DataError(
                    self.folder.url,
                    "the folder holds a run already",
                    "Give --resume to go on, --overwrite to replace it, or another --run-dir",
                )
            if self.accelerator.is_main_process:
                _clear(self.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        return checkpoint

    def _progress(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """A bar on the first rank's terminal."""
        hidden = not (self.accelerator.is_main_process and sys.stderr.isatty())
        title = f"epoch {epoch + 1}/{self.config.train.epochs}"
        bar = tqdm(batches, title, self.batches.steps, initial=start, leave=False, disable=hidden)
        yield from bar


def _clear(run_dir: Path) -> None:
    """Remove what a run writes and leave anything else in its folder alone."""
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(run_dir / name, ignore_errors=True)


def _open_shards(config: RunConfig) -> ShardSet:
    """Open the shards and check their sums."""
    shards = ShardSet(config.data.shards, Cache(gigabytes=config.data.cache_gb))
    # On every rank, so that all of them stop.
    shards.check_sums("train", "val")
    return shards


def _accelerator(config: RunConfig) -> Accelerator:
    cpu = config.train.device == "cpu"
    if config.train.precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ConfigError("train.precision must be no or bf16 without a GPU, got fp16")
    return make_accelerator(config.train.precision, cpu)


def _check_accumulation(config: RunConfig, ranks: int) -> None:
    """Micro-batches of different sizes would not weigh every patch alike."""
    parts = config.train.accumulation
    share, rest = divmod(config.train.batch_size, ranks)
    if not rest and share % parts:
        raise ConfigError(
            f"train.accumulation must be a divisor of the {share} patches that each of {ranks} "
            f"ranks has in a batch, got {parts}"
        )


def _summary(metrics: dict[str, float]) -> str:
    return (
        f"PSNR {metrics['val/psnr']:.2f} dB, SSIM {metrics['val/ssim_2d']:.4f} (2D), "
        f"seam {metrics['val/seam_index']:.3f}, stitched, in the mask"
    )


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
