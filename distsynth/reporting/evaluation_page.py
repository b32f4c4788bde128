"""The page that reports a judged model: one HTML file that needs nothing from outside.

Functions return HTML as str; each escapes the text that it is given.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.figure import Figure

from distsynth.metrics.image import METRICS
from distsynth.metrics.results import (
    Table,
    direction,
    format_interval,
    format_value,
    short_name,
    summary_note,
)
from distsynth.reporting.figures import figure_png
from sharding.io.page import facts_html, html_page, png_html, section

PACKAGES = ("distsynth", "torch", "accelerate", "numpy", "scipy", "scikit-image", "SimpleITK")
"""Packages whose versions a report names."""


@dataclass(frozen=True)
class Picture:
    """A figure with the words beneath it."""

    figure: Figure
    caption: str


def evaluation_page(
    title: str,
    judged: Mapping[str, str],
    table: Table,
    pictures: Sequence[Picture] = (),
    curves: Sequence[Picture] = (),
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """The whole report of an evaluation.

    Args:
        title: Heading of the page.
        judged: What was judged and how, name -> value: checkpoint, split, spacing, data range.
        table: Methods against metrics.
        pictures: Comparisons of specimens.
        curves: What each run logged.
        config: The run's configuration, without what must not leave this machine.
        versions: Package -> version; None for those installed.

    Returns:
        An HTML document.
    """
    sections = [
        section("What was judged, and how", facts_html(judged), legend_html(table)),
        section("Results", summary_html(table)),
        section("Values per specimen", specimens_html(table)),
    ]
    if pictures:
        sections.append(section("Pictures", *map(picture_html, pictures)))
    if curves:
        sections.append(section("Training", *map(picture_html, curves)))
    if config is not None:
        sections.append(section("Configuration", config_html(config)))
    found = installed_versions() if versions is None else versions
    sections.append(section("Versions", facts_html(found)))
    return html_page(title, *sections)


def legend_html(table: Table) -> str:
    """Each metric's range, region and dimensions in full, as METRICS has them."""
    parts = []
    for heading, metrics in table.groups():
        facts = {short_name(key): f"{METRICS[key][0]}; {direction(key)}" for key in metrics}
        parts += [f"<h3>{escape(heading)}</h3>", facts_html(facts)]
    return "\n".join(parts)


def summary_html(table: Table) -> str:
    """Means and intervals, a table for each region; the best mean is bold."""
    parts = [f'<p class="note">{escape(summary_note(table))} Bold: best mean of its column.</p>']
    for heading, metrics in table.groups():
        rows = [
            _row([method], [_mean_html(table, method, key) for key in metrics])
            for method in table.summary
        ]
        parts += [f"<h3>{escape(heading)}</h3>", _table_html(["Method"], metrics, rows)]
    return "\n".join(parts)


def specimens_html(table: Table) -> str:
    """Every value, a table for each region."""
    parts = []
    for heading, metrics in table.groups():
        rows = [
            _row([method, specimen], [escape(format_value(key, values[key])) for key in metrics])
            for method, by_specimen in table.values.items()
            for specimen, values in by_specimen.items()
        ]
        parts += [
            f"<h3>{escape(heading)}</h3>",
            _table_html(["Method", "Specimen"], metrics, rows),
        ]
    return "\n".join(parts)


def picture_html(picture: Picture) -> str:
    """A figure inside the page, as a PNG in base64."""
    return png_html(figure_png(picture.figure), picture.caption)


def config_html(config: Mapping[str, Any]) -> str:
    """The configuration as JSON, folded."""
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return f"<details>\n<summary>JSON</summary>\n<pre>{escape(text)}</pre>\n</details>"


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, without importing them."""
    versions = {"Python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _mean_html(table: Table, method: str, metric: str) -> str:
    """A cell of the summary."""
    interval = table.summary[method][metric]
    mean = escape(format_value(metric, interval.mean))
    mean = f"<strong>{mean}</strong>" if method in table.best[metric] else mean
    span = escape(format_interval(metric, interval))
    return mean + (f'<span class="interval">{span}</span>' if span else "")


def _row(names: Sequence[str], cells: Sequence[str]) -> str:
    """A table row: names are text, cells are already HTML."""
    heads = "".join(f'<th class="text" scope="row">{escape(name)}</th>' for name in names)
    return f"<tr>{heads}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table_html(names: Sequence[str], metrics: Sequence[str], rows: Sequence[str]) -> str:
    """A table with a head; the full title of a metric shows on hovering over its column's name."""
    heads = [f'<th class="text" scope="col">{escape(name)}</th>' for name in names]
    heads += [
        f'<th scope="col" title="{escape(METRICS[key][0])}">{escape(short_name(key))}</th>'
        for key in metrics
    ]
    return (
        '<div class="scroll"><table>\n<thead><tr>'
        + "".join(heads)
        + "</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )
