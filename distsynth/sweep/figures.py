"""Pictures of a sweep: trials as lines over all hyperparameters, and each hyperparameter alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from distsynth.sweep.leaderboard import LeaderboardRow
from distsynth.sweep.plan import SweepPlan

LOG_FACTOR = 20
"""A hyperparameter whose positive values span more than this is shown on a logarithmic axis."""
ZERO_GAP = 0.12
"""Share of a logarithmic axis that is kept free between 0 and the least positive value."""
COLOURS = "viridis"


@dataclass(frozen=True)
class Scale:
    """An axis from 0 to 1 for one hyperparameter.

    Attributes:
        places: The place of each value.
        ticks: (Place, label).
    """

    places: list[float]
    ticks: list[tuple[float, str]]


def scale_of(values: Sequence[Any]) -> Scale:
    """Where values lie on an axis: numbers linear or, over a wide span, logarithmic; others apart.

    On a logarithmic axis 0, a term that is switched off, lies by itself at the lower end.
    """
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        names = sorted({str(value) for value in values})
        step = 1 / max(len(names) - 1, 1)
        ticks = [(step * number, name) for number, name in enumerate(names)]
        places = {name: place for place, name in ticks}
        return Scale([places[str(value)] for value in values], ticks)
    positive = [value for value in values if value > 0]
    logarithmic = len(positive) > 1 and max(positive) > LOG_FACTOR * min(positive)
    if not logarithmic or min(values) < 0:
        low, high = min(values), max(values)
        span = (high - low) or 1
        ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.0, f"{low:.3g}")]
        return Scale([(value - low) / span for value in values], ticks)
    gap = ZERO_GAP if min(values) == 0 else 0.0
    low, high = math.log10(min(positive)), math.log10(max(positive))

    def place(value: float) -> float:
        return 0.0 if value == 0 else gap + (1 - gap) * (math.log10(value) - low) / (high - low)

    powers = [10.0**k for k in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    ticks = [(place(power), f"{power:g}") for power in powers]
    return Scale([place(v) for v in values], ([(0.0, "0")] if gap else []) + ticks)


def parallel_figure(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> Figure:
    """Each trial with a score as a line over its hyperparameters and score, coloured by score.

    Scores below the colours' range share the last colour. The best trial is drawn thick.

    Args:
        plan: Names the hyperparameters.
        rows: From rank_trials; those without a rank are left out. At least one has one.
    """
    names, ranked, scores = _ranked(plan, rows)
    scales = [scale_of([row.trial.hyperparameters.get(name) for row in ranked]) for name in names]
    floor = _floor(scores)
    scales.append(_score_scale(scores, floor))
    figure = Figure(figsize=(max(6.0, 1.75 * len(scales)), 3.8), layout="constrained")
    axes = figure.subplots()
    norm = Normalize(floor, scores.max())
    for number in reversed(range(len(ranked))):
        places = [scale.places[number] for scale in scales]
        colour = colormaps[COLOURS](norm(max(scores[number], floor)))
        width, strength = (2.6, 1.0) if number == 0 else (1.0, 0.75)
        axes.plot(range(len(scales)), places, color=colour, linewidth=width, alpha=strength)
    for number, scale in enumerate(scales):
        axes.axvline(number, color="#444444", linewidth=0.8)
        for place, label in scale.ticks:
            axes.text(
                number + 0.03,
                place,
                label,
                fontsize=7,
                va="center",
                parse_math=False,
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
            )
    labels = [*map(_last, names), _score_name(plan)]
    axes.set_xticks(range(len(scales)), labels, fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(scales) - 0.55))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _colour_bar(figure, norm, plan, scores)
    return figure


def hyperparameter_figure(plan: SweepPlan, rows: Sequence[LeaderboardRow]) -> Figure:
    """Each hyperparameter against the score, in a panel of its own.

    The colour of a trial is how long it trained.

    Scores far below the others lie on the lower edge as triangles.

    Args:
        plan: Names the hyperparameters.
        rows: As for parallel_figure.
    """
    names, ranked, scores = _ranked(plan, rows)
    floor = _floor(scores)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.7 * columns, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    shown = np.maximum(scores, floor)
    under = scores < floor
    epochs = np.array([row.trial.epochs for row in ranked])
    norm = Normalize(0, max(plan.base.train.epochs, epochs.max()))
    for panel, name in zip(panels, names, strict=False):
        scale = scale_of([row.trial.hyperparameters.get(name) for row in ranked])
        places = np.array(scale.places)
        for part, marker in ((under, "v"), (~under, "o")):
            panel.scatter(
                places[part],
                shown[part],
                c=epochs[part],
                cmap=COLOURS,
                norm=norm,
                s=24,
                marker=marker,
                edgecolors="#444444",
                linewidths=0.4,
            )
        panel.scatter(
            places[:1], shown[:1], s=90, facecolors="none", edgecolors="#cc3311", linewidths=1.4
        )
        panel.set_xticks([p for p, _ in scale.ticks], [label for _, label in scale.ticks])
        for label in panel.get_xticklabels():
            label.set_parse_math(False)
        panel.set_xlim(-0.06, 1.06)
        panel.set_title(_last(name), fontsize=9, parse_math=False)
        panel.tick_params(labelsize=7)
        panel.grid(color="#e5e5e5", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(_score_name(plan), fontsize=8, parse_math=False)
    for panel in panels[len(names) :]:
        panel.remove()
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=list(panels[: len(names)]), pad=0.01)
    bar.set_label("epochs trained", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _ranked(
    plan: SweepPlan, rows: Sequence[LeaderboardRow]
) -> tuple[list[str], list[LeaderboardRow], Any]:
    """Hyperparameters that some trial has; trials with a score and the scores, the best first."""
    ranked = [row for row in rows if row.rank is not None]
    if not ranked:
        raise ValueError(f"no trial of {plan.name} has a score to show")
    names = [
        name for name in plan.space if any(name in row.trial.hyperparameters for row in ranked)
    ]
    best = [row.best.score for row in ranked if row.best]
    return names, ranked, np.array(best, float)


def _floor(scores: Any) -> float:
    """The least score that is drawn to scale: the worst trials would squeeze all others."""
    low, high = float(np.quantile(scores, 0.25)), float(scores.max())
    return max(float(scores.min()), low - (high - low) or high - 1)


def _score_scale(scores: Any, floor: float) -> Scale:
    """The last axis; what lies below the floor is at its lower end."""
    span = float(scores.max()) - floor or 1.0
    below = "≤ " if scores.min() < floor else ""
    ticks = [(0.0, f"{below}{floor:.4g}"), (1.0, f"{scores.max():.4g}")]
    return Scale([(max(float(s), floor) - floor) / span for s in scores], ticks)


def _colour_bar(figure: Figure, norm: Normalize, plan: SweepPlan, scores: Any) -> None:
    extend = "min" if norm.vmin is not None and scores.min() < norm.vmin else "neither"
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=figure.axes, extend=extend, pad=0.01, aspect=30
    )
    bar.set_label(_score_name(plan), fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _score_name(plan: SweepPlan) -> str:
    penalty = plan.sweep.seam_penalty
    return f"score ({plan.sweep.objective[0]}{', less the seam penalty' if penalty else ''})"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
