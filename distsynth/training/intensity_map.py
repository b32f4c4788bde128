"""Fits a generator's curve from source to target intensity on the training patches."""

from __future__ import annotations

import logging
import math

import numpy as np

from distsynth.data.dataset import PatchDataset
from distsynth.data.standardiser import Standardiser
from distsynth.models.intensity_map import KNOTS, LOW, STEP, IntensityCurve
from sharding.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)
POOL = 2**24
"""Most voxels that are looked at: 512 blocks of 32 voxels a side."""
LEAST = 100
"""Voxels by which the curve is known at a knot; elsewhere it follows its neighbours."""
TOGETHER = 64
"""Patches that are read at once."""


def fit_curve(curve: IntensityCurve, shards: ShardSet, standardise: Standardiser) -> None:
    """Set a curve to the mean target intensity of all voxels whose source is nearest to a knot.

    Of several contrasts the first one counts.

    It depends on the shards alone: every rank finds the same.

    Args:
        curve: Of the generator.
        shards: The shards of the run; patches of the training split, evenly spread.
        standardise: The standardiser of the run.
    """
    dataset = PatchDataset(shards, "train")
    count = min(len(dataset), max(1, POOL // math.prod(shards.manifest.config.patch_size)))
    chosen = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    counts, sums = np.zeros(KNOTS), np.zeros(KNOTS)
    for part in np.array_split(chosen, math.ceil(count / TOGETHER)):
        source, target = (each.cpu().numpy() for each in standardise(dataset[part]))
        centre = source[:, shards.manifest.config.neighbours].ravel()
        knot = np.rint((centre - LOW) / STEP).clip(0, KNOTS - 1).astype(np.int64)
        counts += np.bincount(knot, minlength=KNOTS)
        sums += np.bincount(knot, target.ravel().astype(np.float64), KNOTS)
    known = np.flatnonzero(counts >= min(LEAST, counts.max()))
    values = np.interp(np.arange(KNOTS), known, sums[known] / counts[known])
    curve.values.copy_(curve.values.new_tensor(values))
    logger.info("intensity map fitted on %d patches, %d of its knots", count, len(known))
