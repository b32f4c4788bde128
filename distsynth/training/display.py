"""What a run says while it trains: what it is at the start, then a bar or lines to its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from distsynth.config import RunConfig
from distsynth.models import parameter_count
from distsynth.training.pace import Pace
from distsynth.training.steps import Learner
from sharding.io.progress import OverallProgress

logger = logging.getLogger(__name__)
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}


class RunDisplay:
    """The progress of a whole run, through steps and validations; on the first rank alone.

    Args:
        config: The run.
        pace: Its progress.
        steps: Steps of an epoch.
        accelerator: The ranks.
    """

    def __init__(self, config: RunConfig, pace: Pace, steps: int, accelerator: Accelerator) -> None:
        self._train, self._pace, self._steps = config.train, pace, steps
        self._step, self._free, self._loss = 0, 0.0, ""
        quiet = not accelerator.is_main_process
        self._shown = OverallProgress("training", quiet, logger=logger)

    def start(self, step: int) -> None:
        """The run begins, or continues after so many steps."""
        self._step, self._free = step, self._pace(step)
        self._shown.start()

    def loss(self, row: Mapping[str, float]) -> None:
        """Show the generator's loss of a row that was logged."""
        if "train/generator" in row:
            self._loss = f", loss {row['train/generator']:.4g}"

    def stepped(self, step: int) -> None:
        """So many steps of the run are taken."""
        self._step = step
        if self._shown.due:
            self._show(max(step - 1, 0) // self._steps)

    def validating(self, specimen: int, specimens: int) -> None:
        """The validation of the epoch whose steps are taken is at one of its specimens."""
        if self._shown.due:
            epoch = max(self._step - 1, 0) // self._steps
            self._show(epoch, f", validating specimen {specimen} of {specimens}")

    def close(self) -> None:
        """Remove the bar."""
        self._shown.close()

    def _show(self, epoch: int, doing: str = "") -> None:
        total = self._steps * self._train.epochs
        # Of a run that ends by the clock nobody knows the number of its steps.
        by_clock = self._train.minutes > 0
        of_epochs, of_steps = ("", "") if by_clock else (f"/{self._train.epochs}", f" of {total:,}")
        text = f"epoch {epoch + 1}{of_epochs}, step {self._step:,}{of_steps}{self._loss}{doing}"
        self._shown.show(self._pace(self._step), text, self._free)


def what_is_trained(
    config: RunConfig,
    accelerator: Accelerator,
    learners: Mapping[str, Learner],
    patches: int,
    steps: int,
) -> str:
    """The device, precision, patches and networks of a run, in a line.

    Args:
        config: The run, completed by its shards.
        accelerator: Its ranks and precision.
        learners: Its networks.
        patches: Training patches.
        steps: Steps of an epoch.
    """
    labels = {"generator": config.generator, "discriminator": config.discriminator}
    networks = ", ".join(
        f"{name} {labels[name].label} ({parameter_count(learner.raw):,} weights)"
        for name, learner in learners.items()
    )
    size = " x ".join(map(str, config.data.sides))
    epochs = config.train.epochs
    length = f"{epochs:,} epoch{'s' * (epochs != 1)} of {steps:,} steps"
    if config.train.minutes:
        length = f"{config.train.minutes:g} min, {steps:,} steps an epoch"
    precision = PRECISIONS[accelerator.mixed_precision]
    return (
        f"training on {_device(accelerator)}, in {precision}: {patches:,} patches of {size} in "
        f"batches of {config.train.batch_size}, {length}; {networks}"
    )


def _device(accelerator: Accelerator) -> str:
    ranks = accelerator.num_processes
    several = f"{ranks} x " if ranks > 1 else ""
    if accelerator.device.type == "cuda":
        return several + torch.cuda.get_device_name(accelerator.device)
    if accelerator.device.type != "cpu":
        return several + accelerator.device.type
    threads = torch.get_num_threads()
    return f"{several}the processor ({threads} thread{'s' * (threads > 1)})"


def validation_summary(epoch: int, epochs: str, metrics: Mapping[str, float]) -> str:
    """The metrics of a validation after so many epochs, in a line."""
    return (
        f"epoch {epoch}{epochs}: PSNR {metrics['val/psnr']:.2f} dB, "
        f"SSIM {metrics['val/ssim_2d']:.4f} (2D), "
        f"seam {metrics['val/seam_index']:.3f}, stitched, in the mask"
    )
