"""From a cohort to a shard set, in parallel and resumable.

1. Every specimen is read once and cut into a file of its own (sharding.shards.cut).
2. These are packed, in the order of their names, into shards of the target size
   (sharding.shards.packing).
3. The manifest is written last; only then can the set be opened.

Files appear complete or not at all, so a run that is killed at any moment and started again redoes
only what was not finished. No byte depends on which process wrote it, nor on the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sharding.io.atomic import remove_leftovers
from sharding.io.errors import CohortError, DataError, cause
from sharding.io.lease import lease
from sharding.io.parallel import Failure, run_each
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.cut import PARTS, CutSpecimen, CutTask, cut_specimen, part_file
from sharding.shards.manifest import (
    MANIFEST,
    SHARD_NAME,
    Manifest,
    SpecimenRecord,
    check_manifest,
    check_no_leak,
    mask_name,
    read_manifest,
)
from sharding.shards.packing import ByteRange, pack_shards
from sharding.shards.update import (
    check_same_config,
    check_same_set,
    choose_splits,
    held_ranges,
    held_record,
    known_key,
)
from sharding.volumes.cohort import SPLITS, Specimen
from sharding.volumes.contrasts import common_contrasts, in_words
from sharding.volumes.grid import same_spacing

REPLACING = f"{PARTS}/replacing"
"""Marks a set that is being removed."""
LEFT_OUT = "left out by an earlier run: --update tries it again"


@dataclass(frozen=True)
class Sharded:
    """The outcome of sharding a cohort.

    Attributes:
        manifest: The manifest of the finished set.
        failures: Specimens left out, with the reason.
    """

    manifest: Manifest
    failures: dict[str, str]


def write_shards(
    specimens: Sequence[Specimen],
    out: str | Path,
    config: ShardConfig,
    *,
    workers: int = 0,
    overwrite: bool = False,
    update: bool = False,
    skip_failed: bool = False,
    address: str | None = None,
) -> Sharded:
    """Cut a cohort into a shard set, or finish one that was interrupted.

    Args:
        specimens: The cohort, with sources.
        out: Folder of the set: a path, or a URL that fsspec knows.
        config: What to cut and how to pack it.
        workers: Processes, or tasks of the cluster; 0 takes one a core.
        overwrite: Remove a finished set first; a folder that is no shard set is never touched.
        update: Bring a finished set to this cohort: specimens are added, dropped or change their
            split. Patches that stay are not cut again, and shards of which all patches stay are
            not touched.
        skip_failed: Close the set without the specimens that fail.
        address: A Ray cluster that does the work; `out` and the scans must be reachable from all
            of its nodes under the same names. None stays on this machine.

    Returns:
        The manifest and the failures. A finished set of the same cohort is returned as it is.

    Raises:
        CohortError: If specimens fail, unless they are skipped. What was cut is kept, and the
            next run continues from there.
        DataError: If `out` holds another set or something else, another process writes to it, two
            specimens hold the same scan, or not all have the same contrasts.
    """
    folder = Folder(out)
    contrasts = common_contrasts(specimens)
    if address:
        # Tasks of a cluster have their own working folders.
        folder = Folder(folder.local.resolve()) if folder.local else folder
        specimens = [specimen.resolved() for specimen in specimens]
    with lease(folder.url):
        if overwrite:
            # A cohort that is refused must not destroy the old set.
            choose_splits(specimens, config, None)
        old = _open_folder(folder, overwrite)
        if old and update:
            check_same_config(folder, old, config)
            if old.contrasts != contrasts:
                rule = f"the set holds {in_words(old.contrasts)}, the cohort {in_words(contrasts)}"
                raise DataError(folder.url, rule, "Shard into another folder")
        splits = choose_splits(specimens, config, old if update else None)
        tasks = [
            CutTask(row, splits[row.name], folder, config, known_key(row.name, old))
            for row in sorted(specimens, key=lambda row: row.name)
        ]
        if old and not update:
            manifest = check_same_set(folder, old, tasks, skip_failed)
            remove_unlisted(folder, manifest)
            return Sharded(manifest, dict.fromkeys(manifest.left_out, LEFT_OUT))
        records, pieces, failures = _cut(tasks, old, workers, skip_failed, address)
        _check_one_orientation(records)
        _check_one_spacing(folder.url, records)
        check_no_leak(folder.url, Manifest(config, records, ()))
        for split in sorted(set(splits.values()), key=SPLITS.index):
            if not any(record.split == split for record in records):
                raise DataError(
                    folder.url, f"no specimen is left in {split}", "Correct what failed"
                )
        shards = pack_shards(folder, pieces, splits, old, config, workers, address)
        failed = tuple(sorted(failures))
        manifest = Manifest(config, records, shards, failed, contrasts=contrasts)
        check_manifest(folder / MANIFEST, manifest)
        folder.write(MANIFEST, manifest.to_json())
        remove_unlisted(folder, manifest)
    return Sharded(manifest, failures)


def _open_folder(folder: Folder, overwrite: bool) -> Manifest | None:
    """Return the finished set that the folder holds, if any; refuse a folder of anything else."""
    names = folder.names()
    ours = MANIFEST in names or any(name.startswith(f"{PARTS}/") for name in names)
    if names and not ours:
        rule = f"exists and holds no {MANIFEST}, so this program did not write it"
        raise DataError(folder.url, rule, "Give another folder")
    if folder.local:
        remove_leftovers(folder.local, recursive=True)
    if MANIFEST in names and not overwrite:
        return read_manifest(folder)
    if MANIFEST in names or REPLACING in names:
        # The mark comes first: without a manifest, nothing else identifies a shard set. The
        # manifest is removed before the rest, so that a set that is being removed cannot be opened.
        folder.write(REPLACING, "")
        old = [name for name in names if name not in (MANIFEST, REPLACING)]
        for name in (MANIFEST, *old, REPLACING):
            folder.remove(name)
    return None


def _cut(
    tasks: Sequence[CutTask],
    old: Manifest | None,
    workers: int,
    skip_failed: bool,
    address: str | None,
) -> tuple[tuple[SpecimenRecord, ...], dict[str, list[ByteRange]], dict[str, str]]:
    """Cut all specimens; return their records, the ranges of their bytes, and what failed."""
    records: dict[str, SpecimenRecord] = {}
    pieces: dict[str, list[ByteRange]] = {}
    failures: dict[str, str] = {}
    for task, outcome in run_each(cut_specimen, tasks, workers, "cutting patches", address):
        name = task.specimen.name
        if isinstance(outcome, Failure):
            failures[name] = cause(outcome)
        elif outcome is None:
            records[name] = replace(held_record(name, old), split=task.split)
            pieces[name] = list(held_ranges(name, old, str(task.known)))
        else:
            records[name] = replace(outcome.specimen, split=task.split)
            pieces[name] = list(_cut_ranges(name, outcome))
    if failures and not skip_failed:
        raise CohortError(
            tasks[0].folder.url,
            failures,
            len(tasks),
            "Correct them and run the same command again, which cuts only what is missing; or give "
            "--skip-failed to close the set without them",
        )
    return tuple(records[name] for name in sorted(records)), pieces, failures


def _cut_ranges(name: str, part: CutSpecimen) -> Iterator[ByteRange]:
    offset = 0
    for patches, size in part.records:
        yield ByteRange(name, patches, part_file(name), offset, size, part.key)
        offset += size


def _check_one_spacing(where: str, records: Sequence[SpecimenRecord]) -> None:
    """Refuse targets of several voxel sizes: a network learns one, and predicts on one."""
    groups: list[list[SpecimenRecord]] = []
    for row in records:
        for group in groups:
            if same_spacing(row.spacing_mm, group[0].spacing_mm):
                group.append(row)
                break
        else:
            groups.append([row])
    if len(groups) < 2:
        return
    found = "".join(
        f"\n  {'x'.join(f'{side:.4g}' for side in group[0].spacing_mm)} mm: "
        + ", ".join(row.name for row in group)
        for group in groups
    )
    raise DataError(
        where,
        f"targets must have one voxel size, found {len(groups)}:{found}",
        "Leave the others out, or give --preprocess.target-spacing-mm to resample all to one",
    )


def _check_one_orientation(records: Sequence[SpecimenRecord]) -> None:
    """Slicing axes mean the same in every volume only if all point the same way."""
    if not records:
        return
    first = records[0]
    for row in records:
        if row.orientation != first.orientation:
            raise DataError(
                row.name,
                f"targets must share one orientation: {first.name} is {first.orientation}, this "
                f"one is {row.orientation}",
                "Reorient the volumes to one convention, such as RAS",
            )


def remove_unlisted(folder: Folder, manifest: Manifest) -> None:
    """Remove unpacked records, and shards and masks that the manifest does not list."""
    kept = {MANIFEST, *(shard.name for shard in manifest.shards)}
    kept |= {mask_name(row.name, row.mask_sha256) for row in manifest.specimens}
    for name in folder.names():
        known = name.startswith((f"{PARTS}/", "masks/")) or SHARD_NAME.fullmatch(name)
        if known and name not in kept:
            folder.remove(name)
    if folder.local:
        # A node of the cluster that was lost may have left unfinished files.
        remove_leftovers(folder.local, recursive=True)
        for path in (*(folder.local / PARTS).glob("*"), folder.local / PARTS):
            if path.is_dir():
                path.rmdir()
