"""A comparison as tables for pages: its parts, in text, LaTeX and HTML.

A Comparison is split into parts so that each fits a page; text, LaTeX and HTML show the same
parts. What a row was trained with stands beside its numbers in every part, as rows trained for
different lengths do not compare as methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from distsynth.metrics.image import METRICS
from distsynth.metrics.results import (
    LEVEL,
    Interval,
    Table,
    direction,
    format_interval,
    format_value,
    short_name,
    summary_note,
)
from distsynth.metrics.statistics import Difference, smallest_p
from distsynth.reproduction.comparison import (
    HONEST_METRICS,
    PAPER_METRICS,
    ComparedRow,
    Comparison,
    answers,
    published_value,
)
from distsynth.reproduction.comparison_markup import (
    Cell,
    Column,
    Part,
    part_html,
    part_latex,
    part_text,
)
from distsynth.reproduction.paper_values import WARNING

ALPHA = 0.05
"""The usual threshold of significance, for remarks on what so few specimens can show."""


def limits_note(specimens: int, tests: int) -> str:
    """What the sign-flip test can show at best with so many specimens and tests."""
    least = smallest_p(specimens)
    corrected = min(1.0, least * tests)
    many = "1 specimen" if specimens == 1 else f"{specimens} specimens"
    note = f"With {many} the smallest p of a two-sided sign-flip test is {format_p(least)}"
    if tests > 1:
        note += f", and {format_p(corrected)} after Holm's correction for {tests} tests"
    return note + (f": nothing can be significant at {ALPHA:.0%}." if corrected > ALPHA else ".")


def format_p(p: float) -> str:
    """p with 3 significant digits; a dash for none."""
    if math.isnan(p):
        return "-"
    return "<0.0001" if p < 0.0001 else f"{p:.3g}"


def comparison_parts(comparison: Comparison) -> list[Part]:
    """What text, LaTeX and HTML show; a part that would be empty is left out."""
    parts = [_not_run(comparison)] if comparison.not_run else []
    if comparison.table is not None:
        measured = [_paper(comparison), _honest(comparison)]
        if any(row.seeds > 1 for row in comparison.run):
            measured.append(_spread(comparison))
        if any(comparison.differences.values()):
            measured.append(_differences(comparison))
        parts = measured + parts
    if comparison.pairs:
        parts.append(_controls(comparison))
    return parts


def comparison_text(comparison: Comparison) -> str:
    """Aligned plain text; `*` marks the best mean of a column."""
    return "\n\n".join(map(part_text, comparison_parts(comparison))) + "\n"


def comparison_latex(comparison: Comparison) -> str:
    """Tables with captions; the document needs \\usepackage{booktabs} and wide pages.

    Bold marks the best mean of a column.
    """
    head = "% Needs \\usepackage{booktabs}; the tables are wide: a landscape page suits them.\n"
    return head + "\n".join(map(part_latex, comparison_parts(comparison)))


def comparison_html(comparison: Comparison) -> str:
    """Headings, notes and tables for a section of a page of sharding.io.page.

    Bold marks the best mean of a column; a column's definition shows on hovering over its name.
    """
    return "\n".join(map(part_html, comparison_parts(comparison)))


def _paper(comparison: Comparison) -> Part:
    """The paper's columns, ours and its own."""
    columns = (
        *_NAMES,
        Column("parameters", "Trainable, of the generator alone"),
        *map(_metric_column, PAPER_METRICS),
        *(
            Column(f"paper: {short_name(metric)}", f"{METRICS[metric][0]}, as printed. {WARNING}")
            for metric in PAPER_METRICS
        ),
    )
    notes = (
        summary_note(_table(comparison)),
        "Over the whole volume, as the paper judges whole stitched images.",
        WARNING,
    )

    def cells(row: ComparedRow) -> list[Cell]:
        published = [published_value(row, metric) for metric in PAPER_METRICS]
        return [
            Cell("-" if row.parameters is None else f"{row.parameters:,}"),
            *(_mean_cell(comparison, row, metric) for metric in PAPER_METRICS),
            *(Cell("-" if value is None else f"{value:g}") for value in published),
        ]

    return _part("The paper's metrics", notes, columns, comparison.run, cells)


def _honest(comparison: Comparison) -> Part:
    """What tells more than the paper's metrics."""
    columns = (
        *_NAMES,
        *map(_metric_column, HONEST_METRICS),
        Column("seconds", "That training took"),
    )
    notes = (
        summary_note(_table(comparison)),
        "In the mask. The peak of PSNR is the range of the target: no value here compares with "
        "one at peak 255.",
    )

    def cells(row: ComparedRow) -> list[Cell]:
        seconds = Cell("-" if row.seconds is None else f"{row.seconds:.0f}")
        return [*(_mean_cell(comparison, row, metric) for metric in HONEST_METRICS), seconds]

    return _part("Tissue, seams and consistency", notes, columns, comparison.run, cells)


def _spread(comparison: Comparison) -> Part:
    """How much seeds matter."""
    metrics = (*PAPER_METRICS, *HONEST_METRICS)
    columns = (*_NAMES, Column("seeds", "Runs averaged"), *map(_metric_column, metrics))
    notes = (
        "Standard deviation over seeds of the mean over specimens. Elsewhere each specimen's "
        "value is its mean over seeds.",
    )

    def cells(row: ComparedRow) -> list[Cell]:
        values = (format_value(metric, row.spread.get(metric, math.nan)) for metric in metrics)
        return [Cell(str(row.seeds)), *map(Cell, values)]

    return _part("Spread over seeds", notes, columns, comparison.run, cells)


def _differences(comparison: Comparison) -> Part:
    """Each row minus the best."""
    columns = list(_NAMES)
    notes = [
        f"Mean over specimens of row minus best row, {LEVEL:.0%} bootstrap interval below it; p "
        "of the paired sign-flip test, and after Holm's correction for the rows of its column.",
        "The best row was chosen by the same values, so that its lead is overstated and p is too "
        "small.",
    ]
    for metric, by in comparison.differences.items():
        best, title = comparison.references[metric], METRICS[metric][0]
        columns += [
            Column(f"{short_name(metric)} diff", f"{title}, minus that of {best}"),
            Column("p", f"{title}: two-sided, paired sign flips, not corrected"),
            Column("p corrected", f"{title}: after Holm's correction"),
        ]
        notes.append(f"Best in {short_name(metric)}: {best}.")
        notes += [
            f"{row.method}, {short_name(metric)}: {row.note}." for row in by.values() if row.note
        ]
    if tests := max(_tests(by.values()) for by in comparison.differences.values()):
        notes.append(limits_note(len(_table(comparison).specimens), tests))

    def cells(row: ComparedRow) -> list[Cell]:
        found: list[Cell] = []
        for by in comparison.differences.values():
            found += _difference_cells(by[row.name]) if row.name in by else _REFERENCE
        return found

    return _part("Differences to the best row", notes, columns, comparison.run, cells)


def _controls(comparison: Comparison) -> Part:
    """Each control with its answer."""
    columns = (
        Column("first", words=True),
        Column("second", words=True),
        Column("trained", "First; second", words=True),
        Column("metric", words=True),
        Column("first - second", "Mean over specimens, in the metric's units"),
        Column("p", "Two-sided, paired sign flips, not corrected"),
        Column("p corrected", "After Holm's correction for all controls"),
        Column("note", words=True),
    )
    notes = [
        f"Mean over specimens of first minus second, {LEVEL:.0%} bootstrap interval below it; p "
        "of the paired sign-flip test, and after Holm's correction for all controls."
    ]
    metrics = dict.fromkeys(metric for _, _, metric in comparison.pairs)
    notes += [f"{metric}: {METRICS[metric][0]}; {direction(metric)}." for metric in metrics]
    if tests := _tests(comparison.controls):
        notes.append(limits_note(len(_table(comparison).specimens), tests))
    rows = {row.name: row for row in comparison.rows}
    lines = []
    for (first, second, metric), found, note in answers(comparison):
        budgets = dict.fromkeys((rows[first].trained, rows[second].trained)) if found else ()
        numbers = _difference_cells(found) if found else [Cell("-")] * 3
        words = map(Cell, (first, second, "; ".join(budgets), metric))
        lines.append((*words, *numbers, Cell(note)))
    return Part("Controls", tuple(notes), columns, (("", tuple(lines)),))


def _not_run(comparison: Comparison) -> Part:
    """Rows without numbers."""
    columns = (Column("method", words=True), Column("reason", words=True))
    return _part(
        "Not run", (), columns, comparison.not_run, lambda row: [Cell(row.reason or "")], False
    )


_NAMES = (
    Column("method", words=True),
    Column("trained", "How long, and on how much", words=True),
)
_REFERENCE = [Cell("best"), Cell("-"), Cell("-")]


def _part(
    heading: str,
    notes: Iterable[str],
    columns: Iterable[Column],
    rows: Sequence[ComparedRow],
    cells: Callable[[ComparedRow], list[Cell]],
    trained: bool = True,
) -> Part:
    """A part whose lines are rows of the comparison, by group."""
    groups = []
    for group in dict.fromkeys(row.group for row in rows):
        lines = []
        for row in rows:
            if row.group == group:
                names = (row.name, row.trained) if trained else (row.name,)
                lines.append((*map(Cell, names), *cells(row)))
        groups.append((group, tuple(lines)))
    return Part(heading, tuple(notes), tuple(columns), tuple(groups))


def _tests(differences: Iterable[Difference]) -> int:
    """How many tests could be made."""
    return sum(not math.isnan(row.p) for row in differences)


def _table(comparison: Comparison) -> Table:
    """The table of a comparison that has one."""
    assert comparison.table is not None
    return comparison.table


def _metric_column(metric: str) -> Column:
    """A metric's column with its definition."""
    return Column(short_name(metric), f"{METRICS[metric][0]}; {direction(metric)}")


def _mean_cell(comparison: Comparison, row: ComparedRow, metric: str) -> Cell:
    """Mean and interval of a row."""
    table = _table(comparison)
    none = Interval(math.nan, math.nan, math.nan)
    interval = table.summary[row.name].get(metric, none)
    best = row.name in table.best.get(metric, ())
    return Cell(format_value(metric, interval.mean), format_interval(metric, interval), best)


def _difference_cells(found: Difference) -> list[Cell]:
    """Difference with interval, p, and p corrected."""
    mean = format_value(found.metric, found.mean)
    if not math.isnan(found.mean):
        unsigned = mean.removeprefix("-")
        sign = "-" if found.mean < 0 else "+"
        mean = sign + unsigned if float(unsigned) else unsigned
    interval = format_interval(found.metric, Interval(found.mean, found.low, found.high))
    return [Cell(mean, interval), Cell(format_p(found.p)), Cell(format_p(found.p_corrected))]
