"""A cohort of targets divided anew into 24 training, 6 validation and 10 test specimens.

    python -m benchmarks.study_split DATA/t1w_3t/cohort.csv OUT/targets.csv

With four test specimens no paired test can give p below 0.125; with ten it can give 0.002. The
test specimens of the given cohort stay test specimens, so that nothing that was chosen on the
others is evaluated on what it was chosen by; the rest is drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from sharding.volumes.cohort import Split, read_cohort, write_cohort

TRAIN, VAL, TEST = 24, 6, 10


def main() -> None:
    """Write the new cohort; its rows name the same files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    specimens = read_cohort(given.cohort)
    kept = [row.name for row in specimens if row.split == "test"]
    others = [row.name for row in specimens if row.split != "test"]
    random.Random(0).shuffle(others)
    names = (kept + others)[: TEST + VAL + TRAIN]
    order: tuple[tuple[Split, int], ...] = (("test", TEST), ("val", VAL), ("train", TRAIN))
    splits = [split for split, count in order for _ in range(count)]
    split_of = dict(zip(names, splits, strict=True))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_cohort(given.out, [replace(row, split=split_of[row.name]) for row in specimens])


if __name__ == "__main__":
    main()
