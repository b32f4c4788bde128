"""The picture of sample patches that a run logs after each epoch, with titles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.floating[Any]]
TITLES = (
    ("source", ""),
    ("synthetic", ""),
    ("target", ""),
    ("change", "synthetic - source"),
    ("error", "synthetic - target"),
)
"""Of each column: its name, and what it is computed of."""
LEAST_PIXELS, LEAST_WIDTH = 3, 100
"""Pixels of a voxel, and of a column: narrower ones would cut their titles off."""
TITLE_HEIGHT, TITLE_SIZE, DETAIL_SIZE = 34, 13, 10


def patch_grid(source: Array, synthetic: Array, target: Array) -> NDArray[np.uint8]:
    """A picture of patches: source, synthetic, target, then change and error in colour.

    Args:
        source: Standardised, shape (n, h, w); blocks show their middle slice, (n, d, h, w).
        synthetic: Same shape.
        target: Same shape; sets the grey window.

    Returns:
        RGB: the titles of the columns, then a row for each patch. Blue is positive, red negative,
        as in the paper's figures.
    """
    if source.ndim == 4:
        middle = source.shape[1] // 2
        source, synthetic, target = (part[:, middle] for part in (source, synthetic, target))
    low, high = np.percentile(target, (0.5, 99.5))
    span = max(float(high - low), 1e-6)
    grey = [colormaps["gray"]((part - low) / span) for part in (source, synthetic, target)]
    signed = [colormaps["RdBu"](0.5 + (synthetic - part) / (2 * span)) for part in (source, target)]
    columns = np.concatenate([*grey, *signed], axis=2)
    rows = np.concatenate(list(columns), axis=0)[..., :3]
    pixels = max(LEAST_PIXELS, math.ceil(LEAST_WIDTH / source.shape[2]))
    picture = np.rint(rows * 255).astype(np.uint8).repeat(pixels, axis=0).repeat(pixels, axis=1)
    return np.concatenate([_titles(pixels * source.shape[2]), picture])


def _titles(width: int) -> NDArray[np.uint8]:
    """The titles, each over a column of this many pixels."""
    strip = Image.new("RGB", (width * len(TITLES), TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    name_font, detail_font = (ImageFont.load_default(size) for size in (TITLE_SIZE, DETAIL_SIZE))
    for column, (name, detail) in enumerate(TITLES):
        left = column * width + 4
        draw.text((left, 3), name, fill="black", font=name_font)
        draw.text((left, 19), detail, fill="#5b6168", font=detail_font)
    return np.asarray(strip)
