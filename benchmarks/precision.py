"""What bf16 gains: a training step of every preset in both precisions, and where its time goes.

    python -m benchmarks.precision [--presets NAME ...] [--patches N] [--repeats N]
    python -m benchmarks.precision --layers PRESET
    python -m benchmarks.precision --quality [--presets NAME ...] [--seeds N]

Steps are of the training itself, on one batch of random patches, on one thread. Times are of the
processor, not of the clock, and the two precisions take turns, so that a busy machine changes
little: the least of several is shown. `probe` is what a run finds at its start, and `auto` what it
then takes. --layers shows each convolution and BatchNorm of a preset by itself. --quality trains on
phantoms from the same seeds in both precisions.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from benchmarks.whole_table import Step, of_patches
from distsynth.config import RunConfig, with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.models import build_discriminator, build_generator
from distsynth.presets import PAPER_PATCH, PRESETS
from distsynth.training.loop import train
from distsynth.training.precision import GAIN, bf16_gain
from distsynth.training.steps import make_accelerator
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort

CPU = torch.device("cpu")
QUALITY = ("small", "unet-7", "dcgan-1", "dcsrn-l1")
PRECISIONS = ("no", "bf16")
LAYER_HEAD = (
    "| network | layer | input | to | GFLOP | float32 forward, backward, ms | "
    "bf16 forward, backward, ms | bf16 GFLOP/s forward, backward |"
)
PATCH = 32
"""Sides of the patches of --quality."""


def processor_ms(work: Callable[[], object], repeats: int) -> float:
    """The least processor time of several calls, in ms; the first one is left out."""
    work()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found) * 1e3


def step_times(config: RunConfig, patches: int, repeats: int) -> list[float]:
    """Processor ms of a step in float32 and in bf16."""
    steps = [Step(config, patches, make_accelerator(name, cpu=True)) for name in PRECISIONS]
    found: list[list[float]] = [[], []]
    for _ in range(1 + repeats):
        for times, step in zip(found, steps, strict=True):
            started = time.process_time()
            step()
            times.append(1e3 * (time.process_time() - started))
    return [min(times[1:]) for times in found]


def print_steps(names: Sequence[str], most: int, repeats: int) -> None:
    """A row for each preset."""
    print(
        "| preset | patches | float32, ms | bf16, ms | float32 / bf16 | probe | probe, s | auto |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        config = of_patches(name)
        voxels = math.prod(config.data.sides)
        # Torch has another, slow convolution in float32 for a single small block.
        fitting = max(2, most * math.prod(PAPER_PATCH) // voxels)
        patches = min(fitting, config.train.batch_size)
        full, half = step_times(config, patches, repeats)
        started = time.process_time()
        gain = bf16_gain(config, CPU)
        spent = time.process_time() - started
        chosen = "bf16" if gain >= GAIN else "float32"
        print(
            f"| {name} | {patches} | {full:,.1f} | {half:,.1f} | {full / half:.2f} | {gain:.2f} | "
            f"{spent:.2f} | {chosen} |",
            flush=True,
        )


@dataclass(frozen=True)
class Seen:
    """A layer with what went through it."""

    layer: nn.Module
    source: Tensor
    output: Tensor

    @property
    def gigaflops(self) -> float:
        """Of a forward pass; 0 for BatchNorm."""
        layer = self.layer
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            return 0.0
        across = self.source if layer.transposed else self.output
        products = layer.weight.numel() * across.shape[2:].numel() * len(self.source)
        return 2 * products / 1e9

    def times(self, half: bool) -> tuple[float, float]:
        """Processor ms of forward and of backward, with the gradient of the source."""
        kind = torch.bfloat16 if half else torch.float32
        source = self.source.to(kind).requires_grad_()
        gradient = self.output.to(kind)

        def forward() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return self.layer(source)

        alone = processor_ms(forward, 5)
        both = processor_ms(lambda: forward().backward(gradient), 5)
        return alone, both - alone


def layers(config: RunConfig, patches: int) -> Iterator[tuple[str, Seen]]:
    """The convolutions and BatchNorms of both networks, with their input."""
    sides, channels = config.data.sides, config.data.channels
    source = torch.randn(patches, channels, *sides)
    networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "generator": (build_generator(config.generator, sides, channels), (source,))
    }
    if config.adversarial:
        discriminator = build_discriminator(config.discriminator, sides, channels)
        networks["discriminator"] = discriminator, (source[:, :1].clone(), source)
    for name, (network, inputs) in networks.items():
        seen: list[Seen] = []

        def note(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor, to=seen) -> None:
            to.append(Seen(layer, given[0].detach(), output.detach()))

        for part in network.modules():
            if isinstance(part, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm):
                part.register_forward_hook(note)
        network(*inputs)
        for part in network.modules():
            part._forward_hooks.clear()
        yield from ((name, each) for each in seen)


def print_layers(name: str, patches: int) -> None:
    """A row for each layer of a preset."""
    left, right = (torch.randn(1024, 1024) for _ in range(2))
    halves = left.bfloat16(), right.bfloat16()
    for kind, work in (("float32", lambda: left @ right), ("bf16", lambda: halves[0] @ halves[1])):
        rate = 2 * 1024**3 / processor_ms(work, 10) / 1e6
        print(f"product of 1024 x 1024 matrices in {kind}: {rate:,.0f} GFLOP/s")
    print(f"\n{LAYER_HEAD}\n|{'---|' * 8}")
    config = of_patches(name)
    for network, seen in layers(config, min(patches, config.train.batch_size)):
        (full, full_back), (half, half_back) = seen.times(False), seen.times(True)
        work = seen.gigaflops
        rates = f"{1e3 * work / half:,.0f}, {2e3 * work / half_back:,.0f}" if work else ""
        size = "x".join(map(str, seen.source.shape))
        print(
            f"| {network} | {type(seen.layer).__name__} | {size} | {seen.output.shape[1]} | "
            f"{work:.3f} | {full:.1f}, {full_back:.1f} | {half:.1f}, {half_back:.1f} | {rates} |",
            flush=True,
        )


def print_quality(names: Sequence[str], seeds: int) -> None:
    """The best validation PSNR of short runs on phantoms, seed by seed."""
    print("| preset | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean |")
    print("|---" * (seeds + 2) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cohort = read_cohort(write_phantom_cohort(folder / "cohort", 6, (64, 60, 48), seed=3))
        cut = ShardConfig(
            patch_size=(PATCH, PATCH), patches_per_specimen=160, stride=16, val_slices=4, seed=3
        )
        write_shards(cohort, folder / "shards", cut, workers=1)
        for name in names:
            found = []
            for seed in range(seeds):
                scores = []
                for kind in PRECISIONS:
                    config = short_run(name, folder / "shards", kind, seed)
                    scores.append(train(config, folder / f"{name}-{kind}", overwrite=True))
                full, half = (result.best_score for result in scores)
                found.append((full, half))
            cells = [f"{full:.2f}, {half:.2f}" for full, half in found]
            each = [mean(values) for values in zip(*found, strict=True)]
            print(f"| {name} | {' | '.join(cells)} | {each[0]:.2f}, {each[1]:.2f} |", flush=True)


def short_run(name: str, shards: Path, precision: str, seed: int) -> RunConfig:
    """A tenth of a preset's training or so."""
    changes = {
        "data.shards": str(shards),
        "train.epochs": 5,
        "train.batch_size": 16,
        "train.device": "cpu",
        "train.precision": precision,
        "train.seed": seed,
        "stitch.stride": 16,
        "stitch.axes": (2,),
        "tracking.mode": "disabled",
        "tracking.samples": 0,
    }
    config = PRESETS[name]
    return with_overrides(replace(config, stitch=replace(config.stitch, trim=0)), changes)


def main(options: argparse.Namespace) -> None:
    """Print what is asked for."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.layers:
        print_layers(options.layers, options.patches)
    elif options.quality:
        print_quality(options.presets or QUALITY, options.seeds)
    else:
        print_steps(options.presets or list(PRESETS), options.patches, options.repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+")
    parser.add_argument("--patches", type=int, default=8, help="of 64 x 64 voxels a step, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", metavar="PRESET")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    main(parser.parse_args())
