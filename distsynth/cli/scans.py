"""The commands that go from scans to shards."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Cohort, Out, parse, tell
from sharding.io.errors import CohortError, DataError


def phantom(args: Sequence[str]) -> None:
    """make a cohort of phantom specimens with simulated sources"""
    from sharding.simulation.phantom import write_phantom_cohort
    from sharding.simulation.simulate import SimulationConfig

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

    given = parse("phantom", Phantom, args)
    seed = given.simulation.seed
    print(
        write_phantom_cohort(
            given.out, given.specimens, given.shape, seed, given.simulation, given.overwrite
        )
    )


def simulate(args: Sequence[str]) -> None:
    """make a low-field source for every target of a cohort"""
    from sharding.simulation.simulate import SimulationConfig, simulate_cohort
    from sharding.volumes.cohort import read_cohort

    @dataclass(frozen=True)
    class Simulate:
        """Make a low-field source for every target of a cohort; sharding/simulation tells how."""

        cohort: Positional[Cohort]
        out: Out
        """Folder for the sources, a record of what was applied to each, and a cohort.csv."""
        simulation: Annotated[SimulationConfig, arg(name="")] = field(
            default_factory=SimulationConfig
        )
        target_pattern: str | None = None
        """For a BIDS folder: glob of the target below each subject."""
        overwrite: bool = False

    given = parse("simulate", Simulate, args)
    specimens = read_cohort(given.cohort, target_pattern=given.target_pattern)
    print(simulate_cohort(specimens, given.out, given.simulation, given.overwrite))


def prepare(args: Sequence[str]) -> None:
    """correct and register raw scans"""
    from sharding.registration.config import PrepareConfig
    from sharding.registration.prepare import prepare_cohort
    from sharding.volumes.cohort import read_cohort

    @dataclass(frozen=True)
    class Prepare:
        """Bias correction, intensities, registration: from raw scans to aligned pairs.

        What is finished is kept: started again, only what is missing or has changed is done.
        """

        cohort: Positional[Cohort]
        out: Out
        """Folder for the prepared volumes, transforms, cohort.csv, quality.json, quality.html."""
        config: Annotated[PrepareConfig, arg(name="")] = field(default_factory=PrepareConfig)
        source_pattern: str | None = None
        """For a BIDS folder: glob of the source below each subject."""
        target_pattern: str | None = None
        """Likewise for the target."""
        workers: int = 0
        """Processes; 0 takes one a core."""
        address: str | None = None
        """Ray cluster that does the work, such as auto; it must share this file system."""

    given = parse("prepare", Prepare, args)
    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    done = prepare_cohort(specimens, given.out, given.config, given.workers, given.address)
    for name, reasons in done.flags.items():
        tell(f"look at {name}: {'; '.join(reasons)}")
    if done.specimens:
        print(given.out / "cohort.csv")
    print(given.out / "quality.html")
    if done.failures:
        remedy = "Mend them and run the same again; cohort.csv lists the rest"
        raise CohortError(given.out, done.failures, len(specimens), remedy)


def correct(args: Sequence[str]) -> None:
    """remove the bias field of one volume"""
    from sharding.registration.bias_correction import CorrectConfig, correct_bias
    from sharding.volumes.masks import read_mask
    from sharding.volumes.volume import read_volume, write_volume

    @dataclass(frozen=True)
    class Correct:
        """Remove the bias field of one volume: what `prepare` does to those it pairs.

        A model that was trained on corrected scans predicts from corrected scans.
        """

        volume: Positional[Path]
        """A NIfTI file."""
        out: Out
        """NIfTI file to write."""
        mask: Path | None = None
        """Where to fit the field; foreground is found if there is none."""
        config: Annotated[CorrectConfig, arg(name="")] = field(default_factory=CorrectConfig)
        overwrite: bool = False

    given = parse("correct", Correct, args)
    _refuse_existing(given.out, given.overwrite)
    volume = read_volume(given.volume)
    mask = read_mask(given.mask, volume) if given.mask else None
    corrected, _ = correct_bias(volume, given.config, mask)
    write_volume(given.out, corrected)
    print(given.out)


def carry_back(args: Sequence[str]) -> None:
    """bring a prediction to the scanner's space"""
    from sharding.registration.carry_back import carry_back as carry

    @dataclass(frozen=True)
    class CarryBack:
        """Bring a volume in the space of a prepared target, such as a prediction, to the source's.

        The result lies where the raw source lies, in the scanner that took it.
        """

        specimen: Positional[Path]
        """The specimen's folder, which `prepare` wrote."""
        volume: Positional[Path]
        """A NIfTI file in the space of the target."""
        out: Out
        """NIfTI file to write."""
        like: Path | None = None
        """Write on the grid of this volume; else the source's field of view in fine voxels."""
        overwrite: bool = False

    given = parse("carry-back", CarryBack, args)
    carry(given.specimen, given.volume, given.out, given.like, given.overwrite)
    print(given.out)


def shard(args: Sequence[str]) -> None:
    """cut a cohort into shards of patches"""
    from sharding.shards.config import ShardConfig
    from sharding.shards.write import write_shards
    from sharding.volumes.cohort import SPLITS, read_cohort

    @dataclass(frozen=True)
    class Shard:
        """Cut a cohort into shards of patches.

        Killed at any moment and started again, it does only what was not finished.
        """

        cohort: Positional[Cohort]
        out: Annotated[str, arg(aliases=["-o"])]
        """Folder of the shard set: a path, or a URL such as s3://bucket/shards."""
        config: Annotated[ShardConfig, arg(name="")] = field(default_factory=ShardConfig)
        source_pattern: str | None = None
        """For a BIDS folder: glob of the source below each subject."""
        target_pattern: str | None = None
        """Likewise for the target."""
        workers: int = 0
        """Processes, or tasks at a time on a cluster; 0 takes one a core."""
        address: str | None = None
        """Ray cluster that does the work, such as auto; it must reach the scans and the output."""
        update: bool = False
        """Bring a finished set to this cohort: specimens are added, dropped or change their split;
        patches that stay are not cut again."""
        skip_failed: bool = False
        """Finish the set without the specimens that fail; the exit status tells."""
        overwrite: bool = False
        """Replace a finished set."""

    given = parse("shard", Shard, args)
    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    done = write_shards(
        specimens,
        given.out,
        given.config,
        given.workers,
        given.overwrite,
        given.update,
        given.skip_failed,
        given.address,
    )
    manifest = done.manifest
    for split in SPLITS:
        tell(f"{split}: {len(manifest.names(split))} specimens, {manifest.patches(split)} patches")
    print(given.out)
    if done.failures:
        remedy = "The set is finished without them; add them by --update when they are mended"
        raise CohortError(given.out, done.failures, len(specimens), remedy)


def verify(args: Sequence[str]) -> None:
    """check every checksum, count and specimen of a shard set"""
    from sharding.shards.shard_set import ShardSet
    from sharding.shards.verify import verify as find_faults

    @dataclass(frozen=True)
    class Verify:
        """Check every checksum, count, split and specimen of a shard set; name what is wrong."""

        shards: Positional[str]
        """Folder of the set: a path or a URL."""

    given = parse("verify", Verify, args)
    shards = ShardSet(given.shards, check_sizes=False)
    if faults := find_faults(shards):
        for fault in faults:
            tell(str(fault))
        raise DataError(given.shards, f"{len(faults)} faults in this shard set", "See above")
    count = len(shards.manifest.shards)
    print(f"{given.shards}: {count} shards of {len(shards.manifest.specimens)} specimens are sound")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise DataError(path, "the file exists already", "Give --overwrite or another name")
