"""One table in every form: aligned, escaped, cut to the width of a page."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest

from sharding.io.page import _environment
from sharding.io.tables import (
    Cell,
    Column,
    Table,
    latex_escape,
    rows_csv,
    table_latex,
    table_markdown,
    table_text,
    to_json,
)

TABLE = Table(
    [Column("method", words=True), Column("MSE", "mean squared error"), Column("SSIM")],
    [
        ("first", [[Cell("a_b"), Cell("-1.0", "-2 to 0", best=True), Cell("0.5")]]),
        ("second", [[Cell("longer"), Cell("12.0"), Cell("-")]]),
    ],
    "Heading",
    ["A note."],
)

TEXT = """\
Heading
A note.
* best mean of its column.

  method      MSE   SSIM
  ----------------------
  first
  a_b        -1.0*   0.5
          -2 to 0
  second
  longer     12.0      -

  MSE: mean squared error"""

LATEX = r"""\begin{table}
\caption{Heading. A note. MSE: mean squared error.}
\centering\scriptsize\setlength{\tabcolsep}{3pt}
\begin{tabular}{@{}lrr@{}}
\toprule
method & MSE & SSIM \\
\midrule
\multicolumn{3}{@{}l}{\emph{first}} \\
a\_b & \begin{tabular}[t]{@{}r@{}}\textbf{$-$1.0}\\{\tiny $-$2 to 0}\end{tabular} & 0.5 \\
\addlinespace
\multicolumn{3}{@{}l}{\emph{second}} \\
longer & 12.0 & - \\
\bottomrule
\end{tabular}
\end{table}
"""


def html_of(table):
    source = '{% from "sharding.io/blocks.html" import table %}{{ table(shown) }}'
    return _environment().from_string(source).render(shown=table)


def test_text():
    assert table_text(TABLE) == TEXT


def test_latex():
    assert table_latex(TABLE) == LATEX
    assert latex_escape("--a & [b] *c") == r"-{}-a \& {[}b] {*}c"


def test_markdown():
    assert table_markdown(TABLE).splitlines() == [
        "| method | MSE | SSIM |",
        "| --- | --- | --- |",
        "| a_b | -1.0 (-2 to 0) | 0.5 |",
        "| longer | 12.0 | - |",
    ]


def test_html():
    html = html_of(TABLE)
    assert '<th scope="col" title="mean squared error">MSE</th>' in html
    assert re.findall("<tr>(<t[hd].*?)</tr>", html)[1:] == [
        '<th class="text" scope="rowgroup" colspan="3"><strong>first</strong></th>',
        '<th class="text" scope="row">a_b</th><td><strong>-1.0</strong>'
        '<span class="interval">-2 to 0</span></td><td>0.5</td>',
        '<th class="text" scope="rowgroup" colspan="3"><strong>second</strong></th>',
        '<th class="text" scope="row">longer</th><td>12.0</td><td>-</td>',
    ]


@pytest.mark.parametrize(
    ("numbers", "widths"), [(3, [5]), (11, [13]), (12, [13, 3]), (25, [13, 13, 5])]
)
def test_a_wide_table_is_cut_and_each_part_names_its_rows(numbers, widths):
    columns = [Column("a", words=True), Column("b", words=True)]
    columns += [Column(str(number)) for number in range(numbers)]
    rows = [[Cell(f"{column.name}{row}") for column in columns] for row in range(2)]
    parts = list(Table(columns, [("group", rows)], heads=2).parts())
    assert [len(part.columns) for part in parts] == widths
    shown = [column.name for part in parts for column in part.columns[2:]]
    assert shown == [str(number) for number in range(numbers)]
    for part in parts:
        ((group, lines),) = part.groups
        assert group == "group"
        for number, line in enumerate(lines):
            assert [cell.text for cell in line] == [f"{c.name}{number}" for c in part.columns]
    assert html_of(Table(columns, [("group", rows)], heads=2)).count("<table>") == len(widths)


def test_csv_keeps_every_digit():
    rows = [{"a": 1, "b": 0.1 + 0.2, "c": None}, {"a": None, "b": math.nan, "c": 'x,"y"'}]
    text = rows_csv(rows, ["c", "a", "b", "d"])
    assert "\r" not in text
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"c": "", "a": "1", "b": "0.30000000000000004", "d": ""},
        {"c": 'x,"y"', "a": "", "b": "", "d": ""},
    ]


def test_json_has_neither_nan_nor_infinity():
    text = to_json({"a": [math.nan, -math.inf, 0.1], "b": ("x", None, True)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, "-inf", 0.1],
        "b": ["x", None, True],
    }
