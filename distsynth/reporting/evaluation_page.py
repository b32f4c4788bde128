"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from distsynth.metrics.image import METRICS
from distsynth.metrics.results import (
    ResultsTable,
    direction,
    short_name,
    specimen_tables,
    summary_note,
    summary_tables,
)
from distsynth.reporting.figures import figure_png
from distsynth.runs.versions import installed_versions
from sharding.io.page import Picture, render
from sharding.io.tables import Table


@dataclass(frozen=True)
class ShownResults:
    """An evaluation as pages show it.

    Attributes:
        note: What the numbers of the summary are.
        summary: Means and intervals, a table for each region.
        specimens: Every value, a table for each region.
        definitions: (Region, column -> definition).
    """

    note: str
    summary: list[Table]
    specimens: list[Table]
    definitions: list[tuple[str, dict[str, str]]]


def shown_results(table: ResultsTable) -> ShownResults:
    """An evaluation's table for a page."""
    definitions = [
        (heading, {short_name(key): f"{METRICS[key][0]}; {direction(key)}" for key in metrics})
        for heading, metrics in table.regions()
    ]
    return ShownResults(
        summary_note(table), summary_tables(table), specimen_tables(table), definitions
    )


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
) -> str:
    """The whole report of an evaluation: results first, definitions last.

    Args:
        title: Heading of the page.
        evaluated: What was evaluated and how, name -> value: checkpoint, split, spacing.
        table: Methods against metrics.
        pictures: Comparisons of specimens.
        curves: What each run logged.
        config: The run's configuration, without what must not leave this machine.
        versions: Package -> version; None for those installed.

    Returns:
        An HTML document.
    """
    return render(
        "distsynth.reporting/evaluation.html",
        title=title,
        evaluated=evaluated,
        results=shown_results(table),
        pictures=pictures,
        curves=curves,
        config=config,
        versions=installed_versions() if versions is None else versions,
    )
