"""Pictures of the bias correction: each volume before and after, and the field between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sharding.io.figures import bare_panel, figure_png
from sharding.registration.bias_correction import FOREGROUND
from sharding.registration.quality_pictures import PLANES, square_pixels
from sharding.volumes.volume import Volume

SHOWN = PLANES[:2]
"""Axial and coronal: a field of a surface coil shows in one of them."""
COLOURS = 128
LEAST_RANGE = 0.05
"""The scale of the field shows at least so much to either side of 1."""


def bias_pictures(volumes: Mapping[str, tuple[Volume, Volume]]) -> bytes:
    """Each volume before and after the correction, and the field, on slices through the middle.

    The field is what the correction divided by. It is shown where there is tissue, on one scale for
    all volumes; before and after share their window.

    Args:
        volumes: Role to the volume before and after, each pair on one grid.

    Returns:
        A PNG file; equal volumes give equal bytes.
    """
    rows = [
        (f"{role}\n{name}", *_cuts(before.reoriented("RAS"), after.reoriented("RAS"), axis))
        for role, (before, after) in volumes.items()
        for axis, name, _ in SHOWN
    ]
    heights = [before.shape[0] / before.shape[1] for _, before, _, _ in rows]
    known = np.concatenate([field[np.isfinite(field)] for *_, field in rows])
    spread = max(LEAST_RANGE, *np.abs(np.percentile(known, (1, 99)) - 1)) if known.size else 1.0
    width = 3.1
    figure = Figure(
        figsize=(3 * width + 1.2, sum(width * min(height, 2) for height in heights) + 0.6),
        layout="compressed",
    )
    axes = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    drawn = None
    for panels, (title, before, after, field) in zip(axes, rows, strict=True):
        high = float(np.percentile(np.concatenate([before, after]), 99.5))
        for panel, cut in zip(panels, (before, after), strict=False):
            panel.imshow(cut, cmap="gray", vmin=0, vmax=max(high, 1e-6), origin="lower")
        drawn = panels[2].imshow(
            field, cmap="RdBu_r", vmin=1 - spread, vmax=1 + spread, origin="lower"
        )
        for panel in panels:
            bare_panel(panel)
        panels[0].set_ylabel(title, fontsize=9)
    for panel, title in zip(axes[0], ("before", "after", "field"), strict=True):
        panel.set_title(title, fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes[:, 2], shrink=0.6, label="divided by")
    return figure_png(figure, colours=COLOURS)


def _cuts(
    before: Volume, after: Volume, axis: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Slices before and after, and the field between, NaN where there is no tissue."""
    across, up = (before.spacing_mm[dim] for dim in range(3) if dim != axis)
    middle = before.shape[axis] // 2
    cuts = [
        square_pixels(np.take(volume.data, middle, axis), across, up) for volume in (before, after)
    ]
    tissue = cuts[0] > FOREGROUND * np.percentile(before.data, 99.9)
    field = np.full(cuts[0].shape, np.nan, np.float32)
    np.divide(cuts[0], cuts[1], out=field, where=tissue & (cuts[1] > 0))
    return cuts[0], cuts[1], field
