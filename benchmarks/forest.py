"""What the share of patches, rows a tree and the kind of trees cost a forest in quality and time.

    python -m benchmarks.forest SHARDS COHORT [--people N] [--jobs N] [--methods M ...]

SHARDS are the cohort's. Every row is fitted on their training people and evaluated on whole volumes
of the first N validation people, in the mask, beside baselines fitted on the same people. Rows
come as they are done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsynth.evaluation.baselines import Baseline, Identity, fitted_baselines
from distsynth.evaluation.forest import FORESTS, Forest, fit_forest
from distsynth.metrics.image import volume_metrics
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import Pair, prepare_pair

BASE = replace(FORESTS["rfsr-intensity"], trees=30, max_samples=20_000, fraction=0.1)
RANDOM = (
    BASE,
    replace(BASE, fraction=0.01),
    replace(BASE, min_samples_leaf=20),
    replace(BASE, max_samples=100_000),
    replace(BASE, max_samples=100_000, min_samples_leaf=20),
    replace(BASE, fraction=1.0),
)
BOOSTED = (
    replace(FORESTS["rfsr-boosted"], trees=100, max_samples=200_000, fraction=0.1),
    replace(FORESTS["rfsr-boosted"], trees=100, fraction=0.1),
)
SETTINGS = {
    "rfsr": (replace(FORESTS["rfsr"], trees=30, fraction=0.1),),
    "rfsr-pairs": (replace(FORESTS["rfsr-pairs"], trees=30, fraction=0.1),),
    "rfsr-intensity": RANDOM,
    "rfsr-boosted": BOOSTED,
}
METHODS = (*SETTINGS, "baselines")
HEAD = (
    "method | patches | rows | rows a tree | leaf | trees | fit s | predict s | "
    "PSNR, mask (dB, peak = range) | SSIM, mask (windowed 3D)"
)


def evaluated(baseline: Baseline, pairs: Sequence[Pair]) -> str:
    """Cells: seconds a volume; means over people and, in brackets, each of them."""
    seconds, values = 0.0, []
    for pair in pairs:
        start = time.perf_counter()
        synthetic = baseline.predict(pair)
        seconds += time.perf_counter() - start
        row = volume_metrics(synthetic, pair.target, pair.target_transform, pair.mask)
        values.append((row["psnr_mask"], row["ssim_mask"]))
    cells = [f"{seconds / len(pairs):.1f}"]
    for column, digits in zip(zip(*values, strict=True), (2, 4), strict=True):
        each = ", ".join(f"{value:.{digits}f}" for value in column)
        cells.append(f"{np.mean(column):.{digits}f} ({each})")
    return " | ".join(cells)


def forest_row(forest: Forest, pairs: Sequence[Pair]) -> str:
    """A line of the table."""
    config, fit = forest.config, forest.fit
    drawn = min(config.max_samples, fit.rows)
    return (
        f"| {forest.name} | {fit.patches} | {fit.rows} | {drawn} | {config.min_samples_leaf} | "
        f"{config.trees} | {fit.seconds:.0f} | {evaluated(forest, pairs)} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    given = parser.parse_args()
    shards = ShardSet(given.shards)
    config = shards.manifest.config.preprocess
    people = {specimen.name: specimen for specimen in read_cohort(given.cohort)}
    names = shards.manifest.names("val")[: given.people]
    pairs = [prepare_pair(people[name], config) for name in names]
    print(f"Evaluated on {', '.join(names)}.\n\n| {HEAD} |")
    print("|" + "---|" * len(HEAD.split(" | ")), flush=True)
    for name, settings in SETTINGS.items():
        for setting in settings if name in given.methods else ():
            forest = fit_forest(name, shards, replace(setting, jobs=given.jobs), quiet=True)
            print(forest_row(forest, pairs), flush=True)
            del forest
    if "baselines" not in given.methods:
        return
    start = time.perf_counter()
    training = (prepare_pair(people[name], config) for name in shards.manifest.names("train"))
    baselines: list[Baseline] = [Identity(), *fitted_baselines(training)]
    seconds = time.perf_counter() - start
    for baseline in baselines:
        fitted = "-" if isinstance(baseline, Identity) else f"{seconds:.0f} (both)"
        print(
            f"| {baseline.name} |{' - |' * 5} {fitted} | {evaluated(baseline, pairs)} |", flush=True
        )


if __name__ == "__main__":
    main()
