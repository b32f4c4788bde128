"""The page on a prepared cohort: what failed, what stands out, every number and every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sharding.io.page import Picture, render
from sharding.io.tables import Cell, Column, Table
from sharding.registration.quality import RegistrationOutcome, SpecimenQuality, rules_in_words

COLUMNS: tuple[tuple[str, str], ...] = (
    (
        "Mutual information",
        "In the mask, nats, as prepared; below it by the headers",
    ),
    ("Correlation", "Pearson's, in the mask, as prepared; below it by the headers"),
    ("Overlap", "Dice coefficient of the foregrounds, as prepared; below it by the headers"),
    ("Kept", "Registration steps that were kept: each must raise the mutual information by 0.5 %"),
    ("Jacobian", "Least and largest volume change from target to source in the foreground"),
    ("Coverage", "Share of the target's foreground inside the source's field of view"),
    ("Foreground", "Share of the target's volume that is foreground"),
    ("Noise, source", "Standard deviation of the noise, share of the intensity range"),
    ("Noise, target", "Standard deviation of the noise, share of the intensity range"),
)
"""Columns of the table, each with its meaning."""
CAPTION = "Checkerboards of source and target, and the target's edges (orange) on the source."

BIAS_CAPTION = (
    "Bias correction: source and target before and after, and the field that they were divided by, "
    "shown where there is tissue."
)


def quality_page(
    rows: Sequence[SpecimenQuality],
    flags: Mapping[str, Sequence[str]],
    failures: Mapping[str, str],
    pictures: Mapping[str, bytes],
    corrections: Mapping[str, bytes],
    head: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        rows: A line for each prepared specimen.
        flags: Specimen -> reasons why it stands out.
        failures: Specimen -> why it could not be prepared.
        pictures: Specimen -> PNG of `pair_pictures`.
        corrections: Specimen -> PNG of `bias_pictures`, of those whose bias was corrected.
        head: What was done and with what, name -> value.

    Returns:
        One HTML document that needs nothing from outside.
    """
    count = len(rows) + len(failures)
    return render(
        "sharding.registration/quality.html",
        title="Prepared cohort: quality of every pair",
        summary=f"{count} specimens: {len(rows)} prepared, {len(failures)} failed, "
        f"{len(flags)} stand out.",
        failures=failures,
        flags={name: "; ".join(reasons) for name, reasons in flags.items()},
        rules=rules_in_words(),
        measures=quality_table(rows, flags) if rows else None,
        definitions=dict(COLUMNS),
        falls=falls_in_words(rows),
        registration=registration_table(rows) if any(row.registration for row in rows) else None,
        corrections={
            name: Picture(png, BIAS_CAPTION, f"{name}: {BIAS_CAPTION}")
            for name, png in corrections.items()
        },
        pictures={
            row.name: Picture(
                pictures[row.name], CAPTION, picture_words(row, flags.get(row.name, ()))
            )
            for row in rows
            if row.name in pictures
        },
        head=head,
    )


def quality_table(rows: Sequence[SpecimenQuality], flags: Mapping[str, Sequence[str]]) -> Table:
    """A line for each specimen, with its flags in words behind the name."""
    columns = [Column(name, words=True) for name in ("Specimen", "Flag")]
    columns += [Column(name, definition) for name, definition in COLUMNS]
    lines = [
        [
            Cell(row.name),
            Cell("stands out", best=True) if row.name in flags else Cell("-"),
            *_cells(row),
        ]
        for row in rows
    ]
    return Table(columns, [("", lines)], mark="the specimen stands out")


def registration_table(rows: Sequence[SpecimenQuality]) -> Table:
    """What each registration step of each specimen did to the mutual information."""
    columns = [
        Column("Specimen", words=True),
        Column("Step", words=True),
        Column("MI before", "Mutual information before the step in the mask, nats"),
        Column("MI after", "Mutual information after the step in the same mask, nats"),
        Column("Change", "Of the mutual information"),
        Column("Result", words=True),
    ]
    lines = []
    for row in rows:
        last = row.kept[-1] if row.kept else None
        for outcome in row.registration:
            change, result = _change(outcome), _result(outcome)
            if outcome.step == last:
                result += "; this is the alignment that stands"
            before = "-" if outcome.before is None else f"{outcome.before:.3f}"
            shown = "-" if change is None else f"{change:+.1%}"
            fell = change is not None and change < 0
            lines.append(
                [
                    Cell(row.name),
                    Cell(outcome.step),
                    Cell(before),
                    Cell(f"{outcome.after:.3f}"),
                    Cell(shown, best=fell),
                    Cell(result),
                ]
            )
        if row.registration and last is None:
            lines[-1][-1] = Cell(f"{lines[-1][-1].text}; the headers' alignment stands")
    return Table(columns, [("", lines)], heads=2, mark="mutual information fell")


def falls_in_words(rows: Sequence[SpecimenQuality]) -> list[str]:
    """Every registration step that lowered the mutual information, a sentence each."""
    return [
        f"{row.name}: {outcome.step} lowered the mutual information from {outcome.before:.3f} to "
        f"{outcome.after:.3f} ({change:+.1%}) and was left out"
        for row in rows
        for outcome in row.registration
        if (change := _change(outcome)) is not None and change < 0
    ]


def _change(outcome: RegistrationOutcome) -> float | None:
    """Share by which a step raised the mutual information; None where it cannot be compared."""
    return None if not outcome.before else outcome.after / outcome.before - 1


def _result(outcome: RegistrationOutcome) -> str:
    if outcome.before is None:
        return "kept: too little was covered before it to compare"
    if outcome.kept:
        return "kept"
    fell = outcome.after < outcome.before
    return f"left out: the mutual information {'fell' if fell else 'rose by too little'}"


def picture_words(row: SpecimenQuality, reasons: Sequence[str]) -> str:
    """What a specimen's picture shows, for those who do not see it."""
    before, after = row.before, row.after
    return (
        f"{row.name}: axial, coronal and sagittal slices through the middle; checkerboards of "
        "source and target, and the target's edges on the source. Mutual information "
        f"{before.mutual_information:.3f} before, {after.mutual_information:.3f} after; overlap of "
        f"the foregrounds {before.overlap:.2f} before, {after.overlap:.2f} after. "
        + (f"Stands out: {'; '.join(reasons)}." if reasons else "Nothing stands out.")
    )


def _cells(row: SpecimenQuality) -> list[Cell]:
    """The values of a line, in the order of COLUMNS."""
    pairs: list[tuple[float, float]] = [
        (row.before.mutual_information, row.after.mutual_information),
        (row.before.correlation, row.after.correlation),
        (row.before.overlap, row.after.overlap),
    ]
    return [
        *(Cell(f"{after:.3f}", f"before {before:.3f}") for before, after in pairs),
        Cell(", ".join(row.kept) or "headers"),
        Cell(f"{row.jacobian_min:.2f} to {row.jacobian_max:.2f}"),
        Cell(f"{row.coverage:.1%}"),
        Cell(f"{row.foreground:.1%}"),
        Cell(f"{row.noise_source:.2%}"),
        Cell(f"{row.noise_target:.2%}"),
    ]
