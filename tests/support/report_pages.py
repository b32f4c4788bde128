"""A report with nothing but a viewer and curves."""

from __future__ import annotations

from collections.abc import Sequence

from distsynth.reporting.viewer import Viewer
from sharding.io.page import Picture, render


def report_page(title: str, viewer: Viewer, curves: Sequence[Picture] = ()) -> str:
    """The page of a run that was neither described nor evaluated."""
    return render(
        "distsynth.reporting/run.html",
        title=title,
        run={},
        results=None,
        viewer=viewer,
        note="Note",
        checks=[],
        curves=curves,
        data={},
        config={},
        versions={},
    )
