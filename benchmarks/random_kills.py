"""Kill every command of a small study at random moments, go on with it, and compare the end.

    python benchmarks/random_kills.py --kills 100 --seed 1

Prints a line for each kill and a table of how many ended as an undisturbed run does. The moments
come from the seed: the same seed kills at the same changes of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

# In the place of this folder, whose sharding.py would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests" / "support")

from killed_commands import SETUP, Command, Kill  # noqa: E402 # pyright: ignore[reportMissingImports]
from killing import SUPPORT  # noqa: E402 # pyright: ignore[reportMissingImports]
from programs import with_path  # noqa: E402 # pyright: ignore[reportMissingImports]
from warm_workers import server  # noqa: E402 # pyright: ignore[reportMissingImports]


def main() -> int:
    """Run the kills; return 1 if one ended otherwise than an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="+", choices=SETUP, default=list(SETUP))
    options = parser.parse_args()
    done = {name: [0, 0] for name in options.commands}
    with contextlib.ExitStack() as folders:
        # Workers of Ray are forks: they start at once, and what they do is the same.
        warm = folders.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))
        os.environ |= folders.enter_context(server(Path(warm)))
        os.environ |= with_path(SUPPORT / "stop_hook", SUPPORT)
        commands, moments = {}, {}
        for name in options.commands:
            folder = folders.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))
            commands[name] = Command(name, Path(folder))
            moments[name] = commands[name].moments(options.seed, options.kills)
        # By turns, so that one that is interrupted has tried every command as often.
        for number in range(options.kills):
            name = options.commands[number % len(options.commands)]
            done[name][0] += 1
            done[name][1] += not survives(commands[name], next(moments[name]))
    print("\n| command | kills | ended otherwise |\n|---|---|---|")
    for name, (kills, failed) in done.items():
        print(f"| {name} | {kills} | {failed} |")
    return int(any(failed for _, failed in done.values()))


def survives(command: Command, kill: Kill) -> bool:
    """Kill a command, print what came of it, and tell whether it ended as it should."""
    start = time.perf_counter()
    try:
        command.check(kill)
    except (AssertionError, TimeoutError) as error:
        outcome = f"FAILED {error}"
    else:
        outcome = "same end"
    seconds = time.perf_counter() - start
    print(f"{command.name:10} {kill} {seconds:.0f} s: {outcome}", flush=True)
    return outcome == "same end"


if __name__ == "__main__":
    sys.exit(main())
