"""Augmentation of a batch on its device, without a loop over patches.

What is drawn for a patch depends on the run's seed, the epoch and the patch's place alone: a
resumed run repeats it to the bit, and so do any number of ranks and micro-batches. Flips, turns and
shifts move source and target alike; all else changes the source alone, as another scanner would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from distsynth.errors import ConfigError
from distsynth.sections import AugmentConfig
from sharding.volumes.intensities import CENTRE, WIDTH

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd step of SplitMix64
MULTIPLIERS = -4658895280553007687, -7723592293110705685
"""Those of SplitMix64, as signed integers."""
DRAWS = 32
"""Numbers that are drawn for each patch."""
_BLUR = {2: F.conv2d, 3: F.conv3d}


class Augmentation:
    """Changes the patches of a batch at random.

    Args:
        config: How much.
        seed: Of the run.
        patch_size: Sides in voxels.
        contrasts: Of a source; each has its own contrast, blur, bias field and noise.

    Raises:
        ConfigError: If turns are asked for and no two sides are equal, or an axis to flip is none
            of the patch's.
    """

    def __init__(
        self, config: AugmentConfig, seed: int, patch_size: tuple[int, ...], contrasts: int = 1
    ) -> None:
        self._config, self._seed, self._dims = config, seed, len(patch_size)
        self._contrasts = contrasts
        if not set(config.flips) <= set(range(len(patch_size))):
            raise ConfigError(
                f"augment.flips must be axes of a patch, 0 to {len(patch_size) - 1}, got "
                f"{config.flips}"
            )
        pairs = itertools.combinations(range(len(patch_size)), 2)
        self._pairs = [(a, b) for a, b in pairs if patch_size[a] == patch_size[b]]
        if config.turns and not self._pairs:
            raise ConfigError(
                f"augment.turns must be false for patches of {patch_size}: no two sides are equal"
            )

    def __call__(
        self, source: Tensor, target: Tensor, where: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            source: Shape (n, channels, *sides), standardised.
            target: Shape (n, 1, *sides).
            where: Place of each patch, shape (n, 5): see Batch.
            epoch: From 0.

        Returns:
            Source and target of the same shapes.
        """
        config = self._config
        if not config.used:
            return source, target
        keys = self._keys(where.to(source.device), epoch)
        drawn = iter(uniform(keys, DRAWS).unbind(1))
        moves = [((2 + axis,), next(drawn)) for axis in config.flips]
        for axes, chance in moves:
            chosen = _column(chance < 0.5, source)
            source, target = (
                torch.where(chosen, part.flip(axes), part) for part in (source, target)
            )
        for a, b in self._pairs if config.turns else ():
            chosen = _column(next(drawn) < 0.5, source)
            source, target = (
                torch.where(chosen, part.transpose(2 + a, 2 + b), part) for part in (source, target)
            )
        if config.shift:
            for axis in range(self._dims):
                steps = (next(drawn) * (2 * config.shift + 1)).long() - config.shift
                source, target = (_moved(part, steps, 2 + axis) for part in (source, target))
        first, *others = source.chunk(self._contrasts, dim=1)
        scanned = [self._as_scanned(first, drawn, keys)]
        for index, part in enumerate(others, start=1):
            own = mix(keys * GOLDEN + index)
            scanned.append(self._as_scanned(part, iter(uniform(own, DRAWS).unbind(1)), own))
        return scanned[0] if len(scanned) == 1 else torch.cat(scanned, dim=1), target

    def _keys(self, where: Tensor, epoch: int) -> Tensor:
        """One integer a patch that everything drawn for it depends on."""
        keys = torch.full((len(where),), self._seed, dtype=torch.int64, device=where.device)
        for value in (epoch, *where.to(torch.int64).unbind(1)):
            keys = mix(keys * GOLDEN + value)
        return keys

    def _as_scanned(self, source: Tensor, drawn: Iterator[Tensor], keys: Tensor) -> Tensor:
        """Blur, contrast, bias field and noise of a source."""
        config = self._config
        signed = (2 * draw - 1 for draw in drawn)
        if config.blur:
            share = _column(next(signed).abs() * config.blur, source)
            source = source + share * (_smooth(source) - source)
        if config.gamma:
            power = _column(torch.exp(next(signed) * math.log1p(config.gamma)), source)
            unit = source * WIDTH + CENTRE
            source = (unit.abs() ** power * unit.sign() - CENTRE) / WIDTH
        if config.contrast:
            factor = _column(torch.exp(next(signed) * math.log1p(config.contrast)), source)
            source = source * factor + _column(next(signed) * config.contrast, source)
        if config.bias:
            unit = (source * WIDTH + CENTRE) * torch.exp(self._field(source, signed) * config.bias)
            source = (unit - CENTRE) / WIDTH
        if config.noise:
            deviation = _column(next(signed).abs() * config.noise, source)
            source = source + deviation * normal(keys, source)
        return source

    def _field(self, source: Tensor, signed: Iterator[Tensor]) -> Tensor:
        """A smooth field from -1 to 1: a polynomial of the second degree along each side."""
        total = torch.zeros(1, device=source.device)
        for axis in range(self._dims):
            shape = [1] * source.dim()
            shape[2 + axis] = -1
            place = torch.linspace(-1, 1, source.shape[2 + axis], device=source.device).view(shape)
            line, bend = (_column(next(signed), source) for _ in range(2))
            total = total + (line * place + bend * (place.square() - 0.5)) / (2 * self._dims)
        return total


def mix(keys: Tensor) -> Tensor:
    """The finaliser of SplitMix64: integers whose bits all depend on all bits of those given."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        keys = (keys ^ _shifted(keys, shift)) * multiplier
    return keys ^ _shifted(keys, 31)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), shape (n, count), from n keys."""
    steps = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    return _shifted(mix(keys[:, None] + steps), 40).float() / 2**24


def normal(keys: Tensor, like: Tensor) -> Tensor:
    """Numbers of mean 0 and deviation 1 for each voxel, the sums of four uniform ones.

    Args:
        keys: One for each patch, shape (n,).
        like: The shape to fill, n first.
    """
    voxels = torch.arange(like[0].numel(), device=like.device) * GOLDEN
    bits = mix(mix(keys + DRAWS)[:, None] + voxels)
    total = sum((_shifted(bits, shift) & 0xFFFF).float() for shift in (0, 16, 32, 48))
    assert isinstance(total, Tensor)
    return ((total / 2**16 - 2) * math.sqrt(3)).view(like.shape)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1) if bits else values


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value a patch, to be broadcast over its voxels."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _moved(images: Tensor, steps: Tensor, axis: int) -> Tensor:
    """Each patch shifted along an axis by its own number of voxels, the border replicated."""
    size = images.shape[axis]
    places = (torch.arange(size, device=images.device) - steps[:, None]).clamp(0, size - 1)
    shape = [len(images), *[1] * (images.dim() - 1)]
    shape[axis] = size
    return images.gather(axis, places.view(shape).expand_as(images))


def _smooth(images: Tensor) -> Tensor:
    """Filtered by (1, 2, 1) / 4 along each side, the border replicated."""
    dims, channels = images.dim() - 2, images.shape[1]
    kernel = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    images = F.pad(images, [1] * (2 * dims), mode="replicate")
    for axis in range(dims):
        shape = [1] * (2 + dims)
        shape[2 + axis] = 3
        weight = kernel.view(shape).expand(channels, *shape[1:])
        images = _BLUR[dims](images, weight, groups=channels)
    return images
