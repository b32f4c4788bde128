"""What a race found: its table, its curves against seconds, and the time to reach a quality.

All of it is read from the files of OUT/results, so that it can be printed again at any time.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import race_konfai
from benchmarks.race_peers import PLAIN
from distsynth.metrics.statistics import bootstrap_interval
from sharding.io.atomic import atomic_write
from sharding.io.figures import figure_png

FITTED = "baselines"
"""The entry of everything that is fitted and not trained."""
REGRESSION = "neighbourhood-regression"
QUALITY = 27.0
"""In dB; the time to reach it is reported beside that of the regression."""
HOME, AWAY = "same scanner", "other scanner"
METRICS = ("psnr_mask", "ssim_mask")
TITLES = {"psnr_mask": "PSNR in the mask (dB)", "ssim_mask": "SSIM in the mask"}
DIGITS = {"psnr_mask": 2, "ssim_mask": 3}
COLOURS = ("#4477aa", "#cc6633", "#228833", "#aa3377", "#ccaa00", "#55aacc", "#777777", "#222222")

People = dict[str, float]
"""Person -> value, mean over seeds."""


@dataclass(frozen=True)
class Row:
    """One method at one budget, over its seeds.

    Attributes:
        name: Of the method.
        entry: Of the race; several baselines share one.
        seconds: The budget.
        files: Contents of the files of its seeds.
    """

    name: str
    entry: str
    seconds: float
    files: tuple[Mapping[str, Any], ...]

    @property
    def kind(self) -> str:
        """`baseline`, `peer` or `ours`."""
        if self.entry == FITTED:
            return "baseline"
        return "peer" if self.entry in (*PLAIN, race_konfai.NAME) else "ours"

    @property
    def spent(self) -> float:
        """Processor seconds that it took, mean over seeds."""
        return float(np.mean([found["spent"] for found in self.files]))

    def people(self, metric: str, place: str = HOME) -> People:
        """Each person's value; empty where the row was not evaluated at that place."""
        found = [file["results"].get(place, {}).get(self.name) for file in self.files]
        if not all(found):
            return {}
        return {
            person: float(np.mean([by_person[person][metric] for by_person in found]))
            for person in found[0]
        }

    def mean(self, metric: str, place: str = HOME) -> float:
        """Mean over people; NaN where there are none."""
        values = list(self.people(metric, place).values())
        return float(np.mean(values)) if values else math.nan


def read_rows(out: Path, split: str) -> list[Row]:
    """Every method at every budget, by budget and name."""
    files: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
    for path in sorted((out / "results" / split).glob("*.json")):
        found = json.loads(path.read_text())
        for name in found["results"][HOME]:
            files.setdefault((found["seconds"], name, found["entry"]), []).append(found)
    return [
        Row(name, entry, seconds, tuple(found))
        for (seconds, name, entry), found in sorted(files.items(), key=lambda item: item[0])
    ]


def rivals(rows: Sequence[Row], row: Row) -> list[Row]:
    """Every baseline, whose fit has no budget, and every peer at the row's own budget."""
    baselines = {other.name: other for other in rows if other.kind == "baseline"}
    peers = [other for other in rows if other.kind == "peer" and other.seconds == row.seconds]
    return [*baselines.values(), *peers]


def better_for(rows: Sequence[Row], row: Row, metric: str, place: str = HOME) -> str:
    """For how many people a row is above every rival: `5 of 6`."""
    own = row.people(metric, place)
    others = [other.people(metric, place) for other in rivals(rows, row)]
    others = [people for people in others if people]
    if not own or not others:
        return "-"
    won = sum(all(value > people[person] for people in others) for person, value in own.items())
    return f"{won} of {len(own)}"


def paired(row: Row, reference: Row | None, metric: str) -> str:
    """The mean difference from a reference over people, with its 95 % interval."""
    if reference is None or reference.name == row.name:
        return "-"
    own, other = row.people(metric), reference.people(metric)
    values = np.array([own[person] - other[person] for person in own])
    low, high = bootstrap_interval(values)
    digits = DIGITS[metric]
    return f"{values.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def seconds_to_reach(points: Sequence[tuple[float, float]], quality: float) -> str:
    """When a curve first reaches a quality, along lines in the logarithm of time.

    Args:
        points: (processor seconds, quality), one for each budget, in any order.
        quality: What to reach.

    Returns:
        Seconds; `<= S` if the shortest budget S reaches it, `> S` if the longest does not.
    """
    points = sorted(points)
    if points[0][1] >= quality:
        return f"<= {points[0][0]:.0f}"
    for (before, low), (after, high) in itertools.pairwise(points):
        if low < quality <= high:
            share = (quality - low) / (high - low)
            return f"{math.exp(math.log(before) + share * math.log(after / before)):.0f}"
    return f"> {points[-1][0]:.0f}"


def curves(rows: Sequence[Row], metric: str, place: str) -> dict[str, list[tuple[float, float]]]:
    """Trained method -> (budget in seconds, mean over people), in order of time."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = row.mean(metric, place)
        if row.kind != "baseline" and math.isfinite(value):
            found.setdefault(row.name, []).append((row.seconds, value))
    return {name: sorted(points) for name, points in found.items()}


def table(rows: Sequence[Row], reference: str) -> str:
    """The rows as Markdown; differences are from `reference` at the same budget."""
    references = {row.seconds: row for row in rows if row.name == reference}
    lines = [
        "| seconds | row | spent | steps | same scanner: dB, SSIM | other scanner: dB, SSIM "
        f"| dB from {reference}, paired (95 %) | SSIM from {reference}, paired (95 %) "
        "| people above every baseline and peer: dB; SSIM | the same, other scanner |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        against = references.get(row.seconds)
        cells = [
            f"{row.seconds:g}",
            row.name,
            f"{row.spent:.0f}",
            str(row.files[0].get("steps") or "-"),
            *(quality_cell(row, place) for place in (HOME, AWAY)),
            *(paired(row, against, metric) for metric in METRICS),
            *(_above(rows, row, place) for place in (HOME, AWAY)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _above(rows: Sequence[Row], row: Row, place: str) -> str:
    if row.kind != "ours":
        return "-"
    return "; ".join(better_for(rows, row, metric, place) for metric in METRICS)


def quality_cell(row: Row, place: str) -> str:
    """PSNR and SSIM at a place, means over people; `-` where there are none."""
    if not row.people(METRICS[0], place):
        return "-"
    return ", ".join(f"{row.mean(metric, place):.{DIGITS[metric]}f}" for metric in METRICS)


def times_table(rows: Sequence[Row]) -> str:
    """How long each trained method takes to reach the regression and `QUALITY`, as Markdown."""
    regression = next((row for row in rows if row.name == REGRESSION), None)
    goals = [(f"{QUALITY:g} dB", QUALITY)]
    if regression:
        level = regression.mean("psnr_mask")
        goals.insert(0, (f"the regression, {level:.2f} dB", level))
    lines = [
        f"| seconds to reach, same scanner | {' | '.join(name for name, _ in goals)} |",
        "|---" * (1 + len(goals)) + "|",
    ]
    for name, points in curves(rows, "psnr_mask", HOME).items():
        found = [seconds_to_reach(points, quality) for _, quality in goals]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines)


def write_figure(rows: Sequence[Row], path: Path) -> None:
    """PSNR and SSIM against seconds, a column for each scanner, as a PNG file."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    places = [
        place for place in (HOME, AWAY) if any(row.people("psnr_mask", place) for row in rows)
    ]
    panels = figure.subplots(len(METRICS), len(places), squeeze=False, sharex=True)
    names = sorted({row.name for row in rows if row.kind != "baseline"})
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    for line, metric in zip(panels, METRICS, strict=True):
        for panel, place in zip(line, places, strict=True):
            _draw(panel, rows, metric, place, colours)
    for panel, place in zip(panels[0], places, strict=True):
        people = len(next(row.people("psnr_mask", place) for row in rows))
        panel.set_title(f"{place}, mean of {people} people", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("processor seconds of training, one thread")
    for line, metric in zip(panels, METRICS, strict=True):
        line[0].set_ylabel(TITLES[metric])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    atomic_write(path, figure_png(figure))


def _draw(
    panel: Axes, rows: Sequence[Row], metric: str, place: str, colours: Mapping[str, str]
) -> None:
    ours = {row.name for row in rows if row.kind == "ours"}
    for name, points in curves(rows, metric, place).items():
        seconds, values = zip(*points, strict=True)
        style = "-" if name in ours else ":"
        panel.plot(
            seconds, values, style, marker="o", markersize=4, color=colours[name], label=name
        )
    baselines = {row.name: row for row in rows if row.kind == "baseline"}
    # The scan itself and its interpolation lie far below all else.
    for name in ("intensity-map", REGRESSION):
        if name in baselines and baselines[name].people(metric, place):
            grey = "#999999" if name == REGRESSION else "#cccccc"
            level = baselines[name].mean(metric, place)
            panel.axhline(level, color=grey, linestyle="--", linewidth=1, zorder=0, label=name)
    panel.set_xscale("log")
    ticks = sorted({row.seconds for row in rows if row.kind != "baseline"})
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.grid(color="#eeeeee", linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
