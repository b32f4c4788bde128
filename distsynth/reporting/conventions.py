"""The table of one prediction under many conventions: conventions.csv, .md and .html."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distsynth.metrics.conventions import COLUMNS, SCALES, Convention, Values
from distsynth.metrics.steps import MARK_MEANS, is_untrained, marked
from distsynth.runs.versions import installed_versions
from sharding.io.atomic import atomic_write
from sharding.io.page import render
from sharding.io.tables import Cell, Column, Table, rows_csv, table_markdown

HEADINGS = {
    "psnr_1": "PSNR, peak 1",
    "psnr_255": "PSNR, peak 255",
    "psnr_range": "PSNR, peak range",
    "psnr_maximum": "PSNR, peak maximum",
    "ssim_windowed": "SSIM windowed",
    "ssim_global": "SSIM global",
}
REFERENCES = {
    Convention("standardised", "whole", "volume"): (
        "at peak 255, eq. 6 and 7 of the paper that this project implements"
    ),
    Convention("standardised", "mask", "volume"): (
        "at peak range, PSNR of the other tables of an evaluation"
    ),
    Convention("percentiles", "mask", "volume"): (
        "SSIM of the other tables, where the synthetic volume is not clipped"
    ),
    Convention("min-max", "whole", "volume"): (
        "at peak maximum, fastMRI (Zbontar et al. 2018, arXiv:1811.08839), where intensities begin "
        "at 0"
    ),
    Convention("min-max", "whole", "slices"): (
        "at peak range, what peak_signal_noise_ratio of scikit-image gives slice by slice with "
        "data_range = max - min"
    ),
    Convention("own min-max", "whole", "slices"): (
        "seen where output and target are each rescaled: hides errors of gain and offset"
    ),
}
"""Convention -> who uses it, where that is certain."""
SSIM_NOTE = (
    "SSIM is that of Wang, Bovik, Sheikh and Simoncelli (2004, IEEE Transactions on Image "
    "Processing 13, 600 to 612), who compute it of 8-bit images with L = 255."
)


def conventions_files(
    out: Path,
    values: Mapping[str, Mapping[str, Values]],
    title: str,
    steps: Mapping[str, int],
) -> None:
    """Write conventions.csv with every number, and its means as conventions.md and .html.

    Args:
        out: Folder to write to.
        values: Method -> specimen -> values.
        title: Heading of the page.
        steps: Method -> optimiser steps, of those that are networks.
    """
    tables = [conventions_table(name, by, steps.get(name)) for name, by in values.items()]
    atomic_write(out / "conventions.csv", conventions_csv(values))
    atomic_write(out / "conventions.md", "\n".join(map(_markdown, tables)))
    page = render(
        "distsynth.reporting/conventions.html",
        title=title,
        tables_shown=tables,
        scales=SCALES,
        versions=installed_versions(),
    )
    atomic_write(out / "conventions.html", page)


def conventions_table(
    method: str, by_specimen: Mapping[str, Values], steps: int | None = None
) -> Table:
    """The mean over specimens of a method under each convention."""
    means = {
        convention: {
            key: float(np.mean([found[convention][key] for found in by_specimen.values()]))
            for key in COLUMNS
        }
        for convention in next(iter(by_specimen.values()))
    }
    columns = (
        Column("voxels", "Those that count", words=True),
        Column("of", "What one value is computed of; the mean is taken over slices", words=True),
        *(Column(HEADINGS[key], definition) for key, definition in COLUMNS.items()),
        Column("used by", words=True, width="4cm"),
    )
    groups = [
        (
            f"{scale}: {words}",
            [
                [
                    Cell(convention.region),
                    Cell(convention.unit),
                    *(Cell(_formatted(key, value)) for key, value in row.items()),
                    Cell(REFERENCES.get(convention, "")),
                ]
                for convention, row in means.items()
                if convention.scale == scale
            ],
        )
        for scale, words in SCALES.items()
    ]
    notes = [_range_note(means), SSIM_NOTE]
    if steps is not None:
        notes.insert(0, f"Trained for {steps:,} optimiser steps.")
    notes += [MARK_MEANS] if is_untrained(steps) else []
    return Table(columns, groups, marked(method, steps), notes, heads=2)


def conventions_csv(values: Mapping[str, Mapping[str, Values]]) -> str:
    """A number a line: method, specimen, scale, region, unit, metric, value."""
    rows: list[dict[str, Any]] = [
        {"method": method, "specimen": specimen, **vars(convention), "metric": key, "value": value}
        for method, by_specimen in values.items()
        for specimen, found in by_specimen.items()
        for convention, row in found.items()
        for key, value in row.items()
    ]
    return rows_csv(rows)


def _range_note(means: Values) -> str:
    """How far apart conventions put one and the same prediction."""
    found = [
        value
        for row in means.values()
        for key, value in row.items()
        if key.startswith("psnr") and math.isfinite(value)
    ]
    if not found:
        return "No convention gives a finite PSNR."
    return (
        f"One and the same prediction: PSNR from {min(found):.1f} to {max(found):.1f} dB by "
        "convention alone. Never compare values of different conventions."
    )


def _formatted(key: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if key.startswith("psnr") else f"{value:.4f}"


def _markdown(table: Table) -> str:
    """A table with its heading, notes, definitions, and a part for each scale."""
    parts = [f"## {table.heading}", *table.notes]
    for group, rows in table.groups:
        part = Table(table.columns, [("", rows)])
        parts += [f"**{group}**", table_markdown(part)]
    defined = [f"- {c.name}: {c.definition}" for c in table.columns if c.definition]
    return "\n\n".join([*parts, "\n".join(defined)]) + "\n"
