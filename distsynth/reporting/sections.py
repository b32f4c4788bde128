"""Sections of a report's page, each from what it shows and nothing else.

Functions return HTML as str; each escapes the text that it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from distsynth.metrics.results import Table, results_table
from distsynth.reporting.evaluation_page import (
    Picture,
    config_html,
    installed_versions,
    legend_html,
    picture_html,
    specimens_html,
    summary_html,
)
from distsynth.reporting.figures import curves_figure
from distsynth.reporting.viewer import viewer_html
from distsynth.reporting.viewer_script import SCRIPT
from distsynth.reporting.viewer_script import STYLE as VIEWER_STYLE
from distsynth.reporting.viewer_slices import Slices
from sharding.io.errors import DataError
from sharding.io.page import facts_html, html_page, paragraph, section

STYLE = """
td.text { text-align: left; }
table.many { font-size: 0.76rem; }
table.many th, table.many td { padding: 0.2rem 0.4rem; }
@media print {
  table.many { font-size: 6.5pt; }
  table.many th, table.many td { padding: 1pt 2pt; }
  figure img { max-height: 22cm; width: auto; }
}
"""
"""Beside that of every page and of the viewer."""


def report_page(title: str, sections: Sequence[str]) -> str:
    """The document; a script is in it, and allowed, only where there is a viewer."""
    viewer = any('<div class="viewer">' in part for part in sections)
    script, style = (SCRIPT, VIEWER_STYLE) if viewer else ("", "")
    return html_page(title, *sections, script=script, style=style + STYLE)


def read_results(content: bytes | str, where: str) -> Table:
    """The table of an evaluation's results.json; what was not finite there is NaN.

    Raises:
        DataError: If it is none.
    """
    try:
        methods = json.loads(content)["methods"]
        return results_table(
            {
                method: {
                    specimen: {key: math.nan if v is None else v for key, v in values.items()}
                    for specimen, values in part["specimens"].items()
                }
                for method, part in methods.items()
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            where,
            f"these are no results of an evaluation ({type(error).__name__}: {error})",
            "Give the folder that distsynth evaluate wrote",
        ) from None


def results_section(table: Table | None) -> str:
    """Means with intervals; without a table, how to get one."""
    if table is None:
        words = "Not judged: run distsynth evaluate, and give its folder as --evaluation."
        return section("Results", paragraph(words))
    return section("Results", summary_html(table))


def values_sections(table: Table | None) -> list[str]:
    """Values per specimen, and what the numbers are; nothing without a table."""
    if table is None:
        return []
    return [
        section("Values per specimen", specimens_html(table)),
        section("What the numbers are", legend_html(table)),
    ]


def slices_section(slices: Sequence[Slices], note: str = "") -> str:
    """The viewer; without slices the note alone, which then says how to get them."""
    blocks = [paragraph(note)] if note else []
    return section("Slices", *blocks, *([viewer_html(slices)] if slices else []))


def checks_section(pictures: Sequence[Picture]) -> str:
    """Seams and consistency with the source."""
    return section("Seams and consistency with the source", *map(picture_html, pictures))


def training_section(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Curves of each run: name -> rows of its metrics.jsonl."""
    pictures = [
        Picture(curves_figure(found), f"{name}: losses and stitched validation by step.")
        for name, found in rows.items()
    ]
    return section("Training", *map(picture_html, pictures))


def details_section(facts: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Fingerprint of the data, configuration, and the packages that made the page."""
    return section(
        "Configuration and versions",
        facts_html(
            {**facts, **{f"{k} (of this page)": v for k, v in installed_versions().items()}}
        ),
        config_html(config),
    )
