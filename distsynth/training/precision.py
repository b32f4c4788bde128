"""The precision of a run: recorded, asked for, or found out by a probe of its networks.

bfloat16 is taken where the device multiplies natively in it and the networks gain by it. A resumed
run keeps the precision that it was started with, on whatever device it continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.inference.precision import multiplies_bf16
from distsynth.models import build_discriminator, build_generator
from distsynth.sections import Precision, Resolved
from distsynth.training.steps import make_accelerator

logger = logging.getLogger(__name__)

GAIN = 1.15
"""bfloat16 is taken where float32 takes at least so many times as long."""
PROBED_VOXELS = 2**15
"""Voxels of the batch that a probe puts through the networks: eight patches of 64 x 64, say."""
PROBE_SECONDS = 0.4
"""Time after which a probe ends, if it has timed each precision once."""
PROBES = 5
"""Timed passes in each precision, if they fit that time."""


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen, in words that follow "bf16: " or "float32: "."""

    precision: Resolved
    reason: str

    def __str__(self) -> str:
        return f"{_spoken(self.precision)}: {self.reason}"


def resolve_precision(config: RunConfig, recorded: Resolved | None = None) -> RunConfig:
    """The configuration with the precision that its run has; the same on every rank.

    Args:
        config: The run, completed by the manifest of its shards.
        recorded: The precision of the run that is resumed; None for a new one.

    Raises:
        ConfigError: If the run was started in fp16 and there is no GPU here.
    """
    if config.train.precision != "auto" and recorded is None:
        return config
    accelerator = make_accelerator("no", config.train.device == "cpu")
    device = accelerator.device
    if recorded == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision must be fp16 as in the run being resumed, which needs a GPU: continue "
            "it on a machine with one, or start it again with --overwrite"
        )
    # The first rank decides: the others may be on a busier machine.
    chosen: list[Precision | None] = [None]
    if accelerator.is_main_process:
        if recorded is None:
            choice = choose_precision(config, device)
            logger.info("training in %s", choice)
            chosen = [choice.precision]
        else:
            chosen = [_kept(config.train.precision, recorded, device)]
    broadcast_object_list(chosen)
    return with_overrides(config, {"train.precision": chosen[0]})


def choose_precision(config: RunConfig, device: torch.device) -> Choice:
    """bf16 if the device multiplies natively in it and the run's networks gain by it.

    Args:
        config: A run whose patches are known.
        device: Where it trains.
    """
    name = "the processor" if device.type == "cpu" else "the GPU"
    if not multiplies_bf16(device):
        return Choice("no", f"{name} has no instructions for bf16")
    gain = bf16_gain(config, device)
    found = f"a pass through the networks takes {1 / gain:.2f} of its time in float32"
    if gain >= GAIN:
        return Choice("bf16", found)
    return Choice("no", f"in bf16 {found}")


def bf16_gain(config: RunConfig, device: torch.device) -> float:
    """How many times as long as in bfloat16 a run's networks take in float32, well in a second.

    A few patches go forward and backward through the generator and, for adversarial training, the
    discriminator. On a processor its own time counts, so that other programs do not matter. The
    state of random numbers stays as it is.

    Args:
        config: A run whose patches are known.
        device: Where to try.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        forward = _forward(config, device)
        started = time.perf_counter()
        for half in (False, True):
            _seconds(forward, half, device)  # prepares the kernels
        best = {False: float("inf"), True: float("inf")}
        for _ in range(PROBES):
            for half in best:
                best[half] = min(best[half], _seconds(forward, half, device))
            if time.perf_counter() - started > PROBE_SECONDS:
                break
    return best[False] / best[True]


def _forward(config: RunConfig, device: torch.device) -> Callable[[], Tensor]:
    """A few patches through the networks of a run, and a loss."""
    sides, channels = config.data.sides, config.data.channels
    generator = build_generator(config.generator, sides, channels).to(device)
    discriminator = None
    if config.adversarial:
        discriminator = build_discriminator(config.discriminator, sides, channels).to(device)
    voxels = int(torch.Size(sides).numel())
    # Two at least: BatchNorm cannot take the statistics of a single voxel.
    count = max(2, min(config.train.batch_size, PROBED_VOXELS // voxels))
    source = torch.randn(count, channels, *sides, device=device)

    def forward() -> Tensor:
        synthetic = generator(source)
        total = synthetic.float().square().mean()
        if discriminator is not None:
            total = total + discriminator(synthetic, source).float().mean()
        return total

    return forward


def _seconds(forward: Callable[[], Tensor], half: bool, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait(device)
    started = clock()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = forward()
    loss.backward()
    _wait(device)
    return clock() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kept(asked: Precision, recorded: Resolved, device: torch.device) -> Precision:
    """The precision of a resumed run; another one that was asked for is refused later."""
    if asked not in ("auto", recorded):
        return asked
    if recorded == "bf16" and not multiplies_bf16(device):
        logger.warning(
            "training in bf16, as the run was started: this device has no instructions for it, so "
            "that steps take longer than in float32"
        )
    else:
        logger.info("training in %s, as the run was started", _spoken(recorded))
    return recorded


def _spoken(precision: Precision) -> str:
    return "float32" if precision == "no" else precision
