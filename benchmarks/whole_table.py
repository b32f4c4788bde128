"""What the paper's whole table costs to train: counted in FLOPs, timed here, estimated for a GPU.

    python -m benchmarks.whole_table [--quick] [--sustained TFLOPS] [--gpu-sustained TFLOPS]

FLOPs of convolutions and matrix products (2 a multiply-add, forward and backward) are counted on
the steps that training takes. Steps are timed on this device, a GPU where there is one, as is the
rate of a float32 matrix product, its ceiling (convolutions on a GPU may use TF32 and exceed it).
Loading, validation and checkpoints are not in it. The last column is an estimate for a GPU that
is not here: a step takes FLOPs over an assumed sustained rate, and no less than an assumed least
time, for the launches of its many small kernels.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from distsynth.config import RunConfig, with_overrides
from distsynth.data.resolve import CUT_FIELDS
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.perceptual import vgg16_features
from distsynth.models import build_discriminator, build_generator
from distsynth.presets import BLOCKS, PAPER_PATCH, PRESETS, preset
from distsynth.training.pace import Pace
from distsynth.training.steps import (
    Learner,
    MicroBatch,
    Terms,
    adversarial_step,
    make_accelerator,
    supervised_step,
)
from sharding.shards.config import ShardConfig

PATCHES = 9_300
"""Training patches of the paper: 300 of each of 31 specimens."""
PAPER = [name for name in PRESETS if name != "small"]
COUNTED_BATCH = 2
"""Patches that FLOPs are counted on; they grow with the batch and nothing else."""


def of_patches(name: str) -> RunConfig:
    """A preset with the patches that it is meant for."""
    cut = BLOCKS.get(name) or ShardConfig(patch_size=PAPER_PATCH)
    fields = {f"data.{field}": getattr(cut, field) for field in CUT_FIELDS}
    return with_overrides(preset(name), fields)


class Step:
    """The training step of a configuration on one batch of random patches.

    Attributes:
        learners: generator and, for an adversarial run, discriminator.
    """

    def __init__(self, config: RunConfig, batch: int, accelerator: Accelerator) -> None:
        size, channels = config.data.sides, config.data.channels

        def learner(network: torch.nn.Module, rate: float) -> Learner:
            return Learner(network, rate, config.optim, Pace(1), accelerator)

        generator = build_generator(config.generator, size, channels)
        self.learners = {"generator": learner(generator, config.optim.lr_generator)}
        if config.adversarial:
            discriminator = build_discriminator(config.discriminator, size, channels)
            self.learners["discriminator"] = learner(discriminator, config.optim.lr_discriminator)
        vgg_weights = str(_vgg()) if config.loss.lambda_perceptual else None
        loss = replace(config.loss, vgg_weights=vgg_weights)
        self._loss = GeneratorLoss(loss).to(accelerator.device)
        source = torch.randn(batch, channels, *size, device=accelerator.device)
        target = torch.randn(batch, 1, *size, device=accelerator.device)
        self._pairs = [MicroBatch(source, target)]

    def __call__(self) -> Terms:
        """Take the step."""
        generator, discriminator = self.learners["generator"], self.learners.get("discriminator")
        if discriminator is None:
            return supervised_step(generator, self._loss, self._pairs, 0)
        return adversarial_step(generator, discriminator, self._loss, self._pairs, 0)


@functools.cache
def _vgg() -> Path:
    """A file of random VGG16 weights: what a step costs does not depend on them."""
    state = {f"features.{name}": value for name, value in vgg16_features().state_dict().items()}
    path = Path(tempfile.mkdtemp()) / "vgg16.pth"
    torch.save(state, path)
    return path


def step_flops(config: RunConfig, accelerator: Accelerator) -> float:
    """FLOPs of a step with the configuration's batch."""
    step = Step(config, COUNTED_BATCH, accelerator)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() * config.train.batch_size / COUNTED_BATCH


def seconds_each(function: Callable[[], object], times: int, device: torch.device) -> float:
    """Median seconds of a call, the first one left out."""
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def ceiling(device: torch.device, kind: torch.dtype = torch.float32) -> float:
    """FLOP/s of a product of large square matrices, the fastest of several: a bound, not a mean."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 / min(seconds_each(lambda: left @ right, 1, device) for _ in range(30))


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    accelerator = make_accelerator("no", cpu=not torch.cuda.is_available())
    device = accelerator.device
    batch, times = (4, 1) if options.quick else (32, 3)
    peak = ceiling(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"ceiling by matrix product: {peak / 1e12:.3f} TFLOP/s")
    print(f"steps timed with {batch} patches, median of {times}; {PATCHES:,} patches an epoch")
    given = f"{options.sustained} TFLOP/s sustained, given" if options.sustained else "as timed"
    print(f"hours here: {given}")
    print(
        "minutes on a GPU of the H200 class: ESTIMATE, not measured; assumed are "
        f"{options.gpu_sustained:g} TFLOP/s sustained, {options.gpu_least_ms:g} ms a step or more\n"
    )
    print(
        "| preset | GFLOP a step of 32 | steps | PFLOP | GFLOP/s here | share of ceiling | "
        "hours here | GPU minutes, estimated |"
    )
    print("|---|---|---|---|---|---|---|---|")
    totals = [0.0, 0.0, 0.0]
    for title in PAPER:
        config = of_patches(title)
        flops = step_flops(config, accelerator)
        steps = PATCHES // config.train.batch_size * config.train.epochs
        step = Step(config, batch, accelerator)
        share = batch / config.train.batch_size
        rate = flops * share / seconds_each(step, times, device)
        here = steps * flops / (options.sustained * 1e12 if options.sustained else rate)
        gpu = steps * max(flops / options.gpu_sustained / 1e12, options.gpu_least_ms / 1e3)
        row = [steps * flops / 1e15, here / 3600, gpu / 60]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        print(
            f"| {title} | {flops / 1e9:.1f} | {steps:,} | {row[0]:.2f} | {rate / 1e9:.1f} | "
            f"{rate / peak:.0%} | {row[1]:.2f} | {row[2]:.1f} |",
            flush=True,
        )
    print(f"| all {len(PAPER)} | | | {totals[0]:.2f} | | | {totals[1]:.1f} | {totals[2]:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small batches, one step each")
    parser.add_argument("--sustained", type=float, help="TFLOP/s of this device; else as timed")
    parser.add_argument("--gpu-sustained", type=float, default=20.0, help="TFLOP/s, assumed")
    parser.add_argument("--gpu-least-ms", type=float, default=5.0, help="of a step, assumed")
    main(parser.parse_args())
