"""A cohort file as a table: its delimiter, its columns, and the fields of each row."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sharding.io.errors import DataError, file_errors
from sharding.volumes.contrasts import is_contrast_column

logger = logging.getLogger(__name__)

REQUIRED = ("specimen", "target")
COLUMNS = (*REQUIRED, "source", "mask", "split", "native_source", "transform")
"""Every column that a cohort file may have, besides those of several contrasts."""
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """A row of a cohort file.

    Attributes:
        path: The file.
        line: The line of the file that the row ends in.
        values: Column -> field, without the blanks around it.
    """

    path: Path
    line: int
    values: dict[str, str]

    @property
    def where(self) -> str:
        """The row's place, for messages."""
        return f"{self.path}, line {self.line}"

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a row whose field in one of these columns is empty.

        Raises:
            DataError: Names the column.
        """
        for column in columns:
            if not self.values.get(column):
                raise DataError(
                    self.where, f"the field {column} is empty", "Fill it or drop the row"
                )

    def file(self, column: str) -> Path | None:
        """The path in a column, which is relative to the file; None if the field is empty."""
        value = self.values.get(column)
        return tidy_path(self.path.parent / value) if value else None

    def required_file(self, column: str) -> Path:
        """The path in a column.

        Raises:
            DataError: If the field is empty.
        """
        self.require([column])
        return tidy_path(self.path.parent / self.values[column])


def read_table(path: Path, required: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Read a cohort file.

    Args:
        path: The file; commas, semicolons or tabs separate its fields.
        required: The columns that it must have.

    Returns:
        The names of the columns, and the rows that are not empty.

    Raises:
        DataError: If the file is not readable, a column is unknown, missing or given twice, or a
            row has more fields than there are columns.
    """
    try:
        with file_errors(path):
            text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text))
        lines = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            path, f"not a readable CSV file ({error})", "Save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        rule = "not a readable CSV file (it holds a byte of value 0, which no path may have)"
        raise DataError(path, rule, "Save it as CSV in UTF-8")
    if not lines:
        raise DataError(path, "the cohort file is empty", "Write the columns in its first row")
    filled = [(number, row) for number, row in lines[1:] if any(row)]
    columns = _columns(path, lines[0][1], [row for _, row in filled], required)
    return columns, [_row(path, number, columns, fields) for number, fields in filled]


def _row(path: Path, line: int, columns: Sequence[str], fields: Sequence[str]) -> Row:
    values = {name: field.strip() for name, field in zip(columns, fields, strict=False)}
    row = Row(path, line, values)
    if len(fields) > len(columns):
        raise DataError(row.where, "more fields than columns", 'Put fields with commas in "quotes"')
    return row


def _delimiter(text: str) -> str:
    """The delimiter that splits the first row into the most known columns."""

    def known(delimiter: str) -> int:
        first = text.partition("\n")[0].split(delimiter)
        names = [name.strip(' "\r').lower() for name in first]
        return sum(name in COLUMNS or is_contrast_column(name) for name in names)

    return max(DELIMITERS, key=known)


def _columns(
    path: Path, first: Sequence[str], rows: Sequence[Sequence[str]], required: Sequence[str]
) -> list[str]:
    """The names of the columns; empty for one that has neither a name nor a value.

    Raises:
        DataError: If a column is unknown, missing, or given twice.
    """
    columns = []
    for index, given in enumerate(first):
        name = given.strip().lower()
        if not name and not any(row[index].strip() for row in rows if index < len(row)):
            columns.append("")
            continue
        if name not in COLUMNS and not is_contrast_column(name):
            rule = (
                f"the column {given!r} is not known; the known ones are {', '.join(COLUMNS)}, and "
                "source_NAME for each of several contrasts"
            )
            raise DataError(path, rule, "Rename it or remove it")
        if name != given:
            logger.warning("%s: the column %r is read as %s", path, given, name)
        if name in columns:
            raise DataError(path, f"the column {name} is given twice", "Keep one of them")
        columns.append(name)
    for column in required:
        if column not in columns:
            rule = f"the column {column} is missing, found {', '.join(first)}"
            raise DataError(path, rule, "Add it to the first row")
    return columns


def tidy_path(path: Path) -> Path:
    """A path without "..", as far as that names the same file where folders are links."""
    tidy = Path(os.path.normpath(path))
    return tidy if tidy.resolve() == path.resolve() else path
