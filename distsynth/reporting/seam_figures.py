"""Pictures of the jumps and residuals that the seam index and the consistency error summarise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distsynth.metrics.consistency import ConsistencyFit, consistency_fit
from distsynth.metrics.image import central_slice
from distsynth.metrics.seams import CONTROL_REACH, Borders, plane_jumps, seams
from distsynth.metrics.views import Difference, Outside, View
from distsynth.reporting.figures import OTHER_COLOURS
from distsynth.reporting.windows import Mask, Volume, finite_values, grey_window, signed_limit
from sharding.io.figures import bare_panel
from sharding.volumes.slabs import Empty, in_memory


def seam_figure(
    synthetic: Mapping[str, Volume],
    target: Volume,
    borders: Mapping[str, Borders],
    mask: Mask,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    empty: Empty = in_memory,
) -> Figure:
    """A row for each method: its error with the borders of its patches, and jumps around them.

    Left, synthetic - target in the slice across z with the largest mask, blue positive, red
    negative. Right, the mean jump of that error between neighbouring voxels against the distance
    from the nearest patch border: a peak at 0 is a seam.

    Args:
        synthetic: Method -> volume of shape (x, y, z), standardised.
        target: Same shape.
        borders: Method -> planes for each axis: see stitch.border_planes.
        mask: Same shape.
        spacing_mm: Voxel size along the three axes.
        empty: Makes the arrays that are as large as a volume.
    """
    index = central_slice(mask)
    errors = {name: Difference(volume, target) for name, volume in synthetic.items()}
    limit = max(signed_limit(finite_values([error], [mask], empty)) for error in errors.values())
    figure, panels = _grid(len(errors), 2, target.shape, spacing_mm)
    for row, (name, error) in zip(panels, errors.items(), strict=True):
        _picture(row[0], error[:, :, index], spacing_mm, "RdBu", -limit, limit)
        for plane in borders[name][0]:
            row[0].axvline(plane - 0.5, color="#111111", linewidth=0.3, alpha=0.6)
        for plane in borders[name][1]:
            row[0].axhline(plane - 0.5, color="#111111", linewidth=0.3, alpha=0.6)
        row[0].set_ylabel(name, fontsize=8, parse_math=False)
        for axis in range(3):
            distances, means = jump_profile(error, borders[name][axis], mask, axis)
            if len(distances):
                colour = OTHER_COLOURS[axis]
                label = f"across {'xyz'[axis]}"
                row[1].plot(distances, means, marker=".", color=colour, linewidth=1.3, label=label)
        row[1].axvline(0, color="#999999", linewidth=0.6)
        row[1].set_ylim(0)
        found = seams(synthetic[name], target, borders[name], (mask, Outside(mask)))
        inside, outside = (f"{region.index:.3f}" for region in found)
        row[1].set_title(f"seam index {inside} in the mask, {outside} outside", fontsize=8)
        row[1].set_xlabel("planes from the nearest patch border", fontsize=8)
        row[1].set_ylabel("mean jump of the error", fontsize=8)
        row[1].tick_params(labelsize=7)
        row[1].spines[["top", "right"]].set_visible(False)
        if row[1].lines[1:]:
            row[1].legend(fontsize=7, frameon=False)
    panels[0][0].set_title(f"slice {index} across z, ±{limit:.2g}", fontsize=8)
    return figure


def jump_profile(
    error: View, borders: NDArray[np.integer[Any]], mask: Mask, axis: int
) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Mean jump of the error between neighbouring voxels of the mask, by distance from a border.

    Returns:
        Signed distances to the nearest border, at most CONTROL_REACH planes, and the mean at each;
        two empty arrays without borders. 0 is the border itself.
    """
    planes = np.arange(1, error.shape[axis])
    if not len(borders):
        return np.array([], int), np.array([])
    jumps, pairs = plane_jumps(error, None, (mask,), (axis,))[axis]
    sums, counts = jumps[0, 0, 1:], pairs[0, 1:]
    apart = planes[:, None] - np.asarray(borders)[None]
    nearest = np.abs(apart).argmin(axis=1)
    distance = apart[np.arange(len(planes)), nearest]
    found = [
        (k, sums[distance == k].sum() / counts[distance == k].sum())
        for k in range(-CONTROL_REACH, CONTROL_REACH + 1)
        if counts[distance == k].sum()
    ]
    return np.array([k for k, _ in found], int), np.array([mean for _, mean in found])


def consistency_figure(
    degraded: Mapping[str, Volume],
    source: Volume,
    mask: Mask,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    empty: Empty = in_memory,
) -> Figure:
    """A row for each method: the source, the part that the synthetic explains, and the residual.

    Args:
        degraded: Method -> synthetic volume on the source's own grid, shape (x, y, z).
        source: The source as scanned, standardised, same shape.
        mask: Same shape.
        spacing_mm: The source's voxel size.
        empty: Makes the arrays that are as large as a volume.
    """
    index = central_slice(mask)
    low, high = grey_window(finite_values([source], [mask], empty))
    shown, inside = source[:, :, index], mask[:, :, index]
    figure, panels = _grid(len(degraded), 3, source.shape, spacing_mm)
    for row, (name, volume) in zip(panels, degraded.items(), strict=True):
        fit = consistency_fit(volume, source, mask)
        left = consistency_map(fit, volume[:, :, index], shown, inside)
        explained = np.where(inside, shown - left * fit.spread, np.nan)
        _picture(row[0], shown, spacing_mm, "gray", low, high)
        _picture(row[1], explained, spacing_mm, "gray", low, high)
        _picture(row[2], left, spacing_mm, "RdBu", -1, 1)
        row[0].set_ylabel(name, fontsize=8, parse_math=False)
        row[2].set_title(f"left unexplained, ±1; error {fit.error:.3f}", fontsize=8)
    panels[0][0].set_title(f"source as scanned, slice {index}", fontsize=8)
    panels[0][1].set_title("explained by the synthetic", fontsize=8)
    return figure


def consistency_map(fit: ConsistencyFit, degraded: Volume, source: Volume, mask: Mask) -> Volume:
    """Map of the residual that consistency_error summarises: where the source is not explained.

    Args:
        fit: Of the whole volumes.
        degraded: The synthetic volume on the source's own grid, or a slice of it.
        source: The source, or the same slice.
        mask: Same shape.

    Returns:
        Source less the cubic polynomial of the degraded synthetic that explains it best in the
        mask, over the source's standard deviation there; NaN outside. The root of its mean square
        over the whole mask is the consistency error.
    """
    found = np.full(source.shape, np.nan)
    found[mask] = fit.residual(degraded[mask], source[mask])
    return found


def _grid(
    rows: int, columns: int, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels that each hold a slice across z."""
    tall = (shape[1] * spacing_mm[1]) / (shape[0] * spacing_mm[0])
    height = 3.0 * min(max(tall, 0.5), 1.6)
    figure = Figure(figsize=(3.3 * columns, rows * (height + 0.3) + 0.3), layout="compressed")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _picture(
    panel: Axes,
    picture: Volume,
    spacing_mm: Sequence[float],
    colours: str,
    low: float,
    high: float,
) -> None:
    """A slice across z: x to the right, y up."""
    panel.imshow(
        picture.T,
        cmap=colours,
        vmin=low,
        vmax=high,
        origin="lower",
        aspect=spacing_mm[1] / spacing_mm[0],
        interpolation="nearest",
    )
    bare_panel(panel)
