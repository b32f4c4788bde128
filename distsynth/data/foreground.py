"""Which voxels of a patch lie in the mask of its specimen."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import Split

REST = torch.tensor([[1, 2], [0, 2], [0, 1]])
"""The axes of a slice, by the axis across which it lies."""


class Foreground:
    """The masks of specimens on a device, eight voxels a byte.

    Args:
        shards: The set.
        splits: Whose masks are read.
        device: Where they are kept.

    Raises:
        DataError: If a mask is missing or damaged.
    """

    def __init__(self, shards: ShardSet, splits: Collection[Split], device: torch.device) -> None:
        config, rows = shards.manifest.config, shards.manifest.specimens
        bits = [shards.mask_bits(row) if row.split in splits else None for row in rows]
        held = [part for part in bits if part is not None]
        sizes = [0 if part is None else len(part) for part in bits]
        self._bytes = torch.from_numpy(np.concatenate(held)).to(device)
        self._first = torch.tensor(np.cumsum([0, *sizes[:-1]]) * 8, device=device)
        self._shapes = torch.tensor([row.shape for row in rows], device=device)
        self._sides = config.patch_size
        self._axes = (REST if len(config.patch_size) == 2 else torch.tensor([[0, 1, 2]])).to(device)

    def __call__(self, where: Tensor) -> Tensor:
        """Whether each voxel of some patches lies in the mask.

        Args:
            where: Place of each patch, shape (n, 5): see Batch.

        Returns:
            Shape (n, 1, *sides). Beyond the volume, where patches are aligned, its last voxels are
            repeated, as in the patches themselves.
        """
        where = where.to(self._bytes.device, torch.int64)
        specimen, axis, corner = where[:, 0], where[:, 1], where[:, 2:]
        shape = self._shapes[specimen]
        # Voxels from one to the next along each axis of the volume.
        steps = torch.stack((shape[:, 1] * shape[:, 2], shape[:, 2], torch.ones_like(axis)), 1)
        # Along the axis of a slice the patch lies at its corner; a block, of axis -1, has the one
        # row of its table, which names all axes.
        axes = self._axes[axis]
        index = self._first[specimen] + (corner * steps).sum(1)
        index -= (corner * steps).gather(1, axes).sum(1)
        index = index.view(-1, *[1] * len(self._sides))
        for number, side in enumerate(self._sides):
            along = axes[:, number, None]
            places = corner.gather(1, along) + torch.arange(side, device=where.device)
            places = places.minimum(shape.gather(1, along) - 1) * steps.gather(1, along)
            form = [len(where), *[1] * len(self._sides)]
            form[1 + number] = side
            index = index + places.view(form)
        return ((self._bytes[index >> 3] >> (7 - (index & 7)).to(torch.uint8)) & 1).bool()[:, None]
