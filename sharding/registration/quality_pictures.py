"""Pictures of the alignment of a pair: checkerboards, and the target's edges on the source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import canny

from sharding.io.figures import bare_panel, figure_png
from sharding.volumes.masks import otsu_foreground

PLANES = (
    (2, "axial", "left is left, front is up"),
    (1, "coronal", "left is left, top is up"),
    (0, "sagittal", "front is right, top is up"),
)
"""Axis across a slice of a volume oriented RAS, the slice's name, and how it is shown."""

SQUARES = 8
"""Squares of the checkerboard along the longer side of a slice."""

SHARPEST = 480
"""Most pixels along the longer side of a slice; a page does not show finer ones."""

EDGE_PIXELS = 1.5
"""Standard deviation of the smoothing before edges are detected."""

EDGE_SHARES = (0.84, 0.93)
"""Quantiles of the gradient: an edge starts above the second and continues above the first."""

EDGE_COLOUR = (1.0, 0.66, 0.0)
COLOURS = 64
"""Colours of a picture file: greys, and the colour of the edges."""


def pair_pictures(
    source_before: NDArray[np.float32],
    source_after: NDArray[np.float32] | None,
    target: NDArray[np.float32],
    spacing_mm: Sequence[float],
) -> bytes:
    """Checkerboards and edge overlays on three orthogonal slices through the specimen's middle.

    In a checkerboard, squares of source and target alternate: where borders continue from
    square to square, the pair is aligned. An overlay shows the target's edges on the source.

    Args:
        source_before: Source on the target's grid by the headers, [0, 1000], shape (x, y, z), axes
            pointing right, anterior, superior.
        source_after: The same as prepared; None where nothing was registered.
        target: On the same grid, in the same scale.
        spacing_mm: Voxel size along the three axes.

    Returns:
        A PNG file; equal volumes give equal bytes.

    Raises:
        ValueError: If the shapes differ.
    """
    sources = {"before": source_before, "after": source_after}
    shown = {when: volume for when, volume in sources.items() if volume is not None}
    for when, volume in shown.items():
        if volume.shape != target.shape:
            raise ValueError(f"source {when} and target differ: {volume.shape}, {target.shape}")
    if len(shown) == 1:
        shown = {"by the headers": source_before}
    middle = _middle(otsu_foreground(target))
    slices = [
        _slice_pictures(list(shown.values()), target, middle, axis, spacing_mm)
        for axis, _, _ in PLANES
    ]
    titles = [
        f"{kind}, {when}" for kind in ("checkerboard", "target's edges on source") for when in shown
    ]
    heights = [row[0].shape[0] / row[0].shape[1] for row in slices]
    cell = 3.1 if len(shown) > 1 else 4.4
    size = (cell * len(titles), sum(cell * min(height, 2) for height in heights) + 0.9)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(3, len(titles), squeeze=False, height_ratios=heights)
    for panels, row, (_, name, view) in zip(axes, slices, PLANES, strict=True):
        for panel, picture in zip(panels, row, strict=True):
            panel.imshow(picture, origin="lower", interpolation="nearest")
            bare_panel(panel)
        panels[0].set_ylabel(f"{name}\n{view}", fontsize=9)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    return figure_png(figure, colours=COLOURS)


def _middle(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """The voxel in the middle of a mask's bounding box; of the volume where the mask is empty."""
    if not mask.any():
        return tuple(size // 2 for size in mask.shape)
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple((part.start + part.stop - 1) // 2 for part in found)


def _slice_pictures(
    sources: Sequence[NDArray[np.float32]],
    target: NDArray[np.float32],
    middle: Sequence[int],
    axis: int,
    spacing_mm: Sequence[float],
) -> list[NDArray[np.float32]]:
    """A slice's checkerboards, one a source, then its overlays; RGB, first axis up."""
    across, up = (spacing_mm[k] for k in range(3) if k != axis)
    cuts = [
        square_pixels(np.take(volume, middle[axis], axis), across, up)
        for volume in (*sources, target)
    ]
    grey = [_windowed(cut) for cut in cuts]
    *ours, theirs = grey
    side = max(theirs.shape) / SQUARES
    rows, columns = np.indices(theirs.shape) // max(side, 1)
    odd = (rows + columns) % 2 == 1
    low, high = EDGE_SHARES
    edges = canny(theirs, EDGE_PIXELS, low_threshold=low, high_threshold=high, use_quantiles=True)
    pictures = [np.where(odd, theirs, one) for one in ours] + ours
    coloured = [np.repeat(picture[..., None], 3, axis=-1) for picture in pictures]
    for picture in coloured[len(ours) :]:
        picture[edges] = EDGE_COLOUR
    return coloured


def square_pixels(cut: NDArray[np.float32], across_mm: float, up_mm: float) -> NDArray[np.float32]:
    """A slice with its second axis up, interpolated to pixels of one size on both axes.

    Args:
        cut: Shape (across, up).
        across_mm: Voxel size along its first axis.
        up_mm: Voxel size along its second axis.
    """
    size = np.array([cut.shape[1] * up_mm, cut.shape[0] * across_mm])
    pixel = max(min(across_mm, up_mm) / 2, size.max() / SHARPEST)
    shape = np.maximum(np.rint(size / pixel), 2).astype(int)
    steps = np.array([pixel / up_mm, pixel / across_mm])
    # Pixel centres: the outer borders of the first voxel and the first pixel coincide.
    centres = ((np.arange(n) + 0.5) * step - 0.5 for n, step in zip(shape, steps, strict=True))
    index = np.stack(np.meshgrid(*centres, indexing="ij"))
    pixels = ndimage.map_coordinates(cut.T, index, order=1, mode="nearest")
    return np.asarray(pixels, np.float32)


def _windowed(cut: NDArray[np.float32]) -> NDArray[np.float32]:
    """Greys from 0 to 1, the brightest half percent white."""
    low, high = 0.0, float(np.percentile(cut, 99.5))
    return np.clip((cut - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
