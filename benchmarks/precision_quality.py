"""What bf16 costs in quality: every preset trained in both precisions on the same scans.

    python -m benchmarks.precision_quality COHORT OUT [--seconds 40] [--presets NAME ...]
    python -m benchmarks.precision_quality COHORT OUT --table

COHORT has sources and splits (`distsynth simulate` makes the sources). Each preset takes, from one
seed, as many steps in float32 as fit into so many processor seconds of this machine, in four short
epochs or more, and the same steps in bf16, with four validations. The time to the same quality is
what either takes to the lower of the two best validation scores, along straight lines between
validations; it counts steps at their processor time alone. Then the last weights predict the first
test specimens along one axis, in the precision that they were trained in. One thread. OUT/results
keeps one file a preset: what is there is not run again. Presets that need the weights of VGG16,
which are not shipped, are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import distsynth
from benchmarks.precision import step_times
from benchmarks.whole_table import of_patches
from distsynth.config import with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.precision import PredictedIn
from distsynth.inference.predictor import load_predictor
from distsynth.presets import BLOCKS, PAPER_PATCH, PRESETS, preset
from distsynth.training.report import EpochReport
from sharding.io.atomic import atomic_write
from sharding.shards.config import ShardConfig
from sharding.volumes.cohort import Specimen, read_cohort

PRECISIONS: tuple[PredictedIn, ...] = ("no", "bf16")
VALIDATIONS = 4
BATCH = 8
"""Patches of two dimensions a step; blocks take the batch of their preset, at most this."""
PATCHES = 16
"""Training patches a specimen, so that an epoch is short against a quarter of a training."""
HEAD = (
    "| preset | steps | ms a step: float32, bf16 | ratio | validation PSNR: float32, bf16 "
    "| s to the lower of these: float32, bf16 | ratio | test PSNR: float32, bf16 | test SSIM |"
)


def trainable() -> list[str]:
    """Presets that need no file which is not shipped and fit a processor."""
    return [
        name for name in PRESETS if not preset(name).loss.lambda_perceptual and name != "best-gpu"
    ]


def cut_for(name: str) -> ShardConfig:
    """What a preset is trained on here."""
    cut = BLOCKS.get(name) or ShardConfig(patch_size=PAPER_PATCH, val_slices=4)
    return replace(cut, patches_per_specimen=PATCHES)


def shards_for(name: str, specimens: Sequence[Specimen], out: Path) -> distsynth.ShardSet:
    """The shards of a preset; those that are cut alike share them."""
    cut = cut_for(name)
    folder = "-".join(map(str, (*cut.patch_size, cut.preprocess.intensities)))
    return distsynth.shard(specimens, out / "shards" / folder, cut)


def epochs_for(seconds: float, milliseconds: float, epoch_steps: int) -> int:
    """Epochs that fit into the seconds, a multiple of the validations and no fewer."""
    epochs = int(1e3 * seconds / milliseconds) // epoch_steps
    return max(1, epochs // VALIDATIONS) * VALIDATIONS


def perform(name: str, cohort: Path, out: Path, seconds: float, people: int) -> dict[str, Any]:
    """Train a preset in both precisions and evaluate what came of it."""
    specimens = read_cohort(cohort)
    shards = shards_for(name, specimens, out)
    batch = min(preset(name).train.batch_size, BATCH)
    times = step_times(of_patches(name), batch, 3)
    training = len(shards.manifest.names("train"))
    epochs = epochs_for(seconds, times[0], training * PATCHES // batch)
    found: dict[str, Any] = {"preset": name, "milliseconds": times, "precisions": {}}
    for precision in PRECISIONS:
        curve: list[tuple[int, float]] = []

        def note(report: EpochReport, curve: list[tuple[int, float]] = curve) -> None:
            if report.metrics:
                curve.append((report.step, report.score))

        config = with_overrides(
            preset(name),
            {
                "data.shards": str(shards.folder.url),
                "train.epochs": epochs,
                "train.validate_every": epochs // VALIDATIONS,
                "train.minutes": 0.0,
                "train.batch_size": batch,
                "train.precision": precision,
                "train.device": "cpu",
                "stitch.axes": (2,),
                "tracking.mode": "disabled",
                "tracking.samples": 0,
            },
        )
        run = distsynth.train(
            config, out / "runs" / f"{name}-{precision}", overwrite=True, on_epoch=note
        )
        test = _tested(name, run.last, specimens, people, precision)
        found["precisions"][precision] = {"curve": curve, "test": test}
    return found


def _tested(
    name: str,
    checkpoint: str | Path,
    specimens: Sequence[Specimen],
    people: int,
    precision: PredictedIn,
) -> dict[str, dict[str, float]]:
    """Specimen to metric, of the first test specimens."""
    predictor = load_predictor(checkpoint, "cpu", precision=precision)
    split_of = predictor.checkpoint.data.split_of
    tested = [specimen for specimen in specimens if split_of(specimen.name) == "test"][:people]
    rows = evaluate({name: predictor}, tested, baselines=()).results[name]
    return {
        who: {key: values[key] for key in ("psnr_mask", "ssim_mask")}
        for who, values in rows.items()
    }


def steps_to(score: float, curve: Sequence[tuple[int, float]]) -> float:
    """Steps to a score that the curve reaches, along lines between validations.

    Args:
        score: In the unit of the curve.
        curve: Steps and score of each validation; what comes before the first one is unknown, so
            that a score reached there counts its steps.

    Raises:
        ValueError: If the curve never reaches it.
    """
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value >= score:
            if before is None or value == before[1]:
                return float(step)
            share = (score - before[1]) / (value - before[1])
            return before[0] + share * (step - before[0])
        before = step, value
    raise ValueError(f"the curve never reaches {score}")


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    each = [found["precisions"][precision] for precision in PRECISIONS]
    best = [max(value for _, value in part["curve"]) for part in each]
    times = found["milliseconds"]
    to_same = [
        steps_to(min(best), part["curve"]) * ms / 1e3 for part, ms in zip(each, times, strict=True)
    ]
    psnr, ssim = (
        [mean(values[key] for values in part["test"].values()) for part in each]
        for key in ("psnr_mask", "ssim_mask")
    )
    return (
        f"| {found['preset']} | {each[0]['curve'][-1][0]} | {times[0]:,.0f}, {times[1]:,.0f} "
        f"| {times[0] / times[1]:.2f} | {best[0]:.2f}, {best[1]:.2f} "
        f"| {to_same[0]:.1f}, {to_same[1]:.1f} | {to_same[0] / to_same[1]:.2f} "
        f"| {psnr[0]:.2f}, {psnr[1]:.2f} | {ssim[0]:.3f}, {ssim[1]:.3f} |"
    )


def main() -> None:
    """Perform what is not there yet; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--people", type=int, default=3, help="Test specimens, the first ones.")
    parser.add_argument("--presets", nargs="+", default=trainable())
    parser.add_argument("--table", action="store_true", help="Run nothing, print what there is.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    files = {name: given.out / "results" / f"{name}.json" for name in given.presets}
    for name, file in files.items():
        if not given.table and not file.exists():
            found = perform(name, given.cohort, given.out, given.seconds, given.people)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(found, indent=1) + "\n")
            print(file, flush=True)
    print(f"{HEAD}\n|{'---|' * 9}")
    for file in files.values():
        if file.exists():
            print(row(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
