"""Functions that all figures use. Without pyplot no global state changes; no display is needed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Margins:
    """Inches between a figure's edges and its panels."""

    left: float
    right: float
    top: float
    bottom: float


def figure_png(figure: Figure, dpi: int = 110, colours: int | None = None) -> bytes:
    """The figure as a PNG file, without date or program, so that equal figures give equal bytes.

    Args:
        figure: The figure.
        dpi: Pixels per inch of its size.
        colours: Most colours of the file; 64 make it a third as large. None keeps all.
    """
    drawn = io.BytesIO()
    _lay_out(figure, dpi)
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    if colours is None:
        return drawn.getvalue()
    packed = io.BytesIO()
    image = Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()


def placed_panels(
    rows: int,
    columns: int,
    width: float,
    height: float,
    margins: Margins,
    gaps: tuple[float, float],
) -> tuple[Figure, NDArray[Any]]:
    """A figure of equal panels whose places follow from their sizes, without measuring words.

    Args:
        rows: Of panels.
        columns: Of panels.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
        margins: Around all panels.
        gaps: Inches between panels, across and up.

    Returns:
        The figure, and its panels, shape (rows, columns).
    """
    wide = margins.left + columns * width + (columns - 1) * gaps[0] + margins.right
    tall = margins.bottom + rows * height + (rows - 1) * gaps[1] + margins.top
    figure = Figure(figsize=(wide, tall))
    places = {
        "left": margins.left / wide,
        "right": 1 - margins.right / wide,
        "bottom": margins.bottom / tall,
        "top": 1 - margins.top / tall,
        "wspace": gaps[0] / width,
        "hspace": gaps[1] / height,
    }
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=places)


def _lay_out(figure: Figure, dpi: int) -> None:
    """Place the panels; savefig would draw everything once more for it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.set_dpi(dpi)
        engine.execute(figure)
        figure.set_layout_engine("none")


def bare_panel(panel: Axes) -> None:
    """A panel for a slice: no ticks and a hairline; voxels without a value show as beige."""
    panel.set(xticks=[], yticks=[], facecolor="#e8dcc0")
    panel.xaxis.set_visible(False)  # Else it is measured for each layout.
    for spine in panel.spines.values():
        spine.set(linewidth=0.4, color="#999999")
