"""What it takes until a command or an import is there: seconds and memory, each in a new process.

    python -m benchmarks.startup [--rounds N]

The cases take turns, so that a slow moment of the machine meets them all. Processor seconds tell
more than wall seconds where other programs run. Less memory than this program's own, about 15 MB,
does not show.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

PYTHON = [sys.executable, "-c"]
DISTSYNTH = [sys.executable, "-m", "distsynth"]
CASES: dict[str, list[str]] = {
    "python itself": [*PYTHON, ""],
    "import distsynth": [*PYTHON, "import distsynth"],
    "distsynth --help": [*DISTSYNTH, "--help"],
    "distsynth train --help": [*DISTSYNTH, "train", "--help"],
    "distsynth train unet-7 --help": [*DISTSYNTH, "train", "unet-7", "--help"],
    "distsynth presets": [*DISTSYNTH, "presets"],
    "import torch": [*PYTHON, "import torch"],
    "import distsynth.training.loop": [*PYTHON, "import distsynth.training.loop"],
    "import distsynth.sweep.run": [*PYTHON, "import distsynth.sweep.run"],
}


class Cost(NamedTuple):
    """What a process took from its start to its end."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def cost(command: Sequence[str]) -> Cost:
    """Run a command to its end, its output thrown away.

    Raises:
        RuntimeError: If it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and, in brackets, the smallest and the largest."""
    parts = statistics.median(values), min(values), max(values)
    return "{} ({} to {})".format(*(f"{part:.{digits}f}" for part in parts))


def rounds(cases: dict[str, Callable[[], Cost]], count: int) -> dict[str, list[Cost]]:
    """Every case `count` times, taking turns."""
    found: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(count):
        for name, case in cases.items():
            found[name].append(case())
    return found


def main(count: int) -> None:
    """Print the table."""
    for command in CASES.values():
        cost(command)  # compiles what is not compiled, and brings the files into memory
    print(f"median (smallest to largest) of {count} processes each, files in memory\n")
    print("| what | wall s | processor s | peak memory MB |")
    print("|---|---|---|---|")
    cases = {name: lambda command=command: cost(command) for name, command in CASES.items()}
    for name, costs in rounds(cases, count).items():
        wall, cpu, memory = zip(*costs, strict=True)
        print(f"| `{name}` | {spread(wall)} | {spread(cpu)} | {spread(memory, 0)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args().rounds)
