"""A viewer of slices as HTML: source, synthetic, target and their difference, with sliders.

Slices lie in sheets, one beneath the other, of which a frame shows one at a time. The page that
takes the viewer must take SCRIPT and STYLE of viewer_script.py too. Without script, and
on paper, the central slices stand in its place.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

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

MOST_BYTES = 10_500_000
"""Of a viewer's HTML: what is larger is slow to open and to send."""
DETAILS = ((24, 256), (24, 192), (16, 192), (12, 192), (12, 144), (10, 128), (8, 96))
"""(Slices across an axis, pixels along a slice's longer side), tried in turn until all fits."""
FRAMES = (
    ("Blend", "source synthetic target", True),
    ("Difference: synthetic − target", "difference", True),  # noqa: RUF001
    ("Source", "source", False),
    ("Synthetic", "synthetic", False),
    ("Target", "target", False),
)
"""Caption, layers from the lowest, whether it is large."""
FIRST_AXIS = 2


@dataclass(frozen=True)
class _Specimen:
    """One specimen's part of the page.

    Attributes:
        name: Plain text.
        sheets: For the script.
        still: What stands without it.
    """

    name: str
    sheets: str
    still: str

    @property
    def size(self) -> int:
        return len(self.sheets) + len(self.still)


def viewer_html(specimens: Sequence[Slices], most_bytes: int = MOST_BYTES) -> str:
    """The viewer; one to a page, as its axes are one group of choices.

    Args:
        specimens: From cut_slices, with the same methods.
        most_bytes: Slices are left out and made smaller until the HTML is not larger than about
            this, and the last specimens left out if even that does not do.

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
    parts, (most, longest) = _fitting(specimens, most_bytes)
    note = (
        f"At most {most} slices across an axis, {longest} pixels a side. Grey values: one window "
        "for source, synthetic and target, the 0.5th to 99.5th percentile of the target in the "
        "mask. Differences in standardised units: blue where the synthetic is above the target, "
        "red where it is below."
    )
    left_out = [each.specimen for each in specimens[len(parts) :]]
    if left_out:
        note += f" Left out to keep the page small: {', '.join(left_out)}."
    return "\n".join(
        [
            '<div class="viewer">',
            f'<p class="note">{escape(note)}</p>',
            '<div class="live">',
            _controls(parts, methods, _axis_names(specimens)),
            _frames(),
            "</div>",
            '<div class="still">',
            *(part.still for part in parts),
            "</div>",
            *(part.sheets for part in parts),
            "</div>",
        ]
    )


def _fitting(
    specimens: Sequence[Slices], most_bytes: int
) -> tuple[list[_Specimen], tuple[int, int]]:
    """Parts of the page that are small enough together, and the detail that they have."""
    detail, parts = DETAILS[0], []
    bytes_each = 0.0
    for detail in DETAILS:
        pixels = detail[0] * detail[1] ** 2
        # What the last try tells is far too large need not be tried.
        if detail != DETAILS[-1] and bytes_each * pixels > 1.5 * most_bytes:
            continue
        parts = [_specimen(number, each, detail) for number, each in enumerate(specimens)]
        total = sum(part.size for part in parts)
        if total <= most_bytes:
            break
        bytes_each = total / pixels
    while len(parts) > 1 and sum(part.size for part in parts) > most_bytes:
        parts.pop()
    return parts, detail


def _specimen(number: int, slices: Slices, detail: tuple[int, int]) -> _Specimen:
    """One specimen at a detail."""
    axes = [reduced(axis, *detail) for axis in slices.axes]
    sheets = "\n".join(_sheets(number, k, axis, slices.limit) for k, axis in enumerate(axes))
    return _Specimen(slices.specimen, sheets, _still(slices, axes))


def _sheets(number: int, axis: int, slices: AxisSlices, limit: float) -> str:
    """All slices across one axis, for the script."""
    kinds = [("source", "", slices.source, False), ("target", "", slices.target, False)]
    for place, name in enumerate(slices.synthetic):
        own = f' data-method="{place}"'
        kinds.append(("synthetic", own, slices.synthetic[name], False))
        kinds.append(("difference", own, slices.difference[name], True))
    images = "\n".join(
        f'<img alt="" data-kind="{kind}"{own} src="{_url(np.concatenate(list(pictures)), signed)}">'
        for kind, own, pictures, signed in kinds
    )
    return (
        f'<div class="sheets" data-specimen="{number}" data-axis="{axis}" '
        f'data-ratio="{slices.ratio:.4f}" data-central="{slices.central}" '
        f'data-slices="{" ".join(map(str, slices.indices))}" data-limit="{limit:.2g}">\n'
        f"{images}\n</div>"
    )


def _controls(parts: Sequence[_Specimen], methods: Sequence[str], names: Sequence[str]) -> str:
    """Choices and sliders."""
    axes = "".join(
        f'<label><input type="radio" name="axis" value="{k}"'
        f"{' checked' if k == FIRST_AXIS else ''}> {escape(name)}</label>"
        for k, name in enumerate(names)
    )
    hidden = " hidden" if len(methods) == 1 else ""
    return (
        '<div class="controls">\n'
        f"<label>Specimen {_select('specimen', (part.name for part in parts))}</label>\n"
        f"<label{hidden}>Synthetic by {_select('method', methods)}</label>\n"
        f"<fieldset><legend>Slices across</legend>{axes}</fieldset>\n</div>\n"
        '<label class="slider">Slice <input type="range" data-part="slice" min="0" step="1">'
        '<output data-part="slice-text"></output></label>\n'
        '<label class="slider">Blend <input type="range" data-part="blend" min="0" max="2" '
        'step="0.02" value="0"><output data-part="blend-text"></output>'
        '<span class="ends" aria-hidden="true"><span>source</span><span>synthetic</span>'
        "<span>target</span></span></label>"
    )


def _axis_names(specimens: Sequence[Slices]) -> list[str]:
    """x, y, z, with what they are where that is the same in all specimens."""
    found = [{each.axes[k].name for each in specimens} for k in range(3)]
    return [names.pop() if len(names) == 1 else "xyz"[k] for k, names in enumerate(found)]


def _select(name: str, choices: Iterable[str]) -> str:
    options = "".join(
        f'<option value="{number}">{escape(choice)}</option>'
        for number, choice in enumerate(choices)
    )
    return f'<select data-part="{name}">{options}</select>'


def _frames() -> str:
    """Where slices are shown."""
    figures = []
    for caption, layers, large in FRAMES:
        scale = ""
        if layers == "difference":
            scale = _scale('<span data-part="least"></span>', '<span data-part="most"></span>')
        figures.append(
            f'<figure class="{"large" if large else "small"}"><div class="frame" role="img" '
            f'aria-label="{escape(caption)}" data-layers="{layers}"></div>{scale}'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return '<div class="panels">\n' + "\n".join(figures) + "\n</div>"


def _still(slices: Slices, axes: Sequence[AxisSlices]) -> str:
    """Central slices: across all axes of the first method, across z of the others."""
    parts = [f"<h3>{escape(slices.specimen)}</h3>"]
    for method in slices.methods:
        shown = axes if method == slices.methods[0] else [axes[FIRST_AXIS]]
        heads = ("Slice", "Source", f"Synthetic: {method}", "Target", "Synthetic − target")  # noqa: RUF001
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
        rows = "\n".join(_still_row(slices.specimen, method, axis) for axis in reversed(shown))
        parts.append(
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
        )
    limit = f"{slices.limit:.2g}"
    parts.append(_scale(f"−{limit}", f"+{limit}"))  # noqa: RUF001
    return "\n".join(parts)


def _still_row(specimen: str, method: str, axis: AxisSlices) -> str:
    """The central slice across one axis."""
    k = axis.central
    cells = [
        ("source", axis.source[k], False),
        (f"synthetic of {method}", axis.synthetic[method][k], False),
        ("target", axis.target[k], False),
        (f"difference of {method}", axis.difference[method][k], True),
    ]
    where = f"{axis.name}, {axis.indices[k]}"
    images = "".join(
        f'<td><img alt="{escape(f"{specimen}, {what}, {where}")}" '
        f'style="aspect-ratio: {axis.ratio:.4f}" src="{_url(picture, signed)}"></td>'
        for what, picture, signed in cells
    )
    return f'<tr><th scope="row">{escape(where)}</th>{images}</tr>'


def _scale(least: str, most: str) -> str:
    """Colours of a difference between their ends, which are HTML."""
    codes = ZERO + STEP * np.arange(-STEPS, STEPS + 1)
    bar = _url(codes[None].astype(np.uint8), True)
    return (
        f'<div class="scale"><span>{least}</span>'
        f'<img alt="from red, negative, over white, 0, to blue, positive" src="{bar}">'
        f"<span>{most}</span></div>"
    )


def _url(picture: Greys, signed: bool) -> str:
    """An 8-bit PNG in base64: greys, or a difference's codes with their colours."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if signed:
        image.putpalette(difference_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=8)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
