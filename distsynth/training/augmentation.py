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
from torch import Tensor

from distsynth.errors import ConfigError
from distsynth.sections import AugmentConfig
from sharding.volumes.intensities import CENTRE, WIDTH

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd step of SplitMix64
MULTIPLIERS = -4658895280553007687, -7723592293110705685
"""Those of SplitMix64, as signed integers."""
LOW_LANES = 0x0000FFFF0000FFFF
"""The lower 16 bits of each 32."""
DRAWS = 32
"""Numbers that are drawn for each patch."""


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
        self._config, self._seed, self._contrasts = config, seed, contrasts
        self._sides, self._dims = patch_size, len(patch_size)
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
        if config.flips or config.turns or config.shift:
            index = self._moves(drawn, len(where), source.device)
            source, target = (_taken(part, index) for part in (source, target))
        first, *others = source.chunk(self._contrasts, dim=1)
        scanned = [self._as_scanned(first, drawn, keys)]
        for number, part in enumerate(others, start=1):
            own = mix(keys * GOLDEN + number)
            scanned.append(self._as_scanned(part, iter(uniform(own, DRAWS).unbind(1)), own))
        return scanned[0] if len(scanned) == 1 else torch.cat(scanned, dim=1), target

    def _keys(self, where: Tensor, epoch: int) -> Tensor:
        """One integer a patch that everything drawn for it depends on."""
        start = mix(mix(torch.tensor([self._seed, 1])) * GOLDEN + epoch)
        scales = mix(start[1] + torch.arange(where.shape[1]) * GOLDEN) | 1
        # Odd scales of 64 bits, the same for all patches of an epoch: two places of small integers
        # have the same sum by chance alone, about once in 2^64.
        return mix((where.to(torch.int64) * scales.to(where.device)).sum(1) + start[0])

    def _moves(self, drawn: Iterator[Tensor], count: int, device: torch.device) -> Tensor:
        """Which voxel comes where: flips, then turns, then shifts, as one selection.

        Args:
            drawn: Numbers for each patch.
            count: Patches.
            device: Theirs.

        Returns:
            The flat place, within its patch, of the voxel that comes to each place of a patch,
            shape (count, voxels).
        """
        config, sides = self._config, self._sides
        # Of each axis of the result, for each patch: voxels from one step to the next, and whether
        # it runs backwards, in the patch as it was given.
        steps = [
            torch.full((count,), math.prod(sides[axis + 1 :]), device=device)
            for axis in range(len(sides))
        ]
        backwards = [torch.zeros(count, dtype=torch.bool, device=device) for _ in sides]
        for axis in config.flips:
            backwards[axis] = next(drawn) < 0.5
        for a, b in self._pairs if config.turns else ():
            chosen = next(drawn) < 0.5
            for lines in (steps, backwards):
                lines[a], lines[b] = (
                    torch.where(chosen, lines[b], lines[a]),
                    torch.where(chosen, lines[a], lines[b]),
                )
        index = torch.zeros(1, dtype=torch.int64, device=device)
        for axis, side in enumerate(sides):
            places = torch.arange(side, device=device)[None]
            if config.shift:
                shift = (next(drawn) * (2 * config.shift + 1)).long() - config.shift
                # The border is repeated.
                places = (places - shift[:, None]).clamp_(0, side - 1)
            places = torch.where(backwards[axis][:, None], side - 1 - places, places)
            shape = [count, *[1] * len(sides)]
            shape[1 + axis] = side
            index = index + (places * steps[axis][:, None]).view(shape)
        return index.flatten(1)

    def _as_scanned(self, source: Tensor, drawn: Iterator[Tensor], keys: Tensor) -> Tensor:
        """Blur, contrast, bias field and noise of a source."""
        config = self._config
        signed = (2 * draw - 1 for draw in drawn)
        if config.blur:
            share = _column(next(signed).abs() * config.blur, source)
            source = torch.lerp(source, _smooth(source), share)
        if config.gamma or config.contrast or config.bias:
            source = self._other_intensities(source, signed)
        if config.noise:
            deviation = _column(next(signed).abs() * config.noise, source)
            source = torch.addcmul(source, deviation, normal(keys, source))
        return source

    def _other_intensities(self, source: Tensor, signed: Iterator[Tensor]) -> Tensor:
        """Gamma, contrast and bias field, on the scale of [0, 1] of `percentile`."""
        config = self._config
        unit = source * WIDTH + CENTRE
        if config.gamma:
            power = _column(torch.exp(next(signed) * math.log1p(config.gamma)), source)
            unit = torch.copysign(unit.abs().pow_(power), unit)
        if config.contrast:
            factor = _column(torch.exp(next(signed) * math.log1p(config.contrast)), source)
            offset = _column(next(signed) * config.contrast, source)
            unit = torch.addcmul(CENTRE * (1 - factor) + WIDTH * offset, unit, factor)
        if config.bias:
            for factors in self._field(source, signed):
                unit.mul_(factors)
        return unit.sub_(CENTRE).div_(WIDTH)

    def _field(self, source: Tensor, signed: Iterator[Tensor]) -> Iterator[Tensor]:
        """A smooth field: for each side the factors along it, of which the field is the product.

        Its logarithm is at most `bias`: a polynomial of the second degree along each side.
        """
        for axis in range(self._dims):
            shape = [1] * source.dim()
            shape[2 + axis] = -1
            place = torch.linspace(-1, 1, source.shape[2 + axis], device=source.device).view(shape)
            line, bend = (_column(next(signed), source) for _ in range(2))
            log = (line * place + bend * (place.square() - 0.5)) / (2 * self._dims)
            yield torch.exp(log * self._config.bias)


def mix(keys: Tensor) -> Tensor:
    """The finaliser of SplitMix64: integers whose bits all depend on all bits of those given."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        keys = _shifted(keys, shift).bitwise_xor_(keys).mul_(multiplier)
    return _shifted(keys, 31).bitwise_xor_(keys)


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
    # Its four parts of 16 bits in two lanes of 32, and the lanes, are added without a carry.
    total = (bits & LOW_LANES).add_((bits >> 16).bitwise_and_(LOW_LANES))
    total = (total >> 32).add_(total).bitwise_and_(0xFFFFFFFF)
    return total.float().mul_(math.sqrt(3) / 2**16).sub_(2 * math.sqrt(3)).view(like.shape)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value a patch, to be broadcast over its voxels."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _taken(images: Tensor, index: Tensor) -> Tensor:
    """Voxels of each patch, (n, channels, *sides), by their flat places, (n, voxels)."""
    every = index[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, every).view(images.shape)


def _smooth(images: Tensor) -> Tensor:
    """Filtered by (1, 2, 1) / 4 along each side, the border replicated."""
    for axis in range(2, images.dim()):
        side = images.shape[axis]
        smooth = images / 2
        for to, start in ((1, 0), (0, 1)):
            smooth.narrow(axis, to, side - 1).add_(images.narrow(axis, start, side - 1), alpha=0.25)
        for end in (0, side - 1):
            smooth.narrow(axis, end, 1).add_(images.narrow(axis, end, 1), alpha=0.25)
        images = smooth
    return images
