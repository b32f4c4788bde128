"""What the machine can do: the seconds of a training step, and whether bfloat16 gains."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from distsynth.api import make_phantoms
from distsynth.config import RunConfig, with_overrides
from distsynth.training.loop import train
from distsynth.training.report import EpochReport
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards

STEPS = 6
"""Steps of each timed epoch."""
PHANTOM_SIDE = 80
"""Voxels along each side of a phantom; a larger patch takes a larger one."""
GAIN = 0.9
"""bfloat16 is taken where a convolution takes at most this share of its float32 time."""


def timed_step(config: RunConfig, shards: ShardConfig) -> float:
    """Seconds of an optimiser step, timed by training on phantoms.

    Args:
        config: The training; where its shards lie does not matter.
        shards: What its patches are like.
    """
    side = max(PHANTOM_SIDE, max(shards.patch_size) + 2 * shards.neighbours + 8)
    training = 3
    with tempfile.TemporaryDirectory(prefix="distsynth-timed-") as scratch, _silence():
        folder = Path(scratch)
        specimens = make_phantoms(folder / "cohort", training + 2, (side, side, side))
        patches = -(-STEPS * config.train.batch_size // training)
        small = replace(
            shards, patches_per_specimen=patches, val_slices=1, fractions=(0.6, 0.2, 0.2)
        )
        write_shards(specimens, folder / "shards", small)
        changes = {
            "data.shards": str(folder / "shards"),
            "train.epochs": 3,
            "train.minutes": 0.0,
            "train.validate_every": 3,
            "tracking.mode": "disabled",
        }
        times: list[float] = []

        def note(report: EpochReport) -> None:
            del report
            times.append(time.perf_counter())

        train(with_overrides(config, changes), folder / "run", on_epoch=note)
        # The first epoch warms up, the third validates.
        return (times[1] - times[0]) / (training * patches // config.train.batch_size)


def multiplies_bf16(gpus: int = 0) -> bool:
    """Whether bfloat16 saves time here: native on a GPU, or seen in a convolution."""
    if gpus:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    return _convolution_seconds(torch.bfloat16) < GAIN * _convolution_seconds(torch.float32)


def available_gpus() -> int:
    """GPUs that torch finds."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _convolution_seconds(dtype: torch.dtype) -> float:
    """The least time of a convolution forward and backward."""
    images = torch.randn(8, 32, 64, 64).to(dtype)
    weight = torch.randn(32, 32, 3, 3).to(dtype).requires_grad_()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        F.conv2d(images, weight, padding=1).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _silence() -> Iterator[None]:
    """No progress and no messages of the timed training."""
    loggers = [logging.getLogger(name) for name in ("distsynth", "sharding")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
