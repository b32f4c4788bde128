"""The command line: commands, options of the program, exit status.

Each command reads only files that the one before wrote. Results go to standard output, progress
and messages to standard error. Exit status: 0 fine, 1 bad input or failure, 2 usage or
configuration, 129, 130 or 143 ended by SIGHUP, SIGINT or SIGTERM, 141 nobody reads standard output
any more. Libraries load when a command needs them, so that help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from distsynth.cli.cohorts import cohort
from distsynth.cli.dashboard import dashboard
from distsynth.cli.export import average, export
from distsynth.cli.messages import UsageError, messages_on_stderr, report_error
from distsynth.cli.models import evaluate, predict, presets, train
from distsynth.cli.reports import report
from distsynth.cli.reproduce import reproduce
from distsynth.cli.scans import carry_back, correct, phantom, prepare, shard, simulate, verify
from distsynth.cli.standard_output import (
    CLOSED,
    discard_output,
    flush_output,
    is_output_closed,
)
from distsynth.cli.studies import plan, run
from distsynth.cli.sweeps import sweep
from sharding.io.interruption import signals_as_exceptions

DEBUG = "--debug"

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        run,
        plan,
        phantom,
        cohort,
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
        average,
        export,
        dashboard,
        correct,
        carry_back,
    )
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = list(sys.argv[1:] if args is None else args)
    debug = given[:1] == [DEBUG]
    given = given[1:] if debug else given
    with messages_on_stderr():
        try:
            with signals_as_exceptions():
                _run_and_flush(given)
        except (Exception, KeyboardInterrupt) as error:
            closed = is_output_closed()
            if closed:
                discard_output()
            if closed and isinstance(error, BrokenPipeError):
                return CLOSED
            return report_error(error, given, debug)
    return 0


def _run_and_flush(args: Sequence[str]) -> None:
    try:
        _run(args)
    except SystemExit:
        # The parser ends the process after it has printed help.
        flush_output()
        raise
    flush_output()


def _run(args: Sequence[str]) -> None:
    if not args:
        raise UsageError(f"name a command\n\n{_usage()}")
    name, *rest = args
    if name in ("-h", "--help"):
        print(_usage())
    elif name == "--version":
        from importlib.metadata import version

        print(version("distsynth"))
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        raise UsageError(f"there is no command {name}\n\n{_usage()}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    return (
        f"usage: distsynth [{DEBUG}] COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\noptions:\n"
        + f"  {'-h, --help':{width}}  show this help; distsynth COMMAND --help shows its options\n"
        + f"  {'--version':{width}}  show the version\n"
        + f"  {DEBUG:{width}}  show the traceback of an error"
    )


if __name__ == "__main__":
    sys.exit(main())
