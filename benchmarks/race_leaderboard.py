"""`LEADERBOARD.md`: a row for every entry that ever raced, also for those that failed.

Rows are appended and never change: what is there already, by all of its cells but those of quality,
is not written again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.race_report import AWAY, HOME, Row, quality_cell
from sharding.io.atomic import atomic_write

LEADERBOARD = Path(__file__).with_name("LEADERBOARD.md")
COLUMNS = (
    *("date", "commit", "processor", "row", "recipe", "seed", "processor seconds", "steps"),
    *("people", "same scanner: dB, SSIM", "other scanner: dB, SSIM", "what failed"),
)
IDENTITY = 9
"""Columns that tell one row from another: all before those of quality."""
TITLE = """# Leaderboard of the race

`python -m benchmarks.race COHORT OUT --leaderboard` appends what OUT holds and this file does not.
Rows stay, also those of what failed or was worse. PSNR and SSIM are means over people, of whole
volumes, in the mask, on the target's percentile scale. Recipes are chosen by the validation people
(`val`), never by the test people. Seconds of one processor are not those of another.
"""


def extend(
    out: Path, split: str, path: Path = LEADERBOARD, commit_of_others: str = "not kept"
) -> int:
    """Append the rows that are not there yet.

    Args:
        out: Folder of a race.
        split: Whose results.
        path: The leaderboard; made if it is not there.
        commit_of_others: Of results that do not name their commit.

    Returns:
        How many rows were appended.
    """
    rows = [
        cells
        for found in _results(out, split)
        for cells in _rows({"commit": commit_of_others} | found, split)
    ]
    text = path.read_text() if path.exists() else f"{TITLE}\n{_line(COLUMNS)}\n{_rule()}\n"
    known = {_identity(line) for line in text.splitlines()}
    new = [line for line in map(_line, rows) if _identity(line) not in known]
    if new:
        atomic_write(path, text + "\n".join(new) + "\n")
    return len(new)


def _results(out: Path, split: str) -> list[dict[str, Any]]:
    """What files of results and failures hold, by date; files without a date have that of disk."""
    paths = [*(out / "results" / split).glob("*.json"), *(out / "failures" / split).glob("*.json")]
    found = []
    for path in paths:
        day = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date()
        found.append({"date": day.isoformat()} | json.loads(path.read_text()))
    return sorted(found, key=lambda one: (one["date"], one["seconds"], one["entry"], one["seed"]))


def _rows(found: Mapping[str, Any], split: str) -> list[list[str]]:
    """The cells of each row of one file."""
    start = [found["date"], found["commit"], found.get("processor", "not kept")]
    recipe = found.get("recipe", f"the entry {found['entry']}")
    if failed := found.get("failed"):
        seconds = f"{found['seconds']:g}"
        cells = [found["entry"], recipe, str(found["seed"]), seconds, "-", split, "-", "-", failed]
        return [[*start, *cells]]
    rows = []
    for name in found["results"][HOME]:
        row = Row(name, found["entry"], found["seconds"], (found,))
        people = " + ".join(
            str(len(row.people("psnr_mask", place)))
            for place in (HOME, AWAY)
            if row.people("psnr_mask", place)
        )
        quality = [quality_cell(row, place) for place in (HOME, AWAY)]
        steps = str(found.get("steps") or "-")
        seconds = f"{found['spent']:.0f}"
        cells = [name, recipe, str(found["seed"]), seconds, steps, f"{split}, {people}", *quality]
        rows.append([*start, *cells, "-"])
    return rows


def _line(cells: tuple[str, ...] | list[str]) -> str:
    # A bar or a line break would end the cell.
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def _rule() -> str:
    return "|---" * len(COLUMNS) + "|"


def _identity(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))[:IDENTITY]
