"""Pictures of a model: volumes side by side (figures 7, 8) and curves (figures 5, 6, 12)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distsynth.metrics.image import central_slice
from distsynth.reporting.windows import (
    Mask,
    Volume,
    check_volumes,
    finite_values,
    grey_window,
    signed_limit,
)
from sharding.io.figures import Margins, bare_panel, placed_panels

LoggedStep = Mapping[str, Any]

COLUMNS = ("source", "synthetic", "target", "synthetic − source", "error: synthetic − target")  # noqa: RUF001
"""Titles of a comparison's columns: three in grey, two signed."""

ADVERSARIAL = ("generator", "discriminator", "bce")
"""Terms that share the panel of adversarial losses; `generator` is its weighted total."""

SHARED = {
    "ssim": "SSIM in the mask (-1 to 1)",
    "grad_norm": "gradient norm",
    "seam_index": "seam index (1 = no seam)",
    "seam_excess": "excess jump at borders (0 = no seam)",
    "overlap_disagreement": "overlap disagreement (standardised units)",
}
"""Start of a term's name -> title of the panel that all such terms share."""

TITLES = {
    "recon": "reconstruction loss",
    "gradient": "gradient difference loss (eq. 4)",
    "perceptual": "perceptual loss",
    "matching": "feature matching loss",
    "overlap": "gradient difference loss of stitched windows",
    "penalty": "penalty on the discriminator's slope",
    "generator": "generator loss (weighted total)",
    "mse": "MSE in the mask (standardised units squared)",
    "psnr": "PSNR in the mask (dB, peak = target's range)",
    "psnr255": "PSNR in the mask (dB, peak 255, eq. 7)",
    "checkerboard": "checkerboard in the mask (1 = none)",
}
"""Term -> title of its panel; other terms show their own name."""

LOSSES = {"ssim": "structural dissimilarity loss (1 - SSIM)", "frequency": "frequency loss"}
"""Terms of the loss whose names begin as those of metrics do -> title of their panel."""

LABELS = {
    "ssim_global": "global (eq. 8)",
    "ssim_2d": "windowed 2D",
    "seam_index": "mask",
    "seam_index_outside": "outside",
    "seam_excess": "mask",
    "seam_excess_outside": "outside",
    "overlap_disagreement": "mask",
    "overlap_disagreement_outside": "outside",
}
"""Term -> name of its line in a panel that several terms share."""

SPLIT_LABELS = {
    "train": "training",
    "val": "validation",
    "val_whole": "validation, whole specimens",
}
COLOURS = {"train": "#4477aa", "val": "#cc6633", "val_whole": "#228833"}
OTHER_COLOURS = ("#4477aa", "#cc6633", "#228833", "#aa3377", "#777777")
LEARNING_RATE = "learning rate"
CELL, LETTER = 2.1, 0.079
"""Inches: the width of a picture, and of a letter of 9 points, of which few are wider."""
MANY_POINTS = 200
"""Lines of more points are drawn pale, under their moving average."""


def comparison_figure(
    volumes: Mapping[str, Volume],
    source: Volume,
    target: Volume,
    mask: Mask | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    axis: int = 2,
    slices: Sequence[int] | None = None,
) -> Figure:
    """One specimen, a row for each method: source, synthetic, target and signed differences.

    Grey values of all volumes share a window, the 0.5th to 99.5th percentile of the target; all
    rows share the limits of a difference, the 99.5th percentile of its size. Both are taken from
    the slices shown, in the mask. Blue is positive and red negative.

    The first axis left after slicing points right and the second up. Volumes oriented RAS show
    the specimen's left on the left; orient them LAS for the radiological view. Voxels without a
    finite value are beige.

    Args:
        volumes: Method -> synthetic volume of shape (x, y, z), standardised; the order of rows.
        source: Source on the same grid.
        target: Target on the same grid.
        mask: Foreground, for the choice of slice and the windows; None for all voxels.
        spacing_mm: Voxel size along the three axes.
        axis: Slicing axis.
        slices: Indices along it; None for the slice with the largest mask.

    Raises:
        ValueError: If there is no volume, or shapes, axis, spacing or slices do not fit.
    """
    inside = np.ones(target.shape, bool) if mask is None else mask
    check_volumes("comparison", volumes, source, target, inside, spacing_mm)
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis}")
    chosen = [central_slice(inside, axis)] if slices is None else list(slices)
    size = target.shape[axis]
    if not chosen or not all(0 <= index < size for index in chosen):
        raise ValueError(f"slices must be in 0..{size - 1} along axis {axis}, got {chosen}")
    rows = [(name, index) for index in chosen for name in volumes]
    pictures = [
        _pictures(*(np.take(v, index, axis) for v in (source, volumes[name], target)))
        for name, index in rows
    ]
    inner = [np.take(inside, index, axis) for _, index in rows]
    low, high = grey_window(_inside([row[2] for row in pictures], inner))
    limits = [signed_limit(_inside([r[column] for r in pictures], inner)) for column in (3, 4)]
    windows = [(low, high)] * 3 + [(-limit, limit) for limit in limits]

    across, up = (spacing_mm[k] for k in range(3) if k != axis)
    width, height = (n * mm for n, mm in zip(pictures[0][0].shape, (across, up), strict=True))
    labels = [name if len(chosen) == 1 else f"{name}\nslice {index}" for name, index in rows]
    figure, axes = _picture_grid(labels, CELL * min(max(height / width, 0.3), 3))
    shown = []
    for panels, row in zip(axes, pictures, strict=True):
        for column, (panel, picture) in enumerate(zip(panels, row, strict=True)):
            image = panel.imshow(
                picture.T,
                cmap="gray" if column < 3 else "RdBu",
                vmin=windows[column][0],
                vmax=windows[column][1],
                origin="lower",
                aspect=up / across,
                interpolation="nearest",
            )
            shown.append(image)
            bare_panel(panel)
            panel.yaxis.set_visible(column == 0)
    for panel, label in zip(axes[:, 0], labels, strict=True):
        panel.set_ylabel(
            label, rotation=0, ha="right", va="center", fontsize=9, labelpad=6, parse_math=False
        )
    for panel, title in zip(axes[0], COLUMNS, strict=True):
        panel.set_title(title, fontsize=9, y=1.0)
    for first, last, text in (
        (0, 2, "standardised intensity, window of the target"),
        (3, 3, "red below, blue above the source"),
        (4, 4, "red below, blue above the target"),
    ):
        left, right = axes[-1, first].get_position(), axes[-1, last].get_position()
        tall = 1 / figure.get_figheight()
        place = (left.x0, left.y0 - 0.32 * tall, right.x1 - left.x0, 0.07 * tall)
        bar = figure.colorbar(
            shown[last],
            cax=figure.add_axes(place),
            orientation="horizontal",
            extend="both",
            extendfrac=0.05 if first == last else 0.017,
            ticks=MaxNLocator(5 if first == last else 9),
        )
        bar.set_label(text, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    return figure


def _picture_grid(labels: Sequence[str], tall: float) -> tuple[Figure, NDArray[Any]]:
    """A figure with a row of five panels for each label, which stands on the left.

    Panels are placed by their sizes alone: to measure all that is drawn takes longer than to draw.

    Args:
        labels: Of 9 points; several lines are as wide as the longest.
        tall: Height of a panel, in inches.
    """
    letters = max(len(line) for label in labels for line in label.split("\n"))
    margins = Margins(left=0.2 + letters * LETTER, right=0.06, top=0.3, bottom=0.72)
    return placed_panels(len(labels), len(COLUMNS), CELL, tall, margins, (0.09, 0.1))


def curves_figure(rows: Iterable[LoggedStep]) -> Figure:
    """What a run logged, against the step: loss terms, adversarial losses, metrics, rates.

    A term that was both trained on and validated shows both in its panel. Values that are not
    finite leave a gap. A panel is logarithmic where its values are positive and 98 % of them span
    over a factor of 100.

    Args:
        rows: Rows of metrics.jsonl: `step`, and any of `train/<term>`, `val/<term>`, `lr/<name>`.
            Other keys are ignored, and any key may be missing from any row.

    Returns:
        The figure; a single panel that says so if nothing was logged.
    """
    series = _series(rows)
    panels = _panels(series)
    if not panels:
        figure = Figure(figsize=(6, 1.2))
        figure.text(0.5, 0.5, "no metrics were logged", ha="center", va="center", color="#666666")
        return figure
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    margins = Margins(left=0.62, right=0.15, top=0.3, bottom=0.45)
    between = margins.left + margins.right, margins.top + margins.bottom
    figure, axes = placed_panels(lines, columns, 3.0, 1.75, margins, between)
    axes = axes.ravel()
    last = max(float(steps.max()) for steps, _ in series.values())
    for panel, (title, keys) in zip(axes, panels.items(), strict=False):
        _draw_curves(panel, title, {key: series[key] for key in keys})
        # A validation may be a single point: it stands where it does in the other panels.
        panel.set_xlim(0, 1.03 * max(last, 1))
    for panel in axes[len(panels) :]:
        panel.remove()
    return figure


def _pictures(source: Volume, synthetic: Volume, target: Volume) -> list[Volume]:
    """The five pictures of a row, in the order of COLUMNS."""
    return [source, synthetic, target, synthetic - source, synthetic - target]


def _inside(pictures: Sequence[Volume], masks: Sequence[Mask]) -> Volume:
    """Finite values within the masks, or of the whole pictures where the masks are empty."""
    return finite_values(pictures, [mask if mask.any() else ~mask for mask in masks])


def _series(
    rows: Iterable[LoggedStep],
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Key -> (steps, values), for keys that are drawn."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.split("/")[0] in ("train", "val", "lr") and isinstance(value, int | float):
                point = (row["step"], value if math.isfinite(value) else math.nan)
                found.setdefault(key, []).append(point)
    return {key: (a[:, 0], a[:, 1]) for key, a in ((k, np.array(v)) for k, v in found.items())}


def _panels(keys: Iterable[str]) -> dict[str, list[str]]:
    """Title of a panel -> the keys that it draws: losses, metrics, then rates."""
    keys = list(keys)
    adversarial = any(key in ("train/discriminator", "train/bce") for key in keys)
    groups: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {})
    for key in keys:
        split, _, term = key.partition("/")
        shared = next((title for start, title in SHARED.items() if term.startswith(start)), None)
        if term in LOSSES:
            shared = LOSSES[term]
        if split == "lr":
            place, title = 3, LEARNING_RATE
        elif term.startswith("grad_norm"):
            place, title = 3, SHARED["grad_norm"]
        elif adversarial and term in ADVERSARIAL:
            place, title = 1, "adversarial losses"
        else:
            place, title = (0 if f"train/{term}" in keys else 2), shared or TITLES.get(term, term)
        groups[place].setdefault(title, []).append(key)
    return {title: found for group in groups for title, found in group.items()}


def _draw_curves(
    panel: Axes,
    title: str,
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    """One panel of curves_figure."""
    terms = {key.partition("/")[2] for key in series}
    for number, (key, (steps, values)) in enumerate(series.items()):
        split, _, term = key.partition("/")
        alone = len(terms) == 1
        colour = COLOURS.get(split) if alone else None
        colour = colour or OTHER_COLOURS[number % len(OTHER_COLOURS)]
        label = SPLIT_LABELS.get(split, term)
        if not alone:
            label = LABELS.get(term, term.removeprefix("grad_norm/"))
            label += f", {SPLIT_LABELS[split]}" if split.startswith("val") else ""
        many = len(steps) > MANY_POINTS and title != LEARNING_RATE
        marker = "." if len(steps) <= 30 else ""
        panel.plot(
            steps,
            values,
            color=colour,
            linewidth=0.8 if many else 1.4,
            alpha=0.3 if many else 1,
            marker=marker,
            label=None if many else label,
        )
        if many:
            width = max(2, len(steps) // 50)
            kernel = np.full(width, 1 / width)
            panel.plot(
                np.convolve(steps, kernel, "valid"),
                np.convolve(values, kernel, "valid"),
                color=colour,
                linewidth=1.4,
                label=f"{label}, mean of {width}",
            )
    values = np.concatenate([values for _, values in series.values()])
    values = values[np.isfinite(values)]
    if title == LEARNING_RATE:
        panel.set_ylim(0, 1.05 * max(values, default=0) or 1)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        panel.yaxis.get_offset_text().set_fontsize(7)
    elif values.size and values.min() > 0:
        low, high = np.percentile(values, [1, 99])
        if high > 100 * low:
            panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.set_title(title, fontsize=9, parse_math=False, y=1.0)  # Else it is moved by measuring.
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(color="#e5e5e5", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    legend = panel.legend(fontsize=7, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
