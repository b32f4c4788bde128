"""The race: who makes the best image in so much time, evaluated by one code on whole volumes.

    python -m benchmarks.race COHORT OUT --seconds 35 139 [--others OTHER_COHORT] [--seeds 1]
    python -m benchmarks.race COHORT OUT --table

COHORT has sources (`distsynth simulate` makes them) and splits; OTHER_COHORT, of another scanner,
is never trained on. An entry is trained anew for each number of processor seconds, in one thread,
so that its schedule ends with its time; then it predicts the validation or test specimens. All
entries see the pairs that `distsynth shard --for-preset best` cuts its shards from: the target's
grid, the percentile scale, nothing lent. OUT/results keeps one file an entry: what is there is not
run again. `--table` prints what there is, with the paired differences from the first of our
presets. Peers: pip install ".[bench]".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator

import distsynth
from benchmarks import race_konfai
from benchmarks.race_peers import PLAIN, Array, Trained, plain_loop
from distsynth.config import TrainConfig, with_overrides
from distsynth.evaluation.baselines import Baseline, Cubic, Identity, PairLike, fitted_baselines
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.metrics.statistics import bootstrap_interval
from distsynth.presets import BLOCKS, preset
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import LAST
from distsynth.training.pace import Pace
from sharding.io.atomic import atomic_write
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.pair import Pair, prepare_pair

FITTED = "baselines"
"""The entry of everything that is fitted and not trained."""
OURS = ("quick", "small")
"""Our presets that run unless others are named."""
NO_DISCRIMINATOR = {"loss.lambda_bce": 0.0, "discriminator.family": "none"}
SHARDS = BLOCKS["best"]
METRICS = ("psnr_mask", "ssim_mask")


@dataclass(frozen=True)
class Work:
    """One entry at one budget.

    Attributes:
        entry: `baselines`, a preset of ours, or a peer.
        seconds: Processor time to train for.
        seed: Of weights and patches.
        cohort: Path of the cohort.
        others: Path of the other scanner's cohort, if there is one.
        split: Whose scans to evaluate on.
        out: Folder of the race.
    """

    entry: str
    seconds: float
    seed: int
    cohort: Path
    others: Path | None
    split: str
    out: Path

    @property
    def name(self) -> str:
        """Of its folder and file."""
        return f"{self.entry}-{self.seconds:g}-{self.seed}"

    @property
    def result(self) -> Path:
        """What came of it."""
        return self.out / "results" / self.split / f"{self.name}.json"


@dataclass
class Peer:
    """A trained peer, evaluated as a baseline is."""

    name: str
    trained: Trained

    def predict(self, pair: PairLike) -> Array:
        """Synthetic volume on the pair's scale."""
        return self.trained.predict(pair)


def perform(work: Work) -> None:
    """Train an entry, evaluate it, keep what came of it."""
    torch.set_num_threads(1)
    specimens = read_cohort(work.cohort)
    shards = distsynth.shard(specimens, work.out / "shards" / "blocks", SHARDS)
    record = DataRecord.of(shards.manifest)
    predictors: dict[str, Predictor] = {}
    baselines: list[Baseline] = []
    found: dict[str, Any] = {"entry": work.entry, "seconds": work.seconds, "seed": work.seed}
    if work.entry == FITTED:
        start = time.process_time()
        baselines = [Identity(), Cubic(), *fitted_baselines(_training(specimens, record).values())]
        found["spent"] = time.process_time() - start
    elif work.entry in PLAIN or work.entry == race_konfai.NAME:
        trained = _peer(work, _training(specimens, record))
        baselines = [Peer(trained.name, trained)]
        found |= {"spent": trained.seconds, "steps": trained.steps, "weights": trained.parameters}
    else:
        predictors, numbers = _ours(work, specimens)
        found |= numbers
    found["results"] = {
        place: _scores(predictors, baselines, people, work.split, record)
        for place, people in _people(work, specimens).items()
    }
    work.result.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(work.result, json.dumps(found, indent=1) + "\n")


def _people(work: Work, specimens: list[Specimen]) -> dict[str, list[Specimen]]:
    """Whose scans an entry is evaluated on: the split of the cohort, and of another scanner."""
    others = read_cohort(work.others) if work.others else []
    return {"same scanner": specimens} | ({"other scanner": others} if others else {})


def _scores(
    predictors: dict[str, Predictor],
    baselines: list[Baseline],
    people: list[Specimen],
    split: str,
    record: DataRecord,
) -> dict[str, dict[str, dict[str, float]]]:
    """Row -> specimen -> metric."""
    known = {record.split_of(row.name) for row in people}
    where: Any = split if split in known else "test"
    if predictors:
        # Ours may see other shards: each brings its own record.
        record = next(iter(predictors.values())).checkpoint.data
    evaluation = evaluate(predictors, people, where, baselines=baselines, data=record)
    return {
        row: {name: {key: values[key] for key in METRICS} for name, values in rows.items()}
        for row, rows in evaluation.results.items()
    }


def _training(specimens: list[Specimen], record: DataRecord) -> dict[str, Pair]:
    return {
        row.name: prepare_pair(row, record.preprocess, record.standards)
        for row in specimens
        if record.split_of(row.name) == "train"
    }


def _peer(work: Work, pairs: dict[str, Pair]) -> Trained:
    if work.entry == race_konfai.NAME:
        return race_konfai.train(pairs, work.seconds, work.seed, work.out / "konfai" / work.name)
    return plain_loop(work.entry, list(pairs.values()), work.seconds, work.seed)


def _ours(work: Work, specimens: list[Specimen]) -> tuple[dict[str, Predictor], dict[str, Any]]:
    """Train a preset; the clock of its budget is the process's own."""
    config = preset(work.entry)
    folder = work.out / "shards" / ("blocks" if work.entry in BLOCKS else "slices")
    given = BLOCKS.get(work.entry, distsynth.ShardConfig(neighbours=2, val_slices=8))
    shards = distsynth.shard(specimens, folder, given)
    changes: dict[str, Any] = {
        "data.shards": str(shards.folder.url),
        "train.minutes": work.seconds / 60,
        "train.epochs": 1000,
        "train.validate_every": 1000,
        "train.seed": work.seed,
        "tracking.mode": "disabled",
    }
    if work.entry not in BLOCKS:
        changes |= NO_DISCRIMINATOR
    run = work.out / "runs" / work.name
    clocks: list[Pace] = []

    def pace(train: TrainConfig, steps: int, accelerator: Accelerator) -> Pace:
        clocks.append(Pace(steps * train.epochs, train.minutes, accelerator, time.process_time))
        return clocks[-1]

    with mock.patch("distsynth.training.run.run_pace", pace):
        distsynth.train(with_overrides(config, changes), run, overwrite=True)
    predictor = load_predictor(run / LAST, "cpu")
    learnt = predictor.checkpoint.learners["generator"]["network"]
    numbers = {
        "spent": clocks[-1].seconds,
        "steps": predictor.checkpoint.position.step,
        "weights": sum(part.numel() for part in learnt.values()),
        "precision": predictor.checkpoint.config.train.precision,
    }
    return {work.entry: predictor}, numbers


def table(out: Path, split: str, reference: str) -> str:
    """What there is, as Markdown; differences are from `reference` at the same budget."""
    rows: dict[tuple[float, str], dict[str, Any]] = {}
    for path in sorted((out / "results" / split).glob("*.json")):
        found = json.loads(path.read_text())
        for row in found["results"]["same scanner"]:
            seeds = rows.setdefault((found["seconds"], row), {"files": []})
            seeds["files"].append(found)
    lines = [
        "| seconds | row | spent | steps | same scanner: dB, SSIM | other scanner: dB, SSIM "
        f"| dB from {reference}, paired (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for (seconds, row), seeds in sorted(rows.items(), key=lambda item: item[0]):
        files = seeds["files"]
        spent = np.mean([found["spent"] for found in files])
        steps = files[0].get("steps")
        cells = [_cell(files, row, place) for place in ("same scanner", "other scanner")]
        against = rows.get((seconds, reference))
        gap = "-"
        if against and row != reference:
            own = _by_person(files, row)
            other = _by_person(against["files"], reference)
            values = np.array([own[name] - other[name] for name in own])
            low, high = bootstrap_interval(values)
            gap = f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        shown = [f"{seconds:g}", row, f"{spent:.0f}", str(steps or "-"), *cells, gap]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _by_person(files: list[dict[str, Any]], row: str) -> dict[str, float]:
    """PSNR of each person, mean over seeds."""
    people = files[0]["results"]["same scanner"][row]
    return {
        name: float(
            np.mean([found["results"]["same scanner"][row][name]["psnr_mask"] for found in files])
        )
        for name in people
    }


def _cell(files: list[dict[str, Any]], row: str, place: str) -> str:
    found = [file["results"].get(place, {}).get(row) for file in files]
    if not all(found):
        return "-"
    means = [
        np.mean([[person[metric] for person in people.values()] for people in found])
        for metric in METRICS
    ]
    return f"{means[0]:.2f}, {means[1]:.3f}"


def main() -> None:
    """Perform what is not there yet, each entry in a process of its own; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--others", type=Path, help="Cohort of another scanner.")
    parser.add_argument("--seconds", type=float, nargs="+", default=[139.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--entries", nargs="+", default=[FITTED, *OURS, *PLAIN, race_konfai.NAME])
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--table", action="store_true", help="Print what there is.")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for seconds in () if given.table else given.seconds:
        for seed in range(given.seeds):
            for entry in given.entries:
                work = Work(
                    entry, seconds, seed, given.cohort, given.others, given.split, given.out
                )
                if not work.result.exists():
                    process = context.Process(target=perform, args=(work,))
                    process.start()
                    process.join()
                    if process.exitcode:
                        raise SystemExit(f"{work.name} ended with {process.exitcode}")
                print(work.result, flush=True)
    print(table(given.out, given.split, given.entries[1] if len(given.entries) > 1 else OURS[0]))


if __name__ == "__main__":
    main()
