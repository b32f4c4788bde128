"""Methods against metrics: means over specimens with intervals, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsynth.metrics.image import METRICS
from distsynth.metrics.statistics import bootstrap_interval

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method -> specimen -> key of METRICS -> value, NaN where a metric has no meaning for a method."""

RESULTS_FILE = "results.json"

GROUPS = (
    ("In the mask", "_mask"),
    ("Whole volume", "_whole"),
    ("Patch seams and consistency with the source", ""),
)
"""(Heading, end of a metric's key): tables are split so that they fit a page."""

SHORT = {
    "mse": "MSE",
    "psnr255": "PSNR, peak 255",
    "psnr": "PSNR, peak range",
    "ssim_global": "SSIM global",
    "ssim": "SSIM 3D",
    "seam_index": "Seam",
    "consistency_error": "Consistency",
}
"""Metric without its region -> name of a column."""

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over specimens and its bootstrap interval; NaN where it does not exist."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """Judged methods.

    Attributes:
        columns: Keys of METRICS, in its order.
        specimens: Judged specimens, the same for each method.
        values: Method -> specimen -> metric -> value; NaN where there is none.
        summary: Method -> metric -> mean and interval.
        best: Metric -> methods with the best mean; empty unless two methods or more have one.
    """

    columns: tuple[str, ...]
    specimens: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]
    summary: dict[str, dict[str, Interval]]
    best: dict[str, tuple[str, ...]]

    def groups(self) -> list[tuple[str, tuple[str, ...]]]:
        """(Heading, metrics) of the parts in which the table is shown; no part is empty."""
        left = list(self.columns)
        found = []
        for heading, end in GROUPS:
            metrics = tuple(key for key in left if key.endswith(end))
            left = [key for key in left if key not in metrics]
            found.append((heading, metrics))
        return [(heading, metrics) for heading, metrics in found if metrics]


def results_table(results: Results) -> Table:
    """Means and intervals over specimens.

    A metric that a specimen lacks counts as NaN and makes the mean NaN: means over different
    specimens would not compare.

    Args:
        results: Method -> specimen -> key of METRICS -> value. Methods keep their order, and
            specimens that of the first method.

    Raises:
        ValueError: If there is nothing to show, a metric is unknown, or methods were judged on
            different specimens.
    """
    if not results or not all(results.values()):
        raise ValueError("results must have one or more methods, each with one or more specimens")
    first, specimens = next((name, tuple(by)) for name, by in results.items())
    for method, by_specimen in results.items():
        if set(by_specimen) != set(specimens):
            raise ValueError(
                f"methods must be judged on the same specimens: {first} on {sorted(specimens)}, "
                f"{method} on {sorted(by_specimen)}"
            )
    present = {key for by in results.values() for values in by.values() for key in values}
    if unknown := sorted(present - set(METRICS)):
        raise ValueError(f"metrics must be keys of METRICS, got {unknown}")
    columns = tuple(key for key in METRICS if key in present)
    values = {
        method: {
            specimen: {key: float(by[specimen].get(key, math.nan)) for key in columns}
            for specimen in specimens
        }
        for method, by in results.items()
    }
    summary = {
        method: {key: _interval([by[s][key] for s in specimens]) for key in columns}
        for method, by in values.items()
    }
    best = {
        key: _best({method: by[key].mean for method, by in summary.items()}, METRICS[key][1])
        for key in columns
    }
    return Table(columns, specimens, values, summary, best)


def short_name(metric: str) -> str:
    """Name of a metric's column; the region stands above the table."""
    stem = metric.removesuffix("_mask").removesuffix("_whole")
    return SHORT.get(stem, stem.replace("_", " "))


def format_value(metric: str, value: float) -> str:
    """A value as it is printed: MSE 4 significant digits, PSNR 2 decimals, SSIM 4, others 3."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if metric.startswith("mse"):
        return f"{value:#.4g}".removesuffix(".")
    return f"{value:.{2 if metric.startswith('psnr') else 4 if metric.startswith('ssim') else 3}f}"


def format_interval(metric: str, interval: Interval) -> str:
    """`low to high`, or nothing where there is no interval."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return ""
    return f"{format_value(metric, interval.low)} to {format_value(metric, interval.high)}"


def direction(metric: str) -> str:
    """Which way is better."""
    return "higher is better" if METRICS[metric][1] else "lower is better"


def summary_note(table: Table) -> str:
    """What the numbers of the summary are, in a sentence or two."""
    count = len(table.specimens)
    if count == 1:
        return "One specimen: no interval over specimens can be given."
    note = f"Mean over {count} specimens, {LEVEL:.0%} bootstrap interval of the mean below it."
    few = " With so few specimens the interval is too narrow." if count < 10 else ""
    return note + few


def table_text(table: Table) -> str:
    """Aligned plain text: summary, values per specimen, legend; `*` marks the best mean."""
    lines = [summary_note(table), "* best mean of its column.", ""]
    for heading, metrics in table.groups():
        head = ["method", *map(short_name, metrics)]
        rows = []
        for method, by in table.summary.items():
            rows.append([method, *(_marked(table, method, key) for key in metrics)])
            intervals = [format_interval(key, by[key]) for key in metrics]
            if any(intervals):
                rows.append(["", *(f"{text} " if text else "" for text in intervals)])
        lines += [heading, *_aligned(head, rows, 1), ""]
    for heading, metrics in table.groups():
        head = ["method", "specimen", *map(short_name, metrics)]
        rows = [
            [method, specimen, *(format_value(key, values[key]) + " " for key in metrics)]
            for method, by in table.values.items()
            for specimen, values in by.items()
        ]
        lines += [f"{heading}, per specimen", *_aligned(head, rows, 2), ""]
    for heading, metrics in table.groups():
        lines.append(heading)
        lines += [f"  {short_name(k)}: {METRICS[k][0]}; {direction(k)}" for k in metrics]
    return "\n".join(lines) + "\n"


def table_csv(table: Table) -> str:
    """Long form, a number a line at full precision: method, specimen, metric, statistic, value.

    `statistic` is `value` for a specimen, and `mean`, `low` or `high` with an empty specimen. NaN
    is an empty field.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "specimen", "metric", "statistic", "value"])
    for method, by_specimen in table.values.items():
        for specimen, values in by_specimen.items():
            for key, value in values.items():
                writer.writerow([method, specimen, key, "value", _full(value)])
        for key, interval in table.summary[method].items():
            for statistic in ("mean", "low", "high"):
                value = getattr(interval, statistic)
                writer.writerow([method, "", key, statistic, _full(value)])
    return buffer.getvalue()


def table_json(table: Table) -> str:
    """Nested: metrics, then methods with summary and specimens; null for what is not finite."""
    content = {
        "level": LEVEL,
        "metrics": {
            key: {"title": METRICS[key][0], "higher_is_better": METRICS[key][1]}
            for key in table.columns
        },
        "methods": {
            method: {
                "summary": {
                    key: {
                        "mean": _finite(interval.mean),
                        "low": _finite(interval.low),
                        "high": _finite(interval.high),
                        "best": method in table.best[key],
                    }
                    for key, interval in table.summary[method].items()
                },
                "specimens": {
                    specimen: {key: _finite(value) for key, value in values.items()}
                    for specimen, values in by_specimen.items()
                },
            }
            for method, by_specimen in table.values.items()
        },
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _interval(values: Sequence[float]) -> Interval:
    """Mean and bootstrap interval of one metric of one method."""
    if math.inf in values and -math.inf in values:
        return Interval(math.nan, math.nan, math.nan)
    low, high = bootstrap_interval(values, level=LEVEL)
    return Interval(float(np.mean(values)), low, high)


def _best(means: Mapping[str, float], higher: bool) -> tuple[str, ...]:
    """Methods with the best mean; none if there is nothing to compare."""
    known = {method: mean for method, mean in means.items() if not math.isnan(mean)}
    if len(known) < 2:
        return ()
    top = max(known.values()) if higher else min(known.values())
    return tuple(method for method, mean in known.items() if mean == top)


def _marked(table: Table, method: str, metric: str) -> str:
    """A mean with its mark, or a space in the mark's place."""
    text = format_value(metric, table.summary[method][metric].mean)
    return text + ("*" if method in table.best[metric] else " ")


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table; the first `left` columns flush left, the others flush right."""
    head = [*head[:left], *(f"{name} " for name in head[left:])]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[Any]) -> str:
        padded = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return [line(head), line(["-" * width for width in widths]), *map(line, rows)]


def _full(value: float) -> str:
    """Shortest text that reads back as the same number; empty for NaN."""
    return "" if math.isnan(value) else repr(value)


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
