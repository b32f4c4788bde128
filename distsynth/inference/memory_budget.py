"""How much of a volume goes through a generator at once: derived from sizes, never from timings."""

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
"""Maps of the widest layer's size that the memory must hold: a dense unit keeps its input, the
normalised and the activated one, the convolution may copy it, and freed blocks leave gaps."""
NARROW = 8
"""Up to this many channels torch unfolds the input of a 3D convolution of small images on a CPU."""
CACHE = 8 * MEGABYTE
"""Size of the widest map up to which images are batched on a CPU. Measured on dcgan-1, dcgan-2,
fcn-1, dcsrn, unet-7 and small: larger batches are no faster, and beyond the cache slower."""


@dataclass(frozen=True)
class MemoryBudget:
    """How many voxels of source one forward may take.

    Attributes:
        max_voxels: What the memory allows.
        batch_voxels: Up to which images are batched: at most `max_voxels`, and less where larger
            batches are no faster.
    """

    max_voxels: int
    batch_voxels: int

    def batch_size(self, voxels: int) -> int:
        """How many images of this many voxels are batched; at least one."""
        return max(1, self.batch_voxels // voxels)


def memory_budget(
    config: GeneratorConfig,
    patch_size: tuple[int, ...],
    channels: int,
    memory_mb: int,
    device: torch.device,
) -> MemoryBudget:
    """How much one forward pass of a generator may take.

    Args:
        config: The generator, whose weights are float32.
        patch_size: Sides in voxels.
        channels: Channels of a source.
        memory_mb: Memory that its activations may take, in MiB.
        device: Where it computes; only a CPU is slowed by large batches.
    """
    widest = widest_map(config, patch_size, channels)
    most = int(memory_mb * MEGABYTE / (COPIES * widest))
    fast = int(CACHE / widest) if device.type == "cpu" else most
    return MemoryBudget(max(1, most), max(1, min(most, fast)))


@cache
def widest_map(config: GeneratorConfig, patch_size: tuple[int, ...], channels: int) -> float:
    """Bytes of a generator's largest activation for each voxel of the source.

    What a narrow 3D convolution unfolds counts as COPIES maps.

    It is measured on the smallest source that shows it, with a generator built for this alone, so
    that neither the hooks nor the random state of any other generator are touched.
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
    """Size of equal parts of `count` things, each of at most `most` things (at least one)."""
    return math.ceil(count / math.ceil(count / max(1, most)))
