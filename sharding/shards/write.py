"""From a cohort to a shard set: in parallel, resumable, the same bytes whoever does it.

1. Every specimen is read once and cut into a part of its own (sharding.shards.cut).
2. Parts are put together, in the order of their names, into shards of the target size.
3. The manifest closes the set; only now can it be opened.

Each file appears whole, so that a run killed at any moment and started again redoes only what was
not finished. Parts and shards do not depend on who wrote them, nor in which order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sharding.io.atomic import sweep
from sharding.io.errors import CohortError, DataError
from sharding.io.parallel import run_each
from sharding.io.records import STRICT
from sharding.io.storage import Folder
from sharding.shards.cut import (
    PARTS,
    CutTask,
    Part,
    cut_specimen,
    inputs_sha256,
    part_file,
    part_key,
)
from sharding.shards.format import (
    MANIFEST,
    SHARD_NAME,
    Manifest,
    ShardConfig,
    ShardRecord,
    Span,
    SpecimenRecord,
    check_manifest,
    check_no_leak,
    mask_name,
    read_manifest,
    shard_name,
)
from sharding.volumes.cohort import SPLITS, Specimen, Split, assign_splits, extend_splits

TAR_END = bytes(1024)
"""Two empty blocks close a tar."""
COPY_BYTES = 2**23
MAY_DIFFER = ("shard_mb", "fractions")
"""Fields of ShardConfig that may change when a set is updated: no patch depends on them."""

REPLACING = f"{PARTS}/replacing"
"""Marks a set that is being removed."""
LEFT_OUT = "left out by an earlier run: --update tries it again"


@dataclass(frozen=True)
class Sharded:
    """What came of a cohort.

    Attributes:
        manifest: Of the finished set.
        failures: Specimens left out, with the reason.
    """

    manifest: Manifest
    failures: dict[str, str]


@dataclass(frozen=True)
class Piece:
    """Bytes of one specimen's records that stay together: a record of a part, or an old span."""

    __pydantic_config__ = STRICT

    specimen: str
    patches: int
    file: str
    offset: int
    bytes: int
    key: str


@dataclass(frozen=True)
class ShardPlan:
    """A shard to put together."""

    __pydantic_config__ = STRICT

    name: str
    split: Split
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class _PackedShard:
    """What an unfinished set keeps of a finished shard."""

    __pydantic_config__ = STRICT

    plan: ShardPlan
    record: ShardRecord


_PACKED = TypeAdapter(_PackedShard)


def write_shards(
    specimens: Sequence[Specimen],
    out: str | Path,
    config: ShardConfig,
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
        CohortError: If specimens fail, unless they are skipped. What was cut is kept: the next
            run goes on from there.
        DataError: If `out` holds another set or something else, another run writes to it, or two
            specimens hold the same scan.
    """
    folder = Folder(out)
    if address:
        # Tasks of a cluster have working folders of their own.
        folder = Folder(folder.local.resolve()) if folder.local else folder
        specimens = [specimen.resolved() for specimen in specimens]
    with folder.lock():
        if overwrite:
            # A cohort that is refused must not cost the old set.
            _splits(specimens, config, None)
        old = _open_folder(folder, overwrite)
        if old and update:
            _check_same_config(folder, old, config)
        splits = _splits(specimens, config, old if update else None)
        tasks = [
            CutTask(row, splits[row.name], folder, config, _known(row.name, old))
            for row in sorted(specimens, key=lambda row: row.name)
        ]
        if old and not update:
            manifest = _same_set(folder, old, tasks, skip_failed)
            return Sharded(manifest, dict.fromkeys(manifest.left_out, LEFT_OUT))
        records, pieces, failures = _cut(tasks, old, workers, skip_failed, address)
        _check_one_orientation(records)
        check_no_leak(folder.url, Manifest(config, records, ()))
        for split in SPLITS:
            if not any(record.split == split for record in records):
                raise DataError(folder.url, f"no specimen is left in {split}", "Mend the failures")
        shards = _pack(folder, pieces, splits, old, config, workers, address)
        manifest = Manifest(config, records, shards, tuple(sorted(failures)))
        check_manifest(folder / MANIFEST, manifest)
        folder.write(MANIFEST, manifest.to_json())
        _remove_leftovers(folder, manifest)
    return Sharded(manifest, failures)


def _open_folder(folder: Folder, overwrite: bool) -> Manifest | None:
    """The finished set that the folder holds, if any; refuse what is nothing of ours."""
    names = folder.names()
    ours = MANIFEST in names or any(name.startswith(f"{PARTS}/") for name in names)
    if names and not ours:
        rule = f"exists and holds no {MANIFEST}, so it is nothing of ours to write to"
        raise DataError(folder.url, rule, "Give another folder")
    if folder.local:
        sweep(folder.local)
    if MANIFEST in names and not overwrite:
        return read_manifest(folder)
    if MANIFEST in names or REPLACING in names:
        # First marked as ours, for without a manifest nothing else may tell it; the manifest goes
        # before the others: a set without one cannot be opened, whatever else is left of it.
        folder.write(REPLACING, "")
        old = [name for name in names if name not in (MANIFEST, REPLACING)]
        for name in (MANIFEST, *old, REPLACING):
            folder.remove(name)
    return None


def _check_same_config(folder: Folder, old: Manifest, config: ShardConfig) -> None:
    for name, value in vars(config).items():
        before = getattr(old.config, name)
        if name not in MAY_DIFFER and before != value:
            raise DataError(
                folder.url,
                f"{name} must be {before} as in the set, got {value}: patches cut in another way "
                "cannot stand beside the old ones",
                "Give the same value, or shard into another folder",
            )


def _splits(
    specimens: Sequence[Specimen], config: ShardConfig, old: Manifest | None
) -> dict[str, Split]:
    """The split of each specimen; in an update those of the set keep theirs unless told."""
    if old is None:
        return assign_splits(specimens, config.fractions, config.seed)
    before: dict[str, Split] = {row.name: row.split for row in old.specimens}
    return extend_splits(specimens, before, config.fractions, config.seed)


def _known(name: str, old: Manifest | None) -> str | None:
    """Key of the patches that the set holds of a specimen."""
    record = _record_of(name, old)
    if old is None or record is None:
        return None
    return part_key(name, record.split, record.inputs_sha256, old.config)


def _record_of(name: str, manifest: Manifest | None) -> SpecimenRecord | None:
    rows = manifest.specimens if manifest else ()
    return next((row for row in rows if row.name == name), None)


def _same_set(
    folder: Folder, old: Manifest, tasks: Sequence[CutTask], skip_failed: bool
) -> Manifest:
    """The finished set, if it is what this cohort would give; run again by a batch system, say.

    Raises:
        DataError: If it is not.
    """
    if skip_failed:
        tasks = [task for task in tasks if task.specimen.name not in old.left_out]
    now = {task.specimen.name: task.split for task in tasks}
    same = now == {row.name: row.split for row in old.specimens}
    if same and old.config == tasks[0].config:
        unchanged = all(_is_unchanged(task) for task in tasks)
        if unchanged:
            _remove_leftovers(folder, old)
            return old
    raise DataError(
        folder.url,
        "the folder holds a finished shard set of another cohort or configuration",
        "Give --update to bring it to this cohort, --overwrite to replace it, or another folder",
    )


def _is_unchanged(task: CutTask) -> bool:
    inputs = inputs_sha256(task.specimen)
    return part_key(task.specimen.name, task.split, inputs, task.config) == task.known


def _cut(
    tasks: Sequence[CutTask],
    old: Manifest | None,
    workers: int,
    skip_failed: bool,
    address: str | None,
) -> tuple[tuple[SpecimenRecord, ...], dict[str, list[Piece]], dict[str, str]]:
    """Cut all specimens; return their records, their pieces and what failed."""
    records: dict[str, SpecimenRecord] = {}
    pieces: dict[str, list[Piece]] = {}
    failures: dict[str, str] = {}
    for task, outcome in run_each(cut_specimen, tasks, workers, "cutting patches", address):
        name = task.specimen.name
        if isinstance(outcome, Exception):
            kind = "" if isinstance(outcome, DataError) else f"{type(outcome).__name__}: "
            failures[name] = f"{kind}{outcome}"
        elif outcome is None:
            records[name] = replace(_held(name, old), split=task.split)
            pieces[name] = list(_old_pieces(name, old, str(task.known)))
        else:
            records[name] = replace(outcome.specimen, split=task.split)
            pieces[name] = list(_new_pieces(name, outcome))
    if failures and not skip_failed:
        raise CohortError(
            tasks[0].folder.url,
            failures,
            len(tasks),
            "Mend them and run the same again, which cuts only what is missing; or give "
            "--skip-failed to close the set without them",
        )
    return tuple(records[name] for name in sorted(records)), pieces, failures


def _held(name: str, old: Manifest | None) -> SpecimenRecord:
    record = _record_of(name, old)
    assert record is not None, name
    return record


def _old_pieces(name: str, old: Manifest | None, key: str) -> Iterator[Piece]:
    for shard in old.shards if old else ():
        for span in shard.spans:
            if span.specimen == name:
                yield Piece(name, span.patches, shard.name, span.offset, span.bytes, key)


def _new_pieces(name: str, part: Part) -> Iterator[Piece]:
    offset = 0
    for patches, size in part.records:
        yield Piece(name, patches, part_file(name), offset, size, part.key)
        offset += size


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


def _pack(
    folder: Folder,
    pieces: Mapping[str, Sequence[Piece]],
    splits: Mapping[str, Split],
    old: Manifest | None,
    config: ShardConfig,
    workers: int,
    address: str | None,
) -> tuple[ShardRecord, ...]:
    """Write the shards that are not there yet; return all of the set."""
    records = [shard for shard in old.shards if _stays(shard, pieces, splits)] if old else []
    there = {shard.name for shard in records}
    plans = []
    for split in SPLITS:
        loose = [
            piece
            for name in sorted(pieces)
            if splits[name] == split
            for piece in pieces[name]
            if piece.file not in there
        ]
        # New names only: the old manifest is valid until the new one takes its place.
        first = 1 + max((_number(shard) for shard in _of(old, split)), default=-1)
        groups = _grouped(loose, int(config.shard_mb * 2**20))
        plans += [
            ShardPlan(shard_name(split, number), split, tuple(group))
            for number, group in enumerate(groups, start=first)
        ]
    # On one machine a disk is busy with one shard; a cluster shares the work.
    pack = partial(pack_shard, folder)
    for _, outcome in run_each(pack, plans, workers if address else 1, "packing shards", address):
        if isinstance(outcome, Exception):
            raise outcome
        records.append(outcome)
    order = {split: index for index, split in enumerate(SPLITS)}
    return tuple(sorted(records, key=lambda shard: (order[shard.split], shard.name)))


def _of(manifest: Manifest | None, split: Split) -> list[ShardRecord]:
    return [shard for shard in manifest.shards if shard.split == split] if manifest else []


def _number(shard: ShardRecord) -> int:
    return int(re.findall(r"\d+", shard.name)[-1])


def _stays(
    shard: ShardRecord, pieces: Mapping[str, Sequence[Piece]], splits: Mapping[str, Split]
) -> bool:
    """Whether all patches of a finished shard stay where they are."""
    return all(
        splits.get(span.specimen) == shard.split
        and any(piece.file == shard.name for piece in pieces.get(span.specimen, ()))
        for span in shard.spans
    )


def _grouped(pieces: Sequence[Piece], limit: int) -> Iterator[list[Piece]]:
    """Pieces put together as long as they do not exceed the limit, in bytes."""
    group: list[Piece] = []
    size = len(TAR_END)
    for piece in pieces:
        if group and size + piece.bytes > limit:
            yield group
            group, size = [], len(TAR_END)
        group.append(piece)
        size += piece.bytes
    if group:
        yield group


def pack_shard(folder: Folder, plan: ShardPlan) -> ShardRecord:
    """Put a shard together, unless an interrupted run has done so."""
    note = f"{PARTS}/shards/{Path(plan.name).stem}.json"
    if folder.exists(note):
        try:
            packed = _PACKED.validate_json(folder.read(note))
        except ValidationError:
            packed = None
        if packed and packed.plan == plan and folder.size(plan.name) == packed.record.bytes:
            return packed.record
        # It does not describe what is written now.
        folder.remove(note)
    digest, offset = hashlib.sha256(), 0
    spans = []
    with folder.writer(plan.name) as path, path.open("wb") as file:
        for name, pieces in groupby(plan.pieces, key=lambda piece: piece.specimen):
            start, patches = offset, 0
            for piece in pieces:
                for content in _content(folder, piece):
                    digest.update(content)
                    file.write(content)
                offset += piece.bytes
                patches += piece.patches
            spans.append(Span(name, patches, start, offset - start))
        digest.update(TAR_END)
        file.write(TAR_END)
    record = ShardRecord(
        plan.name,
        plan.split,
        sum(span.patches for span in spans),
        offset + len(TAR_END),
        digest.hexdigest(),
        tuple(spans),
    )
    folder.write(note, _PACKED.dump_json(_PackedShard(plan, record)).decode())
    return record


def _content(folder: Folder, piece: Piece) -> Iterator[bytes]:
    """The bytes of a piece, some megabytes at a time."""
    end = piece.offset + piece.bytes
    if folder.local is None:
        for start in range(piece.offset, end, COPY_BYTES):
            yield folder.read_range(piece.file, start, min(COPY_BYTES, end - start))
        return
    with (folder.local / piece.file).open("rb") as file:
        file.seek(piece.offset)
        left = piece.bytes
        while left:
            content = file.read(min(COPY_BYTES, left))
            if not content:
                raise DataError(folder / piece.file, "is cut short", "Shard the cohort again")
            left -= len(content)
            yield content


def _remove_leftovers(folder: Folder, manifest: Manifest) -> None:
    """Remove parts, and shards and masks of ours that the manifest does not name."""
    kept = {MANIFEST, *(shard.name for shard in manifest.shards)}
    kept |= {mask_name(row.name, row.mask_sha256) for row in manifest.specimens if row.mask_sha256}
    for name in folder.names():
        ours = name.startswith((f"{PARTS}/", "masks/")) or SHARD_NAME.fullmatch(name)
        if ours and name not in kept:
            folder.remove(name)
    if folder.local:
        # A node of the cluster that was lost may have left something unfinished.
        sweep(folder.local)
        for path in (*(folder.local / PARTS).glob("*"), folder.local / PARTS):
            if path.is_dir():
                path.rmdir()
