"""Rows of the study as a small file, so that parts that were run on other machines are joined.

A file holds sections (`rows`, `varied`) of rows, each with every person's figures. Only the
figures that the report shows are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharding.io.atomic import atomic_write

Values = Mapping[str, Mapping[str, float]]
DIGITS = 6
"""Significant digits that are kept: differences of 0.01 dB are far above the last one."""


@dataclass(frozen=True)
class Row:
    """A method of the study.

    Attributes:
        results: Specimen -> metric -> mean over seeds.
        seeds: Runs that it is the mean of.
        steps: Optimiser steps; None for what takes none.
        seconds: Processor seconds of training, of the equal-time parts.
    """

    results: Values
    seeds: int = 1
    steps: int | None = None
    seconds: float | None = None


Sections = Mapping[str, Mapping[str, Row]]


def write_records(path: Path, sections: Sections, metrics: tuple[str, ...]) -> None:
    """Keep the given metrics of all rows; a file that is there is replaced."""
    kept = {
        section: {
            name: {
                "seeds": row.seeds,
                "steps": row.steps,
                "seconds": row.seconds,
                "people": {
                    person: {key: _short(values.get(key, math.nan)) for key in metrics}
                    for person, values in row.results.items()
                },
            }
            for name, row in rows.items()
        }
        for section, rows in sections.items()
    }
    atomic_write(path, json.dumps(kept, indent=1) + "\n")


def read_records(path: Path) -> dict[str, dict[str, Row]]:
    """The sections of a file that write_records wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        section: {name: _row(record) for name, record in rows.items()}
        for section, rows in found.items()
    }


def joined(sections: Sections, others: Sections) -> dict[str, dict[str, Row]]:
    """All rows of both; of a row that both have, the one of more seeds, or else the first."""
    found: dict[str, dict[str, Row]] = {}
    for section in [*sections, *(name for name in others if name not in sections)]:
        rows = dict(others.get(section, {}))
        for name, row in sections.get(section, {}).items():
            if name not in rows or rows[name].seeds <= row.seeds:
                rows[name] = row
        found[section] = rows
    return found


def _row(record: Mapping) -> Row:
    people = {
        person: {key: math.nan if value is None else value for key, value in values.items()}
        for person, values in record["people"].items()
    }
    return Row(people, record["seeds"], record["steps"], record["seconds"])


def _short(value: float) -> float | None:
    """JSON has no NaN."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
