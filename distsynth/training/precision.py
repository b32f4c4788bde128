"""The precision of a run: recorded, asked for, or found out by a probe of its networks.

bfloat16 is taken where the device multiplies natively in it and the networks gain by it. A resumed
run keeps the precision that it was started with, on whatever device it continues.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast_object_list

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
LEAST_PATCHES = 2
"""Of a pass: BatchNorm cannot take the statistics of a single voxel."""
LONG_PASS = 0.08
"""Seconds of the first pass above which it decides by itself: kernels are prepared in much less."""
PROBE_SECONDS = 0.4
"""Time after which a probe of shorter passes ends, if it has timed each precision once."""
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
    started = time.perf_counter()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        probe = _Probe(config, device)
        small = probe.small_sides
        best = {half: probe.seconds(LEAST_PATCHES, small, half) for half in (False, True)}
        if best[False] >= LONG_PASS:
            return best[False] / best[True]
        voxels = math.prod(config.data.sides)
        count = max(LEAST_PATCHES, min(config.train.batch_size, PROBED_VOXELS // voxels))
        best = dict.fromkeys(best, math.inf)
        for number in range(1 + PROBES):
            for half in best:
                seconds = probe.seconds(count, config.data.sides, half)
                if number:  # the first pass of a size prepares its kernels
                    best[half] = min(best[half], seconds)
            if number and time.perf_counter() - started > PROBE_SECONDS:
                break
    return best[False] / best[True]


class _Probe:
    """The networks of a run, and how long a pass through them takes."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._device, self._data = device, config.data
        sides, channels = self._data.sides, self._data.channels
        self._generator = build_generator(config.generator, sides, channels, self._data.slices).to(
            device
        )
        self._discriminator = None
        if config.adversarial:
            built = build_discriminator(config.discriminator, sides, channels)
            self._discriminator = built.to(device)

    @property
    def small_sides(self) -> tuple[int, ...]:
        """Sides of a patch for a first pass: half of those of a large block, if they will do."""
        sides = self._data.sides
        halves = tuple(side // 2 for side in sides)
        large = LEAST_PATCHES * math.prod(sides) > PROBED_VOXELS
        fitting = all(side % self._generator.multiple == 0 for side in halves)
        return halves if large and fitting and self._discriminator is None else sides

    def seconds(self, count: int, sides: tuple[int, ...], half: bool) -> float:
        """Seconds that random patches take forward and backward, in bfloat16 or float32."""
        device = self._device
        source = torch.randn(count, self._data.channels, *sides, device=device)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        _wait(device)
        started = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            synthetic = self._generator(source)
            loss = synthetic.float().square().mean()
            if self._discriminator is not None:
                loss = loss + self._discriminator(synthetic, source).float().mean()
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
