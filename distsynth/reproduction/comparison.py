"""The paper's comparison as statistics: rows, means, and tests of their differences.

comparison_tables.py shows it, comparison_files.py keeps every number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import LEVEL, ResultsTable, results_table
from distsynth.metrics.statistics import (
    Difference,
    best_method,
    differences_between,
    paired_differences,
    seed_mean,
)
from distsynth.metrics.steps import marked
from distsynth.reproduction.paper_values import PAPER_VALUES

CNN, GAN, FOREST = "CNN (Table 2)", "GAN (Table 3)", "random forest"
BASELINE, CONTROL = "baseline", "control"
ROW_GROUPS = (CNN, GAN, FOREST, BASELINE, CONTROL)
"""Groups in the order of the table."""

PAPER_METRICS = ("psnr255_whole", "mse_whole", "ssim_global_whole")
"""The paper's columns, over the whole volume as it evaluates whole stitched images."""
LITERAL = "ssim_literal_whole"
"""Eq. 8 as it is printed, beside the form that is meant."""

HONEST_METRICS = ("psnr_mask", "ssim_mask", "consistency_error")
"""What tells more (ours): tissue alone, the target's own range, structure, the source."""

SEAM_METRICS = (
    *("seam_index", "seam_index_outside", "seam_excess", "seam_excess_outside"),
    *("seam_index_relative", "overlap_disagreement", "checkerboard"),
)
"""What patches and strides leave (ours)."""

TESTED_METRICS = ("psnr_mask", "ssim_mask")
"""Metrics in which every row is tested against the best."""


@dataclass(frozen=True)
class ComparedRow:
    """A method of the comparison, evaluated or not.

    Attributes:
        name: Unique; a name of PAPER_VALUES has the paper's own values beside it.
        group: One of ROW_GROUPS, or any other: those follow.
        parameters: Trainable, of the generator alone; None for what has none.
        trained: The budget in words: "12 of 30 epochs, 100 patches a specimen".
        seconds: That training took; None if unknown or not trained.
        reason: Why it was not run; None if it was.
        results: Specimen -> key of METRICS -> value; None if it was not run.
        seeds: How many runs the results are the mean of.
        spread: Metric -> standard deviation over seeds of the mean over specimens.
        steps: Optimiser steps of the run, of several seeds the fewest; None for what takes none.

    Raises:
        ValueError: Unless there are either results or a reason for having none.
    """

    name: str
    group: str
    parameters: int | None
    trained: str
    seconds: float | None = None
    reason: str | None = None
    results: Mapping[str, Mapping[str, float]] | None = None
    seeds: int = 1
    spread: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None

    @property
    def title(self) -> str:
        """The name, marked if the row is of an untrained network."""
        return marked(self.name, self.steps)

    @property
    def training(self) -> str:
        """The budget and the steps, in words."""
        return self.trained if self.steps is None else f"{self.trained}, {self.steps:,} steps"

    def __post_init__(self) -> None:
        if (self.reason is None) == (self.results is None):
            raise ValueError(f"{self.name} needs either results or a reason for having none")
        if self.reason is not None and (self.seconds is not None or self.spread):
            raise ValueError(f"{self.name} was not run and can have neither seconds nor spread")
        if self.seeds < 1:
            raise ValueError(f"{self.name} needs seeds >= 1, got {self.seeds}")


@dataclass(frozen=True)
class Comparison:
    """Evaluated rows; see compare.

    Attributes:
        rows: All, by group.
        table: Means, intervals and best of the rows that were run; None if none was.
        differences: Each of TESTED_METRICS -> method -> its difference to the best method.
        references: Metric -> that method.
        controls: Differences between named rows.
        pairs: (First, second, metric) of the controls, those without results too.
        seed: The seed of bootstrap and tests.
    """

    rows: tuple[ComparedRow, ...]
    table: ResultsTable | None
    differences: dict[str, dict[str, Difference]]
    references: dict[str, str]
    controls: tuple[Difference, ...]
    pairs: tuple[tuple[str, str, str], ...]
    seed: int

    @property
    def run(self) -> list[ComparedRow]:
        """Rows with results."""
        return [row for row in self.rows if row.results is not None]

    @property
    def not_run(self) -> list[ComparedRow]:
        """Rows with a reason instead."""
        return [row for row in self.rows if row.results is None]


def compare(
    rows: Sequence[ComparedRow], controls: Sequence[tuple[str, str, str]] = (), seed: int = 0
) -> Comparison:
    """Means with intervals, differences to the best rows, and controls.

    Args:
        rows: In any order; those with results must have been evaluated on the same specimens.
        controls: (First, second, metric): first minus second answers a question by itself, such
            as a U-Net with and without its discriminator. Corrected for together.
        seed: The seed of bootstrap and tests.

    Raises:
        ValueError: If two rows have one name, a control names no row or no metric, or specimens
            or metrics do not fit.
    """
    names = [row.name for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"rows must have names of their own, got {min(twice)} twice")
    for first, second, metric in controls:
        if unknown := [name for name in (first, second) if name not in names]:
            raise ValueError(f"a control must be between rows, got {unknown[0]}")
        if metric not in METRICS:
            raise ValueError(f"a control's metric must be a key of METRICS, got {metric}")
    groups = dict.fromkeys((*ROW_GROUPS, *(row.group for row in rows)))
    ordered = tuple(row for group in groups for row in rows if row.group == group)
    results = {row.name: row.results for row in ordered if row.results is not None}
    table = results_table(results) if results else None
    best = {metric: best_method(results, metric) for metric in TESTED_METRICS}
    references = {metric: name for metric, name in best.items() if name is not None}
    differences = {
        metric: {row.method: row for row in paired_differences(results, metric, name, seed, LEVEL)}
        for metric, name in references.items()
    }
    known = [pair for pair in controls if pair[0] in results and pair[1] in results]
    return Comparison(
        rows=ordered,
        table=table,
        differences=differences,
        references=references,
        controls=tuple(differences_between(results, known, seed, LEVEL)),
        pairs=tuple(controls),
        seed=seed,
    )


def with_seeds(row: ComparedRow, runs: Sequence[Mapping[str, Mapping[str, float]]]) -> ComparedRow:
    """The row with the mean over seeds as its results: see statistics.seed_mean."""
    averaged = seed_mean(runs)
    return replace(
        row, results=averaged.results, spread=averaged.spread, seeds=averaged.seeds, reason=None
    )


def answers(
    comparison: Comparison,
) -> list[tuple[tuple[str, str, str], Difference | None, str]]:
    """Each control, its difference if both rows were run, and what there is to note."""
    reasons = {row.name: row.reason for row in comparison.not_run}
    found = iter(comparison.controls)
    answers = []
    for pair in comparison.pairs:
        missing = [name for name in pair[:2] if name in reasons]
        difference = None if missing else next(found)
        note = f"not run: {', '.join(missing)}" if difference is None else difference.note
        answers.append((pair, difference, note))
    return answers


def paper_value(row: ComparedRow, metric: str) -> float | None:
    """The paper's own value of a row."""
    return PAPER_VALUES[row.name].value(metric) if row.name in PAPER_VALUES else None
