"""How long a prediction will take: the time of one patch, times the voxels that go through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from distsynth.inference.volume import voxels_through
from sharding.volumes.slabs import in_memory

if TYPE_CHECKING:
    from distsynth.inference.predictor import Predictor

LEAST = 5
"""Seconds that are not told apart."""


def expected_seconds(predictor: Predictor, shape: Sequence[int]) -> float:
    """Seconds that a volume takes on this machine as it is now; two patches are predicted.

    Args:
        predictor: How the volume is predicted.
        shape: Its voxels.

    Raises:
        ConfigError: If the patches do not fit the volume.
    """
    config = predictor.checkpoint.config
    voxels = voxels_through(shape, predictor.methods(shape, in_memory))
    patch = torch.zeros(1, config.data.channels, *config.data.sides, device=predictor.device)
    with torch.inference_mode(), predictor.autocast():
        predictor.generator(patch).sum().item()  # Loads and allocates.
        started = time.perf_counter()
        predictor.generator(patch).sum().item()
        seconds = time.perf_counter() - started
    flips = 2 ** len(config.stitch.flips)
    return seconds * voxels / patch[0, 0].numel() * flips


def in_words(seconds: float) -> str:
    """`less than 5 s`, `about 40 s`, `about 12 min`, `about 3 h`."""
    if seconds < LEAST:
        return f"less than {LEAST} s"
    if seconds < 90:
        return f"about {round(seconds / LEAST) * LEAST} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h"
