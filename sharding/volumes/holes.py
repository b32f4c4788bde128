"""Holes of a mask, filled slab by slab."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sharding.volumes.slabs import Slab, slabs


def fill_holes(mask: NDArray[np.bool_]) -> None:
    """Fill the holes of a mask in place, as scipy's binary_fill_holes does.

    A hole is a part of the background, connected by the faces of its voxels, that reaches no side
    of the array. Parts are labelled in one slab at a time and joined where slabs touch.

    Args:
        mask: Shape (x, y, z), changed.
    """
    cuts = list(slabs(mask.shape))
    starts, joined = [1], [np.zeros((2, 0), np.int64)]  # Label 0 is all that lies outside.
    below: NDArray[np.int64] | None = None
    for number, slab in enumerate(cuts):
        labels, count = _labelled(mask, slab, starts[-1])
        open_faces = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
        if number == 0:
            open_faces.append(labels[:, :, 0])
        if number == len(cuts) - 1:
            open_faces.append(labels[:, :, -1])
        for face in open_faces:
            reached = np.unique(face[face > 0])
            joined.append(np.array([reached, np.zeros_like(reached)]))
        if below is not None:
            both = (below > 0) & (labels[:, :, 0] > 0)
            joined.append(np.unique([below[both], labels[:, :, 0][both]], axis=1))
        below = labels[:, :, -1]
        starts.append(starts[-1] + count)
    rows, columns = np.concatenate(joined, axis=1)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(starts[-1],) * 2)
    component = connected_components(links, directed=False)[1]
    hole = component != component[0]
    for slab, start in zip(cuts, starts, strict=False):
        labels, _ = _labelled(mask, slab, start)
        mask[slab] |= hole[labels]


def _labelled(mask: NDArray[np.bool_], slab: Slab, start: int) -> tuple[NDArray[np.int64], int]:
    """The parts of a slab's background, numbered from `start`; 0 in the mask; and their number."""
    labels, count = ndimage.label(~mask[slab])  # type: ignore[misc]
    labels = labels.astype(np.int64)
    labels[labels > 0] += start - 1
    return labels, int(count)
