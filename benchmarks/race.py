"""The race: who makes the best image in so much time, evaluated by one code on whole volumes.

    python -m benchmarks.race COHORT OUT --seconds 35 139 [--others OTHER_COHORT] [--seeds 1]
    python -m benchmarks.race COHORT OUT --entries best --as best-charbonnier \\
        --change loss.recon=charbonnier optim.average=0.999
    python -m benchmarks.race COHORT OUT --table [--figure PATH] [--leaderboard]

COHORT has sources (`distsynth simulate` makes them) and splits; OTHER_COHORT, of another scanner,
is never trained on. An entry is trained anew for each number of processor seconds, in one thread,
so that its schedule ends with its time; then it predicts the validation or test specimens. All
entries see the pairs that `distsynth shard --for-preset best` cuts its shards from: the target's
grid, the percentile scale, nothing lent. A preset with changes races under a name of its own.
OUT/results keeps one file an entry: what is there is not run again. An entry that fails leaves a
file in OUT/failures and is tried again the next time; the others go on. `--table` runs nothing and
prints what there is, with paired differences over people and the seconds to reach the regression
and 27 dB. Peers: pip install ".[bench]".
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import distsynth
from benchmarks import race_konfai, race_leaderboard
from benchmarks.processor_time import SET_HERE, commit, processor, train_for
from benchmarks.race_peers import PLAIN, SIDE, Array, Trained, plain_loop
from benchmarks.race_report import (
    AWAY,
    FITTED,
    HOME,
    METRICS,
    read_rows,
    table,
    times_table,
    write_figure,
)
from distsynth.config import RunConfig, with_overrides
from distsynth.evaluation.baselines import Baseline, Cubic, Identity, PairLike, fitted_baselines
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import Predictor
from distsynth.presets import BLOCKS, PRESETS, preset
from distsynth.runs.data_record import DataRecord
from sharding.io.atomic import atomic_write
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.pair import Pair, prepare_pair

OURS = ("quick", "small")
"""Our presets that run unless others are named."""
NO_DISCRIMINATOR = {"loss.lambda_bce": 0.0, "discriminator.family": "none"}
SHARDS = BLOCKS["best"]


@dataclass(frozen=True)
class Work:
    """One entry at one budget.

    Attributes:
        entry: `baselines`, a preset of ours, a peer, or the name of a preset with changes.
        seconds: Processor time to train for.
        seed: Of weights and patches.
        cohort: Path of the cohort.
        others: Path of the other scanner's cohort, if there is one.
        split: Whose scans to evaluate on.
        out: Folder of the race.
        base: The preset that `changes` change; without changes the entry itself.
        changes: Dotted fields of the configuration that differ from the preset.
    """

    entry: str
    seconds: float
    seed: int
    cohort: Path
    others: Path | None
    split: str
    out: Path
    base: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder and file."""
        return f"{self.entry}-{self.seconds:g}-{self.seed}"

    @property
    def result(self) -> Path:
        """What came of it."""
        return self.out / "results" / self.split / f"{self.name}.json"

    @property
    def failure(self) -> Path:
        """Why nothing came of it."""
        return self.out / "failures" / self.split / f"{self.name}.json"

    @property
    def preset(self) -> str:
        """The preset that is trained, where the entry is ours."""
        return self.base or self.entry

    @property
    def config(self) -> RunConfig:
        """How the entry trains, where it is ours.

        Raises:
            ConfigError: If there is no such preset, or a change is none of its fields.
        """
        start: Any = {} if self.preset in BLOCKS else NO_DISCRIMINATOR
        return with_overrides(preset(self.preset), {**start, **self.changes})

    @property
    def recipe(self) -> str:
        """The entry in words."""
        if self.entry == FITTED:
            return "fitted, not trained"
        if self.entry in PLAIN:
            return f"crops of {SIDE} voxels, L1, Adam 1e-3, batch 2"
        if self.entry == race_konfai.NAME:
            return "U-Net on five slices, L1, AdamW 1e-3, batch 4, its own command"
        config = self.config
        changed = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        words = f"{self.preset}: {config.generator.label}, {config.loss.label}"
        return f"{words}; {changed}" if changed else words


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
    found = _described(work)
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
    work.failure.unlink(missing_ok=True)


def attempt(work: Work) -> None:
    """Perform, or keep why that failed and end with status 1."""
    try:
        perform(work)
    except Exception as error:
        traceback.print_exc()
        _keep_failure(work, f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def _described(work: Work) -> dict[str, Any]:
    return {
        "entry": work.entry,
        "seconds": work.seconds,
        "seed": work.seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "recipe": work.recipe,
        "changes": dict(work.changes),
    }


def _keep_failure(work: Work, why: str) -> None:
    found = _described(work) | {"failed": why.splitlines()[0]}
    work.failure.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(work.failure, json.dumps(found, indent=1) + "\n")


def _people(work: Work, specimens: list[Specimen]) -> dict[str, list[Specimen]]:
    """Whose scans an entry is evaluated on: the split of the cohort, and of another scanner."""
    others = read_cohort(work.others) if work.others else []
    return {HOME: specimens} | ({AWAY: others} if others else {})


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
    """Train a preset, with its changes; the clock of its budget is the process's own."""
    of_blocks = work.preset in BLOCKS
    folder = work.out / "shards" / ("blocks" if of_blocks else "slices")
    given = BLOCKS.get(work.preset, distsynth.ShardConfig(neighbours=2, val_slices=8))
    shards = distsynth.shard(specimens, folder, given)
    run = work.out / "runs" / work.name
    predictor, numbers = train_for(
        work.config, str(shards.folder.url), run, work.seconds, work.seed
    )
    return {work.entry: predictor}, numbers


def read_changes(words: Sequence[str]) -> dict[str, Any]:
    """`FIELD=VALUE` of the command line as dotted fields; values are JSON, or else text.

    Raises:
        SystemExit: If a word has no `=`, or a field is one that the race sets.
    """
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise SystemExit(f"--change must be FIELD=VALUE, got {word}")
        if name in SET_HERE:
            raise SystemExit(f"--change: the race itself sets {name}; remove it")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def works(given: argparse.Namespace) -> list[Work]:
    """What is asked for, in its order.

    Raises:
        SystemExit: If changes and their name are not given together, for one preset; or if the name
            has another meaning.
        ConfigError: If a preset does not take the changes.
    """
    changes, base = read_changes(given.change), ""
    entries = given.entries
    if bool(changes) != bool(given.name):
        raise SystemExit("--change and --as go together: what changes, and the name of the result")
    if changes:
        if len(entries) != 1 or entries[0] not in PRESETS:
            raise SystemExit("--change wants one preset: --entries best, for example")
        if given.name in (*PRESETS, *PLAIN, race_konfai.NAME, FITTED):
            raise SystemExit(f"--as: {given.name} is an entry already; choose another name")
        base, entries = entries[0], [given.name]
    found = [
        Work(
            *(entry, seconds, seed, given.cohort, given.others, given.split, given.out),
            base,
            changes,
        )
        for seconds in given.seconds
        for seed in range(given.seeds)
        for entry in entries
    ]
    for work in found:
        _check_same_changes(work)
    return found


def _check_same_changes(work: Work) -> None:
    """Refuse a name that has raced with other changes, and changes that the preset does not take.

    Raises:
        SystemExit: Names the file of the earlier result.
        ConfigError: Names the field.
    """
    if not work.changes:
        return
    asked = {"changes": dict(work.changes), "recipe": work.recipe}
    if work.result.exists():
        known = json.loads(work.result.read_text())
        if {name: known.get(name) for name in asked} != asked:
            raise SystemExit(
                f"{work.result}: {work.entry} has raced with other changes, {known.get('changes')};"
                " give another name by --as"
            )


def main() -> None:
    """Perform what is not there yet, each entry in a process of its own; print the table."""
    given = _parser().parse_args()
    failed = [] if given.table else _run(works(given))
    rows = read_rows(given.out, given.split)
    if not rows:
        raise SystemExit("\n".join([*failed, f"{given.out}: no results of {given.split} yet"]))
    print(table(rows, given.reference), times_table(rows), sep="\n\n")
    if given.figure:
        write_figure(rows, given.figure)
    if given.leaderboard:
        count = race_leaderboard.extend(given.out, given.split, given.leaderboard, given.commit)
        print(f"{given.leaderboard}: {count} new rows")
    if failed:
        raise SystemExit("\n".join(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--others", type=Path, help="Cohort of another scanner.")
    parser.add_argument("--seconds", type=float, nargs="+", default=[139.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--entries", nargs="+", default=[FITTED, *OURS, *PLAIN, race_konfai.NAME])
    parser.add_argument("--change", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--as", dest="name", help="Name of the preset with its changes.")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--table", action="store_true", help="Run nothing, print what there is.")
    parser.add_argument("--reference", default=OURS[0], help="Row that differences are from.")
    parser.add_argument("--figure", type=Path, help="PNG of PSNR and SSIM against seconds.")
    parser.add_argument(
        "--leaderboard",
        type=Path,
        nargs="?",
        const=race_leaderboard.LEADERBOARD,
        help="Append what there is to this file, or to benchmarks/LEADERBOARD.md.",
    )
    parser.add_argument(
        "--commit",
        default="not kept",
        help="Of results in the leaderboard that do not name theirs.",
    )
    return parser


def _run(asked: Sequence[Work]) -> list[str]:
    """Perform what is not there yet; returns a line for each that failed."""
    context = multiprocessing.get_context("spawn")
    failed = []
    for work in asked:
        if not work.result.exists():
            process = context.Process(target=attempt, args=(work,))
            process.start()
            process.join()
            if process.exitcode:
                if process.exitcode != 1:
                    _keep_failure(work, f"the process ended with {process.exitcode}")
                failed.append(f"{work.name} failed: {work.failure}")
                print(failed[-1], file=sys.stderr, flush=True)
                continue
        print(work.result, flush=True)
    return failed


if __name__ == "__main__":
    main()
