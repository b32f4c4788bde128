"""A part of a comparison, a table that fits a page, as aligned text, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WRAPPED = {"trained": "3.2cm", "reason": "9cm", "note": "4cm"}
"""LaTeX columns of sentences, with their widths."""

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After a line's end these would be read as its options.
    "[": "{[}",
    "*": "{*}",
}


@dataclass(frozen=True)
class Column:
    """A column: its name, its definition in full, and whether it holds words."""

    name: str
    title: str = ""
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in a table's field: a text, a smaller one below it, and whether it is best."""

    text: str
    below: str = ""
    best: bool = False


@dataclass(frozen=True)
class Part:
    """A table on a page: heading, notes, columns, and rows by group ("" for no group)."""

    heading: str
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[tuple[Cell, ...], ...]], ...]


def part_text(part: Part) -> str:
    """A part as aligned text."""
    head = [column.name + ("" if column.words else " ") for column in part.columns]
    lines: list[list[str] | str] = []
    for group, rows in part.groups:
        if group:
            lines.append(flat(group))
        for row in rows:
            pairs = list(zip(part.columns, row, strict=True))
            lines.append([_text(column, cell.text, cell.best) for column, cell in pairs])
            if any(cell.below for cell in row):
                lines.append([_text(column, cell.below, False) for column, cell in pairs])
    cells = [head, *(line for line in lines if isinstance(line, list))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(given: list[str] | str) -> str:
        if isinstance(given, str):
            return f"  {given}"
        padded = [
            text.ljust(width) if column.words else text.rjust(width)
            for text, width, column in zip(given, widths, part.columns, strict=True)
        ]
        return ("  " + "  ".join(padded)).rstrip()

    rule = ["-" * width for width in widths]
    marked = any(cell.best for _, rows in part.groups for row in rows for cell in row)
    notes = [*part.notes, "* best mean of its column."] if marked else part.notes
    table = [line(head), line(rule), *map(line, lines)]
    legend = [f"  {name}: {title}" for name, title in _legend(part)]
    return "\n".join([part.heading, *notes, "", *table, *([""] if legend else []), *legend])


def _text(column: Column, text: str, best: bool) -> str:
    """A field of text on one line; numbers leave room for the mark."""
    return flat(text) if column.words else text + ("*" if best else " ")


def _legend(part: Part) -> list[tuple[str, str]]:
    """(Name, definition) of the columns whose notes do not say it all."""
    return [
        (column.name, column.title)
        for column in part.columns
        if column.title
        and not column.words
        and column.name not in ("p", "p corrected")
        and not column.name.startswith("paper: ")
    ]


def part_latex(part: Part) -> str:
    """A part as a table of booktabs."""
    width = len(part.columns)
    head = " & ".join(_latex(column.name) for column in part.columns)
    lines = []
    for number, (group, rows) in enumerate(part.groups):
        if number:
            lines.append("\\addlinespace")
        if group:
            lines.append(f"\\multicolumn{{{width}}}{{@{{}}l}}{{\\emph{{{_latex(group)}}}}} \\\\")
        for row in rows:
            fields = zip(part.columns, row, strict=True)
            lines.append(" & ".join(_latex_cell(*pair) for pair in fields) + " \\\\")
    shape = "".join("l" if column.words else "r" for column in part.columns)
    legend = [f"{name}: {title}." for name, title in _legend(part)]
    caption = _latex(" ".join((f"{part.heading}.", *part.notes, *legend)))
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{@{{}}{shape}@{{}}}}",
            "\\toprule",
            f"{head} \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def _latex_cell(column: Column, cell: Cell) -> str:
    """A field; long words wrap, and an interval stands on a line below."""
    text = _latex(cell.text)
    text = f"\\textbf{{{text}}}" if cell.best else text
    if column.name in WRAPPED and text:
        return f"\\parbox[t]{{{WRAPPED[column.name]}}}{{\\raggedright {text}\\strut}}"
    if cell.below:
        below = f"{{\\tiny {_latex(cell.below)}}}"
        return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{text}\\\\{below}\\end{{tabular}}"
    return text


def _latex(text: str) -> str:
    """Plain text on one line, with what LaTeX would interpret escaped, and a true minus."""
    escaped = "".join(LATEX.get(letter, letter) for letter in flat(text)).replace("--", "-{}-")
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def part_html(part: Part) -> str:
    """A part as heading, notes and table."""
    heads = []
    for column in part.columns:
        kind = ' class="text"' if column.words else ""
        title = f' title="{escape(column.title)}"' if column.title else ""
        heads.append(f'<th{kind} scope="col"{title}>{escape(column.name)}</th>')
    bodies = []
    for group, rows in part.groups:
        lines = [_row_html(part.columns, row) for row in rows]
        if group:
            lines.insert(
                0,
                f'<tr><th class="text" scope="rowgroup" colspan="{len(part.columns)}">'
                f"<strong>{escape(group)}</strong></th></tr>",
            )
        bodies.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
    marked = any(cell.best for _, rows in part.groups for row in rows for cell in row)
    notes = [*part.notes, "Bold: best mean of its column."] if marked else part.notes
    return "\n".join(
        [
            f"<h3>{escape(part.heading)}</h3>",
            *(f'<p class="note">{escape(note)}</p>' for note in notes),
            '<div class="scroll"><table>',
            f"<thead><tr>{''.join(heads)}</tr></thead>",
            *bodies,
            "</table></div>",
        ]
    )


def _row_html(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    """A line of a table; the columns that hold words are its heads."""
    cells = []
    for column, cell in zip(columns, row, strict=True):
        text = escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.best else text
        if cell.below:
            text += f'<span class="interval">{escape(cell.below)}</span>'
        head = '<th class="text" scope="row">', "</th>"
        start, end = head if column.words else ("<td>", "</td>")
        cells.append(start + text + end)
    return f"<tr>{''.join(cells)}</tr>"


def flat(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())
