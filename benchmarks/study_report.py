"""What the study found, as Markdown: every row, then each question with intervals and tests.

    python -m benchmarks.study_report [OUT] [--records FILE]

OUT is what benchmarks/study.sh wrote; parts that are not there yet are left out. Rows of the
records, which another machine may have written, stand beside them, and OUT's are added to FILE.
Every row was evaluated on the same ten people, so rows of different parts are compared person by
person. p is the paired sign-flip test's, corrected by Holm's method over all tests of a section.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study_records import Row, Sections, joined, read_records, write_records
from distsynth.metrics.results import format_value, results_table
from distsynth.metrics.statistics import Difference, differences_between, seed_mean
from distsynth.metrics.steps import marked
from distsynth.reproduction.collect import comparison_of, seams_of
from distsynth.reproduction.task import read_task
from distsynth.sweep.folder import SweepFolder

TITLES = {
    "rows": "Rows",
    "seams": "(b) Seams by the way of stitching",
    "varied": "Contrast, blur and bias that differ by person",
}
"""Section of the study -> its heading."""
SHOWN = ("psnr_mask", "ssim_mask", "seam_index", "seam_index_outside", "checkerboard")
HEADINGS = ("PSNR, mask", "SSIM 3D, mask", "seam", "seam outside", "checkerboard")
IMAGE = ("psnr_mask", "ssim_mask")
SEAMS = ("seam_index", "seam_index_outside")


@dataclass(frozen=True)
class Question:
    """Pairs of rows, each compared in some metrics."""

    title: str
    pairs: Sequence[tuple[str, str]]
    metrics: Sequence[str] = field(default=IMAGE)


QUESTIONS = (
    Question(
        "(a) The adversarial term on and off, same generator",
        (("dcgan-2", "dcgan-2-alone"), ("unet-7", "unet-7-alone"), ("small", "small-alone")),
    ),
    Question(
        "(b) Form of the gradient term and sharpening kernel: seams",
        (
            *(
                (f"{model}{form}", f"{model}-no-gradient")
                for model in ("unet-5", "unet-6")
                for form in ("", "-absolute", "-margin")
            ),
            ("unet-5-absolute", "unet-5"),
            ("unet-5-margin", "unet-5"),
            ("unet-6", "unet-5"),
            ("unet-6-no-gradient", "unet-5-no-gradient"),
        ),
        SEAMS,
    ),
    Question(
        "(b) The same: images",
        (
            ("unet-5", "unet-5-no-gradient"),
            ("unet-6", "unet-6-no-gradient"),
            ("unet-6", "unet-5"),
            ("dcgan-4", "dcgan-3"),
        ),
    ),
    Question(
        "(c) L1 against L2, and GAN against CNN",
        (
            ("dcsrn-l1", "dcsrn-l2"),
            ("pix2pix-9", "pix2pix-10"),
            ("unet-7", "dcsrn-l1"),
            ("dcgan-2", "dcsrn-l1"),
        ),
    ),
    Question(
        "(d) Slices, five slices in, and blocks, at equal processor time",
        (("2.5D", "2D"), ("3D", "2D"), ("3D-narrow", "2D"), ("3D-narrow", "2.5D")),
    ),
    Question(
        "(e) Adversarial losses at equal processor time",
        tuple((name, "none") for name in ("bce", "least-squares", "hinge", "wasserstein"))
        + tuple((name, "bce") for name in ("least-squares", "hinge", "wasserstein")),
    ),
    Question(
        "(f) Weights found by a search against Table 1's by hand",
        tuple(("lambdas", name) for name in ("unet-5", "unet-7", "unet-8", "unet-7-alone")),
    ),
    Question(
        "Every trained row against what is fitted in a minute",
        tuple(
            (name, "neighbourhood-regression")
            for name in (
                "small",
                "small-alone",
                "unet-7",
                "dcsrn-l1",
                "dcgan-2",
                "rfsr",
                "3D",
                "lambdas",
            )
        ),
    ),
)


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--records", type=Path, help="file of rows, read if it is there")
    given = parser.parse_args()
    if not (given.out or given.records):
        parser.error("give OUT, --records, or both")
    sections = sections_of(given.out) if given.out else {}
    if given.records:
        if given.records.is_file():
            sections = joined(sections, read_records(given.records))
        if given.out:
            write_records(given.records, sections, SHOWN)
    if not any(sections.values()):
        raise SystemExit(
            f"{given.out or given.records}: nothing was evaluated yet; run benchmarks/study.sh"
        )
    print("\n".join(report(sections)))


def sections_of(out: Path) -> dict[str, dict[str, Row]]:
    """Section -> row -> what came of it, of the parts that are there."""
    rows = reproduced(out / "rows")
    rows |= equal_time(out / "dimensions") | equal_time(out / "adversarial")
    rows |= searched(out / "sweeps" / "lambdas")
    varied = reproduced(out / "varied-rows") | searched(out / "sweeps" / "lambdas-varied")
    return {"rows": rows, "seams": seam_rows(out / "rows"), "varied": varied}


def report(sections: Sections) -> Iterable[str]:
    """The lines of the report."""
    for section, title in TITLES.items():
        rows = sections.get(section)
        if not rows:
            continue
        yield f"\n## {title}\n"
        yield from table(rows)
        for question in QUESTIONS if section != "seams" else ():
            yield from answers(question, rows)


def reproduced(folder: Path) -> dict[str, Row]:
    """Rows of a reproduction that were evaluated."""
    if not (folder / "reproduction.json").is_file():
        return {}
    sweep = SweepFolder(str(folder))
    compared = comparison_of(sweep, read_task(sweep.folder))
    return {
        row.name: Row(row.results, row.seeds, row.steps)
        for row in compared.rows
        if row.results is not None
    }


def seam_rows(folder: Path) -> dict[str, Row]:
    """Each seam row under each way of stitching."""
    if not (folder / "reproduction.json").is_file():
        return {}
    sweep = SweepFolder(str(folder))
    compared = seams_of(sweep, read_task(sweep.folder))
    return (
        {row.name: Row(row.results, steps=row.steps) for row in compared.rows if row.results}
        if compared
        else {}
    )


def equal_time(folder: Path) -> dict[str, Row]:
    """What each contestant of an equal-time part came to, over its seeds."""
    found = defaultdict(list)
    for path in sorted((folder / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["name"]].append(record)
    return {
        name: Row(
            seed_mean([record["results"] for record in records]).results,
            len(records),
            min(record["steps"] for record in records),
            sum(record["processor_seconds"] for record in records) / len(records),
        )
        for name, records in found.items()
    }


def searched(folder: Path) -> dict[str, Row]:
    """The best trial of the search as it was evaluated, once."""
    path = folder / "evaluation" / "results.json"
    if not path.is_file():
        return {}
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
    trained = {name: part for name, part in methods.items() if "steps" in part}
    first = next(iter(trained.values()))
    values = {
        specimen: {key: math.nan if value is None else value for key, value in row.items()}
        for specimen, row in first["specimens"].items()
    }
    return {"lambdas": Row(values, 1, first["steps"])}


def table(rows: Mapping[str, Row]) -> Iterable[str]:
    """Means and intervals over people."""
    summary = results_table({name: row.results for name, row in rows.items()}).summary
    yield f"| row | seeds | steps | processor s | {' | '.join(HEADINGS)} |"
    yield "|---|" + "---|" * (3 + len(HEADINGS))
    for name, row in rows.items():
        cells = []
        for key in SHOWN:
            interval = summary[name].get(key)
            if interval is None or math.isnan(interval.mean):
                cells.append("-")
                continue
            low, high = format_value(key, interval.low), format_value(key, interval.high)
            cells.append(f"{format_value(key, interval.mean)} ({low} to {high})")
        steps = "-" if row.steps is None else f"{row.steps:,}"
        seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
        title = marked(name, row.steps)
        yield f"| {title} | {row.seeds} | {steps} | {seconds} | {' | '.join(cells)} |"


def answers(question: Question, rows: Mapping[str, Row]) -> Iterable[str]:
    """A question's table of differences; nothing if none of its pairs is there."""
    pairs = [
        (first, second, metric)
        for first, second in question.pairs
        for metric in question.metrics
        if first in rows and second in rows
    ]
    if not pairs:
        return
    results = {name: row.results for name, row in rows.items()}
    yield f"\n### {question.title}\n"
    yield "| first | second | metric | first - second (95 %) | p | p, Holm |"
    yield "|---|---|---|---|---|---|"
    for row in differences_between(results, pairs):
        yield (
            f"| {marked(row.method, rows[row.method].steps)} "
            f"| {marked(row.reference, rows[row.reference].steps)} | {row.metric} "
            f"| {_numbers(row)} |"
        )


def _numbers(row: Difference) -> str:
    if math.isnan(row.mean):
        return f"{row.note} | - | -"
    decimals = 2 if row.metric.startswith("psnr") else 4
    mean, low, high = (f"{value:+.{decimals}f}" for value in (row.mean, row.low, row.high))
    return f"{mean} ({low} to {high}) | {row.p:.3g} | {row.p_corrected:.3g}"


if __name__ == "__main__":
    main()
