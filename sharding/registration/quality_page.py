"""The page on a prepared cohort: what failed, what stands out, every number and every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sharding.io.page import Picture, render
from sharding.io.tables import Cell, Column, Table
from sharding.registration.quality import SpecimenQuality, rules_in_words

COLUMNS: tuple[tuple[str, str], ...] = (
    ("MI before", "Mutual information in the mask, nats, placed by the headers"),
    ("MI after", "Mutual information in the mask, nats, as prepared"),
    ("Correlation before", "Pearson correlation in the mask, placed by the headers"),
    ("Correlation after", "Pearson correlation in the mask, as prepared"),
    ("Overlap before", "Dice coefficient of the foregrounds, placed by the headers"),
    ("Overlap after", "Dice coefficient of the foregrounds, as prepared"),
    ("Kept", "Registration steps that were kept: each must raise the mutual information by 0.5 %"),
    ("Jacobian", "Least and largest volume change from target to source in the foreground"),
    ("Coverage", "Share of the target's foreground inside the source's field of view"),
    ("Foreground", "Share of the target's volume that is foreground"),
    ("Noise, source", "Standard deviation of the noise, share of the intensity range"),
    ("Noise, target", "Standard deviation of the noise, share of the intensity range"),
)
"""Columns of the table, each with its meaning."""
CAPTION = "Checkerboards of source and target, and the target's edges (orange) on the source."


def quality_page(
    rows: Sequence[SpecimenQuality],
    flags: Mapping[str, Sequence[str]],
    failures: Mapping[str, str],
    pictures: Mapping[str, bytes],
    head: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        rows: A line for each prepared specimen.
        flags: Specimen -> reasons why it stands out.
        failures: Specimen -> why it could not be prepared.
        pictures: Specimen -> PNG of `pair_pictures`.
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
            *map(Cell, _cells(row)),
        ]
        for row in rows
    ]
    return Table(columns, [("", lines)], mark="the specimen stands out")


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


def _cells(row: SpecimenQuality) -> list[str]:
    """The values of a line, in the order of COLUMNS."""
    pairs: list[tuple[float, float]] = [
        (row.before.mutual_information, row.after.mutual_information),
        (row.before.correlation, row.after.correlation),
        (row.before.overlap, row.after.overlap),
    ]
    return [
        *(f"{value:.3f}" for pair in pairs for value in pair),
        ", ".join(row.kept) or "headers",
        f"{row.jacobian_min:.2f} to {row.jacobian_max:.2f}",
        f"{row.coverage:.1%}",
        f"{row.foreground:.1%}",
        f"{row.noise_source:.2%}",
        f"{row.noise_target:.2%}",
    ]
