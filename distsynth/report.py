"""The page that reports a judged model: one HTML file that needs nothing from outside.

Functions return HTML as str; each escapes the text that it is given.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.figure import Figure

from distsynth.figures import figure_png
from distsynth.metrics import METRICS
from distsynth.tables import (
    Table,
    direction,
    format_interval,
    format_value,
    short_name,
    summary_note,
)

PACKAGES = ("distsynth", "torch", "accelerate", "numpy", "scipy", "scikit-image", "SimpleITK")
"""Packages whose versions a report names."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: the browser itself refuses to load anything from outside."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 2.5rem 1.5rem 4rem; background: #fff;
  color: #1c1e21; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.5rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 0.75rem; padding-top: 1rem;
  border-top: 1px solid #d8dce0; }
h3 { font-size: 0.95rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 75ch; }
.note, figcaption, .interval { color: #5b6168; }
.note, figcaption { font-size: 0.87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem;
  margin: 0.25rem 0 1rem; }
th, td { padding: 0.35rem 0.9rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
th.text { text-align: left; }
th:first-child { padding-left: 0.2rem; }
thead th { border-bottom: 1.5px solid #1c1e21; }
tbody tr { border-bottom: 1px solid #e6e9ec; }
.interval { display: block; font-size: 0.8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.25rem; margin: 0.5rem 0;
  font-size: 0.9rem; }
dt { color: #5b6168; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; max-width: 85ch; }
summary { cursor: pointer; }
pre { background: #f5f6f8; padding: 0.9rem 1.1rem; overflow-x: auto; font-size: 0.8rem;
  line-height: 1.45; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  .scroll { overflow: visible; }
  th, td { padding: 0.25rem 0.5rem; }
  pre { white-space: pre-wrap; }
}
"""


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


def html_page(title: str, *sections: str) -> str:
    """A document of sections, each already HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *blocks: str) -> str:
    """A heading and blocks that are already HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, a line each."""
    pairs = (f"<dt>{escape(n)}</dt><dd>{escape(str(v))}</dd>" for n, v in facts.items())
    return "<dl>\n" + "\n".join(pairs) + "\n</dl>"


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
    data = base64.b64encode(figure_png(picture.figure)).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure>\n<img alt="{caption}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


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
