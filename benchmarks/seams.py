"""The measures of seams, overlaps and checkerboards against artefacts that are planted.

    python -m benchmarks.seams -o docs/seams.png     the curves as a picture; prints the tables

Every error is made here: correlated over a voxel, of a standard deviation of 0.2, as that of a good
network on real scans. To it are added steps at the borders of the paper's patches (64x64 at a
stride of 20), noise, blur or patterns of strides. `before` is the index that this project printed
first: jumps at borders over those of all planes within 4 voxels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from distsynth.inference.stitching import Stitcher, border_planes
from distsynth.metrics.checkerboard import checkerboard
from distsynth.metrics.overlap import Overlap
from distsynth.metrics.seams import seams
from sharding.shards.patches import dense_locations

SHAPE = (152, 144, 64)
PATCH, STRIDE = (64, 64), 20
LOCATIONS = dense_locations(SHAPE, PATCH, STRIDE, (2,))
BORDERS = border_planes(LOCATIONS, SHAPE, PATCH)
ERROR = 0.2
Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Curve:
    """One experiment.

    Attributes:
        title: What is planted.
        axis: What its strength is.
        strengths: Of what is planted.
        rows: Measure -> value at each strength.
    """

    title: str
    axis: str
    strengths: Sequence[float]
    rows: dict[str, list[float]]


def index_before(error: Volume) -> float:
    """The first index: jumps at borders over those of all planes within 4 voxels."""
    found = expected = 0.0
    for axis, planes in enumerate(BORDERS):
        jumps = np.abs(np.diff(error, axis=axis)).mean(axis=tuple({0, 1, 2} - {axis}))
        own = set(planes.tolist())
        for plane in own:
            near = range(max(1, plane - 4), min(SHAPE[axis], plane + 5))
            found += jumps[plane - 1]
            expected += np.mean([jumps[p - 1] for p in near if p not in own])
    return float(found / expected)


def measures(error: Volume) -> dict[str, float]:
    """Every measure of one error."""
    (found,) = seams(error, None, BORDERS)
    return {
        "before": index_before(error),
        "index": found.index,
        "excess": found.excess,
        "checkerboard": checkerboard(error),
    }


def curve(
    title: str, axis: str, strengths: Sequence[float], planted: Callable[[float], Volume]
) -> Curve:
    """Measure what is planted at each strength."""
    found = [measures(planted(strength)) for strength in strengths]
    return Curve(title, axis, strengths, {key: [row[key] for row in found] for key in found[0]})


def windows_curve(rng: np.random.Generator, calm: Volume) -> Curve:
    """Every window has an offset of its own: what averaging hides from the seams, windows tell."""
    strengths = (0.0, 0.1, 0.2, 0.4)
    rows: dict[str, list[float]] = {}
    offsets = rng.normal(size=len(LOCATIONS))
    for strength in strengths:
        mean, square = (Stitcher(SHAPE, PATCH) for _ in range(2))
        for location, offset in zip(LOCATIONS, strength * offsets, strict=True):
            patch = torch.full((1, *PATCH), float(offset), dtype=torch.float64)
            mean.add(patch, location[None])
            square.add(patch.square(), location[None])
        weight = mean.weight.numpy()
        average = mean.total.numpy() / weight
        variance = np.maximum(square.total.numpy() / weight - average**2, 0)
        windows = Overlap(variance.astype(np.float32), (1 - 1 / weight).astype(np.float32))
        error = (calm + average).astype(np.float32)
        for key, value in (measures(error) | {"disagreement": windows.disagreement()}).items():
            rows.setdefault(key, []).append(value)
    return Curve("offset of each window", "standard deviation of the offset", strengths, rows)


def reference_curve(calm: Volume, stepped: Volume) -> Curve:
    """A pattern of period 8, with and without steps, beside a prediction without windows."""
    strengths = (0.0, 0.1, 0.2, 0.4)
    found = curve("stripes of 8", "height", strengths, lambda a: calm + stripes(8, a))
    whole = found.rows["index"]
    seen = [seams(stepped + stripes(8, a), None, BORDERS)[0].index for a in strengths]
    found.rows["over whole slices"] = [1.0] * len(whole)
    found.rows["steps, index"] = seen
    found.rows["steps, over whole slices"] = [a / b for a, b in zip(seen, whole, strict=True)]
    return found


def steps(size: float) -> Volume:
    """Up by `size` at one border, down at the next."""
    found = np.zeros(SHAPE, np.float32)
    for axis, planes in enumerate(BORDERS):
        line = size * (np.searchsorted(planes, np.arange(SHAPE[axis]), side="right") % 2)
        found += np.expand_dims(line.astype(np.float32), tuple({0, 1, 2} - {axis}))
    return found


def stripes(period: int, size: float) -> Volume:
    """Every `period`-th plane along the first axis raised by `size`."""
    line = size * (np.arange(SHAPE[0]) % period == 0)
    return np.broadcast_to(line[:, None, None].astype(np.float32), SHAPE)


def experiments() -> list[Curve]:
    """All curves."""
    rng = np.random.default_rng(0)
    calm = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)
    calm = (ERROR * calm / calm.std()).astype(np.float32)
    noise = rng.normal(size=SHAPE).astype(np.float32)
    stepped = calm + steps(0.25)

    def blurred(volume: Volume) -> Callable[[float], Volume]:
        return lambda sigma: np.asarray(ndimage.gaussian_filter(volume, sigma), np.float32)

    sizes, sigmas = (0.0, 0.03, 0.06, 0.12, 0.25), (0.0, 0.5, 1.0, 2.0)
    return [
        curve("steps at borders", "height", sizes, lambda a: calm + steps(a)),
        curve(
            "noise on steps of 0.25", "deviation", (0, 0.25, 0.5, 1), lambda a: stepped + a * noise
        ),
        curve("noise alone", "deviation", (0, 0.25, 0.5, 1), lambda a: calm + a * noise),
        curve("blur of steps of 0.25", "sigma, voxels", sigmas, blurred(stepped)),
        curve("blur alone", "sigma, voxels", sigmas, blurred(calm)),
        curve("stripes of 4", "height", (0.0, 0.05, 0.1, 0.2, 0.4), lambda a: calm + stripes(4, a)),
        curve("stripes of 2", "height", (0.0, 0.05, 0.1, 0.2, 0.4), lambda a: calm + stripes(2, a)),
        reference_curve(calm, stepped),
        windows_curve(rng, calm),
    ]


def markdown(found: Sequence[Curve]) -> str:
    """A table for each experiment."""
    parts = []
    for each in found:
        head = [f"{each.title}: {each.axis}", *(f"{strength:g}" for strength in each.strengths)]
        lines = [head, ["---"] * len(head)]
        lines += [
            [key, *(f"{value:.3g}" if value >= 10 else f"{value:.3f}" for value in values)]
            for key, values in each.rows.items()
        ]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def picture(found: Sequence[Curve]) -> Figure:
    """The curves of the indices, and on a second scale those in units of intensity."""
    colours = {"before": "#aaaaaa", "index": "#4477aa", "excess": "#228833"}
    colours |= {"checkerboard": "#aa3377", "disagreement": "#cc6633"}
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    for panel, each in zip(figure.subplots(3, 3).flat, found, strict=True):
        for key, values in each.rows.items():
            style = "--" if key in ("excess", "disagreement") else "-"
            panel.plot(each.strengths, values, style, marker=".", label=key, color=colours.get(key))
        panel.axhline(1, color="#cccccc", linewidth=0.6)
        panel.set_ylim(-0.1, 3.2)
        panel.set_title(each.title, fontsize=9)
        panel.set_xlabel(each.axis, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=6, frameon=False)
    return figure


def main() -> None:
    """Run all experiments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, help="PNG file to write the curves to")
    given = parser.parse_args()
    found = experiments()
    print(markdown(found))
    if given.out:
        picture(found).savefig(given.out, dpi=80)


if __name__ == "__main__":
    main()
