"""What the viewer of slices shows: sheets of slices as data URLs, small enough for a page.

templates/viewer.html lays it out, with its script and its style beside it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from distsynth.reporting.viewer_slices import (
    STEP,
    STEPS,
    ZERO,
    AxisSlices,
    Greys,
    Slices,
    difference_palette,
    reduced,
)
from sharding.io.page import png_url

MOST_BYTES = 10_500_000
"""Of a viewer's HTML: a larger one is slow to open and to send."""
DETAILS = ((24, 256), (24, 192), (16, 192), (12, 192), (12, 144), (10, 128), (8, 96))
"""(Slices across an axis, pixels along a slice's longer side), tried in turn until all fits."""
FRAMES = (
    ("Blend", "source synthetic target", "large"),
    ("Difference: synthetic − target", "difference", "large"),  # noqa: RUF001
    ("Source", "source", "small"),
    ("Synthetic", "synthetic", "small"),
    ("Target", "target", "small"),
)
"""Caption, layers from the lowest, size."""
ELEMENT_BYTES = 200
"""Of HTML around a picture, about."""


@dataclass(frozen=True)
class Sheet:
    """All slices across one axis in one picture, one beneath the other.

    Attributes:
        kind: source, target, synthetic or difference.
        method: Number of the method; None for source and target.
        url: The picture.
    """

    kind: str
    method: int | None
    url: str


@dataclass(frozen=True)
class ViewerAxis:
    """The sheets across one axis.

    Attributes:
        ratio: Width over height of a slice.
        central: Place of the slice with the largest mask.
        slices: Which slices of the volume these are.
        sheets: Source, target, then synthetic and difference of each method.
    """

    ratio: str
    central: int
    slices: str
    sheets: list[Sheet]


@dataclass(frozen=True)
class StillRow:
    """One slice as (description, picture) of source, synthetic, target and difference."""

    slice: str
    ratio: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class ViewerSpecimen:
    """One specimen.

    Attributes:
        name: Its name.
        limit: Largest difference that is told apart, standardised units.
        axes: Across x, y and z.
        stills: Method, and its central slices for paper and for browsers without a script.
    """

    name: str
    limit: str
    axes: list[ViewerAxis]
    stills: list[tuple[str, list[StillRow]]]

    @property
    def size(self) -> int:
        """Bytes of its HTML, about."""
        urls = [sheet.url for axis in self.axes for sheet in axis.sheets]
        urls += [url for _, rows in self.stills for row in rows for _, url in row.pictures]
        return sum(len(url) + ELEMENT_BYTES for url in urls)


@dataclass(frozen=True)
class Viewer:
    """What templates/viewer.html shows; one to a page, as its axes are one group of choices."""

    note: str
    specimens: list[ViewerSpecimen]
    methods: list[str]
    axis_names: list[str]
    scale: str
    frames: tuple[tuple[str, str, str], ...] = FRAMES


def make_viewer(specimens: Sequence[Slices], most_bytes: int = MOST_BYTES) -> Viewer:
    """Encode the slices of specimens, smaller ones the more there are.

    Args:
        specimens: From cut_slices, with the same methods.
        most_bytes: Slices are left out and made smaller until the HTML is not larger than about
            this; the last specimens are left out if even that is not enough.

    Raises:
        ValueError: If there is no specimen, or their methods differ.
    """
    if not specimens:
        raise ValueError("there is no specimen to show")
    methods = specimens[0].methods
    for each in specimens:
        if each.methods != methods:
            raise ValueError(
                f"all must have the methods of {specimens[0].specimen}, {methods}; "
                f"{each.specimen} has {each.methods}"
            )
    shown, (most, longest) = _fitting(specimens, most_bytes)
    note = (
        f"At most {most} slices across an axis, {longest} pixels a side. Grey values: one window "
        "for source, synthetic and target, the 0.5th to 99.5th percentile of the target in the "
        "mask. Differences in standardised units: blue where the synthetic is above the target, "
        "red where it is below."
    )
    left_out = [each.specimen for each in specimens[len(shown) :]]
    if left_out:
        note += f" Left out to keep the page small: {', '.join(left_out)}."
    codes = ZERO + STEP * np.arange(-STEPS, STEPS + 1)
    scale = _url(codes[None].astype(np.uint8), True)
    return Viewer(note, shown, methods, _axis_names(specimens), scale)


def _fitting(
    specimens: Sequence[Slices], most_bytes: int
) -> tuple[list[ViewerSpecimen], tuple[int, int]]:
    """Specimens that are small enough together, and the detail that they have."""
    detail, shown = DETAILS[0], []
    bytes_each = 0.0
    for detail in DETAILS:
        pixels = detail[0] * detail[1] ** 2
        # By the last try this one would be far too large: skip it.
        if detail != DETAILS[-1] and bytes_each * pixels > 1.5 * most_bytes:
            continue
        shown = [_specimen(each, detail) for each in specimens]
        total = sum(part.size for part in shown)
        if total <= most_bytes:
            break
        bytes_each = total / pixels
    while len(shown) > 1 and sum(part.size for part in shown) > most_bytes:
        shown.pop()
    return shown, detail


def _specimen(slices: Slices, detail: tuple[int, int]) -> ViewerSpecimen:
    """One specimen at a detail; stills across all axes of the first method, across z of others."""
    axes = [reduced(axis, *detail) for axis in slices.axes]
    stills = []
    for method in slices.methods:
        shown = reversed(axes) if method == slices.methods[0] else axes[-1:]
        stills.append((method, [_still(slices.specimen, method, axis) for axis in shown]))
    return ViewerSpecimen(slices.specimen, f"{slices.limit:.2g}", [*map(_axis, axes)], stills)


def _axis(slices: AxisSlices) -> ViewerAxis:
    kinds: list[tuple[str, int | None, Greys]] = [
        ("source", None, slices.source),
        ("target", None, slices.target),
    ]
    for number, name in enumerate(slices.synthetic):
        kinds.append(("synthetic", number, slices.synthetic[name]))
        kinds.append(("difference", number, slices.difference[name]))
    sheets = [
        Sheet(kind, method, _url(np.concatenate(list(pictures)), kind == "difference"))
        for kind, method, pictures in kinds
    ]
    indices = " ".join(map(str, slices.indices))
    return ViewerAxis(f"{slices.ratio:.4f}", slices.central, indices, sheets)


def _still(specimen: str, method: str, axis: AxisSlices) -> StillRow:
    k = axis.central
    place = f"{axis.name}, {axis.indices[k]}"
    cells = (
        ("source", axis.source[k], False),
        (f"synthetic of {method}", axis.synthetic[method][k], False),
        ("target", axis.target[k], False),
        (f"difference of {method}", axis.difference[method][k], True),
    )
    pictures = [(f"{specimen}, {kind}, {place}", _url(p, signed)) for kind, p, signed in cells]
    return StillRow(place, f"{axis.ratio:.4f}", pictures)


def _axis_names(specimens: Sequence[Slices]) -> list[str]:
    """x, y, z, and their planes where these are the same in all specimens."""
    found = [{each.axes[k].name for each in specimens} for k in range(3)]
    return [names.pop() if len(names) == 1 else "xyz"[k] for k, names in enumerate(found)]


def _url(picture: Greys, signed: bool) -> str:
    """An 8-bit PNG: greys, or a difference's codes with their colours."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if signed:
        image.putpalette(difference_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=8)
    return png_url(buffer.getvalue())
