"""From stored intensities to those that networks see, on the device (section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distsynth.data.dataset import Batch
from sharding.shards.manifest import Manifest
from sharding.shards.records import QUANTUM
from sharding.volumes.intensities import IntensityTransform


class Standardiser:
    """Stored intensities to standardised ones, on the device (section 5.2)."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        def table(transforms: Sequence[IntensityTransform]) -> Tensor:
            values = [[each.mean for each in transforms], [each.std for each in transforms]]
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._device = device
        rows, standards = manifest.specimens, manifest.standards
        targets = [row.target for row in rows]
        sources = [
            [row.source_transforms[index] for row in rows]
            for index in range(manifest.contrast_count)
        ]
        self._target = table(targets)
        self._sources = [table(transforms) for transforms in sources]
        self._target_moves = LandmarkMoves.of(
            [each.landmarks for each in targets], standards.target, device
        )
        self._source_moves = [
            LandmarkMoves.of([each.landmarks for each in own], standards.of_source(index), device)
            for index, own in enumerate(sources)
        ]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Source and target as float32, standardised; shapes as in Batch."""
        specimen = batch.where[:, 0].to(self._device, torch.int64, non_blocking=True)
        shape = (2, -1) + (1,) * (batch.source.dim() - 1)

        def standardise(patches: Tensor, table: Tensor, moves: LandmarkMoves | None) -> Tensor:
            mean, std = table[:, specimen].view(shape)
            scaled = patches.to(self._device, non_blocking=True).to(torch.float32)
            # In place: for a small batch, memory to write to costs more than the arithmetic.
            scaled = scaled.div_(QUANTUM)
            if moves is not None:
                scaled = moves(scaled, specimen)
            return scaled.sub_(mean).div_(std)

        target = standardise(batch.target, self._target, self._target_moves)
        contrasts = batch.source.chunk(len(self._sources), dim=1)
        found = list(map(standardise, contrasts, self._sources, self._source_moves))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1), target


@dataclass(frozen=True, eq=False)
class LandmarkMoves:
    """Straight lines between landmarks, by which each specimen's intensities are moved.

    Attributes:
        knots: Where the lines of each specimen meet, on [0, 1]: shape (specimens, lines).
        bends: By how much the slope changes there; the first one is the first slope.
    """

    knots: Tensor
    bends: Tensor

    @classmethod
    def of(
        cls, own: Sequence[Sequence[float]], standard: Sequence[float], device: torch.device
    ) -> LandmarkMoves | None:
        """The moves from each specimen's landmarks to standard ones; None without landmarks."""
        if not standard:
            return None
        here = np.array([(0.0, *each, 1.0) for each in own])
        slopes = np.diff((0.0, *standard, 1.0)) / np.diff(here)
        bends = np.diff(slopes, prepend=0.0)
        knots, bends = (
            torch.tensor(values, dtype=torch.float32, device=device)
            for values in (here[:, :-1], bends)
        )
        return cls(knots, bends)

    def __call__(self, scaled: Tensor, specimen: Tensor) -> Tensor:
        """Move intensities on [0, 1], shape (n, channels, *sides), of n specimens."""
        shape = (-1,) + (1,) * (scaled.dim() - 1)
        moved = torch.zeros_like(scaled)
        for knot, bend in zip(self.knots.T, self.bends.T, strict=True):
            above = (scaled - knot[specimen].view(shape)).clamp_(min=0)
            moved.addcmul_(above, bend[specimen].view(shape))
        return moved
