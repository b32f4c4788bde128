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


class Standardiser:
    """Stored intensities to standardised ones, on the device (section 5.2)."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        def table(which: str) -> Tensor:
            transforms = [getattr(row, which) for row in manifest.specimens]
            values = [[each.mean for each in transforms], [each.std for each in transforms]]
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._device = device
        self._source, self._target = table("source"), table("target")
        rows, standards = manifest.specimens, manifest.standards
        self._moves = (
            LandmarkMoves.of([row.source.landmarks for row in rows], standards.source, device),
            LandmarkMoves.of([row.target.landmarks for row in rows], standards.target, device),
        )

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

        source, target = self._moves
        return (
            standardise(batch.source, self._source, source),
            standardise(batch.target, self._target, target),
        )


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
