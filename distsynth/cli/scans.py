"""The commands that go from scans to shards."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from distsynth.cli.arguments import (
    Address,
    Cohort,
    Out,
    OutUrl,
    SourcePattern,
    TargetPattern,
    Volume,
    option,
    parse,
)
from distsynth.cli.continuing import continued_by
from distsynth.errors import ConfigError, check_workers
from sharding.io.errors import CohortError, DataError

if TYPE_CHECKING:
    from sharding.shards.config import ShardConfig

logger = logging.getLogger(__name__)


def phantom(args: Sequence[str]) -> None:
    """make a cohort of phantom specimens with simulated low-field sources"""
    from sharding.simulation.simulate import SimulationConfig

    @dataclass(frozen=True)
    class Phantom:
        """Make a cohort of phantom specimens with simulated low-field sources.

        distsynth phantom cohort --specimens 6 --shape 64 64 48
        """

        out: Positional[Annotated[Path, arg(metavar="OUT")]]
        """Folder to write to."""
        specimens: int = 8
        """How many."""
        shape: tuple[int, int, int] = (96, 96, 80)
        """Voxels along each axis of a target."""
        simulation: SimulationConfig = field(default_factory=SimulationConfig)
        overwrite: bool = False
        """Replace files of an earlier call."""

    given = parse("phantom", Phantom, args)
    # Here, so that the help need not wait for torch.
    from distsynth.api import make_phantoms

    make_phantoms(
        given.out,
        given.specimens,
        given.shape,
        simulation=given.simulation,
        overwrite=given.overwrite,
    )
    print(given.out / "cohort.csv")


def simulate(args: Sequence[str]) -> None:
    """simulate a low-field source for every target of a cohort"""
    from sharding.simulation.simulate import SimulationConfig, simulate_cohort

    @dataclass(frozen=True)
    class Simulate:
        """Simulate a low-field source for every target of a cohort.

            distsynth simulate targets.csv -o simulated --factor 2 --noise 0.02

        The model is described in sharding/simulation/simulate.py.
        """

        cohort: Positional[Cohort]
        out: Out
        """Folder for the sources, a record of what was applied to each, and a cohort.csv."""
        simulation: Annotated[SimulationConfig, arg(name="")] = field(
            default_factory=SimulationConfig
        )
        target_pattern: TargetPattern = None
        overwrite: bool = False
        """Replace files of an earlier call."""

    given = parse("simulate", Simulate, args)
    from sharding.volumes.cohort import read_cohort

    specimens = read_cohort(given.cohort, target_pattern=given.target_pattern)
    print(simulate_cohort(specimens, given.out, given.simulation, given.overwrite))


def prepare(args: Sequence[str]) -> None:
    """correct the bias of raw scans and register them"""
    from sharding.registration.config import PrepareConfig

    @dataclass(frozen=True)
    class Prepare:
        """Turn raw scans into aligned pairs: bias correction, intensities, registration.

            distsynth prepare cohort.csv -o prepared
            distsynth prepare cohort.csv -o prepared --steps correct scale rigid resample

        Finished steps are kept: run it again, and only what is missing or has changed is done.
        """

        cohort: Positional[Cohort]
        out: Out
        """Folder for the prepared volumes, transforms, cohort.csv, quality.json, quality.html."""
        config: Annotated[PrepareConfig, arg(name="")] = field(default_factory=PrepareConfig)
        source_pattern: SourcePattern = None
        target_pattern: TargetPattern = None
        workers: int = 0
        """Number of processes; 0 starts one for each core."""
        address: Address = None
        """Ray cluster to run on, such as auto; all of its nodes must share this file system."""

    given = parse("prepare", Prepare, args)
    from sharding.registration.prepare import prepare_cohort
    from sharding.volumes.cohort import read_cohort

    check_workers(given.workers)
    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    with continued_by("prepare", args):
        done = prepare_cohort(specimens, given.out, given.config, given.workers, given.address)
    for name, reasons in done.flags.items():
        logger.warning("check %s: %s", name, "; ".join(reasons))
    if done.specimens:
        print(given.out / "cohort.csv")
    print(given.out / "quality.html")
    if done.failures:
        remedy = "Fix these and run the same command again; cohort.csv lists the others"
        raise CohortError(given.out, done.failures, len(specimens), remedy)


def correct(args: Sequence[str]) -> None:
    """remove the bias field of one volume"""
    from sharding.registration.bias_correction import CorrectConfig

    @dataclass(frozen=True)
    class Correct:
        """Remove the bias field of one volume, as `prepare` does.

            distsynth correct scan.nii.gz -o corrected.nii.gz

        A model that was trained on corrected scans must predict from corrected scans.
        """

        volume: Positional[Volume]
        """A file, or the folder of a DICOM series or OME-Zarr."""
        out: Out
        """File to write: .nii.gz, .nii, .mgz, .mgh, .nrrd, .ome.zarr. If the volume is a DICOM
        series, a name without an ending is the folder of a DICOM series."""
        mask: Annotated[Path | None, arg(metavar="MASK")] = None
        """Mask in which the field is fitted; by default the foreground is estimated."""
        orientation: Literal["header", "array"] = "header"
        """array accepts a volume that has lost its orientation; the result then has none either."""
        keep_patient: bool = False
        """Copy patient and study of a DICOM source into a DICOM output, so that an archive files it
        beside the source. By default no field of a patient is copied."""
        config: Annotated[CorrectConfig, arg(name="")] = field(default_factory=CorrectConfig)
        overwrite: bool = False
        """Replace the file."""

    given = parse("correct", Correct, args)
    from sharding.registration.bias_correction import correct_bias
    from sharding.volumes.masks import read_mask
    from sharding.volumes.output import Output
    from sharding.volumes.volume import read_volume

    output = Output(given.out, given.volume, "corrected", given.keep_patient, given.overwrite)
    output.check()
    volume = read_volume(given.volume, orientation=given.orientation)
    output.check_grid(volume)
    mask = read_mask(given.mask, volume, given.orientation) if given.mask else None
    corrected, _ = correct_bias(volume, given.config, mask, given.volume)
    output.write(corrected)
    print(given.out)


def carry_back(args: Sequence[str]) -> None:
    """move a prediction into the space of the raw source"""

    @dataclass(frozen=True)
    class CarryBack:
        """Move a volume from the space of a prepared target into that of the raw source.

            distsynth carry-back prepared/m01 synthetic.nii.gz -o on_the_scan.nii.gz

        Use it to overlay a prediction on the scan as it came from the scanner.
        """

        specimen: Positional[Annotated[Path, arg(metavar="SPECIMEN")]]
        """Folder of the specimen within the output of `prepare`."""
        volume: Positional[Volume]
        """File or folder of a volume in the space of the target."""
        out: Out
        """File to write: .nii.gz, .nii, .mgz, .mgh, .nrrd, .ome.zarr. If the volume or `--like`
        is a DICOM series, a name without an ending is the folder of a DICOM series."""
        like: Annotated[Path | None, arg(metavar="VOLUME")] = None
        """Write on the grid of this volume; by default the source's field of view at the target's
        resolution."""
        orientation: Literal["header", "array"] = "header"
        """array accepts volumes that have lost their orientation."""
        keep_patient: bool = False
        """Copy patient and study of a DICOM source into a DICOM output, so that an archive files it
        beside the source. By default no field of a patient is copied."""
        overwrite: bool = False
        """Replace the file."""

    given = parse("carry-back", CarryBack, args)
    from sharding.registration.carry_back import carry_back as carry

    carry(
        given.specimen,
        given.volume,
        given.out,
        given.like,
        given.overwrite,
        given.orientation,
        given.keep_patient,
    )
    print(given.out)


def shard(args: Sequence[str]) -> None:
    """cut a cohort into shards of patches"""
    from sharding.shards.config import ShardConfig

    start = _blocks(option(args, "--for-preset")) or ShardConfig()

    @dataclass(frozen=True)
    class Shard:
        """Cut a cohort into shards of patches.

            distsynth shard cohort.csv -o shards
            distsynth shard cohort.csv -o blocks --for-preset best

        If it is interrupted, the same command continues with what is not finished yet.
        """

        cohort: Positional[Cohort]
        out: OutUrl
        """Folder of the shard set: a path, or a URL such as s3://bucket/shards."""
        for_preset: Annotated[str | None, arg(metavar="PRESET")] = None
        """Start from the blocks of a preset of three dimensions, such as best or gan-3d."""
        config: Annotated[ShardConfig, arg(name="")] = field(default_factory=lambda: start)
        source_pattern: SourcePattern = None
        target_pattern: TargetPattern = None
        workers: int = 0
        """Number of processes, or of concurrent tasks on a cluster; 0 starts one for each core."""
        address: Address = None
        """Ray cluster to run on, such as auto; its nodes must reach the scans and the output."""
        update: bool = False
        """Update a finished set to this cohort: specimens may be added, removed or moved to another
        split; the other patches are not cut again."""
        folds: int = 0
        """Write so many sets for cross-validation, OUT/fold-1 and so on: every specimen outside the
        test split validates in one of them and trains in the others. 0 writes one set."""
        skip_failed: bool = False
        """Finish the set without specimens that fail; the exit status is still 1."""
        overwrite: bool = False
        """Replace a finished set."""

    given = parse("shard", Shard, args)
    from sharding.shards.write import write_shards
    from sharding.volumes.cohort import SPLITS, read_cohort
    from sharding.volumes.splits import fold_splits

    check_workers(given.workers)
    specimens = read_cohort(given.cohort, given.source_pattern, given.target_pattern)
    sets = {given.out: specimens}
    if given.folds:
        sets = {
            f"{given.out.rstrip('/')}/fold-{fold}": fold_splits(
                specimens, given.folds, fold, given.config.seed
            )
            for fold in range(1, given.folds + 1)
        }
    failures: dict[str, str] = {}
    for out, rows in sets.items():
        with continued_by("shard", args):
            done = write_shards(
                rows,
                out,
                given.config,
                workers=given.workers,
                overwrite=given.overwrite,
                update=given.update,
                skip_failed=given.skip_failed,
                address=given.address,
            )
        manifest = done.manifest
        for split in SPLITS:
            names, patches = manifest.names(split), manifest.patches(split)
            logger.info("%s: %s, %d patches", split, _specimens(len(names)), patches)
        print(out)
        failures |= done.failures
    if failures:
        remedy = "The set is finished without them; fix them and add them with --update"
        raise CohortError(given.out, failures, len(specimens), remedy)


def _specimens(count: int) -> str:
    """Such as `2 specimens`."""
    return f"{count} specimen{'s' * (count != 1)}"


def _blocks(preset: str | None) -> "ShardConfig | None":
    """What to cut for a preset of three dimensions; None without one.

    Raises:
        ConfigError: If there is no such preset.
    """
    if preset is None:
        return None
    from distsynth.presets import BLOCKS

    if preset not in BLOCKS:
        raise ConfigError(f"--for-preset must be one of {', '.join(BLOCKS)}, got {preset}")
    return BLOCKS[preset]


def verify(args: Sequence[str]) -> None:
    """check every checksum, count and specimen of a shard set"""

    @dataclass(frozen=True)
    class Verify:
        """Check every checksum, count, split and specimen of a shard set and list all faults.

        distsynth verify shards
        """

        shards: Positional[Annotated[str, arg(metavar="SHARDS")]]
        """Folder of the set: a path or a URL."""

    given = parse("verify", Verify, args)
    from sharding.shards.shard_set import ShardSet
    from sharding.shards.verify import verify as find_faults

    shards = ShardSet(given.shards, check_sizes=False)
    if faults := find_faults(shards):
        for fault in faults:
            logger.error(str(fault))
        count = len(faults)
        rule = f"{count} fault{'s' * (count > 1)} in this shard set"
        raise DataError(given.shards, rule, "Fix those listed above or cut the set again")
    count = len(shards.manifest.shards)
    print(
        f"{given.shards}: {count} shards of {_specimens(len(shards.manifest.specimens))} are intact"
    )
