"""The command line: arguments and exit codes, nothing else.

Each command reads only files that the one before wrote. Results go to standard output, progress
and messages to standard error. Exit status: 0 fine, 1 bad input or failure, 2 usage or
configuration, 130 interrupted. Libraries load when a command needs them, so that help is quick.
"""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from sharding.errors import DataError

Given = TypeVar("Given")
Cohort = Annotated[Path, arg(help="cohort.csv, a folder that holds one, or a BIDS folder")]
Out = Annotated[Path, arg(aliases=["-o"])]


@dataclass(frozen=True)
class Stitch:
    """How patches become a volume, where it shall differ from the checkpoint's configuration."""

    stride: int | None = None
    """Voxels between patches."""
    trim: int | None = None
    """Voxels cut from each patch side."""
    weights: Literal["uniform", "smooth"] | None = None
    """Plain average of overlaps, or weights that fall towards the patch border."""
    axes: tuple[int, ...] | None = None
    """Slicing axes to average over."""


def phantom(args: Sequence[str]) -> None:
    """make a cohort of phantom specimens with simulated sources"""
    from sharding.phantom import write_phantom_cohort
    from sharding.simulate import SimulationConfig

    @dataclass(frozen=True)
    class Phantom:
        """Make a cohort of phantom specimens with simulated sources."""

        out: Positional[Path]
        """Folder to write to."""
        specimens: int = 8
        shape: tuple[int, int, int] = (96, 96, 80)
        """Voxels along each axis of a target."""
        simulation: SimulationConfig = field(default_factory=SimulationConfig)
        overwrite: bool = False

    given = _parse("phantom", Phantom, args)
    seed = given.simulation.seed
    print(
        write_phantom_cohort(
            given.out, given.specimens, given.shape, seed, given.simulation, given.overwrite
        )
    )


def simulate(args: Sequence[str]) -> None:
    """make a low-field source for every target of a cohort"""
    from sharding.cohort import read_cohort
    from sharding.simulate import SimulationConfig, simulate_cohort

    @dataclass(frozen=True)
    class Simulate:
        """Make a low-field source for every target of a cohort; see sharding/simulate.py."""

        cohort: Positional[Cohort]
        out: Out
        """Folder for the sources, a record of what was applied to each, and a cohort.csv."""
        simulation: Annotated[SimulationConfig, arg(name="")] = field(
            default_factory=SimulationConfig
        )
        target_pattern: str | None = None
        """For a BIDS folder: glob of the target below each subject."""
        overwrite: bool = False

    given = _parse("simulate", Simulate, args)
    specimens = read_cohort(given.cohort, target_pattern=given.target_pattern)
    print(simulate_cohort(specimens, given.out, given.simulation, given.overwrite))


def shard(args: Sequence[str]) -> None:
    """cut a cohort into shards of patches"""
    from sharding.cohort import SPLITS, read_cohort
    from sharding.shards import ShardConfig
    from sharding.write import write_shards

    @dataclass(frozen=True)
    class Shard:
        """Cut a cohort into shards of patches."""

        cohort: Positional[Cohort]
        out: Out
        """Folder of the shard set; appears when it is complete."""
        config: Annotated[ShardConfig, arg(name="")] = field(default_factory=ShardConfig)
        source_pattern: str | None = None
        """For a BIDS folder: glob of the source below each subject."""
        target_pattern: str | None = None
        """Likewise for the target."""
        workers: int = 0
        """Processes; 0 takes one a core."""
        overwrite: bool = False

    given = _parse("shard", Shard, args)
    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    manifest = write_shards(specimens, given.out, given.config, given.workers, given.overwrite)
    for split in SPLITS:
        _tell(f"{split}: {len(manifest.names(split))} specimens, {manifest.patches(split)} patches")
    print(given.out)


def presets(args: Sequence[str]) -> None:
    """list the presets, or print one as a configuration"""
    from distsynth.config import to_json
    from distsynth.presets import PRESETS, describe, preset

    @dataclass(frozen=True)
    class Presets:
        """List the presets, or print the whole configuration of one."""

        name: Positional[str | None] = None
        json: bool = False
        """For programs."""

    given = _parse("presets", Presets, args)
    if given.name:
        print(to_json(preset(given.name)), end="")
    elif given.json:
        print(json.dumps([describe(name) for name in PRESETS], indent=2))
    else:
        rows = [{key: _cell(value) for key, value in describe(name).items()} for name in PRESETS]
        print(_columns([list(rows[0]), *(list(row.values()) for row in rows)]))


def train(args: Sequence[str]) -> None:
    """train a preset or a configuration file"""
    from distsynth.config import RunConfig, from_json, validate
    from distsynth.presets import PRESETS, preset

    if not args or args[0].startswith("-"):
        names = ", ".join(PRESETS)
        usage = f"distsynth train PRESET|CONFIG.json [options]\n\npresets: {names}\n"
        if args and args[0] in ("-h", "--help"):
            print(usage + "\noptions: distsynth train PRESET --help")
            return
        raise ValueError(f"name a preset or a configuration file\n{usage}")
    name, *rest = args
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise DataError(name, "the configuration does not exist", "Check the path")
        start = from_json(Path(name).read_text(encoding="utf-8"))
    else:
        start = preset(name)

    @dataclass(frozen=True)
    class Train:
        """Train from the named preset; every field of the configuration is an option."""

        run_dir: Annotated[Path, arg(aliases=["-o"])]
        """Folder of the run."""
        config: Annotated[RunConfig, arg(name="")] = field(default_factory=lambda: start)
        resume: bool = False
        """Go on from the last checkpoint in the folder."""
        overwrite: bool = False
        """Replace a run in the folder."""

    given = _parse(f"train {name}", Train, rest)
    config = validate(given.config)

    from distsynth.train import train as run_training

    result = run_training(config, given.run_dir, given.resume, given.overwrite)
    # One line, however many ranks a launcher started.
    if os.environ.get("RANK", "0") == "0":
        print(result.best)


def predict(args: Sequence[str]) -> None:
    """turn a source volume into a synthetic target"""

    @dataclass(frozen=True)
    class Predict:
        """Turn a source volume into a synthetic target, stitched from dense patches.

        Research use only: synthetic detail is not measured detail.
        """

        checkpoint: Positional[Path]
        """A checkpoint, or a run's folder for its best one."""
        volume: Positional[Path]
        """The source: a NIfTI file."""
        out: Out
        """NIfTI file to write."""
        like: Path | None = None
        """Predict on the grid of this volume."""
        stitch: Stitch = field(default_factory=Stitch)
        device: Literal["auto", "cpu"] = "auto"
        overwrite: bool = False

    given = _parse("predict", Predict, args)
    from distsynth.predict import load_predictor, predict_file

    predictor = load_predictor(given.checkpoint, given.device).stitched(**vars(given.stitch))
    print(predict_file(predictor, given.volume, given.out, given.like, given.overwrite))


def evaluate(args: Sequence[str]) -> None:
    """judge checkpoints beside the baselines on stitched volumes"""

    @dataclass(frozen=True)
    class Evaluate:
        """Judge checkpoints beside the baselines on stitched volumes."""

        checkpoints: Positional[tuple[Path, ...]]
        """Checkpoints or run folders (their best); rows are named after the run folder."""
        cohort: Cohort
        """The cohort that the shards were cut from."""
        out: Out
        """Folder for results.csv, results.json, table.txt, pictures and report.html."""
        split: Literal["train", "val", "test"] = "test"
        source_pattern: str | None = None
        target_pattern: str | None = None
        stitch: Stitch = field(default_factory=Stitch)
        save_volumes: bool = False
        """Write the synthetic volumes too."""
        device: Literal["auto", "cpu"] = "auto"
        overwrite: bool = False

    given = _parse("evaluate", Evaluate, args)
    if not given.checkpoints:
        raise ValueError("name at least one checkpoint or run folder")
    from distsynth.evaluate import RESULTS_FILE, write_evaluation
    from distsynth.evaluate import evaluate as judge
    from distsynth.predict import load_predictor
    from sharding.atomic import atomic_folder
    from sharding.cohort import read_cohort

    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    predictors, run_dirs = {}, {}
    for path in given.checkpoints:
        run_dir = path.resolve() if path.is_dir() else path.resolve().parent.parent
        if run_dir.name in predictors:
            raise ValueError(f"two checkpoints are named {run_dir.name}: rename a run folder")
        predictor = load_predictor(path, given.device)
        predictors[run_dir.name] = predictor.stitched(**vars(given.stitch))
        run_dirs[run_dir.name] = run_dir
    with atomic_folder(given.out, RESULTS_FILE, given.overwrite) as folder:
        volumes = folder / "volumes" if given.save_volumes else None
        evaluation = judge(predictors, specimens, given.split, volumes)
        text = write_evaluation(folder, evaluation, predictors, run_dirs)
    print(text)
    print(given.out / "report.html")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command
    for command in (phantom, simulate, shard, presets, train, predict, evaluate)
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


def _parse(name: str, command: type[Given], args: Sequence[str]) -> Given:
    return tyro.cli(command, args=list(args), prog=f"distsynth {name}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    return (
        "usage: distsynth COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\ndistsynth COMMAND --help tells more; distsynth --version tells the version"
    )


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:g}" for key, part in value.items())
    return "-" if value is None else str(value)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    _tell(f"distsynth: {message}")
    return status


if __name__ == "__main__":
    sys.exit(main())
