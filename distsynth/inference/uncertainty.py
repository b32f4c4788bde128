"""The spread of what several networks, or one on mirror images, predict of the same voxel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distsynth.errors import ConfigError
from distsynth.inference.ensemble import EnsembleGenerator
from distsynth.inference.flips import flipped
from sharding.volumes.slabs import Empty, in_memory, slabs

if TYPE_CHECKING:
    from distsynth.inference.predictor import Predictor

NEEDED = (
    "an uncertainty needs several predictions of each voxel: give more models of the same shards "
    "(--ensemble runs/b runs/c), or flips (--stitch.flips 0)"
)


def count(predictor: Predictor) -> int:
    """How many predictions of a voxel a model makes: its members, times the flips."""
    generator = predictor.generator
    members = len(generator.members) if isinstance(generator, EnsembleGenerator) else 1
    return members * 2 ** len(predictor.checkpoint.config.stitch.flips)


def check_uncertainty(predictor: Predictor) -> None:
    """Refuse a model that makes one prediction of each voxel.

    Raises:
        ConfigError: If it does.
    """
    if count(predictor) < 2:
        raise ConfigError(NEEDED)


def predict_with_uncertainty(
    predictor: Predictor,
    source: NDArray[np.float32],
    title: str = "predicting",
    quiet: bool = False,
    empty: Empty = in_memory,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean prediction over members and flips, and the standard deviation of these around it.

    The mean is that of the plain prediction within float rounding. The deviation is that of a
    sample, sum of squares over n - 1. It is no error bar: it does not see what all members get
    wrong alike.

    Args:
        predictor: An ensemble, or a model with flips.
        source: Shape (x, y, z), or (contrasts, x, y, z); standardised.
        title: Of the progress bars.
        quiet: No progress bars.
        empty: Makes the arrays that are as large as the volume.

    Returns:
        Mean and deviation, standardised, shape (x, y, z).

    Raises:
        ConfigError: If the model makes one prediction of each voxel.
    """
    check_uncertainty(predictor)
    flips = predictor.checkpoint.config.stitch.flips
    turned = [part for number in range(len(flips) + 1) for part in combinations(flips, number)]
    shape = source.shape[-3:]
    mean, squares = empty(shape, np.float64), empty(shape, np.float64)
    total = count(predictor)
    seen = 0
    for member in _members(predictor):
        for part in turned:
            seen += 1
            name = f"{title}, {seen} of {total}"
            found = flipped(member(flipped(source, part), name, quiet, empty), part)
            for slab in slabs(shape):
                # Welford: the mean so far, and the sum of squares around it.
                if seen == 1:
                    mean[slab], squares[slab] = found[slab], 0
                    continue
                apart = found[slab] - mean[slab]
                mean[slab] += apart / seen
                squares[slab] += apart * (found[slab] - mean[slab])
    synthetic, spread = empty(shape), empty(shape)
    for slab in slabs(shape):
        synthetic[slab] = mean[slab]
        spread[slab] = np.sqrt(squares[slab] / (total - 1))
    return synthetic, spread


def _members(predictor: Predictor) -> Iterator[Predictor]:
    """Each network of an ensemble by itself, stitched as the ensemble is, without flips."""
    method = "whole" if predictor.whole_images else "windows"
    plain = predictor.stitched(flips=(), method=method)
    generator = predictor.generator
    if not isinstance(generator, EnsembleGenerator):
        yield plain
        return
    for member in generator.members:
        yield replace(plain, generator=member)
