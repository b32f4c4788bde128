"""A comparison as files of every number: CSV, and JSON that reads back."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from distsynth.metrics.image import METRICS
from distsynth.metrics.results import LEVEL
from distsynth.reproduction.comparison import (
    ComparedRow,
    Comparison,
    answers,
    compare,
    published_value,
)
from distsynth.reproduction.comparison_markup import flat
from distsynth.reproduction.paper_values import PUBLISHED, WARNING, Published

CSV_FIELDS = (
    *("group", "method", "parameters", "seconds", "seeds", "metric", "mean", "low", "high"),
    *("seed_std", "reference", "difference", "difference_low", "difference_high", "p"),
    *("p_corrected", "published", "budget", "status", "reason"),
)


def comparison_csv(comparison: Comparison) -> str:
    """A line for each row and metric, at full precision; see CSV_FIELDS.

    `difference` and what follows is against the best row of the metric, in TESTED_METRICS. A row
    that was not run has one line with name, group, status "not run" and reason. NaN and what does
    not exist are empty fields. `published` is the paper's: see published.WARNING.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        head = {"group": flat(row.group), "method": flat(row.name)}
        if comparison.table is None or row.results is None:
            writer.writerow(head | {"status": "not run", "reason": flat(row.reason or "")})
            continue
        head |= {
            "parameters": _full(row.parameters),
            "seconds": _full(row.seconds),
            "seeds": str(row.seeds),
            "budget": flat(row.trained),
            "status": "run",
        }
        for metric, interval in comparison.table.summary[row.name].items():
            line = head | {
                "metric": metric,
                **{key: _full(value) for key, value in asdict(interval).items()},
                "seed_std": _full(row.spread.get(metric)),
                "published": _full(published_value(row, metric)),
            }
            if difference := comparison.differences.get(metric, {}).get(row.name):
                line |= {
                    "reference": flat(difference.reference),
                    "difference": _full(difference.mean),
                    "difference_low": _full(difference.low),
                    "difference_high": _full(difference.high),
                    "p": _full(difference.p),
                    "p_corrected": _full(difference.p_corrected),
                }
            writer.writerow(line)
    return buffer.getvalue()


def controls_csv(comparison: Comparison) -> str:
    """A line for each control: first, second, metric, difference, ends, p, p_corrected, note."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = ("difference_low", "difference_high")
    writer.writerow(["first", "second", "metric", "difference", *ends, "p", "p_corrected", "note"])
    for pair, found, note in answers(comparison):
        numbers = [""] * 5
        if found:
            values = (found.mean, found.low, found.high, found.p, found.p_corrected)
            numbers = [_full(value) for value in values]
        writer.writerow([*map(flat, pair), *numbers, flat(note)])
    return buffer.getvalue()


def comparison_json(comparison: Comparison) -> str:
    """Everything, to be read by comparison_from_json and by others.

    NaN is null, infinities are "inf" and "-inf". What is computed from rows, controls and seed
    (summary, differences, answers) is there for other readers.
    """
    summary = comparison.table.summary if comparison.table else {}
    content = {
        "level": LEVEL,
        "seed": comparison.seed,
        "metrics": {
            key: {"title": title, "higher_is_better": higher}
            for key, (title, higher) in METRICS.items()
        },
        "published_warning": WARNING,
        "rows": [
            asdict(row)
            | {
                "summary": {k: asdict(v) for k, v in summary[row.name].items()},
                "published": _published_json(row),
            }
            if row.results is not None
            else asdict(row)
            for row in comparison.rows
        ],
        "differences": {
            metric: [asdict(row) for row in by.values()]
            for metric, by in comparison.differences.items()
        },
        "controls": comparison.pairs,
        "answers": [asdict(row) for row in comparison.controls],
    }
    text = json.dumps(_to_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def comparison_from_json(text: str) -> Comparison:
    """What comparison_json wrote; differences and intervals are computed again.

    Raises:
        ValueError: If it is no comparison.
    """
    try:
        content = json.loads(text)
        rows = [_row_from_json(row) for row in content["rows"]]
        controls = [(str(a), str(b), str(metric)) for a, b, metric in content["controls"]]
        return compare(rows, controls, int(content["seed"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no comparison: {type(error).__name__} {error}") from error


def _row_from_json(row: Mapping[str, Any]) -> ComparedRow:
    """A row as it was."""
    results = row["results"]
    return ComparedRow(
        name=row["name"],
        group=row["group"],
        parameters=row["parameters"],
        trained=row["trained"],
        seconds=row["seconds"],
        reason=row["reason"],
        results=None
        if results is None
        else {specimen: _from_json(values) for specimen, values in results.items()},
        seeds=row["seeds"],
        spread=_from_json(row["spread"]),
    )


def _published_json(row: ComparedRow) -> dict[str, Any] | None:
    """The paper's own row."""
    own: Published | None = PUBLISHED.get(row.name)
    return None if own is None else asdict(own)


def _full(value: float | None) -> str:
    """Shortest text that reads back as the same number; empty for NaN and for none."""
    if value is None or math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else repr(float(value))


def _to_json(value: Any) -> Any:
    """The same with null for NaN and words for infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _from_json(values: Mapping[str, float | str | None]) -> dict[str, float]:
    """Numbers as they were."""
    return {key: math.nan if value is None else float(value) for key, value in values.items()}
