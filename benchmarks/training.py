"""What the training loop makes of the device: patches a second of train(), of its bare step, plain.

    python -m benchmarks.training [--quick] [--presets NAME ...] [--precision no|bf16]

train(): whole epochs of the loop through its generator `epochs`, on phantoms held in memory, from
its own throughput rows; validation and checkpoints lie between epochs and are not in it. Bare step:
the same step on one batch that is standardised already. Plain loop: what one would write from the
tutorials, in a process of its own: contiguous weights, Adam as it is, two passes of the
discriminator, which is not frozen for the generator's update, losses read each step. The three take
turns. FLOP/s are of convolutions and matrix products in the bare step, beside the rate of a matrix
product in the same precision, its ceiling.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.whole_table import Step, ceiling, step_flops
from distsynth.config import RunConfig, with_overrides
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.models import build_discriminator, build_generator
from distsynth.presets import PAPER_PATCH, preset
from distsynth.runs.folder import METRICS_FILE
from distsynth.runs.tracking import read_rows
from distsynth.training.loop import epochs
from distsynth.training.steps import make_accelerator
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort

NAMES = ("small", "unet-7", "dcgan-1", "dcsrn-l1")
WARM_UP = 2
HEAD = (
    "| preset | train() patches/s | bare step | plain loop | train() / bare | train() / plain | "
    "GFLOP/s of the bare step | share of the ceiling |"
)


def make_set(folder: Path, patches: int) -> Path:
    """Shards of two training phantoms, and little to validate on."""
    cohort = write_phantom_cohort(folder / "cohort", specimens=4, shape=(72, 72, 64))
    config = ShardConfig(patches_per_specimen=patches // 2, val_slices=1, stride=64)
    write_shards(read_cohort(cohort), folder / "shards", config, workers=1)
    return folder / "shards"


def run_config(name: str, shards: Path, steps: int, turns: int, precision: str) -> RunConfig:
    """A run of the preset with a row of losses at the end of each epoch."""
    changed = {
        "data.shards": str(shards),
        # Those of the shards, which the bare step and the plain loop do not read.
        "data.patch_size": PAPER_PATCH,
        "data.neighbours": 0,
        "train.epochs": turns + 1,
        "train.validate_every": turns + 1,
        "train.log_every": steps,
        "train.precision": precision,
        "tracking.mode": "disabled",
        "tracking.samples": 0,
    }
    return with_overrides(preset(name), changed)


def rate(step: Callable[[], object], steps: int, batch: int, device: torch.device) -> float:
    """Patches a second of a step."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return steps * batch / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainLoop:
    """A step as tutorials write it."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        size = config.data.sides

        def learner(network: torch.nn.Module) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
            network = network.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            return network, torch.optim.Adam(network.parameters(), lr=1e-4)

        self.generator, self.generator_adam = learner(build_generator(config.generator, size))
        if config.adversarial:
            discriminator = build_discriminator(config.discriminator, size)
            self.discriminator, self.discriminator_adam = learner(discriminator)
        self.loss = GeneratorLoss(config.loss)
        self.adversarial = config.adversarial
        self.half = torch.autocast(device.type, torch.bfloat16, config.train.precision == "bf16")
        self.source, self.target = torch.randn(2, config.train.batch_size, 1, *size, device=device)
        self.log: dict[str, float] = {}

    def __call__(self) -> None:
        """Take the step."""
        with self.half:
            synthetic = self.generator(self.source)
            logits = self._update_discriminator(synthetic) if self.adversarial else None
            total, terms = self.loss(synthetic, self.target, logits)
        self.generator_adam.zero_grad()
        total.backward()
        self.generator_adam.step()
        self.log |= {name: value.item() for name, value in terms.items()}

    def _update_discriminator(self, synthetic: Tensor) -> Tensor:
        real = self.discriminator(self.target, self.source).float()
        fake = self.discriminator(synthetic.detach(), self.source).float()
        loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = loss + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        self.discriminator_adam.zero_grad()
        (loss / 2).backward()
        self.discriminator_adam.step()
        self.log["discriminator"] = loss.item() / 2
        return self.discriminator(synthetic, self.source)


@functools.cache
def _plain_loop(config: RunConfig, device: torch.device) -> PlainLoop:
    """Kept between turns; the first steps are not timed."""
    loop = PlainLoop(config, device)
    rate(loop, WARM_UP, 1, device)
    return loop


def plain_rate(config: RunConfig, device: torch.device, steps: int, threads: int) -> float:
    """What the process of the plain loop does in a turn."""
    torch.set_num_threads(threads)
    return rate(_plain_loop(config, device), steps, config.train.batch_size, device)


def measure(config: RunConfig, steps: int, folder: Path) -> tuple[list[float], ...]:
    """Patches a second of train(), the bare step and the plain loop, turn by turn."""
    accelerator = make_accelerator(config.train.precision, cpu=not torch.cuda.is_available())
    device, batch = accelerator.device, config.train.batch_size
    bare, plain = [], []
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as others,
        closing(epochs(config, folder)) as run,
    ):
        # The first epoch reads the set and warms up.
        next(run)
        step = Step(config, batch, accelerator)
        rate(step, WARM_UP, batch, device)
        for _ in range(1, config.train.epochs):
            bare.append(rate(step, steps, batch, device))
            given = config, device, steps, torch.get_num_threads()
            plain.append(others.submit(plain_rate, *given).result())
            next(run)
    rows = read_rows(folder / METRICS_FILE)
    name = "throughput/patches_per_s"
    return [row[name] for row in rows if name in row][1:], bare, plain


def cell(found: list[float]) -> str:
    """Median and spread."""
    return f"{median(found):,.1f} ({min(found):,.1f} to {max(found):,.1f})"


def ratio(ours: list[float], theirs: list[float], form: str) -> str:
    """Of each turn, so that what else the machine does meanwhile falls on both."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{median(found):{form}} ({min(found):{form}} to {max(found):{form}})"


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps, turns = (4, 2) if options.quick else (10, 7)
    if device.type == "cuda":
        steps *= 10
    # As convolutions do it.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    peak = ceiling(device, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{title}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, precision {options.precision}; {turns} turns of {steps} steps of 32 "
        f"patches; matrix product {peak / 1e9:,.1f} GFLOP/s\n\n{HEAD}\n|{'---|' * 8}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        shards = make_set(Path(folder), 32 * steps)
        for name in options.presets:
            config = run_config(name, shards, steps, turns, options.precision)
            loop, bare, plain = measure(config, steps, Path(folder) / name)
            counted = step_flops(config, make_accelerator(options.precision, device.type == "cpu"))
            flops = counted * median(bare) / config.train.batch_size
            print(
                f"| {name} | {cell(loop)} | {cell(bare)} | {cell(plain)} | "
                f"{ratio(loop, bare, '.1%')} | {ratio(loop, plain, '.2f')} | "
                f"{flops / 1e9:,.1f} | {flops / peak:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--presets", nargs="+", default=NAMES)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    main(parser.parse_args())
