"""The command line: commands, exit codes, nothing else.

Each command reads only files that the one before wrote. Results go to standard output, progress
and messages to standard error. Exit status: 0 fine, 1 bad input or failure, 2 usage or
configuration, 130 interrupted. Libraries load when a command needs them, so that help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from distsynth.cli.arguments import tell
from distsynth.cli.dashboard import dashboard
from distsynth.cli.export import export
from distsynth.cli.models import evaluate, predict, presets, train
from distsynth.cli.reports import report
from distsynth.cli.reproduce import reproduce
from distsynth.cli.scans import carry_back, correct, phantom, prepare, shard, simulate, verify
from distsynth.cli.sweeps import sweep
from sharding.io.errors import DataError

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        phantom,
        simulate,
        prepare,
        shard,
        verify,
        presets,
        train,
        sweep,
        reproduce,
        predict,
        evaluate,
        report,
        export,
        dashboard,
        correct,
        carry_back,
    )
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0 if given else 2
    if given[0] == "--version":
        from importlib.metadata import version

        print(version("distsynth"))
        return 0
    name, *rest = given
    if name not in COMMANDS:
        return _fail(f"no command {name}\n\n{_usage()}", 2)
    try:
        COMMANDS[name](rest)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (DataError, FloatingPointError, OSError) as error:
        return _fail(str(error), 1)
    except ValueError as error:
        return _fail(str(error), 2)
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    return (
        "usage: distsynth COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\ndistsynth COMMAND --help tells more; distsynth --version tells the version"
    )


def _fail(message: str, status: int) -> int:
    tell(f"distsynth: {message}")
    return status


if __name__ == "__main__":
    sys.exit(main())
