"""Tables in every form: text, LaTeX, CSV and JSON by pandas, HTML and Markdown by templates.

A Table is what a reader sees: rounded, with the best mean marked and an interval below it. CSV
and JSON hold every number at full precision and are made from plain rows instead.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

MOST_COLUMNS = 13
"""More do not fit a page side by side."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "†": r"\textdagger{}",
    # At the start of a line LaTeX would read these as options of the line before.
    "[": "{[}",
    "*": "{*}",
    **{sign: "\\" + sign for sign in "{}$&#%_"},
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        definition: In full; a page shows it when the mouse is over the heading.
        words: Whether it holds words, which are flush left, rather than numbers.
        width: In LaTeX, where long words must wrap: "4cm".
        legend: Whether text and LaTeX give the definition below or in the caption.
    """

    name: str
    definition: str = ""
    words: bool = False
    width: str = ""
    legend: bool = True


@dataclass(frozen=True)
class Cell:
    """A field of a table: its text, a smaller text below it, and whether it is the best."""

    text: str
    below: str = ""
    best: bool = False


Row = Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table as a reader sees it.

    Attributes:
        columns: From the left.
        groups: Heading of a group, or "" for none, and its rows.
        heading: Above the table.
        notes: Sentences between heading and table.
        heads: How many columns name the row.
        mark: What being the best means, for cells that are.
    """

    columns: Sequence[Column]
    groups: Sequence[tuple[str, Sequence[Row]]]
    heading: str = ""
    notes: Sequence[str] = field(default=())
    heads: int = 1
    mark: str = "best mean of its column"

    @property
    def marked(self) -> bool:
        """Whether a cell is marked as the best."""
        return any(cell.best for _, rows in self.groups for row in rows for cell in row)

    def parts(self, most: int = MOST_COLUMNS) -> Iterator[Table]:
        """The table cut into tables of at most so many columns, each with the row's names."""
        for start in range(self.heads, max(len(self.columns), self.heads + 1), most - self.heads):
            chosen = [*range(self.heads), *range(start, start + most - self.heads)]
            chosen = [number for number in chosen if number < len(self.columns)]
            groups = [
                (group, [[row[number] for number in chosen] for row in rows])
                for group, rows in self.groups
            ]
            yield replace(self, columns=[self.columns[n] for n in chosen], groups=groups)


def table_text(table: Table) -> str:
    """The table as aligned plain text; `*` marks the best, and definitions stand below."""
    lines: list[list[str]] = [[c.name + ("" if c.words else " ") for c in table.columns]]
    headings: dict[int, str] = {}
    for group, rows in table.groups:
        if group:
            headings[len(lines)] = flat(group)
        for row in rows:
            lines.append([_text(*pair) for pair in zip(table.columns, row, strict=True)])
            if any(cell.below for cell in row):
                below = (Cell(cell.below) for cell in row)
                lines.append([_text(*pair) for pair in zip(table.columns, below, strict=True)])
    frame = pd.DataFrame(lines, dtype=object)
    for number, column in enumerate(table.columns):
        if column.words:
            frame[number] = frame[number].str.ljust(frame[number].str.len().max())
    shown = (" " + frame).to_string(index=False, header=False).splitlines()
    shown = ["  " + line.strip("\n")[1:].rstrip() for line in shown]
    body = [shown[0], "  " + "-" * (max(map(len, shown)) - 2)]
    for number, line in enumerate(shown[1:], start=1):
        body += [f"  {headings[number]}", line] if number in headings else [line]
    notes = [*table.notes, *([f"* {table.mark}."] if table.marked else [])]
    legend = [f"  {column.name}: {column.definition}" for column in _defined(table)]
    head = [*([table.heading] if table.heading else []), *notes]
    return "\n".join([*head, *([""] if notes else []), *body, *([""] if legend else []), *legend])


def table_latex(table: Table) -> str:
    """The table in LaTeX with a caption; needs the package booktabs."""
    rows = [
        [_latex_cell(*pair) for pair in zip(table.columns, row, strict=True)]
        for _, group in table.groups
        for row in group
    ]
    legend = [f"{column.name}: {column.definition}." for column in _defined(table)]
    text = pd.DataFrame(rows, columns=range(len(table.columns)), dtype=object).to_latex(
        index=False,
        escape=False,
        header=[latex_escape(column.name) for column in table.columns],
        column_format="@{}" + "".join("l" if c.words else "r" for c in table.columns) + "@{}",
        caption=latex_escape(" ".join((f"{table.heading}.", *table.notes, *legend))),
    )
    size = "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
    text = text.replace("\\begin{tabular}", f"{size}\\begin{{tabular}}", 1)
    head, rule, body = text.partition("\\midrule\n")
    lines = iter(body.split("\n"))
    grouped = []
    for number, (group, members) in enumerate(table.groups):
        grouped += ["\\addlinespace"] * (number > 0)
        if group:
            title = f"\\emph{{{latex_escape(group)}}}"
            grouped.append(f"\\multicolumn{{{len(table.columns)}}}{{@{{}}l}}{{{title}}} \\\\")
        grouped += itertools.islice(lines, len(members))
    return head + rule + "\n".join([*grouped, *lines])


def table_markdown(table: Table) -> str:
    """The table in Markdown."""
    rows = [[column.name for column in table.columns], ["---"] * len(table.columns)]
    rows += [
        [cell.text + (f" ({cell.below})" if cell.below else "") for cell in row]
        for _, group in table.groups
        for row in group
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def rows_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV at full precision; what is missing, None or NaN is an empty field."""
    names = None if columns is None else list(columns)
    return pd.DataFrame(rows, columns=names, dtype=object).to_csv(index=False, lineterminator="\n")


def to_json(content: Any, indent: int = 2) -> str:
    """JSON at full precision; NaN is null, and an infinity "inf" or "-inf"."""
    text = json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def flat(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def latex_escape(text: str) -> str:
    """Plain text on one line, with what LaTeX would interpret escaped, and a true minus."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in flat(text)).replace("--", "-{}-")
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def _text(column: Column, cell: Cell) -> str:
    """A field of text on one line; a number leaves room for the mark."""
    return flat(cell.text) if column.words else cell.text + ("*" if cell.best else " ")


def _defined(table: Table) -> list[Column]:
    """The columns whose definition text and LaTeX give."""
    return [c for c in table.columns if c.definition and c.legend and not c.words]


def _latex_cell(column: Column, cell: Cell) -> str:
    """A field; long words wrap, and what stands below gets a line of its own."""
    text = latex_escape(cell.text)
    text = f"\\textbf{{{text}}}" if cell.best else text
    if column.width and text:
        return f"\\parbox[t]{{{column.width}}}{{\\raggedright {text}\\strut}}"
    if cell.below:
        below = f"{{\\tiny {latex_escape(cell.below)}}}"
        return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{text}\\\\{below}\\end{{tabular}}"
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
