"""The table of an evaluation: methods against metrics, means over specimens with intervals.

Its columns are those of METRICS; `results_text`, `results_csv` and `results_json`
are its forms, and `read_results` reads results.json back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.image import SSIM_WINDOW
from distsynth.metrics.statistics import bootstrap_interval
from distsynth.metrics.steps import MARK_MEANS, is_untrained, marked
from sharding.io.errors import DataError
from sharding.io.records import first_complaint
from sharding.io.tables import Cell, Column, Table, rows_csv, table_text, to_json

MetricValues = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Method -> specimen -> key of METRICS -> value, NaN where a metric has no meaning for a method."""

RESULTS_FILE = "results.json"

REGIONS = (
    ("In the mask", r"_(mask|unlent)$"),
    ("Whole volume", r"_whole$"),
    ("Patch seams and checkerboards", r"^(seam|overlap|checkerboard)"),
    ("Consistency with the source", r"^consistency"),
    ("How the uncertainty ranks the error", r"^aurc"),
)
"""(Heading, pattern of the metrics' keys): one table each, so that they fit a page."""

SHORT_NAMES = {
    "mse": "MSE",
    "psnr255": "PSNR, peak 255",
    "psnr": "PSNR, peak range",
    "psnr_unlent": "PSNR, nothing lent",
    "ssim_global": "SSIM global",
    "ssim_literal": "SSIM as printed",
    "ssim": "SSIM 3D",
    "seam_index": "Seam",
    "seam_index_outside": "Seam outside",
    "seam_excess": "Excess jump",
    "seam_excess_outside": "Excess outside",
    "seam_index_relative": "Seam / whole",
    "overlap_disagreement": "Overlaps differ",
    "overlap_disagreement_outside": "Differ outside",
    "checkerboard": "Checkerboard",
    "consistency_error": "Consistency",
    "aurc": "AURC",
    "aurc_oracle": "AURC, oracle",
    "aurc_random": "AURC, chance",
    "aurc_relative": "AURC, relative",
}
"""Metric without its region -> heading of its column."""

LEVEL = 0.95

NEEDS = {
    "ssim": f"it needs {SSIM_WINDOW} voxels along each axis",
    "consistency_error": "the mask holds no tissue, or only constant tissue, at the resolution of "
    "the source",
}
"""Metric without its region -> why a specimen may have no value of it."""


@dataclass(frozen=True)
class Interval:
    """A mean over specimens and its bootstrap interval; NaN where it does not exist."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ResultsTable:
    """Evaluated methods.

    Attributes:
        columns: Keys of METRICS, in its order.
        specimens: Evaluated specimens, the same for each method.
        values: Method -> specimen -> metric -> value; NaN where there is none.
        summary: Method -> metric -> mean and interval.
        best: Metric -> methods with the best mean; empty unless two methods or more have one.
        steps: Method -> optimiser steps that it was trained for; of networks alone.
    """

    columns: tuple[str, ...]
    specimens: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]
    summary: dict[str, dict[str, Interval]]
    best: dict[str, tuple[str, ...]]
    steps: dict[str, int] = field(default_factory=dict)

    def regions(self) -> list[tuple[str, tuple[str, ...]]]:
        """(Heading, metrics) of the tables that this one is shown as; none is empty."""
        found = (
            (heading, tuple(key for key in self.columns if re.search(pattern, key)))
            for heading, pattern in REGIONS
        )
        return [(heading, metrics) for heading, metrics in found if metrics]

    @property
    def note(self) -> str:
        """What the numbers of the summary are, in a sentence or two."""
        trained = ", ".join(f"{method} {count:,}" for method, count in self.steps.items())
        after = f" Optimiser steps: {trained}." if trained else ""
        if any(map(is_untrained, self.steps.values())):
            after += f" {MARK_MEANS}"
        count = len(self.specimens)
        if count == 1:
            return "One specimen: no interval over specimens can be given." + after
        note = f"Mean over {count} specimens, {LEVEL:.0%} bootstrap interval of the mean below it."
        few = " With so few specimens the interval is too narrow." if count < 10 else ""
        return note + few + after

    def title(self, method: str) -> str:
        """The name of a method, marked if it is an untrained network."""
        return marked(method, self.steps.get(method))

    def mean_cell(self, method: str, metric: str) -> Cell:
        """A method's mean with its interval, marked if it is the best."""
        none = Interval(math.nan, math.nan, math.nan)
        interval = self.summary[method].get(metric, none)
        text, below = format_value(metric, interval.mean), format_interval(metric, interval)
        return Cell(text, below, method in self.best.get(metric, ()))

    def gaps(self, metrics: Sequence[str]) -> list[str]:
        """For each metric that specimens have no value of, by any method: which, and why."""
        notes = []
        for metric in metrics:
            stem = metric.removesuffix("_mask").removesuffix("_whole")
            names = [
                specimen
                for specimen in self.specimens
                if all(math.isnan(by[specimen][metric]) for by in self.values.values())
            ]
            if names and stem in NEEDS:
                notes.append(
                    f"{short_name(metric)} has no value for {', '.join(names)}, and so no mean: "
                    f"{NEEDS[stem]}."
                )
        return notes

    def summary_tables(self) -> list[Table]:
        """Means and intervals, a table for each region."""
        names = [Column("method", words=True)]
        return [
            Table(
                [*names, *map(metric_column, metrics)],
                [
                    (
                        "",
                        [
                            [Cell(self.title(m)), *(self.mean_cell(m, k) for k in metrics)]
                            for m in self.summary
                        ],
                    )
                ],
                heading,
                self.gaps(metrics),
            )
            for heading, metrics in self.regions()
        ]

    def specimen_tables(self) -> list[Table]:
        """Every value, a table for each region."""
        names = [Column("method", words=True), Column("specimen", words=True)]
        found = []
        for heading, metrics in self.regions():
            columns = [*names, *(replace(metric_column(key), legend=False) for key in metrics)]
            rows = [
                [
                    Cell(self.title(method)),
                    Cell(name),
                    *(Cell(format_value(k, values[k])) for k in metrics),
                ]
                for method, by_specimen in self.values.items()
                for name, values in by_specimen.items()
            ]
            found.append(Table(columns, [("", rows)], f"{heading}, per specimen", heads=2))
        return found

    def definitions(self) -> list[tuple[str, dict[str, str]]]:
        """(Region, column -> what it measures and which way is better)."""
        return [
            (heading, {column.name: column.definition for column in map(metric_column, metrics)})
            for heading, metrics in self.regions()
        ]


@dataclass(frozen=True)
class _MethodInFile:
    """What read_results needs of a method; its summary is computed again."""

    __pydantic_config__ = ConfigDict(strict=True)

    specimens: dict[str, dict[str, float | None]]
    steps: int | None = None


@dataclass(frozen=True)
class _File:
    """What read_results needs of results.json."""

    __pydantic_config__ = ConfigDict(strict=True)

    methods: dict[str, _MethodInFile]


_FILE = TypeAdapter(_File)


def results_table(results: MetricValues, steps: Mapping[str, int] | None = None) -> ResultsTable:
    """Means and intervals over specimens.

    A metric that a specimen lacks counts as NaN and makes the mean NaN: means over different
    specimens would not compare.

    Args:
        results: Method -> specimen -> key of METRICS -> value. Methods keep their order, and
            specimens that of the first method.
        steps: Method -> optimiser steps, of those that are networks.

    Raises:
        ValueError: If there is nothing to show, a metric is unknown, or methods were evaluated on
            different specimens.
    """
    if not results or not all(results.values()):
        raise ValueError("results must have one or more methods, each with one or more specimens")
    first, specimens = next((name, tuple(by)) for name, by in results.items())
    for method, by_specimen in results.items():
        if set(by_specimen) != set(specimens):
            raise ValueError(
                f"methods must be evaluated on the same specimens: {first} on {sorted(specimens)}, "
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
        key: _best({method: METRICS[key].quality(by[key].mean) for method, by in summary.items()})
        for key in columns
    }
    return ResultsTable(columns, specimens, values, summary, best, dict(steps or {}))


def read_results(content: bytes | str, where: str) -> ResultsTable:
    """The table of an evaluation's results.json; what was not finite there is NaN.

    Raises:
        DataError: If it is none; names the file and the first thing that is wrong.
    """
    try:
        methods = _FILE.validate_json(content).methods
        return results_table(
            {
                method: {
                    specimen: {key: math.nan if v is None else v for key, v in values.items()}
                    for specimen, values in part.specimens.items()
                }
                for method, part in methods.items()
            },
            {method: part.steps for method, part in methods.items() if part.steps is not None},
        )
    except ValueError as error:
        complaint = first_complaint(error) if isinstance(error, ValidationError) else error
        raise DataError(
            where,
            f"these are no results of an evaluation ({complaint})",
            "Give the folder that distsynth evaluate wrote",
        ) from None


def short_name(metric: str) -> str:
    """Heading of a metric's column; the region stands above the table."""
    stem = metric.removesuffix("_mask").removesuffix("_whole")
    return SHORT_NAMES.get(stem, stem.replace("_", " "))


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


def metric_column(metric: str) -> Column:
    """The column of a metric, with its range, region and dimensions in full."""
    return Column(short_name(metric), f"{METRICS[metric].title}; {METRICS[metric].direction}")


def results_text(table: ResultsTable) -> str:
    """Aligned plain text: summary with definitions, then the values per specimen."""
    parts = map(table_text, [*table.summary_tables(), *table.specimen_tables()])
    return "\n\n".join([table.note, *parts]) + "\n"


def results_csv(table: ResultsTable) -> str:
    """Long form, a number a line at full precision: method, specimen, metric, statistic, value.

    `statistic` is `value` for a specimen, and `mean`, `low` or `high` with an empty specimen. NaN
    is an empty field.
    """
    return rows_csv(_long_rows(table))


def results_json(table: ResultsTable) -> str:
    """Nested: metrics, then methods with summary and specimens; null for what is not finite."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return to_json(
        {
            "level": LEVEL,
            "metrics": {
                key: {"title": METRICS[key].title, "best": METRICS[key].best}
                for key in table.columns
            },
            "methods": {
                method: ({"steps": table.steps[method]} if method in table.steps else {})
                | {
                    "summary": {
                        key: {name: finite(value) for name, value in vars(interval).items()}
                        | {"best": method in table.best[key]}
                        for key, interval in table.summary[method].items()
                    },
                    "specimens": {
                        specimen: {key: finite(value) for key, value in values.items()}
                        for specimen, values in by_specimen.items()
                    },
                }
                for method, by_specimen in table.values.items()
            },
        }
    )


def _long_rows(table: ResultsTable) -> list[dict[str, Any]]:
    names = ("method", "specimen", "metric", "statistic", "value")
    rows = []
    for method, by_specimen in table.values.items():
        for specimen, values in by_specimen.items():
            rows += [(method, specimen, key, "value", value) for key, value in values.items()]
        for key, interval in table.summary[method].items():
            rows += [(method, "", key, name, value) for name, value in vars(interval).items()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _interval(values: Sequence[float]) -> Interval:
    """Mean and bootstrap interval of one metric of one method."""
    if math.inf in values and -math.inf in values:
        return Interval(math.nan, math.nan, math.nan)
    low, high = bootstrap_interval(values, level=LEVEL)
    return Interval(float(np.mean(values)), low, high)


def _best(qualities: Mapping[str, float]) -> tuple[str, ...]:
    """Methods of the highest quality; none if there is nothing to compare."""
    known = {method: quality for method, quality in qualities.items() if not math.isnan(quality)}
    if len(known) < 2:
        return ()
    top = max(known.values())
    return tuple(method for method, quality in known.items() if quality == top)
