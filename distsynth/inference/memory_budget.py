"""How much of a volume goes through a generator at once: a rule of sizes, never of times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from distsynth.models import build_generator
from distsynth.models.generator import GeneratorConfig

Forward = Callable[[Tensor], Tensor]
"""Sources (n, channels, *sides) -> predictions (n, *sides), float32, on the same device."""
MEGABYTE = 2**20
COPIES = 6
"""Maps of the widest layer's size that the memory must hold: a dense unit has its input, normalised
and activated, the convolution may copy it, and gaps are left between blocks that come and go."""
NARROW = 8
"""Channels up to which torch unfolds the source of a 3D convolution on a CPU, for small images."""
CACHE = 8 * MEGABYTE
"""Size of the widest map up to which images go together on a CPU. Measured on dcgan-1, dcgan-2,
fcn-1, dcsrn, unet-7 and small: more at once are no faster, and beyond the cache slower."""


@dataclass(frozen=True)
class Room:
    """What one forward may take, in voxels of source.

    Attributes:
        most: By memory.
        batch: Up to which images go together: no more than `most`, and where more are no faster,
            fewer.
    """

    most: int
    batch: int

    def images(self, voxels: int) -> int:
        """How many images of this many voxels go together; one at least."""
        return max(1, self.batch // voxels)


def room(
    config: GeneratorConfig,
    patch_size: tuple[int, ...],
    channels: int,
    memory_mb: int,
    device: torch.device,
) -> Room:
    """The room that a generator has.

    Args:
        config: Of the generator, of float32 weights.
        patch_size: Sides in voxels.
        channels: Of a source.
        memory_mb: What its activations may take.
        device: Where it computes; only a CPU is slowed by large batches.
    """
    widest = widest_map(config, patch_size, channels)
    most = int(memory_mb * MEGABYTE / (COPIES * widest))
    fast = int(CACHE / widest) if device.type == "cpu" else most
    return Room(max(1, most), max(1, min(most, fast)))


@cache
def widest_map(config: GeneratorConfig, patch_size: tuple[int, ...], channels: int) -> float:
    """Bytes of a generator's largest activation for each voxel of the source.

    What a narrow 3D convolution unfolds takes the place of COPIES maps.

    Found on the smallest source that shows it, by a generator made for this alone: hooks of others
    see nothing of it, and no random number is taken from them.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        generator = build_generator(config, patch_size, channels).eval()
        source = torch.zeros(1, channels, *[max(8, generator.multiple)] * len(patch_size))
        sizes: list[float] = [source.numel()]
        for module in generator.modules():
            module.register_forward_hook(lambda _module, _given, out: sizes.append(out.numel()))
            if isinstance(module, torch.nn.Conv3d) and module.in_channels <= NARROW:
                unfolded = math.prod(module.kernel_size) / COPIES
                module.register_forward_hook(
                    lambda _module, given, _out, times=unfolded: sizes.append(
                        times * given[0].numel()
                    )
                )
        generator(source)
    return 4 * max(sizes) * channels / source.numel()


def evenly(count: int, most: int) -> int:
    """How many of `count` things to take at a time: like many, no more than `most` but one."""
    return math.ceil(count / math.ceil(count / max(1, most)))
