"""The viewer of slices, small enough for a page; templates/viewer.html lays it out.

The page that takes it must take viewer.js and viewer.css too: see templates/report.html.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup
from PIL import Image

from distsynth.reporting.viewer_slices import (
    STEP,
    STEPS,
    ZERO,
    Greys,
    Slices,
    difference_palette,
    reduced,
)
from sharding.io.page import png_url, render

MOST_BYTES = 10_500_000
"""Most bytes of a viewer's HTML: a larger one is slow to open and to send."""
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


def viewer_html(specimens: Sequence[Slices], most_bytes: int = MOST_BYTES) -> Markup:
    """The viewer; one to a page, as its axes are one group of choices.

    Args:
        specimens: From cut_slices, with the same methods.
        most_bytes: Slices are left out and made smaller until the HTML is not larger than this;
            the last specimens are left out if even that is not enough.

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
    html, bytes_each = "", 0.0
    for most, longest in DETAILS:
        pixels = most * longest**2
        # Judging by the last try this one would be far too large: skip it.
        if (most, longest) != DETAILS[-1] and bytes_each * pixels > 1.5 * most_bytes:
            continue
        html = _viewer(specimens, len(specimens), most, longest)
        if len(html) <= most_bytes:
            return Markup(html)
        bytes_each = len(html) / pixels
    kept = len(specimens)
    while kept > 1 and len(html) > most_bytes:
        kept -= 1
        html = _viewer(specimens, kept, *DETAILS[-1])
    return Markup(html)


def _viewer(specimens: Sequence[Slices], kept: int, most: int, longest: int) -> str:
    """The viewer of the first specimens, at one level of detail."""
    names = [{each.axes[k].name for each in specimens} for k in range(3)]
    codes = ZERO + STEP * np.arange(-STEPS, STEPS + 1)
    return render(
        "distsynth.reporting/viewer.html",
        specimens=[
            replace(each, axes=tuple(reduced(axis, most, longest) for axis in each.axes))
            for each in specimens[:kept]
        ],
        left_out=[each.specimen for each in specimens[kept:]],
        most=most,
        longest=longest,
        methods=specimens[0].methods,
        # An axis has another plane in specimens of another orientation.
        axis_names=[f.pop() if len(f) == 1 else "xyz"[k] for k, f in enumerate(names)],
        frames=FRAMES,
        scale=_url(codes[None].astype(np.uint8), True),
        url=_url,
        sheet=lambda pictures, signed=False: _url(np.concatenate(list(pictures)), signed),
    )


def _url(picture: Greys, signed: bool = False) -> str:
    """An 8-bit PNG: greys, or a difference's codes with their colours."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if signed:
        image.putpalette(difference_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=8)
    return png_url(buffer.getvalue())
