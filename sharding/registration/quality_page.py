"""The page on a prepared cohort: who failed, who stands out, every number and every picture.

Figures are made without pyplot, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.feature import canny

from sharding.io.page import facts_html, html_page, paragraph, png_html, section
from sharding.registration.quality import SpecimenQuality, foreground, rules_in_words

TITLE = "Prepared cohort: quality of every pair"

PLANES = (
    (2, "axial", "left is left, front is up"),
    (1, "coronal", "left is left, top is up"),
    (0, "sagittal", "front is right, top is up"),
)
"""Axis across a slice of a volume oriented RAS, the slice's name, and how it is shown."""

SQUARES = 8
"""Squares of the checkerboard along the longer side of a slice."""

SHARPEST = 480
"""Pixels along the longer side of a slice at most; finer ones are averaged away on a page."""

EDGE_PIXELS = 1.5
"""Standard deviation of the smoothing that edges are sought at."""

EDGE_SHARES = (0.84, 0.93)
"""Quantiles of steepness: an edge starts over the second and goes on over the first."""

EDGE_COLOUR = (1.0, 0.66, 0.0)
COLOURS = 64
"""Of a picture file: greys, and the edges' colour."""

COLUMNS: tuple[tuple[str, str], ...] = (
    ("MI before", "Mutual information in the mask, nats, placed by the headers"),
    ("MI after", "Mutual information in the mask, nats, as prepared"),
    ("Correlation before", "Pearson correlation in the mask, placed by the headers"),
    ("Correlation after", "Pearson correlation in the mask, as prepared"),
    ("Overlap before", "Dice coefficient of the foregrounds, placed by the headers"),
    ("Overlap after", "Dice coefficient of the foregrounds, as prepared"),
    ("Jacobian", "Least and largest volume change from target to source in the foreground"),
    ("Coverage", "Share of the target's foreground inside the source's field of view"),
    ("Foreground", "Share of the target's volume that is foreground"),
    ("Noise, source", "Standard deviation of the noise, share of the intensity range"),
    ("Noise, target", "Standard deviation of the noise, share of the intensity range"),
)
"""Columns of the table, each with its meaning."""


def pair_pictures(
    source_before: NDArray[np.float32],
    source_after: NDArray[np.float32] | None,
    target: NDArray[np.float32],
    spacing_mm: Sequence[float],
) -> bytes:
    """Checkerboards and edge overlays on three orthogonal slices through the specimen's middle.

    In a checkerboard, squares of source and target alternate: a border that runs on from square
    to square is aligned. In an overlay, the target's edges are drawn on the source.

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
    middle = _middle(foreground(target))
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
            _frame(panel)
        panels[0].set_ylabel(f"{name}\n{view}", fontsize=9)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    return _png(figure)


def quality_page(
    rows: Sequence[SpecimenQuality],
    flags: Mapping[str, Sequence[str]],
    failures: Mapping[str, str],
    pictures: Mapping[str, bytes],
    head: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        rows: A line for each prepared specimen.
        flags: Specimen -> reasons why it stands out.
        failures: Specimen -> why it could not be prepared.
        pictures: Specimen -> PNG of `pair_pictures`.
        head: What was done and with what, name -> value.

    Returns:
        One HTML document that needs nothing from outside.
    """
    count = len(rows) + len(failures)
    told = (
        f"{count} specimens: {len(rows)} prepared, {len(failures)} failed, {len(flags)} stand out."
    )
    sections = []
    if failures:
        note = "These are not in the prepared cohort."
        sections.append(section("Failed", paragraph(note), facts_html(failures)))
    sections.append(section("What was done", paragraph(told), facts_html(head)))
    sections.append(section("What stands out", _flags_html(flags)))
    if rows:
        sections.append(section("Measures", _table_html(rows, flags), _legend_html()))
    for row in rows:
        if row.name in pictures:
            words = picture_words(row, flags.get(row.name, ()))
            caption = (
                "Checkerboards of source and target, and the target's edges (orange) on the source."
            )
            sections.append(section(row.name, png_html(pictures[row.name], caption, words)))
    return html_page(TITLE, *sections)


def picture_words(row: SpecimenQuality, reasons: Sequence[str]) -> str:
    """What a specimen's picture shows, for those who do not see it."""
    before, after = row.before, row.after
    return (
        f"{row.name}: axial, coronal and sagittal slices through the middle; checkerboards of "
        "source and target, and the target's edges on the source. Mutual information "
        f"{before.mutual_information:.3f} before, {after.mutual_information:.3f} after; overlap of "
        f"the foregrounds {before.overlap:.2f} before, {after.overlap:.2f} after. "
        + (f"Stands out: {'; '.join(reasons)}." if reasons else "Nothing stands out.")
    )


def _flags_html(flags: Mapping[str, Sequence[str]]) -> str:
    """Who stands out and why, then the rules."""
    found = (
        facts_html({name: "; ".join(reasons) for name, reasons in flags.items()})
        if flags
        else paragraph("Nobody.")
    )
    rules = "".join(f"<li>{escape(rule)}</li>" for rule in rules_in_words())
    note = "Who stands out stays in the cohort: look at the picture and decide."
    return (
        f"{found}\n{paragraph(note)}\n<details>\n<summary>Rules</summary>\n"
        f"<ul>{rules}</ul>\n</details>"
    )


def _table_html(rows: Sequence[SpecimenQuality], flags: Mapping[str, Sequence[str]]) -> str:
    """A line for each specimen, the flag in words behind its name."""
    heads = '<th class="text" scope="col">Specimen</th><th class="text" scope="col">Flag</th>'
    heads += "".join(
        f'<th scope="col" title="{escape(words)}">{escape(title)}</th>' for title, words in COLUMNS
    )
    lines = []
    for row in rows:
        flag = "<strong>stands out</strong>" if row.name in flags else "-"
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row))
        lines.append(
            f'<tr><th class="text" scope="row">{escape(row.name)}</th><td>{flag}</td>{cells}</tr>'
        )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )


def _cells(row: SpecimenQuality) -> list[str]:
    """The values of a line, in the order of COLUMNS."""
    pairs: list[tuple[float, float]] = [
        (row.before.mutual_information, row.after.mutual_information),
        (row.before.correlation, row.after.correlation),
        (row.before.overlap, row.after.overlap),
    ]
    return [
        *(f"{value:.3f}" for pair in pairs for value in pair),
        f"{row.jacobian_min:.2f} to {row.jacobian_max:.2f}",
        f"{row.coverage:.1%}",
        f"{row.foreground:.1%}",
        f"{row.noise_source:.2%}",
        f"{row.noise_target:.2%}",
    ]


def _legend_html() -> str:
    return f"<details>\n<summary>Columns</summary>\n{facts_html(dict(COLUMNS))}\n</details>"


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
        _square_pixels(np.take(volume, middle[axis], axis), across, up)
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


def _square_pixels(cut: NDArray[np.float32], across_mm: float, up_mm: float) -> NDArray[np.float32]:
    """A slice with its second axis up, interpolated to pixels of one size on both axes."""
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


def _frame(panel: Axes) -> None:
    """No ticks and a hairline."""
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(linewidth=0.4, color="#999999")


def _png(figure: Figure) -> bytes:
    """A file of few colours, a third of the size of one of all; without date or program."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    image = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()
