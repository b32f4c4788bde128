"""Functions that all figures use. Without pyplot no global state changes; no display is needed."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image


def figure_png(figure: Figure, dpi: int = 110, colours: int | None = None) -> bytes:
    """The figure as a PNG file, without date or program, so that equal figures give equal bytes.

    Args:
        figure: The figure.
        dpi: Pixels per inch of its size.
        colours: Most colours of the file; 64 make it a third as large. None keeps all.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    if colours is None:
        return drawn.getvalue()
    packed = io.BytesIO()
    image = Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()


def bare_panel(panel: Axes) -> None:
    """A panel for a slice: no ticks and a hairline; voxels without a value show as beige."""
    panel.set(xticks=[], yticks=[], facecolor="#e8dcc0")
    for spine in panel.spines.values():
        spine.set(linewidth=0.4, color="#999999")
