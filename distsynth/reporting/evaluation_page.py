"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from distsynth.metrics.results import ResultsTable
from distsynth.runs.versions import installed_versions
from sharding.io.figures import figure_png
from sharding.io.page import Picture, render


def figure_picture(figure: Figure, caption: str) -> Picture:
    """A figure with the words beneath it."""
    return Picture(figure_png(figure), caption)


def evaluation_page(
    title: str,
    evaluated: Mapping[str, str],
    table: ResultsTable,
    pictures: Sequence[Picture] = (),
    curves: Sequence[Picture] = (),
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    verdicts: Sequence[str] = (),
) -> str:
    """The whole report of an evaluation: results first, definitions last.

    Args:
        title: Heading of the page.
        evaluated: What was evaluated and how, name -> value: checkpoint, split, spacing.
        table: Methods against metrics.
        pictures: Comparisons of specimens.
        curves: What each run logged.
        verdicts: What the numbers mean, a sentence for each model.
        config: The run's configuration, without what must not leave this machine.
        versions: Package -> version; None for those installed.

    Returns:
        An HTML document.
    """
    return render(
        "distsynth.reporting/evaluation.html",
        title=title,
        evaluated=evaluated,
        results=table,
        pictures=pictures,
        curves=curves,
        verdicts=verdicts,
        config=config,
        versions=installed_versions() if versions is None else versions,
    )
