"""Does an adversarial term buy anything that a reader of images would see?

    python -m benchmarks.adversarial_question COHORT OUT --seconds 300 [--shards FOLDER]

`best` is trained without a discriminator, and with the 3D PatchGAN of `gan-3d` by least squares at
several weights, each for the same processor seconds in one thread; the discriminator's updates
count, so that a contestant with one takes fewer steps. PSNR, SSIM, the gradient magnitude
similarity deviation and sharpness are measured on whole volumes, in the mask, on the target's
percentile scale. OUT/results keeps a file and OUT/slices the pictured slices of each training: what
is there is not trained again. The tables and OUT/crops.png are made anew each time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

import distsynth
from benchmarks.gradient_similarity import (
    gradient_magnitude,
    gradient_similarity_deviation,
    relative_sharpness,
)
from benchmarks.processor_time import commit, train_for
from distsynth.config import RunConfig, with_overrides
from distsynth.evaluation.pairs import prepared_pairs
from distsynth.inference.predictor import Predictor
from distsynth.metrics.image import central_slice, volume_metrics
from distsynth.metrics.statistics import bootstrap_interval
from distsynth.presets import ADVERSARIAL, BLOCKS, PATCHGAN_3D, preset
from sharding.io.atomic import atomic_path, atomic_write
from sharding.io.figures import bare_panel, figure_png
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.pair import Pair

PRESET = "best"
REFERENCE = "without"
WEIGHTS: dict[str, float] = {REFERENCE: 0.0, "weight-0.01": 0.01, "weight-0.1": 0.1}
"""Contestant -> weight of the adversarial term beside 1 of L1."""
SHOWN = 3
"""People in the picture."""
SIDE = 72
"""Of a crop, in voxels."""
AXIS = 2
MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "gmsd": ("GMSD (0 is best)", 4),
    "sharpness": ("sharpness (1 = the target's)", 3),
}
Slice = NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """One training.

    Attributes:
        name: Key of WEIGHTS.
        seconds: Processor time.
        seed: Of weights and patches.
        cohort: Path of the cohort.
        shards: Folder of shards cut for `best`; made if it is not there.
        split: Whose scans to evaluate on.
        out: Folder of the results.
    """

    name: str
    seconds: float
    seed: int
    cohort: Path
    shards: Path
    split: str
    out: Path

    @property
    def result(self) -> Path:
        """The file that says what came of it."""
        return self.out / "results" / f"{self.name}-{self.seed}.json"

    @property
    def slices(self) -> Path:
        """The pictured slice of each person."""
        return self.out / "slices" / f"{self.name}-{self.seed}.npz"


def contestant(weight: float) -> RunConfig:
    """`best` with an adversarial term of this weight; 0 has no discriminator."""
    config = preset(PRESET)
    if not weight:
        return config
    return with_overrides(
        config,
        {
            "discriminator.family": "patchgan",
            "discriminator.channels": list(PATCHGAN_3D.channels),
            "discriminator.conditional": PATCHGAN_3D.conditional,
            "discriminator.norm": PATCHGAN_3D.norm,
            **ADVERSARIAL["least-squares"],
            "loss.lambda_bce": weight,
            "optim.lr_discriminator": 2e-4,
        },
    )


def perform(work: Work) -> None:
    """Train, evaluate, keep what came of it."""
    torch.set_num_threads(1)
    specimens = read_cohort(work.cohort)
    shards = distsynth.shard(specimens, work.shards, BLOCKS[PRESET])
    run = work.out / "runs" / f"{work.name}-{work.seed}"
    config = contestant(WEIGHTS[work.name])
    predictor, numbers = train_for(config, str(shards.folder.url), run, work.seconds, work.seed)
    found = {"name": work.name, "seed": work.seed, "seconds": work.seconds, "split": work.split}
    people, slices = _evaluate(predictor, specimens, work.split)
    with atomic_path(work.slices, ".npz") as partial:
        np.savez(partial, **slices)  # type: ignore[arg-type]
    found |= {"weight": WEIGHTS[work.name], "commit": commit(), **numbers, "people": people}
    atomic_write(_parent(work.result), json.dumps(found, indent=1) + "\n")


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _evaluate(
    predictor: Predictor, specimens: Sequence[Specimen], split: str
) -> tuple[dict[str, dict[str, float]], dict[str, Slice]]:
    """Person -> measure; and `person/source`, `person/target`, `person/synthetic` -> slice."""
    data = predictor.checkpoint.data
    chosen = [row for row in specimens if data.split_of(row.name) == split]
    people: dict[str, dict[str, float]] = {}
    slices: dict[str, Slice] = {}
    for pair in prepared_pairs(chosen, data):
        synthetic = pair.measured(predictor(pair.source, quiet=True))
        people[pair.name] = measures(synthetic, pair)
        if len(people) <= SHOWN:
            transform = pair.measured_transform
            index = central_slice(pair.mask, AXIS)
            volumes = {
                "source": pair.source_scaled,
                "target": transform.unstandardise(pair.measured_target),
                "synthetic": transform.unstandardise(synthetic),
            }
            for name, volume in volumes.items():
                slices[f"{pair.name}/{name}"] = np.take(volume, index, AXIS).astype(np.float32)
    return people, slices


def measures(synthetic: NDArray[np.float32], pair: Pair) -> dict[str, float]:
    """Key of MEASURES -> value in the mask.

    Args:
        synthetic: On the scale of `pair.measured_target`.
        pair: What it is compared with.
    """
    target, transform = pair.measured_target, pair.measured_transform
    image = volume_metrics(synthetic, target, transform, pair.mask)
    scaled = transform.unstandardise(synthetic), transform.unstandardise(target)
    return {
        "psnr": image["psnr_mask"],
        "ssim": image["ssim_mask"],
        "gmsd": gradient_similarity_deviation(*scaled, pair.mask),
        "sharpness": relative_sharpness(*scaled, pair.mask),
    }


def table(out: Path) -> str:
    """What there is, as Markdown: means over people, and paired differences from `without`."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        found = json.loads(path.read_text())
        by_name.setdefault(found["name"], []).append(found)
    titles = [title for title, _ in MEASURES.values()]
    heads = ["contestant", "weight", "seeds", "seconds", "steps", *titles]
    heads += [f"{title}, from {REFERENCE} (95 %)" for title in titles]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in (known for known in WEIGHTS if known in by_name):
        files = by_name[name]
        cells = [name, f"{files[0]['weight']:g}", str(len(files))]
        cells += [f"{np.mean([one[key] for one in files]):.0f}" for key in ("spent", "steps")]
        cells += [f"{_of_people(files, key).mean():.{MEASURES[key][1]}f}" for key in MEASURES]
        for key in MEASURES:
            cells.append(_difference(files, by_name.get(REFERENCE), key))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(
    files: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]] | None, key: str
) -> str:
    if reference is None or files is reference:
        return "-"
    values = _of_people(files, key) - _of_people(reference, key)
    digits = MEASURES[key][1]
    low, high = bootstrap_interval(values)
    interval = f" ({low:+.{digits}f} to {high:+.{digits}f})" if len(values) > 1 else ""
    return f"{values.mean():+.{digits}f}{interval}"


def _of_people(files: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """Of each person, by name, mean over seeds."""
    names = sorted(files[0]["people"])
    return np.mean([[one["people"][name][key] for name in names] for one in files], axis=0)


def write_crops(works: Sequence[Work], path: Path) -> None:
    """A row for each person: source, target, each contestant, and each one's difference.

    The crop is where the target's mean gradient is largest, which is chosen without looking at any
    prediction. Grey is [0, 1] of the target's percentiles; differences go from -0.3 to 0.3.
    """
    there = {work.name: dict(np.load(work.slices)) for work in works if work.slices.exists()}
    first = next(iter(there.values()))
    people = sorted({key.partition("/")[0] for key in first})
    titles = ["source", "target", *there, *(f"{name} - target" for name in there)]
    figure = Figure((2.1 * len(titles), 2.2 * len(people)), layout="constrained")
    panels = figure.subplots(len(people), len(titles), squeeze=False)
    for person, line in zip(people, panels, strict=True):
        target = first[f"{person}/target"]
        where = busiest(target)
        made = [slices[f"{person}/synthetic"] for slices in there.values()]
        grey = [first[f"{person}/source"], target, *made]
        images = [(image, "gray", 0, 1) for image in grey]
        images += [(image - target, "RdBu_r", -0.3, 0.3) for image in made]
        for panel, (image, colours, low, high) in zip(line, images, strict=True):
            shown = image[where].T
            panel.imshow(shown, colours, vmin=low, vmax=high, origin="lower")
            bare_panel(panel)
        line[0].set_ylabel(person, fontsize=8)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    atomic_write(path, figure_png(figure))


def busiest(target: Slice) -> tuple[slice, slice]:
    """The square of a slice in which the mean gradient is largest; all of a shorter side."""
    edges = gradient_magnitude(target[:, :, None], dims=2)[:, :, 0]
    sides = [min(SIDE, side) for side in target.shape]
    mean = uniform_filter(edges, sides, mode="constant")  # type: ignore
    # Only squares that lie within the slice: by their centres.
    rows, columns = (
        slice(side // 2, full - (side - 1) // 2)
        for side, full in zip(sides, edges.shape, strict=True)
    )
    within = mean[rows, columns]
    row, column = (int(low) for low in np.unravel_index(within.argmax(), within.shape))
    return slice(row, row + sides[0]), slice(column, column + sides[1])


def main() -> None:
    """Perform what is not there yet, each training in a process of its own; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=Path, help="Cut for `best`; OUT/shards unless given.")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--only", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    given = parser.parse_args()
    shards = given.shards or given.out / "shards"
    works = [
        Work(name, given.seconds, seed, given.cohort, shards, given.split, given.out)
        for seed in range(given.seeds)
        for name in given.only
    ]
    context = multiprocessing.get_context("spawn")
    for work in works:
        if not work.result.exists():
            process = context.Process(target=perform, args=(work,))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{work.name}, seed {work.seed}, ended with {process.exitcode}")
        print(work.result, flush=True)
    print(table(given.out))
    write_crops([work for work in works if work.seed == 0], given.out / "crops.png")


if __name__ == "__main__":
    main()
