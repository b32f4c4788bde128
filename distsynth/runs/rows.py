"""The rows of a metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharding.io.errors import DataError, file_errors


def row_line(row: Mapping[str, float]) -> str:
    """A row as a line; JSON has no NaN, so a number that is not finite is null."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, null as NaN; a last line torn by a kill is left out.

    Raises:
        DataError: If the file cannot be read, or any other line is no row.
    """
    if not path.is_file():
        return []
    with file_errors(path):
        lines = path.read_bytes().splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(_row(line))
            except ValueError as error:
                if number < len(lines):
                    raise DataError(
                        f"{path}, line {number}",
                        f"not a row of a run ({error})",
                        "Restore the file, or remove it if its rows may be lost",
                    ) from None
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """One row.

    Raises:
        ValueError: If it is none.
    """
    values = json.loads(line)
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ValueError("it must be an object with a whole number as its step")
    row = {name: math.nan if value is None else value for name, value in values.items()}
    if not all(isinstance(value, int | float) for value in row.values()):
        raise ValueError("its values must be numbers")
    return row
