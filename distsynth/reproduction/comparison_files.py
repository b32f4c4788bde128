"""A comparison as files of every number: CSV and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import LEVEL
from distsynth.metrics.statistics import Difference
from distsynth.metrics.steps import is_untrained
from distsynth.reproduction.comparison import ComparedRow, Comparison, answers, paper_value
from distsynth.reproduction.paper_values import PAPER_VALUES, WARNING
from sharding.io.tables import flat, rows_csv, to_json

CSV_FIELDS = (
    *("group", "method", "parameters", "seconds", "steps", "untrained", "seeds", "metric"),
    *("mean", "low", "high"),
    *("seed_std", "reference", "difference", "difference_low", "difference_high", "p"),
    *("p_corrected", "paper", "budget", "status", "reason"),
)
DIFFERENCE_FIELDS = ("difference", "difference_low", "difference_high", "p", "p_corrected")


def comparison_csv(comparison: Comparison) -> str:
    """A line for each row and metric, at full precision; see CSV_FIELDS.

    `difference` and what follows is against the best row of the metric, in TESTED_METRICS. A row
    that was not run has one line with name, group, status "not run" and reason. NaN and what does
    not exist are empty fields. `paper` holds its values: see paper_values.WARNING.
    """
    lines = [line for row in comparison.rows for line in _csv_lines(comparison, row)]
    return rows_csv(lines, CSV_FIELDS)


def controls_csv(comparison: Comparison) -> str:
    """A line for each control: first, second, metric, difference, ends, p, p_corrected, note."""
    lines = [
        dict(zip(("first", "second", "metric"), map(flat, pair), strict=True))
        | _numbers(found)
        | {"note": flat(note)}
        for pair, found, note in answers(comparison)
    ]
    return rows_csv(lines, ("first", "second", "metric", *DIFFERENCE_FIELDS, "note"))


def comparison_json(comparison: Comparison) -> str:
    """Everything: rows, summary, differences to the best row, controls and their answers.

    NaN is null, infinities are "inf" and "-inf".
    """
    return to_json(
        {
            "level": LEVEL,
            "seed": comparison.seed,
            "metrics": {
                key: {"title": metric.title, "best": metric.best} for key, metric in METRICS.items()
            },
            "paper_warning": WARNING,
            "rows": [asdict(row) | _summary(comparison, row) for row in comparison.rows],
            "differences": {
                metric: [asdict(row) for row in by.values()]
                for metric, by in comparison.differences.items()
            },
            "controls": comparison.pairs,
            "answers": [asdict(row) for row in comparison.controls],
        }
    )


def _csv_lines(comparison: Comparison, row: ComparedRow) -> list[dict[str, Any]]:
    """The lines of one row."""
    head: dict[str, Any] = {"group": flat(row.group), "method": flat(row.name)}
    if comparison.table is None or row.results is None:
        return [head | {"status": "not run", "reason": flat(row.reason or "")}]
    head |= {
        "parameters": row.parameters,
        "seconds": row.seconds,
        "steps": row.steps,
        "untrained": None if row.steps is None else is_untrained(row.steps),
        "seeds": row.seeds,
        "budget": flat(row.trained),
        "status": "run",
    }
    lines = []
    for metric, interval in comparison.table.summary[row.name].items():
        difference = comparison.differences.get(metric, {}).get(row.name)
        lines.append(
            head
            | vars(interval)
            | {
                "metric": metric,
                "seed_std": row.spread.get(metric),
                "paper": paper_value(row, metric),
                "reference": flat(difference.reference) if difference else None,
            }
            | _numbers(difference)
        )
    return lines


def _numbers(difference: Difference | None) -> dict[str, float]:
    """The fields of a difference; none if there is no difference."""
    if difference is None:
        return {}
    values = (difference.mean, difference.low, difference.high)
    return dict(
        zip(DIFFERENCE_FIELDS, (*values, difference.p, difference.p_corrected), strict=True)
    )


def _summary(comparison: Comparison, row: ComparedRow) -> dict[str, Any]:
    """A row's means, and the paper's own; nothing for a row that was not run."""
    if comparison.table is None or row.results is None:
        return {}
    paper = PAPER_VALUES.get(row.name)
    return {
        "summary": {k: asdict(v) for k, v in comparison.table.summary[row.name].items()},
        "paper": asdict(paper) if paper else None,
    }
