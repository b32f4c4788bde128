"""The tables of a comparison, each of which fits a page, and their columns.

What a row was trained with stands beside its numbers in every table, as rows trained for
different lengths do not compare as methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import (
    LEVEL,
    Interval,
    ResultsTable,
    format_interval,
    format_value,
    metric_column,
    short_name,
)
from distsynth.metrics.statistics import Difference, smallest_p
from distsynth.metrics.steps import MARK_MEANS, is_untrained
from distsynth.reproduction.comparison import (
    HONEST_METRICS,
    LITERAL,
    PAPER_METRICS,
    SEAM_METRICS,
    ComparedRow,
    Comparison,
    answers,
    paper_value,
)
from distsynth.reproduction.paper_values import WARNING
from sharding.io.tables import Cell, Column, Table, table_latex, table_text

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


def comparison_tables(comparison: Comparison) -> list[Table]:
    """What text, LaTeX and HTML show; a table that would be empty is left out."""
    tables = [_not_run(comparison)] if comparison.not_run else []
    if comparison.table is not None:
        measured = [_paper(comparison), _honest(comparison), _seams(comparison)]
        if any(row.seeds > 1 for row in comparison.run):
            measured.append(_spread(comparison))
        if any(comparison.differences.values()):
            measured.append(_differences(comparison))
        tables = measured + tables
    if comparison.pairs:
        tables.append(_controls(comparison))
    return tables


def comparison_text(comparison: Comparison) -> str:
    """Aligned plain text; `*` marks the best mean of a column."""
    return "\n\n".join(map(table_text, comparison_tables(comparison))) + "\n"


def comparison_latex(comparison: Comparison) -> str:
    """Tables with captions; the document needs \\usepackage{booktabs} and wide pages.

    Bold marks the best mean of a column.
    """
    head = "% Needs \\usepackage{booktabs}; the tables are wide: a landscape page suits them.\n"
    return head + "\n".join(map(table_latex, comparison_tables(comparison)))


def _paper(comparison: Comparison) -> Table:
    """The paper's columns: our values beside those it prints."""
    table = _results(comparison)
    columns = (
        *_NAMES,
        Column("parameters", "Trainable, of the generator alone"),
        *map(metric_column, (*PAPER_METRICS, LITERAL)),
        *(
            Column(
                f"paper: {short_name(metric)}",
                f"{METRICS[metric].title}, as printed. {WARNING}",
                legend=False,
            )
            for metric in PAPER_METRICS
        ),
    )
    notes = (
        table.note,
        "Over the whole volume, as the paper evaluates whole stitched images.",
        WARNING,
    )

    def cells(row: ComparedRow) -> list[Cell]:
        paper = [paper_value(row, metric) for metric in PAPER_METRICS]
        return [
            Cell("-" if row.parameters is None else f"{row.parameters:,}"),
            *(table.mean_cell(row.name, metric) for metric in (*PAPER_METRICS, LITERAL)),
            *(Cell("-" if value is None else f"{value:g}") for value in paper),
        ]

    return _measured("The paper's metrics", notes, columns, comparison.run, cells)


def _honest(comparison: Comparison) -> Table:
    """Metrics that tell more than the paper's."""
    table = _results(comparison)
    columns = (
        *_NAMES,
        *map(metric_column, HONEST_METRICS),
        Column("seconds", "That training took"),
    )
    notes = (
        table.note,
        "In the mask. The peak of PSNR is the range of the target: no value here compares with "
        "one at peak 255.",
    )

    def cells(row: ComparedRow) -> list[Cell]:
        seconds = Cell("-" if row.seconds is None else f"{row.seconds:.0f}")
        return [*(table.mean_cell(row.name, metric) for metric in HONEST_METRICS), seconds]

    return _measured(
        "Tissue and consistency with the source", notes, columns, comparison.run, cells
    )


def _seams(comparison: Comparison) -> Table:
    """The seams that patches and strides leave."""
    table = _results(comparison)
    columns = (*_NAMES, *map(metric_column, SEAM_METRICS))
    notes = (
        table.note,
        "Rows stitched with different trims or weights do not compare: their borders lie elsewhere "
        "and average differently.",
    )

    def cells(row: ComparedRow) -> list[Cell]:
        return [table.mean_cell(row.name, metric) for metric in SEAM_METRICS]

    return _measured("Seams, overlaps and checkerboards", notes, columns, comparison.run, cells)


def _spread(comparison: Comparison) -> Table:
    """The spread over seeds."""
    metrics = (*PAPER_METRICS, *HONEST_METRICS, "seam_index")
    columns = (*_NAMES, Column("seeds", "Runs averaged"), *map(metric_column, metrics))
    notes = (
        "Standard deviation over seeds of the mean over specimens. Elsewhere each specimen's "
        "value is its mean over seeds.",
    )

    def cells(row: ComparedRow) -> list[Cell]:
        values = (format_value(metric, row.spread.get(metric, math.nan)) for metric in metrics)
        return [Cell(str(row.seeds)), *map(Cell, values)]

    return _measured("Spread over seeds", notes, columns, comparison.run, cells)


def _differences(comparison: Comparison) -> Table:
    """Each row minus the best."""
    columns = list(_NAMES)
    notes = [
        f"Mean over specimens of row minus best row, {LEVEL:.0%} bootstrap interval below it; p "
        "of the paired sign-flip test, and after Holm's correction for the rows of its column.",
        "The best row was chosen by the same values, so that its lead is overstated and p is too "
        "small.",
    ]
    for metric, by in comparison.differences.items():
        best, title = comparison.references[metric], METRICS[metric].title
        columns += [
            Column(f"{short_name(metric)} diff", f"{title}, minus that of {best}"),
            Column("p", f"{title}: two-sided, paired sign flips, not corrected", legend=False),
            Column("p corrected", f"{title}: after Holm's correction", legend=False),
        ]
        notes.append(f"Best in {short_name(metric)}: {best}.")
        notes += [
            f"{row.method}, {short_name(metric)}: {row.note}." for row in by.values() if row.note
        ]
    if tests := max(_tests(by.values()) for by in comparison.differences.values()):
        notes.append(limits_note(len(_results(comparison).specimens), tests))

    def cells(row: ComparedRow) -> list[Cell]:
        found: list[Cell] = []
        for by in comparison.differences.values():
            found += _difference_cells(by[row.name]) if row.name in by else _REFERENCE
        return found

    return _measured("Differences to the best row", notes, columns, comparison.run, cells)


def _controls(comparison: Comparison) -> Table:
    """Each control with its answer."""
    columns = (
        Column("first", words=True),
        Column("second", words=True),
        Column("trained", "First; second", words=True, width="3.2cm"),
        Column("metric", words=True),
        Column("first - second", "Mean over specimens, in the metric's units"),
        Column("p", "Two-sided, paired sign flips, not corrected", legend=False),
        Column("p corrected", "After Holm's correction for all controls", legend=False),
        Column("note", words=True, width="4cm"),
    )
    notes = [
        f"Mean over specimens of first minus second, {LEVEL:.0%} bootstrap interval below it; p "
        "of the paired sign-flip test, and after Holm's correction for all controls."
    ]
    metrics = dict.fromkeys(metric for _, _, metric in comparison.pairs)
    notes += [f"{key}: {METRICS[key].title}; {METRICS[key].direction}." for key in metrics]
    if tests := _tests(comparison.controls):
        notes.append(limits_note(len(_results(comparison).specimens), tests))
    rows = {row.name: row for row in comparison.rows}
    lines = []
    for (first, second, metric), found, note in answers(comparison):
        pair = rows[first], rows[second]
        budgets = dict.fromkeys(row.training for row in pair) if found else ()
        numbers = _difference_cells(found) if found else [Cell("-")] * 3
        titles = [row.title if found else row.name for row in pair]
        words = map(Cell, (*titles, "; ".join(budgets), metric))
        lines.append((*words, *numbers, Cell(note)))
    notes += _mark_note(
        row
        for first, second, _ in comparison.pairs
        for row in comparison.run
        if row.name in (first, second)
    )
    return Table(columns, [("", lines)], "Controls", notes, heads=4)


def _not_run(comparison: Comparison) -> Table:
    """Rows that were not run, with the reasons."""
    columns = (Column("method", words=True), Column("reason", words=True, width="9cm"))
    groups = _groups(comparison.not_run, lambda row: [Cell(row.name), Cell(row.reason or "")])
    return Table(columns, groups, "Not run")


_NAMES = (
    Column("method", words=True),
    Column("trained", "How long, and on how much", words=True, width="3.2cm"),
)
_REFERENCE = [Cell("best"), Cell("-"), Cell("-")]


def _measured(
    heading: str,
    notes: Iterable[str],
    columns: Iterable[Column],
    rows: Sequence[ComparedRow],
    cells: Callable[[ComparedRow], list[Cell]],
) -> Table:
    """A table whose lines are rows of the comparison, with how they were trained."""
    groups = _groups(rows, lambda row: [Cell(row.title), Cell(row.training), *cells(row)])
    return Table(tuple(columns), groups, heading, (*notes, *_mark_note(rows)), heads=2)


def _mark_note(rows: Iterable[ComparedRow]) -> list[str]:
    """What the mark of untrained rows means, if there is one."""
    return [MARK_MEANS] if any(is_untrained(row.steps) for row in rows) else []


def _groups(
    rows: Sequence[ComparedRow], cells: Callable[[ComparedRow], list[Cell]]
) -> list[tuple[str, list[list[Cell]]]]:
    """The rows of each group."""
    return [
        (group, [cells(row) for row in rows if row.group == group])
        for group in dict.fromkeys(row.group for row in rows)
    ]


def _tests(differences: Iterable[Difference]) -> int:
    """How many tests could be made."""
    return sum(not math.isnan(row.p) for row in differences)


def _results(comparison: Comparison) -> ResultsTable:
    """The means of a comparison that has some."""
    assert comparison.table is not None
    return comparison.table


def _difference_cells(found: Difference) -> list[Cell]:
    """Difference with interval, p, and p corrected."""
    mean = format_value(found.metric, found.mean)
    if not math.isnan(found.mean):
        unsigned = mean.removeprefix("-")
        sign = "-" if found.mean < 0 else "+"
        mean = sign + unsigned if float(unsigned) else unsigned
    interval = format_interval(found.metric, Interval(found.mean, found.low, found.high))
    return [Cell(mean, interval), Cell(format_p(found.p)), Cell(format_p(found.p_corrected))]
