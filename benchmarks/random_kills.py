"""Kill every command of a small study at random moments, go on with it, and compare the end.

    python benchmarks/random_kills.py --kills 100 --seed 1

Prints a line for each kill and a table of how many ended as an undisturbed run does. The moments
come from the seed: the same seed kills at the same changes of the same files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

# In the place of this folder, whose sharding.py would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests" / "support")

from killed_commands import SETUP, Command  # noqa: E402 # pyright: ignore[reportMissingImports]


def main() -> int:
    """Run the kills; return 1 if one ended otherwise than an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="+", choices=SETUP, default=list(SETUP))
    options = parser.parse_args()
    done: dict[str, list[int]] = {name: [0, 0] for name in options.commands}
    share, rest = divmod(options.kills, len(options.commands))
    for at, name in enumerate(options.commands):
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            command = Command(name, Path(folder))
            for kill in command.moments(options.seed, share + (at < rest)):
                start = time.perf_counter()
                done[name][0] += 1
                try:
                    command.check(kill)
                except (AssertionError, TimeoutError) as error:
                    done[name][1] += 1
                    outcome = f"FAILED {error}"
                else:
                    outcome = "same end"
                seconds = time.perf_counter() - start
                print(f"{name:10} {kill} {seconds:.0f} s: {outcome}", flush=True)
    print("\n| command | kills | ended otherwise |\n|---|---|---|")
    for name, (kills, failed) in done.items():
        print(f"| {name} | {kills} | {failed} |")
    return int(any(failed for _, failed in done.values()))


if __name__ == "__main__":
    sys.exit(main())
