"""Packing: the records of cut specimens put together into shards of the target size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sharding.io.errors import DataError
from sharding.io.parallel import Failure, run_each
from sharding.io.records import STRICT
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.cut import PARTS
from sharding.shards.manifest import Manifest, ShardRecord, SpecimenSpan, shard_name
from sharding.volumes.cohort import SPLITS, Split

TAR_END = bytes(1024)
"""Two empty blocks close a tar."""


COPY_BYTES = 2**23
"""Records are copied in pieces of this size."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes of one specimen's records that are copied together.

    Attributes:
        specimen: Whose patches they hold.
        patches: How many.
        file: Name within the set of the file that holds them.
        offset: First byte within that file.
        bytes: How many bytes.
        key: The key of the cut specimen, which sums up all that the patches depend on.
    """

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
    pieces: tuple[ByteRange, ...]


@dataclass(frozen=True)
class _PackedShard:
    """What an unfinished set records about a finished shard."""

    __pydantic_config__ = STRICT

    plan: ShardPlan
    record: ShardRecord


_PACKED = TypeAdapter(_PackedShard)


def pack_shards(
    folder: Folder,
    pieces: Mapping[str, Sequence[ByteRange]],
    splits: Mapping[str, Split],
    old: Manifest | None,
    config: ShardConfig,
    workers: int,
    address: str | None,
) -> tuple[ShardRecord, ...]:
    """Write the shards that do not exist yet; return the records of all shards of the set."""
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
        # New names only: the old manifest stays valid until the new one replaces it.
        first = 1 + max((_number(shard) for shard in _of(old, split)), default=-1)
        groups = _grouped(loose, int(config.shard_mb * 2**20))
        plans += [
            ShardPlan(shard_name(split, number), split, tuple(group))
            for number, group in enumerate(groups, start=first)
        ]
    # One shard keeps a single machine's disk busy; a cluster shares the work.
    pack = partial(pack_shard, folder)
    for _, outcome in run_each(pack, plans, workers if address else 1, "packing shards", address):
        if isinstance(outcome, Failure):
            raise outcome
        records.append(outcome)
    order = {split: index for index, split in enumerate(SPLITS)}
    return tuple(sorted(records, key=lambda shard: (order[shard.split], shard.name)))


def _of(manifest: Manifest | None, split: Split) -> list[ShardRecord]:
    return [shard for shard in manifest.shards if shard.split == split] if manifest else []


def _number(shard: ShardRecord) -> int:
    return int(re.findall(r"\d+", shard.name)[-1])


def _stays(
    shard: ShardRecord, pieces: Mapping[str, Sequence[ByteRange]], splits: Mapping[str, Split]
) -> bool:
    """Whether all patches of a finished shard belong to the new set, in the same split."""
    return all(
        splits.get(span.specimen) == shard.split
        and any(piece.file == shard.name for piece in pieces.get(span.specimen, ()))
        for span in shard.spans
    )


def _grouped(pieces: Sequence[ByteRange], limit: int) -> Iterator[list[ByteRange]]:
    """Group consecutive ranges so that no group exceeds the limit, in bytes."""
    group: list[ByteRange] = []
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
    """Write one shard, unless an interrupted run has written it already."""
    note = f"{PARTS}/shards/{Path(plan.name).stem}.json"
    if folder.exists(note):
        try:
            packed = _PACKED.validate_json(folder.read(note))
        except ValidationError:
            packed = None
        if packed and packed.plan == plan and folder.size(plan.name) == packed.record.bytes:
            return packed.record
        # It does not describe the shard that is written now.
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
            spans.append(SpecimenSpan(name, patches, start, offset - start))
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


def _content(folder: Folder, piece: ByteRange) -> Iterator[bytes]:
    """The bytes of a range, some megabytes at a time."""
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
