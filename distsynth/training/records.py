"""Rows of losses between two steps, and pictures of validation patches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from distsynth.config import RunConfig
from distsynth.data.loader import Batch, PatchDataset
from distsynth.data.standardiser import Standardiser
from distsynth.runs.sample_patches import patch_grid
from distsynth.training.pace import Pace
from distsynth.training.steps import Learner, Terms
from sharding.shards.shard_set import ShardSet


class LossRecord:
    """Sums of loss terms since the last row, on the device, and the throughput since then.

    Attributes:
        sums: Term to its sum over steps.
        counts: Term to how many steps its sum holds; some terms are not computed in each.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, pace: Pace) -> None:
        self.sums: Terms = {}
        self.counts: dict[str, int] = {}
        self._config, self._accelerator, self._pace = config, accelerator, pace
        self._since = 0.0, 0

    def start_clock(self, step: int) -> None:
        """Measure throughput from this step on."""
        self._since = time.perf_counter(), step

    def add(self, terms: Terms) -> None:
        """Add the terms of a step."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def merge_ranks(self, step: int) -> None:
        """Give all ranks the mean of their sums, as a checkpoint keeps them.

        Raises:
            FloatingPointError: If a sum is not finite.
        """
        for name, value in self.sums.items():
            self.sums[name] = self._accelerator.reduce(value, "mean")  # type: ignore[assignment]
            self.check_finite(name, float(self.sums[name]), step)

    def take_row(self, epoch: int, step: int, learners: Mapping[str, Learner]) -> dict[str, float]:
        """Means over the steps since the last row that computed a term; this row ends them.

        `throughput/seconds` is the training time of the run so far.

        Args:
            epoch: From 0.
            step: Steps taken in the run.
            learners: Those whose learning rates the row holds.

        Raises:
            FloatingPointError: If a mean is not finite.
        """
        names = list(self.sums)
        sums = torch.stack([self.sums[name] for name in names])
        means: Tensor = sums / sums.new_tensor([self.counts[name] for name in names])
        means = self._accelerator.reduce(means, "mean")  # type: ignore[assignment]
        values = dict(zip(names, means.tolist(), strict=True))
        self.sums, self.counts = {}, {}
        now = time.perf_counter()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._since = now, step
        row: dict[str, float] = {"epoch": epoch + 1}
        for name, value in values.items():
            self.check_finite(name, value, step)
            row[name if name.startswith("grad_norm/") else f"train/{name}"] = value
        for name, learner in learners.items():
            row[f"lr/{name}"] = learner.last_rate
        row["throughput/seconds"] = self._pace.seconds
        row["throughput/patches_per_s"] = steps * self._config.train.batch_size / seconds
        return row

    def check_finite(self, name: str, value: float, step: int) -> None:
        """Raise FloatingPointError for a loss or a gradient norm that is not finite.

        With fp16 the loss scaler skips the steps of gradients that are not finite.
        """
        skipped = name.startswith("grad_norm/") and self._config.train.precision == "fp16"
        if not skipped and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: the run diverged. "
                "Lower optim.lr_generator or optim.lr_discriminator, set optim.clip_norm, or "
                "use train.precision no or bf16"
            )


def sample_picture(
    generator: nn.Module, shards: ShardSet, standardise: Standardiser, count: int
) -> NDArray[np.uint8]:
    """The first validation patches that hold some tissue, through the generator.

    Returns:
        A row for each patch: source (the middle slice of the first contrast), synthetic, target,
        change and error, under their titles; see patch_grid.
    """
    source, target = standardise(_sample_batch(shards, count))
    generator.eval()
    with torch.no_grad():
        synthetic = generator(source).float()
    generator.train()
    middle = source[:, shards.manifest.config.neighbours]
    parts = (part.cpu().numpy() for part in (middle, synthetic[:, 0], target[:, 0]))
    return patch_grid(*parts)


def _sample_batch(shards: ShardSet, count: int) -> Batch:
    """Evenly spread validation patches, each with the most contrast in its neighbourhood."""
    dataset = PatchDataset(shards, "val")
    candidates = torch.linspace(0, len(dataset) - 1, min(len(dataset), 16 * count)).long()
    batch = dataset[candidates.numpy()]
    spread = batch.target.float().flatten(1).std(dim=1)
    best = spread.argsort(descending=True, stable=True)[:count].sort().values
    return Batch(*(part[best] for part in batch))
